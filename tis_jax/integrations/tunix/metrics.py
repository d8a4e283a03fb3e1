"""Poolable metrics through Tunix's logger, pooled exactly where it would average."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.numerics.metrics import Metric

Logged = dict[str, tuple[jax.Array, Callable[[Any], float]]]


def logged(metrics: Mapping[str, Metric]) -> Logged:
  """Metrics as Tunix logs them: `name -> (value, what makes a number of the values)`.

  Tunix collects the values of a step and hands them to the function that came with the
  first. A value here is what the metric needs to be merged, as one vector, and the
  function merges: means of batches of different sizes, spreads and extrema are those
  of the step.

  Args:
    metrics: of one call or one micro-batch.

  Returns:
    One entry a number that `tis_jax.finalize` gives, under its name.

  >>> from tis_jax.numerics.metrics import mean
  >>> parts = [{"w": mean(jnp.array(x), jnp.ones(len(x)))} for x in ([1.0], [2.0, 6.0])]
  >>> values, pool = zip(*(logged(part)["w"] for part in parts))
  >>> pool[0](values)
  3.0
  """
  packed: Logged = {}
  for name, metric in metrics.items():
    shapes = tuple(tuple(jnp.shape(x)) for x in metric)
    vector = jnp.concatenate([jnp.ravel(x) for x in metric])
    for extra in _extras(type(metric), shapes):
      key = f"{name}/{extra}" if extra else name
      packed[key] = vector, partial(_number, type(metric), shapes, extra)
  return packed


def _number(kind: type, shapes: tuple, extra: str, values: Sequence[Any]) -> float:
  """One number of a metric that came in parts."""
  rows = np.stack([np.asarray(value) for value in values])
  sizes = [int(np.prod(shape)) for shape in shapes]
  columns = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
  fields = [x.reshape(-1, *shape) for x, shape in zip(columns, shapes, strict=True)]
  return float(_finalized(kind, fields)[extra])


@partial(jax.jit, static_argnums=0)
def _finalized(kind: Any, fields: list[jax.Array]) -> dict[str, jax.Array]:
  return kind(*fields).pooled().finalize()


_KNOWN: dict[tuple, tuple[str, ...]] = {}


def _extras(kind: Any, shapes: tuple) -> tuple[str, ...]:
  """The names of a metric's numbers, without taking them."""
  if (kind, shapes) not in _KNOWN:
    fields = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = jax.eval_shape(lambda fields: kind(*fields).finalize(), fields)
    _KNOWN[kind, shapes] = tuple(found)
  return _KNOWN[kind, shapes]
