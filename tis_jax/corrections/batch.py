"""One batch as the stages of a chain see it."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tis_jax.corrections import ratios
from tis_jax.corrections.rows import Rows, by_row
from tis_jax.corrections.state import Level, State, row_count
from tis_jax.diagnostics.metrics import UNIT

CATASTROPHE = math.log(1e4)
"""A token whose ratio is off by more than this factor is a defect, not numerics."""


class Batch:
  """One batch as the stages see it: masked log-ratios, and the levels over them.

  It lives while a chain is traced. `old_logp` and `sampler_logp` are as they came:
  mask them with `known` before any use.

  Args:
    share: whether the metrics will want `sums`; the stages then use them too.
  """

  def __init__(
    self,
    old_logp,
    sampler_logp,
    mask,
    *,
    segment_ids=None,
    present=None,
    group_ids=None,
    advantages=None,
    versions=None,
    learner_version=None,
    version_logp=None,
    share=False,
  ):
    self.mask = mask != 0
    self.known, self.log_ratio = known_log_ratio(
      old_logp, sampler_logp, self.mask, present
    )
    self.old_logp = old_logp
    self.segment_ids = segment_ids
    # Any, not Array | None: a stage reads what its `needs` has made sure of.
    self.group_ids: Any = group_ids
    self.advantages: Any = _by_token(advantages)
    self.versions: Any = versions
    self.learner_version: Any = learner_version
    self.version_logp = version_logp
    self.sampler_logp = sampler_logp
    self._present = present
    self._share = share and segment_ids is None
    self._memory: dict[Any, Any] = {}

  @property
  def sums(self) -> Rows:
    """`token_features` summed over each row of the incoming batch, once."""
    return self._once(
      "sums",
      # From the arrays as they came: nothing [B, T] is written out for the walk.
      lambda: by_row(
        token_features,
        self.old_logp,
        self.sampler_logp,
        self.mask,
        *(() if self._present is None else (self._present,)),
      ),
    )

  @property
  def staleness(self) -> jax.Array:
    """`[B, T]` int: how many versions old the weights were that sampled each token."""
    return jnp.where(self.mask, self.learner_version - self.versions, 0)

  def begin(self) -> State:
    """The state before the first stage."""
    rows = self.mask if self.segment_ids is not None else self.mask[:, :1]
    one = jnp.ones_like(self.log_ratio[:, :1])
    number = self.sums.total["incoming"] if self._share else row_count(self.mask)
    return State(self.mask, number, jnp.ones_like(rows, bool), one)

  def starts(self, level: Level) -> jax.Array | None:
    """Where the units of `level` begin; None when each row is one."""
    turns = level == "turn"
    if self.segment_ids is None and not turns:
      return None
    return self._once(
      ("starts", turns),
      lambda: ratios.unit_starts(self.mask, self.segment_ids, turns=turns),
    )

  def any_token(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """Whether any token of each unit meets the condition."""
    return self.unit_count(condition, level) > 0

  def unit_count(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """How many tokens of each unit meet the condition."""
    starts = self.starts(level)
    if starts is None:
      return row_count(condition)
    return ratios.unit_sum(condition.astype(self.log_ratio.dtype), starts)

  def held(self, state: State, level: Level = "sequence") -> jax.Array:
    """One True for each unit in which a token still trains."""
    if self.starts(level) is None:
      return state.rows & (state.number > 0)
    return self.units(state.mask, level)

  def units(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """One True for each unit that holds a token that meets the condition."""
    starts = self.starts(level)
    held = self.any_token(condition, level)
    return held if starts is None else starts & held

  def unit_sum(
    self, x: jax.Array, state: State, level: Level = "sequence", *, feature: str = ""
  ) -> jax.Array:
    """The sum of `x` over the tokens of each unit that levels multiply over.

    `feature` names `x` among the `token_features`, if it is one.
    """
    if feature and self._shares(state, level):
      return self.sums.total[feature]
    return ratios.unit_sum(self.among(x, state), self.starts(level))

  def unit_max(
    self, x: jax.Array, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The largest `x`, never negative, over the tokens of each unit."""
    return ratios.unit_max(self.among(x, state), self.starts(level))

  def unit_mean(
    self, x: jax.Array, state: State, level: Level = "sequence", *, feature: str = ""
  ) -> jax.Array:
    """The mean of `x` over the known tokens of each unit."""
    total = self.unit_sum(x, state, level, feature=feature)
    return total / self.size(state, level)

  def size(self, state: State, level: Level) -> jax.Array:
    """The number of known tokens of each unit, at least 1."""
    if self._shares(state, level):
      return jnp.maximum(self.sums.total["known"], 1.0)
    return jnp.maximum(self.unit_count(self.known & state.tokens, level), 1.0)

  def among(self, x: jax.Array, state: State) -> jax.Array:
    """`x`, which is 0 where the incoming mask is False, 0 also where tokens went."""
    return x if state.tokens is self.mask else jnp.where(state.tokens, x, 0.0)

  def level(self, level: Level, state: State) -> jax.Array:
    """The log-ratio at `level`, clamped: `[B, T]`, or `[B, 1]` where rows are units."""
    if level == "token":
      return self.log_ratio
    if level == "prefix":
      masked = self.among(self.log_ratio, state)
      return ratios.clamp_log(ratios.prefix_sum(masked, self.starts("sequence")))
    total = self.unit_sum(self.log_ratio, state, level, feature="log_ratio")
    if level == "geometric":
      total = total / self.size(state, level)
    if level == "root":
      total = total / jnp.sqrt(self.size(state, level))
    return ratios.clamp_log(total)

  def _shares(self, state: State, level: Level) -> bool:
    return self._share and state.tokens is self.mask and level != "turn"

  def _once(self, key, compute):
    if key not in self._memory:
      self._memory[key] = compute()
    return self._memory[key]


