"""In which dtypes an engine computes, and how a record says so."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from tis_jax.engines.native.settings import CACHES, HEADS
from tis_jax.models import QUANTIZED, cast, quantize
from tis_jax.numerics.checks import check_choice

_FLOATS = ("bfloat16", "float32", "float16")
PRECISIONS = (*_FLOATS, *QUANTIZED)
"""Of params and activations; those of `QUANTIZED` have bfloat16 activations."""


@dataclasses.dataclass(frozen=True)
class Precision:
  """The dtypes of params, activations, head and cache.

  Attributes:
    params: one of `PRECISIONS`; None takes them as they are, and the graph's
      activations.
    head: "float32" multiplies the logits in it; "" in the activations' dtype.
    cache: "int8" keeps keys and values in it; "" in the activations' dtype.

  Raises:
    ValueError: a precision that there is not.

  Example:
    >>> Precision("int8", head="float32", cache="int8").words
    'int8 params, bfloat16 activations, float32 head, int8 cache'
  """

  params: str | None = None
  head: str = ""
  cache: str = ""

  def __post_init__(self):
    if self.params is not None:
      check_choice("precision", self.params, PRECISIONS)
    check_choice("head", self.head, HEADS)
    check_choice("cache", self.cache, CACHES)

  @property
  def words(self) -> str | None:
    """For a record's header; None where params and graph decide."""
    if self.params is None:
      return None
    said = [self.params]
    if self.params in QUANTIZED:
      said = [f"{self.params} params", "bfloat16 activations"]
    said += [f"{self.head} head"] if self.head else []
    said += [f"{self.cache} cache"] if self.cache else []
    return ", ".join(said)

  @property
  def activations(self):
    """Their dtype; None is the graph's."""
    if self.params is None:
      return None
    return jnp.dtype(self.params if self.params in _FLOATS else jnp.bfloat16)

  def of(self, params: nnx.State) -> nnx.State:
    """Params in this precision."""
    if self.params is None:
      return params
    if self.params in QUANTIZED:
      return quantize(params, self.params)
    return cast(params, self.params)
