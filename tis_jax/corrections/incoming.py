"""The batch that comes into a chain, as its stages see it."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tis_jax.corrections.inputs import Inputs
from tis_jax.corrections.state import TURN_LEVELS, Level, State, row_count
from tis_jax.numerics import units
from tis_jax.numerics.arrays import as_float
from tis_jax.numerics.metrics import UNIT
from tis_jax.numerics.ratios import clamp_log, k3, log_ratio
from tis_jax.numerics.rows import Rows, by_row

CATASTROPHE = math.log(1e4)
"""A token whose ratio is off by more than this factor is a defect, not numerics."""

Feature = Literal["log_ratio", "k3"]
"""A function of the log-ratio that stages and metrics both sum over rows, by name."""

_FEATURES: dict[Feature, Callable[[jax.Array], jax.Array]] = {
  "log_ratio": lambda d: d,
  "k3": lambda d: k3(clamp_log(d)),
}


class Incoming:
  """The batch of one call: masked log-ratios, and the levels over them.

  It lives while a chain is traced. The log-probs of `inputs` are as they came: mask
  them with `known` before any use.

  Attributes:
    inputs: what the chain was called with.
    mask: `[B, T]` bool, the tokens that train before any stage.
    known: `[B, T]` bool, those of them that have a ratio.
    log_ratio: `[B, T]`, 0 where it is not known; not clamped, see `level`.

  Args:
    inputs: what the chain was called with.
    share: whether the metrics will want `sums`. One walk over the rows then serves them
      and every stage that needs a row's sum of a `Feature`; a chain without metrics
      takes only the sums that its stages ask for.
  """

  def __init__(self, inputs: Inputs, *, share: bool = False):
    self.inputs = inputs
    self.mask = inputs.mask != 0
    self.known, self.log_ratio = known_log_ratio(
      inputs.old_logp, inputs.sampler_logp, self.mask, inputs.present
    )
    # A row's sums are a sequence's only where a row holds one sequence.
    self._share = share and inputs.segment_ids is None

  @functools.cached_property
  def sums(self) -> Rows:
    """`token_features` summed over each row of the incoming batch, once."""
    inputs = self.inputs
    # From the arrays as they came: nothing [B, T] is written out for the walk.
    arrays = inputs.old_logp, inputs.sampler_logp, self.mask
    present = () if inputs.present is None else (inputs.present,)
    return by_row(token_features, *arrays, *present)

  @property
  def advantages(self) -> Any:
    """`[B, T]`, or `[B, 1]` where they are by sequence."""
    x = self.inputs.advantages
    return x[:, None] if x is not None and jnp.ndim(x) == 1 else x

  @property
  def staleness(self) -> jax.Array:
    """`[B, T]` int: how many versions old the params were that sampled each token."""
    age = self.inputs.learner_version - self.inputs.versions
    return jnp.where(self.mask, age, 0)

  def begin(self) -> State:
    """The state before the first stage."""
    rows = self.mask if self.inputs.segment_ids is not None else self.mask[:, :1]
    one = jnp.ones_like(self.log_ratio[:, :1])
    number = self.sums.total["incoming"] if self._share else row_count(self.mask)
    return State(self.mask, number, jnp.ones_like(rows, bool), one)

  @functools.cached_property
  def _segment_starts(self) -> jax.Array:
    return units.unit_starts(self.mask, self.inputs.segment_ids)

  @functools.cached_property
  def _turn_starts(self) -> jax.Array:
    return units.unit_starts(self.mask, self.inputs.segment_ids, turns=True)

  def starts(self, level: Level) -> jax.Array | None:
    """Where the units of `level` begin; None when each row is one."""
    if level in TURN_LEVELS:
      return self._turn_starts
    return None if self.inputs.segment_ids is None else self._segment_starts

  def any_token(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """Whether any token of each unit meets the condition."""
    return self.unit_count(condition, level) > 0

  def unit_count(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """How many tokens of each unit meet the condition."""
    starts = self.starts(level)
    if starts is None:
      return row_count(condition)
    return units.unit_sum(condition.astype(self.log_ratio.dtype), starts)

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
    self, x: jax.Array | Feature, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The sum of `x`, or of a feature, over the tokens of each unit."""
    if isinstance(x, str):
      if self._shares(state, level):
        return self.sums.total[x]
      x = _FEATURES[x](self.log_ratio)
    return units.unit_sum(self.among(x, state), self.starts(level))

  def unit_max(
    self, x: jax.Array, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The largest `x`, never negative, over the tokens of each unit."""
    return units.unit_max(self.among(x, state), self.starts(level))

  def unit_mean(
    self, x: jax.Array | Feature, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The mean of `x`, or of a feature, over the known tokens of each unit."""
    return self.unit_sum(x, state, level) / self.size(state, level)

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
      return clamp_log(self.log_ratio)
    if level == "prefix":
      masked = self.among(self.log_ratio, state)
      return clamp_log(units.prefix_sum(masked, self.starts("sequence")))
    if level == "min_prefix":
      counted = self.known & state.tokens
      others = jnp.where(counted, self.log_ratio, jnp.inf)
      least = units.min_before(others, self.starts("sequence"))
      least = jnp.where(least < jnp.inf, least, 0.0)
      return clamp_log(least + self.among(self.log_ratio, state))
    total = self.unit_sum("log_ratio", state, level)
    if level in ("geometric", "turn_geometric"):
      total = total / self.size(state, level)
    if level == "root":
      total = total / jnp.sqrt(self.size(state, level))
    return clamp_log(total)

  def _shares(self, state: State, level: Level) -> bool:
    return self._share and state.tokens is self.mask and level not in TURN_LEVELS


def known_log_ratio(old_logp, sampler_logp, mask, present=None):
  """Which tokens have a ratio, and its log: `(known, log_ratio)`, 0 where not known."""
  difference = log_ratio(old_logp, sampler_logp, mask)
  # A NaN log-prob says nothing: it is missing, whoever failed to say so.
  known = ~jnp.isnan(difference)
  if present is not None:
    known &= present != 0
  return mask & known, jnp.where(known, difference, 0.0)


def token_features(old_logp, sampler_logp, mask, present=None) -> Rows:
  """Everything that is summed over the tokens' raw log-ratios.

  The log-ratio is 0 where it is not known, and so is each feature of it: no mask here.
  Its plain sum is that of raw differences, as the levels take it; all else is of the
  log-ratio clamped, so that no one token rules a mean.
  """
  known, raw = known_log_ratio(old_logp, sampler_logp, mask, present)
  d = clamp_log(raw)
  # Made once: without the barrier each feature would make them again.
  known, raw, d, expm1 = jax.lax.optimization_barrier((known, raw, d, jnp.expm1(d)))
  k3_ = expm1 - d
  k3_reverse = expm1 * d - k3_
  chi2 = expm1 * (expm1 + 2.0) / UNIT
  means = {
    "clamped": d,
    "abs": jnp.abs(d),
    "excess": expm1,
    "k3": k3_,
    "k3_reverse": k3_reverse,
  }
  return Rows(
    means
    | {f"{name}_squares": x * x for name, x in means.items() if name != "abs"}
    | {
      "log_ratio": raw,
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
  return jnp.where(known, jnp.clip(as_float(logp), -40.0, 40.0), 0.0)
