"""Responses as HTML, each token coloured by its log-ratio."""

import html
from collections.abc import Callable

import numpy as np

# Blue where the learner gives a token less than the sampler did, orange where more.
_LESS, _MORE = (0, 114, 178), (213, 94, 0)


def transcript(
  tokens,
  sampler_logp,
  old_logp,
  mask,
  *,
  text: Callable[[int], str] = str,
  rows: int = 8,
  full: float = 1.0,
) -> str:
  """A piece of HTML: the rows with the largest log-ratio, a coloured box a token.

  A token's title has both log-probs; what is not in the mask is grey.

  Args:
    tokens: int `[B, T]`.
    sampler_logp: `[B, T]` log mu.
    old_logp: `[B, T]` log pi.
    mask: `[B, T]` bool.
    text: the text of an id, such as `lambda i: tokenizer.decode([i])`.
    rows: how many rows are shown.
    full: nats at which the colour is full.

  >>> print(transcript([[7, 8]], [[-1.0, -1.0]], [[-1.0, -3.0]], [[True, True]]))
  <div ...row 0...title="-1.000 sampler, -3.000 learner"...>8</span></p></div>
  """
  mask = np.asarray(mask, bool)
  d = np.where(mask, np.asarray(old_logp, float) - np.asarray(sampler_logp, float), 0)
  worst = np.argsort(-np.abs(np.nan_to_num(d)).max(axis=1), kind="stable")[:rows]
  lines = []
  for row in sorted(worst.tolist()):
    spans = []
    for t in range(np.flatnonzero(mask[row]).max(initial=-1) + 1):
      word = html.escape(text(int(tokens[row][t]))).replace("\n", "&#9166;<br>")
      if not mask[row, t]:
        spans.append(f'<span style="color:#888">{word}</span>')
        continue
      both = f"{sampler_logp[row][t]:.3f} sampler, {old_logp[row][t]:.3f} learner"
      color = ",".join(map(str, _MORE if d[row, t] > 0 else _LESS))
      strength = min(abs(float(np.nan_to_num(d[row, t]))) / full, 1.0)
      spans.append(
        f'<span title="{both}" style="background:rgba({color},{strength:.2f})">'
        f"{word}</span>"
      )
    lines.append(f"<p><small>row {row}</small> {''.join(spans)}</p>")
  return f'<div style="font-family:monospace">{"".join(lines)}</div>'
