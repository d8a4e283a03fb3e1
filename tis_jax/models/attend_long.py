"""Attention of long rows, with what a platform has for it.

Letters in names: B rows, S new tokens, C slots to attend to, N key heads, G query heads
a key head, K head width.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tis_jax.models import tpu_attention
from tis_jax.models.layers import Near
from tis_jax.models.long_attention import attend_in_blocks
from tis_jax.models.sharding import ROWS, fitting
from tis_jax.models.tpu_blocks import Marks


def has_kernel(dtype, head_dim: int) -> bool:
  """Whether a TPU takes attention as a kernel, where this is traced.

  It does in bfloat16: it has no float16, and in fp32 the blocks are the yardstick.
  Heads fill whole tiles of such numbers. The compiler does not split a kernel, so where
  there are several devices, a mesh must be set that says how they split rows and heads.

  >>> has_kernel(jnp.float32, 128), has_kernel(jnp.bfloat16, 72)
  (False, False)
  """
  mesh = jax.sharding.get_abstract_mesh()
  placed = jax.device_count() == 1 if mesh.empty else not mesh.explicit_axes
  # Whose matrix units take no bfloat16 from a kernel.
  old = jax.devices()[0].device_kind in ("TPU v2", "TPU v3")
  return dtype == jnp.bfloat16 and head_dim % 16 == 0 and placed and not old


def attend_long(
  query_BSNGK,
  keys_BCNK,
  values_BCNK,
  places_BS,
  segments_BS,
  segments_BC,
  prefixes_BS=None,
  near: Near | None = None,
):
  """`attend_in_blocks`; on a TPU in Pallas kernels, where they apply (`has_kernel`).

  The platform is that which the program is compiled for. Both multiply in the dtype of
  the queries and sum in fp32, and differ by rounding.

  Returns:
    [B, S, N, G, K] in the dtype of the queries; 0 of a token that sees nothing.

  Example:
    >>> x = jnp.ones((1, 2, 1, 16), jnp.bfloat16)
    >>> one = jnp.ones((1, 2), jnp.int32)
    >>> out = attend_long(x[:, :, :, None], x, x, jnp.array([[0, 1]]), one, 2 * one)
    >>> float(jnp.abs(out).max())
    0.0
  """
  sight = (places_BS, segments_BS, segments_BC, prefixes_BS, near)
  dtype, head_dim = query_BSNGK.dtype, query_BSNGK.shape[-1]
  if not has_kernel(dtype, head_dim):
    return attend_in_blocks(query_BSNGK, keys_BCNK, values_BCNK, *sight)
  return _attend(query_BSNGK, keys_BCNK.astype(dtype), values_BCNK.astype(dtype), sight)


@jax.custom_vjp
def _attend(query_BSNGK, keys_BCNK, values_BCNK, sight):
  return _forward(query_BSNGK, keys_BCNK, values_BCNK, sight)[0]


def _forward(query_BSNGK, keys_BCNK, values_BCNK, sight):
  rows, tokens, *heads, _ = query_BSNGK.shape

  def kernel(query_BSNGK, keys_BCNK, values_BCNK):
    marks = _marks(keys_BCNK, *sight)
    return _kernel_forward(query_BSNGK, keys_BCNK, values_BCNK, marks)

  def blocks(query_BSNGK, keys_BCNK, values_BCNK):
    out_BSNGK = attend_in_blocks(query_BSNGK, keys_BCNK, values_BCNK, *sight)
    # Which go back without it.
    return out_BSNGK, jnp.zeros((rows, *heads, tokens), jnp.float32)

  arrays = (query_BSNGK, keys_BCNK, values_BCNK)
  out_BSNGK, log_sum_BNGS = jax.lax.platform_dependent(
    *arrays, tpu=kernel, default=blocks
  )
  return out_BSNGK, (*arrays, sight, out_BSNGK, log_sum_BNGS)


def _backward(kept, d_out_BSNGK):
  query_BSNGK, keys_BCNK, values_BCNK, sight, *made = kept

  def kernel(query_BSNGK, keys_BCNK, values_BCNK, *rest):
    marks = _marks(keys_BCNK, *sight)
    return _kernel_backward(query_BSNGK, keys_BCNK, values_BCNK, marks, *rest)

  def blocks(query_BSNGK, keys_BCNK, values_BCNK, out, log_sum, d_out_BSNGK):
    attend = lambda *arrays: attend_in_blocks(*arrays, *sight)
    return jax.vjp(attend, query_BSNGK, keys_BCNK, values_BCNK)[1](d_out_BSNGK)

  arrays = (query_BSNGK, keys_BCNK, values_BCNK, *made, d_out_BSNGK)
  gradients = jax.lax.platform_dependent(*arrays, tpu=kernel, default=blocks)
  return (*gradients, None)


_attend.defvjp(_forward, _backward)


def _marks(keys_BCNK, places_BS, segments_BS, segments_BC, prefixes_BS, near) -> Marks:
  last_BS = jnp.minimum(places_BS, keys_BCNK.shape[1] - 1)
  marks = Marks(jnp.where(segments_BS == 0, -1, last_BS), segments_BS, segments_BC)
  if prefixes_BS is not None:
    prefixes_BS = jnp.where(prefixes_BS == 0, segments_BS, prefixes_BS)
    marks = marks._replace(prefixes_BS=prefixes_BS)
  if near is not None:
    nearest_BS = near.positions_BS - near.width + 1
    marks = marks._replace(nearest_BS=nearest_BS, positions_BC=near.positions_BC)
  return jax.tree.map(lambda x: x.astype(jnp.int32), marks)


def _kernel_forward(query_BSNGK, keys_BCNK, values_BCNK, marks):
  def run(query_BSNGK, keys_BCNK, values_BCNK, marks):
    out_BNGKS, log_sum_BNGS = tpu_attention.forward(
      _last(query_BSNGK), _last(keys_BCNK), _last(values_BCNK), marks
    )
    return jnp.moveaxis(out_BNGKS, -1, 1), log_sum_BNGS

  heads, sums, rows = _specs(query_BSNGK)
  run = _on_devices(run, (heads, heads, heads, rows), (heads, sums))
  return run(query_BSNGK, keys_BCNK, values_BCNK, marks)


def _kernel_backward(query_BSNGK, keys_BCNK, values_BCNK, marks, out, log_sum, d_out):
  def run(query_BSNGK, keys_BCNK, values_BCNK, marks, out, log_sum, d_out):
    arrays = (_last(query_BSNGK), _last(keys_BCNK), _last(values_BCNK))
    gradients = tpu_attention.backward(
      *arrays, marks, _last(out), log_sum, _last(d_out)
    )
    return tuple(jnp.moveaxis(x, -1, 1) for x in gradients)

  heads, sums, rows = _specs(query_BSNGK)
  run = _on_devices(run, (heads, heads, heads, rows, heads, sums, heads), (heads,) * 3)
  return run(query_BSNGK, keys_BCNK, values_BCNK, marks, out, log_sum, d_out)


def _last(x):
  """Tokens or slots behind the head's width, where the kernels have them."""
  return jnp.moveaxis(x, 1, -1)


def _specs(query_BSNGK):
  """Rows and heads over the mesh, of arrays [B, S, N, ...], [B, N, ...], [B, ...]."""
  rows = fitting(ROWS, query_BSNGK.shape[0])
  heads = fitting("tensor", query_BSNGK.shape[2])
  by_head = PartitionSpec(rows, None, heads)
  return by_head, PartitionSpec(rows, heads), PartitionSpec(rows)


def _on_devices(run, in_specs, out_specs):
  """`run` on each device of the mesh by itself, which a kernel has to be."""
  names = jax.sharding.get_abstract_mesh().auto_axes
  if not names:
    return run
  return jax.shard_map(
    run, in_specs=in_specs, out_specs=out_specs, axis_names=set(names), check_vma=False
  )
