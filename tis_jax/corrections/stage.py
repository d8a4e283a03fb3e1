"""What a stage of a corrector is: a pure function with its thresholds bound."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from tis_jax.corrections.state import State
from tis_jax.numerics.metrics import Metrics

Makes = Literal["weight", "mask", "scale"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a chain: a pure function with its thresholds bound; see `make_stage`.

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

  run: Callable[..., tuple[State, Metrics]] = dataclasses.field(
    metadata={"static": True}
  )
  thresholds: Mapping[str, Any]
  name: str = dataclasses.field(metadata={"static": True})
  makes: Makes = dataclasses.field(metadata={"static": True})
  options: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})
  needs: tuple[str, ...] = dataclasses.field(metadata={"static": True})
  pools: bool = dataclasses.field(metadata={"static": True})


def make_stage(
  run: Callable[..., tuple[State, Metrics]],
  *,
  makes: Makes,
  thresholds: Mapping[str, Any] | None = None,
  needs: tuple[str, ...] = (),
  pools: bool = False,
  **options: Any,
) -> Stage:
  """A stage that is called what `run` is called, with `options` bound.

  Args:
    run: `run(batch, state, **thresholds, **options) -> (state, metrics)`.
    makes: see `Stage`.
    thresholds: what may be traced.
    needs: see `Stage`.
    pools: see `Stage`.
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
  )
