"""A critic: a decoder of its own under a value head, started from the policy's params.

Apart from the policy, as in verl and SkyRL: its gradient never meets the policy's, and
costs a second decoder and its optimizer in memory.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.models.config import DecoderConfig
from tis_jax.models.decoder import Decoder
from tis_jax.models.params import flatten
from tis_jax.models.value_head import ValueHead


class Critic(nnx.Module):
  """The value of each position: what is expected of all that follows it.

  Args:
    config: shapes and arithmetic of the decoder; its output matrix is left out.
    rngs: `nnx.Rngs` with a `params` stream.
    dtype: of the activations; values are fp32.
    param_dtype: of the parameters.
    remat: recompute each layer in the backward pass.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> Critic(config, rngs=nnx.Rngs(0))(jnp.array([[3, 1, 4]])).tolist()
    [[0.0, 0.0, 0.0]]
  """

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    remat: bool = False,
  ):
    # A tied decoder holds no output matrix of its own, and a critic has no use for one.
    self.decoder = Decoder(
      dataclasses.replace(config, tie_embeddings=True),
      rngs=rngs,
      dtype=dtype,
      param_dtype=param_dtype,
      remat=remat,
    )
    self.head = ValueHead(config.hidden_size, param_dtype=param_dtype)

  def __call__(
    self,
    tokens_BS: jax.Array,
    *,
    segment_ids_BS: jax.Array | None = None,
    positions_BS: jax.Array | None = None,
    prefixes_BS: jax.Array | None = None,
  ) -> jax.Array:
    """Values `[B, S]`, fp32; arguments as of `Decoder`."""
    hidden_BSD, _ = self.decoder(
      tokens_BS,
      segment_ids_BS=segment_ids_BS,
      positions_BS=positions_BS,
      prefixes_BS=prefixes_BS,
    )
    return self.head(hidden_BSD)


def critic_graph(graph: nnx.GraphDef) -> nnx.GraphDef:
  """The critic's static part that goes with a decoder's.

  Args:
    graph: from `decoder_graph`; the critic has its shapes, dtype and remat.
  """
  attributes: dict[Any, Any] = dict(graph.attributes)
  config, dtype, remat = (attributes[x].value for x in ("config", "dtype", "remat"))
  build = lambda: Critic(config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat)
  return nnx.split(nnx.eval_shape(build))[0]


def critic_params(params: nnx.State) -> nnx.State:
  """The critic that a decoder becomes: its params, and a value head at zero.

  Args:
    params: of a `Decoder`; their arrays are shared, not copied.
  """
  arrays = flatten(params)
  arrays.pop("output", None)
  flat = {f"decoder/{name}": array for name, array in arrays.items()}
  flat["head/weight"] = jnp.zeros(arrays["final_norm"].shape)
  flat["head/bias"] = jnp.zeros(())
  return nnx.from_flat_state(
    [(tuple(name.split("/")), nnx.Param(array)) for name, array in flat.items()]
  )
