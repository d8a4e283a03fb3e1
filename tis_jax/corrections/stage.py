"""What a stage of a corrector is: a pure function with its thresholds bound."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from tis_jax.corrections.state import State
from tis_jax.numerics.metrics import Metrics
from tis_jax.numerics.ratios import log_bound

Makes = Literal["weight", "mask", "scale", "nothing"]

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stage:
  """One step of a chain: a pure function with its thresholds bound; see `make_stage`.

  A value like a number: it compares, hashes, pickles and prints as the call that makes
  it, so that jit takes it as a function to call, as a static argument, or as an
  argument whose leaves are its thresholds.

  Attributes:
    run: `run(batch, state, **thresholds, **options) -> (state, metrics)`.
    thresholds: the leaves, as they were given, so that a sweep over them does not
      recompile.
    name: what its metrics are called after.
    makes: what it changes: the "weight" (made of a ratio, once a chain), the "mask",
      the "scale" of a weight that an earlier stage made, or "nothing".
    options: everything static that `run` takes.
    needs: the keyword arguments of the chain that it cannot do without.
    pools: whether what it does to a row depends on other rows of the batch (a batch
      mean, a prompt group, a cap it estimates), so that micro-batches would differ.
    logs: the thresholds that `run` takes as `log_NAME`.
    watched: whether its metrics are all that is taken of it; see `watch`.
    named: whether its metrics are called after it, NAME/...; those of a peer have
      names of their own.
  """

  run: Callable[..., tuple[State, Metrics]] = dataclasses.field(metadata=_STATIC)
  thresholds: Mapping[str, Any]
  name: str = dataclasses.field(metadata=_STATIC)
  makes: Makes = dataclasses.field(metadata=_STATIC)
  options: tuple[tuple[str, Any], ...] = dataclasses.field(metadata=_STATIC)
  needs: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
  pools: bool = dataclasses.field(metadata=_STATIC)
  logs: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
  watched: bool = dataclasses.field(default=False, metadata=_STATIC)
  named: bool = dataclasses.field(default=True, metadata=_STATIC)

  @property
  def settings(self) -> dict[str, Any]:
    """The arguments of the call that makes it; no bound is None."""
    plain = {
      name: None if isinstance(value, float) and value == math.inf else value
      for name, value in self.thresholds.items()
    }
    return {**plain, **dict(self.options)}

  @property
  def bounds(self) -> dict[str, Any]:
    """The thresholds as `run` takes them; call it outside jit.

    The log of a plain number is taken in fp64: 1.0001 as an fp32 number has a log that
    is off by 2e-4 of itself.
    """
    logs = {f"log_{name}": log_bound(self.thresholds[name]) for name in self.logs}
    rest = {x: y for x, y in self.thresholds.items() if x not in self.logs}
    return logs | rest

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Stage):
      return NotImplemented
    return hash(self) == hash(other) and all(
      _same(x, other.thresholds[name]) for name, x in self.thresholds.items()
    )

  def __hash__(self) -> int:
    # Not the thresholds: they may be arrays. Equal stages still hash alike.
    shape = (self.run, self.name, self.watched, self.options)
    return hash((*shape, tuple(self.thresholds)))

  def __repr__(self) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
    call = f"{self.name}({shown})"
    return f"watch({call})" if self.watched else call


def watch(stage: Stage) -> Stage:
  """A stage that changes nothing, and reports what it would have done.

  Its metrics stand under `watch/NAME`. A run that only looks can so keep the thresholds
  that it may train with one day.

  Args:
    stage: any; what it would make of the weight and the mask at its place in the chain.

  Returns:
    A stage for `chain`, as often as wanted beside one that weights.

  Raises:
    TypeError: something that is not a stage.

  >>> from tis_jax.corrections import chain, truncate
  >>> import jax.numpy as jnp
  >>> correct = chain(watch(truncate(2.0)))
  >>> out = correct(jnp.zeros((1, 2)), jnp.array([[-1.0, 0.0]]), jnp.ones((1, 2)))
  >>> out.weight.tolist(), out.metrics["watch/truncate/high"].total.item()
  ([[1.0, 1.0]], 1.0)
  """
  if not isinstance(stage, Stage):
    raise TypeError(f"watch: {stage!r} is not a stage; write watch(tis.truncate(2.0))")
  return dataclasses.replace(stage, makes="nothing", watched=True)


def _same(x: Any, y: Any) -> bool:
  if x is y:
    return True
  if any(isinstance(v, jax.core.Tracer) for v in (x, y)):
    return False
  return bool(np.array_equal(x, y))


def make_stage(
  run: Callable[..., tuple[State, Metrics]],
  *,
  makes: Makes,
  thresholds: Mapping[str, Any] | None = None,
  needs: tuple[str, ...] = (),
  pools: bool = False,
  logs: tuple[str, ...] = (),
  named: bool = True,
  **options: Any,
) -> Stage:
  """A stage that is called what `run` is called, with `options` bound.

  Args:
    run: `run(batch, state, **thresholds, **options) -> (state, metrics)`.
    makes: see `Stage`.
    thresholds: what may be traced.
    needs: see `Stage`.
    pools: see `Stage`.
    logs: see `Stage`.
    named: see `Stage`.
    **options: what may not: levels, kinds, switches.

  >>> def _halve(batch, state, *, share):
  ...   return state._replace(weight=share * state.weight), {}
  >>> make_stage(_halve, makes="weight", thresholds={"share": 0.5}).name
  'halve'
  """
  return Stage(
    run=run,
    thresholds=dict(thresholds or {}),
    name=run.__name__.lstrip("_"),
    makes=makes,
    options=tuple(options.items()),
    needs=needs,
    pools=pools,
    logs=logs,
    named=named,
  )
