"""A LoRA adapter beside the matrices of a layout.

Letters in names: L layers, I inputs and O outputs of a matrix, R rank.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy
from flax import nnx

from tis_jax.engines.native.layout import Layout, LowRank, Matrix
from tis_jax.models import DecoderConfig, LoRA, abstract_params
from tis_jax.models.params import config_of, dtype_of, flatten
from tis_jax.models.precision import CONTRACTED

_ATTENTION, _MLP = "layers/attention/", "layers/mlp/"
# The matrices of the params that stand beside each other in one of the layout.
_PARTS = {
  "heads": tuple(f"{_ATTENTION}{name}" for name in ("query", "key", "value")),
  "out": (f"{_ATTENTION}out",),
  "gate_up": (f"{_MLP}gate", f"{_MLP}up"),
  "down": (f"{_MLP}down",),
}


def with_adapter(
  graph: nnx.GraphDef, made: Layout, lora: LoRA, adapter: nnx.State
) -> Layout:
  """The layout of the frozen params with an adapter beside them, never merged.

  Args:
    graph: from `decoder_graph`; its dtype is that of the activations.
    made: of the frozen params, in any precision; shared, not copied.
    lora: which adapters there are.
    adapter: from `tis_jax.models.init_adapter`.

  Example:
    >>> from tis_jax.engines.native.layout import layout
    >>> from tis_jax.models import decoder_graph, init_adapter, init_params
    >>> config = DecoderConfig(vocab_size=5, hidden_size=8, intermediate_size=6,
    ...                        num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4)
    >>> graph, key = decoder_graph(config), jax.random.key(0)
    >>> made, lora = layout(graph, init_params(config, key)), LoRA(rank=3)
    >>> adapted = with_adapter(graph, made, lora, init_adapter(config, lora, key))
    >>> [x.shape for x in adapted.layers[0].heads.beside[:2]]
    [(8, 9), (9, 16)]
  """
  config = config_of(graph)
  beside = _beside(dtype_of(graph), config, lora, adapter)
  layers = []
  for layer, found in zip(made.layers, beside, strict=True):
    matrices: dict[str, Any] = {}
    for name, low_rank in found.items():
      matrix: Matrix = getattr(layer, name)
      matrices[name] = matrix._replace(beside=low_rank)
    layers.append(layer._replace(**matrices))
  return made._replace(layers=tuple(layers))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _beside(dtype, config: DecoderConfig, lora: LoRA, adapter: nnx.State):
  """{matrix of the layout: its adapter}, layer by layer."""
  flat, shapes = flatten(adapter), flatten(abstract_params(config))
  found: list[dict[str, LowRank]] = [{} for _ in range(config.num_layers)]
  for matrix, names in _PARTS.items():
    if not any(f"{name}/lora_a" in flat for name in names):
      continue
    parts = [_halves(flat, name, shapes[name].shape) for name in names]
    for layer in range(config.num_layers):
      down_IR = jnp.concatenate([a_LIR[layer] for a_LIR, _ in parts], axis=1)
      up_RO = jax.scipy.linalg.block_diag(*(b_LRO[layer] for _, b_LRO in parts))
      scale = jnp.float32(lora.scale)
      found[layer][matrix] = LowRank(down_IR.astype(dtype), up_RO.astype(dtype), scale)
  return found


def _halves(flat, name: str, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """A [L, I, R] and B [L, R, O] of a matrix; of rank 0 where it has no adapter."""
  layers, inputs = shape[0], CONTRACTED[name.rpartition("/")[2]]
  width, outputs = math.prod(shape[1 : 1 + inputs]), math.prod(shape[1 + inputs :])
  if f"{name}/lora_a" not in flat:
    return jnp.zeros((layers, width, 0)), jnp.zeros((layers, 0, outputs))
  a, b = flat[f"{name}/lora_a"], flat[f"{name}/lora_b"]
  return a.reshape(layers, width, -1), b.reshape(layers, -1, outputs)