def known_log_ratio(old_logp, sampler_logp, mask, present=None):
  """Which tokens have a ratio, and its log: `(known, log_ratio)`, 0 where not known."""
  difference = ratios.log_ratio(old_logp, sampler_logp, mask)
  # A NaN log-prob says nothing: it is missing, whoever failed to say so.
  known = ~jnp.isnan(difference)
  if present is not None:
    known &= present != 0
  return mask & known, jnp.where(known, difference, 0.0)


def token_features(old_logp, sampler_logp, mask, present=None) -> Rows:
  """Everything that is summed over the tokens' raw log-ratios.

  The log-ratio is 0 where it is not known, and so is each feature of it: no mask here.
  """
  known, d = known_log_ratio(old_logp, sampler_logp, mask, present)
  # Made once: without the barrier each feature would make them again.
  known, d, expm1 = jax.lax.optimization_barrier((known, d, jnp.expm1(d)))
  k3 = expm1 - d
  k3_reverse = expm1 * d - k3
  chi2 = expm1 * (expm1 + 2.0) / UNIT
  means = {
    "log_ratio": d,
    "abs": jnp.abs(d),
    "excess": expm1,
    "k3": k3,
    "k3_reverse": k3_reverse,
  }
  return Rows(
    means
    | {f"{name}_squares": x * x for name, x in means.items() if name != "abs"}
    | {
      "k1_reverse_squares": (k3_reverse + expm1) ** 2,
      "chi2_squares": chi2 * chi2,
      "known": known.astype(d.dtype),
      "incoming": mask.astype(d.dtype),
      "catastrophic": (jnp.abs(d) > CATASTROPHE).astype(d.dtype),
      "old_logp": finite_logp(old_logp, known),
    },
    {"log_ratio": jnp.where(known, d, -jnp.inf)},
    {"log_ratio": jnp.where(known, d, jnp.inf)},
  )


def finite_logp(logp, known) -> jax.Array:
  """Log-probs of the known tokens, 0 elsewhere; below -40 they count as -40.

  One token of log-prob -inf would make every perplexity it enters infinite.
  """
  return jnp.where(known, jnp.clip(ratios.as_float(logp), -40.0, 40.0), 0.0)


def _by_token(x):
  """`[B]` as `[B, 1]`."""
  return x[:, None] if x is not None and jnp.ndim(x) == 1 else x
