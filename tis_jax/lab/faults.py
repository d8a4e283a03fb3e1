"""The zoo of faults: what goes wrong between a sampler and a learner, on purpose.

Each takes a batch of a real engine and real log-probs, and gives the batch that the
fault would have left: a shift by one token, an end token without its log-prob, another
temperature. Where a fault needs what another law says of the same tokens, the batch has
it (`Sampled.at`, `Sampled.kept_mass`, `Sampled.other_logp`), computed and not made up.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Sampled:
  """A batch, and what else is known of its tokens; `[B, T]` arrays in numpy.

  Attributes:
    old_logp: the learner's log-probs at the temperature that was sampled at.
    sampler_logp: the engine's own.
    mask: bool, the tokens that were sampled.
    tokens: their ids.
    versions: of the params that sampled them.
    learner_version: of the params that `old_logp` is of.
    temperature: that was sampled at.
    at: the learner's log-probs of the same tokens by temperature.
    kept_mass: probability of the tokens that top-p or top-k left to the sampler.
    other_logp: the log-probs that another model gives the same tokens.
  """

  old_logp: np.ndarray
  sampler_logp: np.ndarray
  mask: np.ndarray
  tokens: np.ndarray
  versions: np.ndarray
  learner_version: int = 0
  temperature: float = 1.0
  at: Mapping[float, np.ndarray] = dataclasses.field(default_factory=dict)
  kept_mass: np.ndarray | None = None
  other_logp: np.ndarray | None = None

  def rows(self, index) -> "Sampled":
    """Some of its rows, by numbers or a bool mask."""
    cut = {
      field.name: value[index]
      for field in dataclasses.fields(self)
      if isinstance(value := getattr(self, field.name), np.ndarray)
    }
    at = {temperature: x[index] for temperature, x in self.at.items()}
    return dataclasses.replace(self, **cut, at=at)


Fault = Callable[[Sampled, float, np.random.Generator], Sampled]


def inject(kind: str, batch: Sampled, strength: float, seed: int = 0) -> Sampled:
  """The batch as a fault would have left it.

  Args:
    kind: one of `FAULTS`.
    batch: a healthy one.
    strength: what it is, the fault's function says; mostly a share of rows or tokens.
    seed: of which rows, tokens and numbers.

  Raises:
    ValueError: there is no such fault, or the batch lacks what it needs.

  >>> logp, ids = np.log([[0.5, 0.25]]), np.array([[3, 1]])
  >>> batch = Sampled(logp, logp, ids > 0, ids, 0 * ids)
  >>> inject("missing_end", batch, 1.0).sampler_logp.round(2).tolist()
  [[-0.69, 0.0]]
  """
  if kind not in FAULTS:
    raise ValueError(f"no fault {kind!r}; there are {', '.join(FAULTS)}")
  return FAULTS[kind](batch, strength, np.random.default_rng(seed))


def shifted_tokens(batch, strength, rng) -> Sampled:
  """Log-probs of the neighbouring token, in `strength` of the rows."""
  lag = int(rng.choice([-1, 1]))
  chosen = _some_rows(batch, strength, rng)
  sampler = batch.sampler_logp.copy()
  for row in chosen:
    at = np.flatnonzero(batch.mask[row])
    sampler[row, at] = np.roll(sampler[row, at], lag)
  return dataclasses.replace(batch, sampler_logp=sampler)


def missing_end(batch, strength, rng) -> Sampled:
  """The log-prob of the last token is 0, in `strength` of the rows."""
  chosen = _some_rows(batch, strength, rng)
  return dataclasses.replace(
    batch, sampler_logp=np.where(_last(batch, chosen), 0.0, batch.sampler_logp)
  )


def wrong_end(batch, strength, rng) -> Sampled:
  """The learner scores an end token that was not drawn, in `strength` of the rows."""
  chosen = _some_rows(batch, strength, rng)
  forced = -rng.gamma(4.0, 2.0, batch.old_logp.shape)
  return dataclasses.replace(
    batch, old_logp=np.where(_last(batch, chosen), forced, batch.old_logp)
  )


def zero_filled(batch, strength, rng) -> Sampled:
  """`strength` of the tokens have the log-prob 0."""
  lost = batch.mask & (rng.random(batch.mask.shape) < strength)
  return dataclasses.replace(
    batch, sampler_logp=np.where(lost, 0.0, batch.sampler_logp)
  )


def padding_counted(batch, strength, rng) -> Sampled:
  """The mask goes on to the end of `strength` of the rows; the learner scores it."""
  return _padded(batch, strength, rng, -rng.gamma(2.0, 3.0, batch.old_logp.shape))


def padding_of_zeros(batch, strength, rng) -> Sampled:
  """The same where both sides have padded with 0."""
  return _padded(batch, strength, rng, np.zeros(batch.old_logp.shape))


def prompt_in_mask(batch, strength, rng) -> Sampled:
  """`strength` tokens before the answer are in the mask, and no engine scored them."""
  width = int(strength)
  rows = len(batch.mask)
  before = -rng.gamma(1.0, 3.0, (rows, width))
  front = lambda x, fill: np.concatenate([np.broadcast_to(fill, (rows, width)), x], 1)
  return dataclasses.replace(
    batch,
    old_logp=front(batch.old_logp, before),
    sampler_logp=front(batch.sampler_logp, 0.0),
    mask=front(batch.mask, batch.mask.any(axis=1, keepdims=True)),
    tokens=front(batch.tokens, rng.integers(3, 10, (rows, width))),
    versions=front(batch.versions, batch.versions[:, :1]),
    at={},
    kept_mass=None,
    other_logp=None,
  )


def retokenised(batch, strength, rng) -> Sampled:
  """One token is split by the learner's side, in `strength` of the rows.

  Its two halves have log-probs of their own; all that follows stands one place later,
  and the last one falls off.
  """
  old, tokens = batch.old_logp.copy(), batch.tokens.copy()
  for row in _some_rows(batch, strength, rng):
    at = np.flatnonzero(batch.mask[row])
    if len(at) < 4:
      continue
    place = int(rng.integers(1, len(at) - 1))
    old[row, at[place + 1 :]] = batch.old_logp[row, at[place:-1]]
    tokens[row, at[place + 1 :]] = batch.tokens[row, at[place:-1]]
    old[row, at[place : place + 2]] = -rng.gamma(2.0, 2.0, 2)
  return dataclasses.replace(batch, old_logp=old, tokens=tokens)


def replaced_tokens(batch, strength, rng) -> Sampled:
  """`strength` of the tokens, inside of rows, are others on the learner's side."""
  inside = batch.mask & ~_last(batch, np.arange(len(batch.mask)))
  inside[:, 0] = False
  other = inside & (rng.random(batch.mask.shape) < strength)
  forced = -rng.gamma(3.0, 2.0, batch.old_logp.shape)
  return dataclasses.replace(batch, old_logp=np.where(other, forced, batch.old_logp))


