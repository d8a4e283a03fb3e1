"""The one table of what a chain is called with: names, shapes, meanings."""

import warnings
from typing import Annotated, Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.numerics.arrays import as_array
from tis_jax.numerics.checks import check_rank, check_shape
from tis_jax.numerics.names import did_you_mean

# How many tokens a look takes in, and what the rounding of an fp32 log-softmax may add.
_SEEN, _SLACK = 4096, 1e-3


class Inputs(NamedTuple):
  """The arrays of one batch; what is not given is None.

  Any, not Array | None: a stage reads what its `needs` has made sure of.

  Attributes:
    old_logp: the learner's log-probs at the start of the update, in nats.
    sampler_logp: the log-probs that the sampler reported, in nats.
    mask: bool or 0/1, the tokens that train.
    segment_ids: int, which sequence of a packed row each token belongs to.
    present: bool, False where the sampler reported no log-prob. The ratio of such a
      token (and of one whose log-prob is NaN) is 1, and it is counted.
    group_ids: int, which rows answer the same prompt.
    advantages: by sequence or by token.
    versions: int, the version of the params that sampled each token.
    learner_version: int, the version of `old_logp`.
    version_logp: the learner's log-prob under the version that sampled the token, where
      it still holds those params.
    rewards: by sequence (by token when rows are packed, each sequence's at its tokens),
      for the metrics that set rewards against rejections.
  """

  old_logp: Annotated[Any, "BT"]
  sampler_logp: Annotated[Any, "BT"]
  mask: Annotated[Any, "BT"]
  segment_ids: Annotated[Any, "BT"] = None
  present: Annotated[Any, "BT"] = None
  group_ids: Annotated[Any, "B"] = None
  advantages: Annotated[Any, "B", "BT"] = None
  versions: Annotated[Any, "BT"] = None
  learner_version: Annotated[Any, ""] = None
  version_logp: Annotated[Any, "BT"] = None
  rewards: Annotated[Any, "B", "BT"] = None

  @property
  def given(self) -> frozenset[str]:
    """The names of what is there."""
    return frozenset(name for name, x in self._asdict().items() if x is not None)


SHAPES: dict[str, tuple[str, ...]] = {
  name: hint.__metadata__
  for name, hint in get_type_hints(Inputs, include_extras=True).items()
}
"""Name -> the shapes that it may have, a letter an axis."""


def check_inputs(old_logp, sampler_logp, mask, given: dict[str, Any]) -> Inputs:
  """The inputs of a call, if their names and shapes can be right.

  Raises:
    TypeError: an argument that no chain takes, with the nearest that one does.
    ValueError: shapes that do not fit each other.
  """
  for name in given:
    if name not in SHAPES:
      raise TypeError(f"a chain takes no {name}={did_you_mean(name, SHAPES)}")
  arrays = {"old_logp": old_logp, "sampler_logp": sampler_logp, "mask": mask} | given
  inputs = Inputs(**{name: as_array(name, x) for name, x in arrays.items()})
  old_logp = inputs.old_logp
  check_rank("old_logp", old_logp, "BT")
  rows, tokens = jnp.shape(old_logp)
  size = {"B": rows, "T": tokens}
  for name, shapes in SHAPES.items():
    x = getattr(inputs, name)
    if x is not None:
      check_shape(name, x, *(tuple(size[axis] for axis in axes) for axes in shapes))
  _check_kinds(inputs)
  if all(map(_on_host, (inputs.old_logp, inputs.sampler_logp, inputs.mask))):
    _look(inputs)
  return inputs


_ORDER = "the order is (old_logp, sampler_logp, mask)"


def _check_kinds(inputs: Inputs) -> None:
  """Refuses what cannot be log-probs by its type: a mask in their place, token ids."""
  for name in ("old_logp", "sampler_logp", "version_logp"):
    x = getattr(inputs, name)
    if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(
        f"{name} must be log-probs in floating point, got {x.dtype}; {_ORDER}"
      )


def _on_host(x: Any) -> bool:
  """Whether values can be read without waiting for a device or for a trace."""
  if isinstance(x, np.ndarray):
    return True
  if isinstance(x, jax.core.Tracer) or len(x.devices()) > 1:
    return False
  return x.device.platform == "cpu"


def _look(inputs: Inputs) -> None:
  """A look at the first rows, for what silently gives nonsense.

  Raises:
    ValueError: a mask that is neither True nor False.
  """
  tokens = inputs.mask.shape[1]
  rows = slice(max(_SEEN // max(tokens, 1), 1))
  mask = np.asarray(inputs.mask)[rows]
  odd = mask[(mask != 0) & (mask != 1)]
  if odd.size:
    raise ValueError(f"mask must be bool or 0/1, it holds {odd[0]:g}; {_ORDER}")
  for name in ("old_logp", "sampler_logp"):
    seen = np.asarray(getattr(inputs, name))[rows][mask != 0]
    seen = seen[np.isfinite(seen)]
    if (seen > _SLACK).any():
      what = "are they probabilities? take their log" if (seen >= 0).all() else _ORDER
      warnings.warn(
        f"{name} holds {seen.max():g}, and no log-prob is above 0; {what}",
        stacklevel=4,  # where the chain is called
      )
