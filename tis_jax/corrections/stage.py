"""What a stage of a corrector is, what it sees, and what it may change."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.corrections import ratios
from tis_jax.corrections.rows import Rows, by_row
from tis_jax.diagnostics.metrics import (
  Max,
  Mean,
  Metrics,
  Min,
  maximum,
  mean_of_sums,
  minimum,
)

Level = Literal["token", "prefix", "turn", "sequence", "geometric", "root"]
LEVELS = ("token", "prefix", "turn", "sequence", "geometric", "root")
TOKEN_LEVELS = ("token", "prefix")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a chain: a pure function with its thresholds bound.

  Attributes:
    run: `run(batch, state, **thresholds, **options) -> (state, metrics)`.
    thresholds: the leaves, so that a sweep over them does not recompile.
    name: what its metrics are called after.
    makes: what it changes: the "weight" (made of a ratio, once a chain), the "mask", or
      the "scale" of a weight that an earlier stage made.
    options: everything static that `run` takes.
    needs: the keyword arguments of the chain that it cannot do without.
    pools: whether what it does to a row depends on other rows of the batch (a batch
      mean, a prompt group, a cap it estimates), so that micro-batches would differ.
  """

  run: Callable[..., tuple["State", Metrics]] = dataclasses.field(
    metadata={"static": True}
  )
  thresholds: Mapping[str, Any]
  name: str = dataclasses.field(metadata={"static": True})
  makes: Literal["weight", "mask", "scale"] = dataclasses.field(
    metadata={"static": True}
  )
  options: tuple[tuple[str, Any], ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )
  needs: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
  pools: bool = dataclasses.field(default=False, metadata={"static": True})


class State(NamedTuple):
  """What the stages hand on. Arrays of `[B, 1]` stand for whole rows.

  The mask is kept in two factors. A level multiplies over `tokens`, which a sequence
  rejected whole does not change: its product, and every other row sum, is then taken
  once for the chain, and no metric needs a second pass over the batch.

  Attributes:
    tokens: `[B, T]` bool, the incoming mask less what was rejected inside a sequence.
    rows: `[B, 1]` bool (`[B, T]` when rows are packed), the sequences still in.
    weight: `[B, T]` or `[B, 1]` float, 1 until a stage makes it.
    raw: the ratio that the weight was made of, before any bound; None for a token's.
  """

  tokens: jax.Array
  rows: jax.Array
  weight: jax.Array
  raw: jax.Array | None = None

  @property
  def mask(self) -> jax.Array:
    """`[B, T]` bool: the tokens that still train."""
    return self.tokens & self.rows

  def total(self, x: jax.Array) -> jax.Array:
    """The sum of `x` over the tokens that still train, by row first."""
    if self.rows.shape[1] != 1:
      return _sum(jnp.where(self.mask, x, 0))
    if x.shape[1] == 1:
      return _sum(jnp.where(self.rows, x * row_count(self.tokens), 0))
    rows = jnp.where(self.tokens, x, 0).sum(axis=1, keepdims=True, dtype=_float(x))
    return _sum(jnp.where(self.rows, rows, 0))

  def count(self) -> jax.Array:
    """How many tokens still train."""
    if self.rows.shape[1] != 1:
      return _sum(self.mask)
    return _sum(jnp.where(self.rows, row_count(self.tokens), 0))

  def fraction(self, hit: jax.Array) -> Mean:
    """The share of the tokens that still train for which `hit` holds."""
    hits = self.total(hit)
    return mean_of_sums(hits, hits, self.count())

  def summary(self, x: jax.Array) -> tuple[Mean, Max, Min]:
    """The mean of `x` over the tokens that still train, about 1, and its extremes."""
    if x.shape[1] == 1 and self.rows.shape[1] == 1:
      count = jnp.where(self.rows, row_count(self.tokens), 0)
      high = low = x
      totals = [x - 1.0, (x - 1.0) ** 2, jnp.ones_like(x)]
      excess, squares, number = ((v * count).sum() for v in totals)
    else:
      tokens = self.tokens if self.rows.shape[1] == 1 else self.mask
      sums = by_row(_summary_features, jnp.broadcast_to(x, tokens.shape), tokens)
      rows = self.rows if self.rows.shape[1] == 1 else jnp.array([[True]])
      count = jnp.where(rows, sums.total["count"], 0)
      high, low = sums.largest["x"], sums.smallest["x"]
      excess, squares, number = (
        jnp.where(rows, sums.total[name], 0).sum()
        for name in ("excess", "squares", "count")
      )
    held = count > 0
    return (
      mean_of_sums(excess, squares, number, pivot=1.0),
      maximum(high, held),
      minimum(low, held),
    )