def temperature(batch, strength, rng) -> Sampled:
  """The learner scores at temperature `strength`, whatever was sampled at (Tunix)."""
  return dataclasses.replace(batch, old_logp=_at(batch, strength))


def unprocessed(batch, strength, rng) -> Sampled:
  """The engine reports log-probs of temperature `strength` (vLLM's raw ones, at 1)."""
  error = batch.sampler_logp - batch.old_logp
  raw = _at(batch, strength) + error * batch.temperature / strength
  return dataclasses.replace(batch, sampler_logp=np.minimum(raw, 0.0))


def probabilities(batch, strength, rng) -> Sampled:
  """Probabilities in place of log-probs: of the sampler, and of both from 2 on."""
  both = {"old_logp": np.exp(batch.old_logp)} if strength >= 2 else {}
  return dataclasses.replace(batch, sampler_logp=np.exp(batch.sampler_logp), **both)


def support(batch, strength, rng) -> Sampled:
  """The engine's log-probs are renormalised over what top-p or top-k kept."""
  if batch.kept_mass is None:
    raise ValueError(
      "support needs a batch with kept_mass, sampled with top-p or top-k"
    )
  kept = np.log(np.where(batch.mask, batch.kept_mass, 1.0))
  return dataclasses.replace(batch, sampler_logp=batch.sampler_logp - kept)


