"""A frozen matrix and a low-rank adapter beside it, as one leaf of a tree of params."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """x W + scale (x A) B, never added up to one matrix.

  Attributes:
    base: W, an array or a `qwix.QArray`.
    lora_a: A, the inputs of W and then the rank.
    lora_b: B, the rank and then the outputs of W.
    scale: of the adapter's product.
  """

  base: Any
  lora_a: jax.Array
  lora_b: jax.Array
  scale: float = dataclasses.field(metadata={"static": True})
