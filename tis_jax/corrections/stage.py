"""What a stage of a corrector is, what it sees, and what it may change."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.corrections import ratios
from tis_jax.diagnostics.metrics import Metrics

Level = Literal["token", "prefix", "turn", "sequence", "geometric", "root"]
LEVELS: tuple[Level, ...] = (
  "token",
  "prefix",
  "turn",
  "sequence",
  "geometric",
  "root",
)


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


class State(NamedTuple):
  """What the stages hand on.

  Attributes:
    mask: `[B, T]` bool, the tokens that still train.
    tokens: `[B, T]` bool, the tokens that levels multiply over: the incoming mask less
      what was rejected *inside* a sequence. A sequence rejected whole keeps its
      product, so its row sum is taken once for the whole chain.
    weight: `[B, T]` float, 1 until a stage makes it.
    raw: the ratio the weight was made of, before any bound; None until then.
  """

  mask: jax.Array
  tokens: jax.Array
  weight: jax.Array
  raw: jax.Array | None = None


class Batch:
  """One batch as the stages see it: masked log-ratios, and the levels over them.

  Lives only while a chain is traced. Level values are kept, so that stages at the same
  level share one pass over the data.
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
    raw = ratios.log_ratio(old_logp, sampler_logp, self.mask)
    # A NaN log-prob says nothing: it is missing, whoever failed to say so.
    finite = ~jnp.isnan(raw)
    self.known = self.mask & finite
    if present is not None:
      self.known &= present != 0
    self.log_ratio = jnp.where(self.known, raw, 0.0)
    self.old_logp = jnp.where(self.known, ratios.as_float(old_logp), 0.0)
    self.sampler_logp = jnp.where(self.known, ratios.as_float(sampler_logp), 0.0)
    self.segment_ids = segment_ids
    self.group_ids = group_ids
    self.advantages = advantages
    self.versions = versions
    self.learner_version = learner_version
    self.version_logp = version_logp
    self._memory: dict[Any, jax.Array | None] = {}

  def starts(self, level: Level) -> jax.Array | None:
    """Where the units of `level` begin; None when each row is one."""
    if self.segment_ids is None and level != "turn":
      return None
    turns = level == "turn"
    return self._once(
      ("starts", turns),
      lambda: ratios.unit_starts(self.mask, self.segment_ids, turns=turns),
    )

  def first(self, level: Level, among: jax.Array) -> jax.Array:
    """One True for each unit of `level` that holds a True of `among`."""
    starts = self.starts(level)
    if starts is None:
      return among.any(axis=1, keepdims=True)
    return starts & (ratios.unit_max(among.astype(jnp.float32), starts) > 0)

  def count(self, level: Level, tokens: jax.Array) -> jax.Array:
    """The number of known tokens of each unit."""
    known = (self.known & tokens).astype(self.log_ratio.dtype)
    return self._once(
      ("count", level == "turn", id(tokens)),
      lambda: ratios.unit_sum(known, self.starts(level)),
      tokens,
    )

  def level(self, level: Level, tokens: jax.Array) -> jax.Array:
    """The log-ratio at `level` over `tokens`, clamped: `[B, T]`, or `[B, 1]` by row."""
    if level == "token":
      return self.log_ratio
    if level == "prefix":
      return self._once(
        ("prefix", id(tokens)),
        lambda: ratios.clamp_log(
          ratios.prefix_sum(
            jnp.where(tokens, self.log_ratio, 0.0), self.starts("sequence")
          )
        ),
        tokens,
      )
    total = self._once(
      ("sum", level == "turn", id(tokens)),
      lambda: ratios.unit_sum(
        jnp.where(tokens, self.log_ratio, 0.0), self.starts(level)
      ),
      tokens,
    )
    if level == "geometric":
      total = total / jnp.maximum(self.count(level, tokens), 1.0)
    if level == "root":
      total = total / jnp.sqrt(jnp.maximum(self.count(level, tokens), 1.0))
    return ratios.clamp_log(total)

  def _once(self, key, compute, *keep):
    # `keep` holds the arrays whose id is in the key, so that no id is used again.
    if key not in self._memory:
      self._memory[key] = (compute(), keep)
    return self._memory[key][0]


def reject_units(state: State, keep: jax.Array, level: Level) -> State:
  """Drops what `keep` (`[B, T]`, or `[B, 1]` by row) says no to."""
  inside = level in ("token", "prefix", "turn")
  return state._replace(
    mask=state.mask & keep,
    tokens=state.tokens & keep if inside else state.tokens,
  )


def check_level(name: str, level: str, levels: tuple[str, ...] = LEVELS) -> None:
  if level not in levels:
    raise ValueError(f"{name}: level must be one of {list(levels)}, not {level!r}")


def check_bound(name: str, argument: str, value, *, least: float | None = 0.0) -> None:
  """Refuses a bound that is no number, NaN, or not above `least`.

  A traced value passes: it has no number yet.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if isinstance(value, (bool, str, bytes)) or value is None:
    raise TypeError(f"{name}: {argument} must be a number, not {value!r}")
  if jnp.ndim(value) != 0:
    raise ValueError(f"{name}: {argument} must be a scalar; use vmap for a sweep")
  if not (float(value) == float(value) and (least is None or float(value) > least)):
    above = "" if least is None else f" above {least:g}"
    raise ValueError(f"{name}: {argument} must be a number{above}, not {value!r}")


def check_band(name: str, low, high) -> None:
  """Refuses a band whose lower bound is negative or above its upper one."""
  check_bound(name, "high", high)
  check_bound(name, "low", low, least=-1e-300)
  if not any(isinstance(v, jax.core.Tracer) for v in (low, high)) and low > high:
    raise ValueError(f"{name}: low={low!r} is above high={high!r}: nothing passes")


def log_bound(value):
  """The log of a bound on a ratio.

  Of a plain number it is taken in fp64: log(1.0001) of an fp32 1.0001 is off by 1e-4 of
  the band's width.
  """
  if isinstance(value, jax.core.Tracer):
    return jnp.log(ratios.as_float(value))
  return math.log(value) if value > 0 else -math.inf
