"""LoRA: small trained matrices beside frozen ones.

Hu et al. 2021 (arXiv 2106.09685).
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.models.adapted import Adapted
from tis_jax.models.config import DecoderConfig
from tis_jax.models.params import abstract_params, flatten, restore
from tis_jax.models.precision import CONTRACTED, QUANTIZED, cast, multiply, quantize
from tis_jax.numerics.checks import check_choice, check_number

_FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which adapters are trained, in place of the params.

      y = x W + alpha / rank (x A) B

  Attributes:
    rank: columns of A and rows of B; 0 for none, and all params train.
    alpha: of the formula.
    targets: matrices of every layer that have an adapter: "query", "key", "value" and
      "out" of the attention, "gate", "up" and "down" of the MLP.
    base: what the learner holds the frozen params in: "float32", "bfloat16", "float16",
      "int8", "int4" or "float8". In the samplers' precision both sides round alike.

  Raises:
    ValueError: a setting outside its range.

  Example:
    >>> LoRA(rank=8, alpha=16.0).scale
    2.0
  """

  rank: int = 0
  alpha: float = 32.0
  targets: tuple[str, ...] = tuple(CONTRACTED)
  base: str = "float32"

  def __post_init__(self):
    check_number("rank", self.rank, at_least=0)
    check_choice("base", self.base, (*_FLOATS, *QUANTIZED))
    for target in self.targets:
      check_choice("targets", target, CONTRACTED)
    if self.rank and not self.targets:
      raise ValueError(f"targets are empty: give some of {', '.join(CONTRACTED)}")

  @property
  def scale(self) -> float:
    """What the adapter's product is multiplied by."""
    return self.alpha / self.rank

  def frozen(self, params: nnx.State) -> nnx.State:
    """The params as the learner holds them under adapters."""
    if self.base in QUANTIZED:
      return quantize(params, self.base)
    return cast(params, self.base)


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
  """The frozen params under adapters.

  Attributes:
    params: of the decoder, in any precision that it runs.
    lora: which adapters stand beside them.
    digest: of the arrays as they were loaded (`tis_jax.store.digest`); an adapter is of
      use beside these alone.
  """

  params: nnx.State
  lora: LoRA
  digest: str = ""


def abstract_adapter(config: DecoderConfig, lora: LoRA) -> nnx.State:
  """The adapter's tree with `jax.ShapeDtypeStruct` in place of arrays.

  Raises:
    ValueError: a target that this decoder has not.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> adapter = flatten(abstract_adapter(config, LoRA(rank=3, targets=("query",))))
    >>> {name: leaf.shape for name, leaf in adapter.items()}
    {'layers/attention/query/lora_a': (2, 16, 3),
     'layers/attention/query/lora_b': (2, 3, 2, 2, 4)}
  """
  leaves, left = {}, set(lora.targets)
  for name, matrix in flatten(abstract_params(config)).items():
    target = name.rpartition("/")[2]
    if target not in lora.targets:
      continue
    left.discard(target)
    inputs = CONTRACTED[target]
    layers, *axes = matrix.shape
    shapes = {
      "lora_a": (layers, *axes[:inputs], lora.rank),
      "lora_b": (layers, lora.rank, *axes[inputs:]),
    }
    for half, shape in shapes.items():
      leaves[f"{name}/{half}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
  if left:
    raise ValueError(f"targets {sorted(left)} are no matrices of this decoder")
  return restore(leaves, leaves)


def init_adapter(config: DecoderConfig, lora: LoRA, key) -> nnx.State:
  """Fresh fp32 adapters: A uniform within 1 / sqrt(inputs), B zero.

  Beside them the decoder computes what it does without: they are the reference policy.

  Args:
    config: the decoder's.
    lora: which.
    key: PRNG key.
  """
  leaves = flatten(abstract_adapter(config, lora))
  keys = jax.random.split(key, len(leaves))

  def draw(name, leaf, key):
    if name.endswith("lora_b"):
      return jnp.zeros(leaf.shape)
    bound = math.prod(leaf.shape[1:-1]) ** -0.5
    return jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound)

  drawn = {
    name: draw(name, leaf, one)
    for (name, leaf), one in zip(leaves.items(), keys, strict=True)
  }
  return restore(leaves, drawn)


def unflatten_adapter(config: DecoderConfig, lora: LoRA, flat: Mapping) -> nnx.State:
  """An adapter's tree from arrays by name, as `unflatten` is a decoder's.

  Raises:
    ValueError: a name is missing or unknown, or a shape is wrong.
  """
  return restore(flatten(abstract_adapter(config, lora)), flat)


def adapt(params: nnx.State, adapter: nnx.State, lora: LoRA) -> nnx.State:
  """The params with the adapter beside them; the decoder's graph runs them as they are.

  Args:
    params: of a decoder, in any precision that it runs; not copied.
    adapter: from `init_adapter`.
    lora: which adapters it has.

  Returns:
    The tree of `params` with an `Adapted` for each target.
  """
  halves, adapted = flatten(adapter), []
  for path, variable in nnx.to_flat_state(params):
    name = "/".join(map(str, path))
    if (a := halves.get(f"{name}/lora_a")) is not None:
      b = halves[f"{name}/lora_b"]
      variable = variable.replace(Adapted(variable.get_value(), a, b, lora.scale))
    adapted.append((path, variable))
  return nnx.from_flat_state(adapted)


def merge(params: nnx.State, adapter: nnx.State, lora: LoRA) -> nnx.State:
  """The params with the adapter added to them: W + alpha / rank A B, in fp32.

  What is rounded to bf16 afterwards loses of a small adapter whatever lies under half a
  unit in the last place of W; `benchmarks/lora.py` measures how much that is.

  Args:
    params: floats.
    adapter: from `init_adapter`.
    lora: which adapters it has.

  Returns:
    fp32 params; those without an adapter in their own dtype.

  Raises:
    ValueError: the params are quantised.
  """

  def one(weight):
    if not isinstance(weight, Adapted):
      return weight
    if hasattr(weight.base, "qvalue"):
      raise ValueError("an adapter cannot be merged into quantised params")
    a, b = weight.lora_a, weight.lora_b
    layers, rank = b.shape[:2]
    a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    product = multiply("lir,lro->lio", *(x.astype(jnp.float32) for x in (a, b)))
    added = weight.scale * product.reshape(weight.base.shape)
    return weight.base.astype(jnp.float32) + added

  is_adapted = lambda x: isinstance(x, Adapted)
  return jax.tree.map(one, adapt(params, adapter, lora), is_leaf=is_adapted)
