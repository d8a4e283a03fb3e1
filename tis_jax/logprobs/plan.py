"""What a fused call decides before it traces, and the tuples its parts exchange."""

import dataclasses
import math
from typing import NamedTuple

import jax

from tis_jax.numerics.arrays import Array

# The largest block of logits held at once, in elements. On a CPU 4 MiB of fp32 stays
# near the cache; an accelerator wants matrices large enough to fill it.
_BLOCK_ELEMENTS = {"cpu": 1 << 20}
_BLOCK_ELEMENTS_ACCELERATOR = 1 << 26
# Narrower blocks waste the matrix unit; beyond this the tokens are chunked instead.
_MIN_VOCAB_BLOCK = 256
_LANES = 128
# A finite stand-in for -inf: differences with it never make inf - inf.
FLOOR = -1e30


@dataclasses.dataclass(frozen=True)
class Plan:
  """Static description of a fused call; hashable, so that jit caches on it.

  Attributes:
    kernel: "xla" or "pallas".
    tied: the head is an embedding table `[V, D]`.
    soft_cap: logits become `cap * tanh(logits / cap)`; None for none.
    entropy: whether the entropy is computed.
    top_k: how many of the most probable tokens are returned.
    sum_squared_probs: whether the squared probabilities are summed.
    precision: of the matrix products; None follows the operands.
    block_elements: bound on the elements of one block of logits.
    vocab_axes: mesh axes that the vocabulary is sharded over.
    mesh: the mesh of `vocab_axes`; None without.
  """

  kernel: str = "xla"
  tied: bool = False
  soft_cap: float | None = None
  entropy: bool = True
  top_k: int = 0
  sum_squared_probs: bool = False
  precision: jax.lax.Precision | None = None
  block_elements: int | None = None
  vocab_axes: tuple[str, ...] = ()
  mesh: jax.sharding.AbstractMesh | None = None

  @property
  def vocab_dim(self) -> int:
    return 0 if self.tied else 1


def block_sizes(tokens: int, vocab: int, elements: int | None) -> tuple[int, int]:
  """`(tokens, vocab)` of one block of logits.

  The vocabulary is cut first, since each of its blocks writes its own part of the head
  gradient once; tokens are cut only where blocks would become too narrow.

  >>> block_sizes(2048, 32000, 1 << 22)
  (2048, 2000)
  >>> block_sizes(65536, 151936, 1 << 22)
  (16384, 256)
  """
  if elements is None:
    backend = jax.default_backend()
    elements = _BLOCK_ELEMENTS.get(backend, _BLOCK_ELEMENTS_ACCELERATOR)
  narrowest = min(_MIN_VOCAB_BLOCK, vocab)
  token_block = min(tokens, max(1, elements // narrowest))
  widest = min(vocab, max(narrowest, elements // max(token_block, 1)))
  return token_block, _even_block(vocab, widest)


def _even_block(vocab: int, widest: int) -> int:
  """The largest divisor of `vocab` in `(widest / 2, widest]`, else an even cut."""
  for block in range(widest, widest // 2, -1):
    if vocab % block == 0:
      return block
  even = math.ceil(vocab / math.ceil(vocab / widest))
  return min(widest, math.ceil(even / _LANES) * _LANES)


class Inputs(NamedTuple):
  """The arrays of a call."""

  hidden: jax.Array  # [..., D]
  head: jax.Array  # [D, V], or [V, D] when tied
  bias: jax.Array | None  # [V]
  targets: Array  # [...]
  temperature: jax.Array | None  # [...] fp32; None is 1, and saves a division
  kept: Array | None  # [..., K] ids of the tokens that are not impossible, or -1
  candidates: Array | None = None  # [..., K] ids of further tokens to read


class Stats(NamedTuple):
  """What one pass over a stretch of vocabulary leaves of each token, fp32 `[...]`."""

  peak: jax.Array  # running maximum of the logits z, before the temperature
  total: jax.Array  # sum of exp((z - peak) / T)
  moment: jax.Array | None  # sum of exp((z - peak) / T) (z - peak) / T
  at_target: jax.Array  # z at the target, 0 where the target lies elsewhere
  top: tuple[jax.Array, jax.Array] | None  # values and token ids `[..., k]`
  squared: jax.Array | None = None  # sum of exp(2 (z - peak) / T)
  at_candidates: jax.Array | None = None  # [..., K] z there, 0 where it lies elsewhere


class Cotangent(NamedTuple):
  """d loss / d l_v = p_v (common - entropy (log p_v + H)) + [v = target] logp.

  With l = z / T, and `candidates_k` more for each candidate that is v. Each `[...]`
  fp32, `candidates` `[..., K]`; None for a term that no output needs.
  """

  common: jax.Array | None
  logp: jax.Array | None
  entropy: jax.Array | None
  candidates: jax.Array | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wanted:
  """Which inputs are being differentiated; static, so that the rest costs nothing."""

  hidden: bool
  head: bool
  bias: bool
  temperature: bool


class Gradients(NamedTuple):
  """fp32; None where nobody asked. A kernel's `temperature` is a part, see there."""

  hidden: jax.Array | None
  head: jax.Array | None
  bias: jax.Array | None
  temperature: jax.Array | None
