"""A diagnosis as one HTML file: no script, no font, no picture from elsewhere."""

from html import escape

import numpy as np

from tis_jax.doctor.dump import Dump
from tis_jax.doctor.evidence import Evidence
from tis_jax.doctor.figures import by_place, histogram, scatter
from tis_jax.doctor.page import TITLES
from tis_jax.doctor.prescription import Effect, Prescription
from tis_jax.doctor.report import Finding, Report, Transcript

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --dim: #5b6773; --line: #d9dfe5;
  --mark: #fbe3d2; --good: #24633a; --bad: #a3431a; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto;
  max-width: 1080px; padding: 24px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 75ch; } .dim { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); }
.figures { display: flex; flex-wrap: wrap; gap: 16px; } figure { margin: 0; }
figcaption { font-size: 14px; color: var(--dim); max-width: 330px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
.wide th:last-child, .wide td:last-child { text-align: left; white-space: normal;
  min-width: 34ch; }
tr.taken { background: #e9f1ec; } tr.marked { background: var(--mark); }
pre { background: #f4f6f8; padding: 12px; overflow-x: auto; font-size: 14px; }
details { margin: 4px 0; } summary { cursor: pointer; }
"""


def html(dump: Dump, report: Report, prescription: Prescription) -> str:
  """The report with figures, as the text of one file.

  Args:
    dump: that was diagnosed.
    report: from `diagnose`.
    prescription: from `prescribe`.
  """
  title = report.verdict.replace("_", " ")
  tone = "good" if report.healthy else "bad"
  parts = [
    f"<h1 class={tone}>{escape(title)}</h1>",
    _p(report.finding.means),
    _p(
      f"{report.source or 'arrays'}: {report.scale.rows:,} rows, "
      f"{report.scale.tokens:,} tokens with both log-probs.",
      dim=True,
    ),
    *(_p(note, dim=True) for note in report.notes),
    _figures(dump),
    "<h2>Evidence</h2>",
    _finding(report.finding),
    *_others(report),
    "<h2>The gap in numbers</h2>",
    _scale(report),
    "<h2>What each correction would do</h2>",
    _p(f"Take {prescription.take}: {prescription.why}."),
    _effects(prescription),
    "<h2>To paste</h2>",
    *(_paste(prescription, name) for name in TITLES),
  ]
  body = "\n".join(parts)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
    f"<body>\n{body}\n</body></html>\n"
  )


def _p(text: str, dim: bool = False) -> str:
  return f"<p{' class=dim' if dim else ''}>{escape(text)}</p>"


def _figures(dump: Dump) -> str:
  tokens = Evidence(dump).tokens
  if not len(tokens):
    return ""
  gap = tokens.gap
  drawn = (
    (
      scatter(tokens.sampler, tokens.learner),
      "Both log-probs of the same tokens; on the line they agree.",
    ),
    (
      histogram(gap),
      "The gap d, learner less sampler, in nats; counts are logarithmic.",
    ),
    (
      by_place(tokens.place, np.abs(gap)),
      "Mean |d| by place in the answer, and its 90th percentile.",
    ),
  )
  figures = [
    f"<figure>{svg}<figcaption>{escape(says)}</figcaption></figure>"
    for svg, says in drawn
  ]
  return f"<div class=figures>{''.join(figures)}</div>"


def _finding(finding: Finding) -> str:
  sure = (
    ""
    if np.isnan(finding.confidence)
    else (f", found in {finding.confidence:.0%} of random halves of the rows")
  )
  lines = [
    _p(finding.evidence),
    _p(
      f"{finding.measured}: {finding.statistic:.3g}; found at {finding.limit} "
      f"(score {finding.score:.2g}{sure}).",
      dim=True,
    ),
    _p(f"Usually: {finding.cause}"),
    _p(f"Do: {finding.do}"),
    f'<p><a href="{escape(finding.link)}">{escape(finding.link)}</a></p>',
    *map(_transcript, finding.rows),
  ]
  return "\n".join(lines)


def _others(report: Report) -> list[str]:
  also = [f for f in report.findings[1:] if f.found]
  parts = ["<h2>Also found</h2>"] if also else []
  for finding in also:
    name = finding.kind.replace("_", " ")
    parts.append(
      f"<details><summary>{escape(name)}: {escape(finding.means)}</summary>"
      f"{_finding(finding)}</details>"
    )
  return parts


def _transcript(found: Transcript) -> str:
  rows = []
  for place in found.places:
    both = place.old_logp is not None and place.sampler_logp is not None
    gap = f"{place.old_logp - place.sampler_logp:+.4f}" if both else ""  # pyrefly: ignore
    cells = (
      str(place.column),
      "" if place.token is None else str(place.token),
      "missing" if place.old_logp is None else f"{place.old_logp:.4f}",
      "missing" if place.sampler_logp is None else f"{place.sampler_logp:.4f}",
      gap,
    )
    rows.append(_row(cells, "marked" if place.marked else ""))
  head = _row(("place", "id", "learner", "sampler", "d"), cell="th")
  return (
    f"<p class=dim>Row {found.row}, {found.tokens} tokens</p>"
    f"<div class=wide><table>{head}{''.join(rows)}</table></div>"
  )


def _row(cells, kind: str = "", cell: str = "td") -> str:
  inner = "".join(f"<{cell}>{escape(x)}</{cell}>" for x in cells)
  return f"<tr{f' class={kind}' if kind else ''}>{inner}</tr>"


def _scale(report: Report) -> str:
  named = report.scale._asdict()
  rows = [_row((name.replace("_", " "), f"{x:.6g}")) for name, x in named.items()]
  return f"<div class=wide><table>{''.join(rows)}</table></div>"


def _effects(prescription: Prescription) -> str:
  head = ("", "ess", "gradient", "norm", "tokens 0", "rows 0", "largest", "chain")
  rows = [_row(head, cell="th")]
  for effect in prescription.corrections:
    rows.append(
      _row(_cells(effect), "taken" if effect.name == prescription.take else "")
    )
  return f"<div class=wide><table>{''.join(rows)}</table></div>"


def _cells(effect: Effect) -> tuple[str, ...]:
  return (
    effect.name,
    f"{effect.ess:.3f}",
    f"{effect.gradient_scale:.3f}",
    "" if effect.gradient_norm is None else f"{effect.gradient_norm:.3f}",
    f"{effect.dropped_tokens:.1%}",
    f"{effect.dropped_sequences:.1%}",
    f"{effect.largest:.3g}",
    effect.chain,
  )


def _paste(prescription: Prescription, framework: str) -> str:
  parts = []
  for effect in prescription.corrections:
    text = effect.texts[framework]
    shown = (
      "<p>Not expressible there.</p>" if text is None else f"<pre>{escape(text)}</pre>"
    )
    if effect.name == prescription.take:
      parts.insert(0, f"<p>{escape(effect.name)}, the one to take:</p>{shown}")
    elif text is not None:
      parts.append(f"<p>{escape(effect.name)}:</p>{shown}")
  return (
    f"<details><summary>{escape(TITLES[framework])}</summary>{''.join(parts)}</details>"
  )