def stale_weights(batch, strength, rng) -> Sampled:
  """An engine of older params says that it holds the newest, in `strength` of the rows.

  The batch must be one of older params; its other rows keep their versions.
  """
  if (batch.versions[batch.mask] >= batch.learner_version).all():
    raise ValueError("stale_weights needs a batch that older params have sampled")
  versions = batch.versions.copy()
  versions[_some_rows(batch, strength, rng)] = batch.learner_version
  return dataclasses.replace(batch, versions=versions)


def other_model(batch, strength, rng) -> Sampled:
  """Another model scores `strength` of the rows."""
  if batch.other_logp is None:
    raise ValueError("other_model needs a batch with other_logp")
  chosen = _some_rows(batch, strength, rng)
  old = batch.old_logp.copy()
  old[chosen] = batch.other_logp[chosen]
  return dataclasses.replace(batch, old_logp=old)


def _at(batch: Sampled, temperature: float) -> np.ndarray:
  if temperature not in batch.at:
    known = ", ".join(f"{x:g}" for x in batch.at)
    raise ValueError(f"the batch is not scored at {temperature:g}, but at {known}")
  return batch.at[temperature]


def _some_rows(batch: Sampled, share: float, rng) -> np.ndarray:
  """`share` of the rows that hold a token, at least one."""
  rows = np.flatnonzero(batch.mask.any(axis=1))
  return rng.choice(rows, max(1, round(share * len(rows))), replace=False)


def _last(batch: Sampled, rows: np.ndarray) -> np.ndarray:
  """`[B, T]` bool: the last sampled token of some rows."""
  found = np.zeros(batch.mask.shape, bool)
  width = batch.mask.shape[1]
  last = width - 1 - batch.mask[rows, ::-1].argmax(axis=1)
  found[rows, last] = True
  return found


def _padded(batch: Sampled, share, rng, learner: np.ndarray) -> Sampled:
  chosen = _some_rows(batch, share, rng)
  rows = np.zeros((len(batch.mask), 1), bool)
  rows[chosen] = True
  behind = np.cumsum(batch.mask[:, ::-1], axis=1)[:, ::-1] == 0
  added = rows & behind
  return dataclasses.replace(
    batch,
    mask=batch.mask | added,
    old_logp=np.where(added, learner, batch.old_logp),
    sampler_logp=np.where(added, 0.0, batch.sampler_logp),
    tokens=np.where(added, 0, batch.tokens),
  )


FAULTS: Mapping[str, Fault] = {
  "shifted_tokens": shifted_tokens,
  "missing_end": missing_end,
  "wrong_end": wrong_end,
  "zero_filled": zero_filled,
  "padding_counted": padding_counted,
  "padding_of_zeros": padding_of_zeros,
  "prompt_in_mask": prompt_in_mask,
  "retokenised": retokenised,
  "replaced_tokens": replaced_tokens,
  "temperature": temperature,
  "unprocessed": unprocessed,
  "probabilities": probabilities,
  "support": support,
  "stale_weights": stale_weights,
  "other_model": other_model,
}
"""Every fault, by name."""

VERDICTS: Mapping[str, str] = {
  **{name: name for name in FAULTS},
  "wrong_end": "missing_end",
  "padding_of_zeros": "padding_counted",
  "replaced_tokens": "retokenised",
  "probabilities": "unprocessed",
}
"""What `tis_jax.doctor` calls each."""