class Batch:
  """One batch as the stages see it: masked log-ratios, and the levels over them.

  It lives while a chain is traced. `old_logp` and `sampler_logp` are as they came:
  mask them with `known` before any use.
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
  ):
    self.mask = mask != 0
    difference = ratios.log_ratio(old_logp, sampler_logp, self.mask)
    # A NaN log-prob says nothing: it is missing, whoever failed to say so.
    known = ~jnp.isnan(difference)
    if present is not None:
      known &= present != 0
    self.known = self.mask & known
    self.log_ratio = jnp.where(known, difference, 0.0)
    self.old_logp = old_logp
    self.segment_ids = segment_ids
    self.group_ids = group_ids
    self.advantages = _by_token(advantages)
    self.versions = versions
    self.learner_version = learner_version
    self.version_logp = version_logp
    self.sampler_logp = sampler_logp
    self._memory: dict[Any, Any] = {}

  @property
  def expm1(self) -> jax.Array:
    """`[B, T]` `rho - 1` of every token, to full precision near 0."""
    return self._once("expm1", lambda: jnp.expm1(self.log_ratio))

  @property
  def staleness(self) -> jax.Array:
    """`[B, T]` int: how many versions old the weights were that sampled each token."""
    return jnp.where(self.mask, self.learner_version - self.versions, 0)

  def begin(self) -> State:
    """The state before the first stage."""
    rows = self.mask if self.segment_ids is not None else self.mask[:, :1]
    one = jnp.ones_like(self.log_ratio[:, :1])
    return State(self.mask, jnp.ones_like(rows, bool), one)

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

  def units(self, condition: jax.Array, level: Level = "sequence") -> jax.Array:
    """One True for each unit that holds a token that meets the condition."""
    starts = self.starts(level)
    held = self.any_token(condition, level)
    return held if starts is None else starts & held

  def unit_sum(
    self, x: jax.Array, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The sum of `x` over the tokens of each unit that levels multiply over."""
    return ratios.unit_sum(self.among(x, state), self.starts(level))

  def unit_max(
    self, x: jax.Array, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The largest `x`, never negative, over the tokens of each unit."""
    return ratios.unit_max(self.among(x, state), self.starts(level))

  def unit_mean(
    self, x: jax.Array, state: State, level: Level = "sequence"
  ) -> jax.Array:
    """The mean of `x` over the known tokens of each unit."""
    return self.unit_sum(x, state, level) / self.size(state, level)

  def size(self, state: State, level: Level) -> jax.Array:
    """The number of known tokens of each unit, at least 1."""
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
    total = self.unit_sum(self.log_ratio, state, level)
    if level == "geometric":
      total = total / self.size(state, level)
    if level == "root":
      total = total / jnp.sqrt(self.size(state, level))
    return ratios.clamp_log(total)

  def _once(self, key, compute):
    if key not in self._memory:
      self._memory[key] = compute()
    return self._memory[key]


def _summary_features(x, tokens) -> Rows:
  excess = jnp.where(tokens, x - 1.0, 0.0)
  return Rows(
    {"excess": excess, "squares": excess * excess, "count": tokens.astype(x.dtype)},
    {"x": jnp.where(tokens, x, -jnp.inf)},
    {"x": jnp.where(tokens, x, jnp.inf)},
  )


def reject_where(state: State, out: jax.Array, level: Level) -> State:
  """Drops what `out` (`[B, T]`, or `[B, 1]` by row) marks."""
  if level in (*TOKEN_LEVELS, "turn"):
    return state._replace(tokens=state.tokens & ~out)
  return state._replace(rows=state.rows & ~out)


def row_count(condition: jax.Array) -> jax.Array:
  """`[B, 1]` fp32: how many tokens of each row meet the condition."""
  return condition.sum(axis=1, keepdims=True, dtype=jnp.float32)


def _by_token(x):
  """`[B]` as `[B, 1]`."""
  return x[:, None] if x is not None and jnp.ndim(x) == 1 else x


def _float(x: jax.Array):
  return jnp.promote_types(jnp.float32, x.dtype)


def _sum(x: jax.Array) -> jax.Array:
  return x.sum(dtype=_float(x))
