"""The parts of a block: RMS norm, rotary positions, grouped attention, gated MLP.

Letters in names: B rows, S new tokens, C slots to attend to, D width, N key heads,
G query heads a key head, K head width, F MLP width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tis_jax.models.config import DecoderConfig
from tis_jax.models.experts import ExpertMatrix, Experts
from tis_jax.models.precision import contract, multiply

# Finite, so that a row with nothing to attend to gives numbers and not NaN.
MASKED = -1e30


class Near(NamedTuple):
  """A sliding window: a token sees positions less than `width` before its own.

  Attributes:
    width: int32 scalar.
    positions_BS: int32, of the tokens.
    positions_BC: int32, of the slots.
  """

  width: jax.Array
  positions_BS: jax.Array
  positions_BC: jax.Array

  @property
  def mask_BSC(self) -> jax.Array:
    """Which slots are near which tokens; those that come later, too."""
    back_BSC = self.positions_BS[:, :, None] - self.positions_BC[:, None, :]
    return back_BSC < self.width


def rms_norm(x, scale, eps: float):
  """x / rms(x) * scale over the last axis, computed in fp32, in the dtype of x."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
  return (x32 * scale).astype(x.dtype)


def gate_activation(config: DecoderConfig):
  """What the gate of a gated MLP goes through."""
  return jax.nn.gelu if config.gelu else jax.nn.silu


def rotary_angles(config: DecoderConfig, positions_BS, *, windowed: bool = False):
  """Cosines and sines of the rotary angles, fp32 [B, S, K/2].

  The k-th pair turns by position * theta^(-2k/K); `rope_scaling` slows the slow ones.
  Layers with a window have a theta of their own.

  Source: Su et al. 2021 (arXiv 2104.09864); Llama 3's stretching as in `transformers`.
  """
  half = config.head_dim // 2
  theta, scaling = config.rope_theta, config.rope_scaling
  if windowed and config.window is not None:
    theta, scaling = config.window.rope_theta, None
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if scaling is not None:
    turns = scaling.original_positions * frequency / (2 * jnp.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    frequency = frequency * (kept + (1 - kept) / scaling.factor)
  angles = positions_BS.astype(jnp.float32)[..., None] * frequency[None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, angles):
  """Turns the pairs (k, k + K/2) of each head of x [B, S, ..., K] by its angles."""
  axes = tuple(range(2, x.ndim - 1))
  cos, sin = (jnp.expand_dims(a, axes) for a in angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend(query_BSNGK, keys_BCNK, values_BCNK, mask_BSC):
  """softmax(query . keys / sqrt(K)) . values; logits and softmax in fp32.

  Args:
    query_BSNGK: rotated queries, grouped by the key head they share.
    keys_BCNK: rotated keys.
    values_BCNK: values.
    mask_BSC: bool, which slots a token may look at.

  Returns:
    [B, S, N, G, K] in the dtype of the queries.
  """
  dtype = query_BSNGK.dtype
  scale = query_BSNGK.shape[-1] ** -0.5
  logits_BNGSC = multiply("bsngk,bcnk->bngsc", query_BSNGK, keys_BCNK.astype(dtype))
  mask_BNGSC = mask_BSC[:, None, None, :, :]
  logits_BNGSC = jnp.where(mask_BNGSC, logits_BNGSC * scale, MASKED)
  weights_BNGSC = jax.nn.softmax(logits_BNGSC, axis=-1).astype(dtype)
  mixed = multiply("bngsc,bcnk->bsngk", weights_BNGSC, values_BCNK.astype(dtype))
  return mixed.astype(dtype)


def _weight(rngs, shape, fan_in, dtype, gain=1.0):
  scale = gain * fan_in**-0.5
  return nnx.Param(scale * jax.random.normal(rngs.params(), shape, dtype))


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, param_dtype):
    width, kv, head = config.hidden_size, config.num_kv_heads, config.head_dim
    group, dtype = config.group_size, param_dtype
    # A residual branch starts small, so that depth does not grow the stream.
    gain = (2 * config.num_layers) ** -0.5
    self.eps = config.rms_norm_eps
    self.query = _weight(rngs, (width, kv, group, head), width, dtype)
    self.key = _weight(rngs, (width, kv, head), width, dtype)
    self.value = _weight(rngs, (width, kv, head), width, dtype)
    fan_in = config.num_heads * head
    self.out = _weight(rngs, (kv, group, head, width), fan_in, dtype, gain)
    if config.attention_bias:
      self.query_bias = nnx.Param(jnp.zeros((kv, group, head), dtype))
      self.key_bias = nnx.Param(jnp.zeros((kv, head), dtype))
      self.value_bias = nnx.Param(jnp.zeros((kv, head), dtype))
    if config.qk_norm:
      self.query_norm = nnx.Param(jnp.ones((head,), dtype))
      self.key_norm = nnx.Param(jnp.ones((head,), dtype))
    self.has_bias, self.has_norm = config.attention_bias, config.qk_norm

  def project(self, x_BSD, angles):
    """Rotated queries [B, S, N, G, K], rotated keys and values [B, S, N, K]."""
    query = contract("td,dngk->tngk", x_BSD, self.query)
    key = contract("td,dnk->tnk", x_BSD, self.key)
    value = contract("td,dnk->tnk", x_BSD, self.value)
    if self.has_bias:
      query = query + self.query_bias[...].astype(query.dtype)[None, None]
      key = key + self.key_bias[...].astype(key.dtype)[None, None]
      value = value + self.value_bias[...].astype(value.dtype)[None, None]
    if self.has_norm:
      query = rms_norm(query, self.query_norm[...], self.eps)
      key = rms_norm(key, self.key_norm[...], self.eps)
    return rotate(query, angles), rotate(key, angles), value

  def merge(self, heads_BSNGK):
    """Heads back to the residual stream, [B, S, D]."""
    return contract("tngk,ngkd->td", heads_BSNGK, self.out)


class MLP(nnx.Module):
  """down(act(gate(x)) * up(x)): SwiGLU or GeGLU (Shazeer 2020, arXiv 2002.05202)."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, param_dtype):
    width, inner = config.hidden_size, config.intermediate_size
    gain = (2 * config.num_layers) ** -0.5
    self.activation = gate_activation(config)
    self.gate = _weight(rngs, (width, inner), width, param_dtype)
    self.up = _weight(rngs, (width, inner), width, param_dtype)
    self.down = _weight(rngs, (inner, width), inner, param_dtype, gain)

  def __call__(self, x_BSD):
    gate = contract("td,df->tf", x_BSD, self.gate)
    up = contract("td,df->tf", x_BSD, self.up)
    return contract("tf,fd->td", self.activation(gate) * up, self.down)


class MixtureMLP(nnx.Module):
  """The gated MLPs of a few experts a token, weighed by a router's shares."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, param_dtype):
    width, inner, count = (
      config.hidden_size,
      config.intermediate_size,
      config.num_experts,
    )
    gain = (2 * config.num_layers) ** -0.5
    self.chosen, self.normalized = config.experts_per_token, config.normalize_experts
    self.router = _weight(rngs, (width, count), width, param_dtype)
    self.expert_gate = _weight(rngs, (count, width, inner), width, param_dtype)
    self.expert_up = _weight(rngs, (count, width, inner), width, param_dtype)
    self.expert_down = _weight(rngs, (count, inner, width), inner, param_dtype, gain)

  def __call__(self, x_BSD, routed_BSE=None):
    matrices = (self.expert_gate, self.expert_up, self.expert_down)
    experts = Experts(
      self.router[...], *(ExpertMatrix.of(matrix.get_value()) for matrix in matrices)
    )
    x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
    routed_TK = None
    if routed_BSE is not None:
      routed_TK = routed_BSE.reshape(-1, self.chosen)
    out_TD, _ = experts(x_TD, self.chosen, self.normalized, routed_TK)
    return out_TD.reshape(x_BSD.shape)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); each in a second norm, of Gemma."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, param_dtype):
    self.eps = config.rms_norm_eps
    self.attention_norm = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))
    self.attention = Attention(config, rngs=rngs, param_dtype=param_dtype)
    self.mlp_norm = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))
    mlp = MixtureMLP if config.num_experts else MLP
    self.mlp = mlp(config, rngs=rngs, param_dtype=param_dtype)
    self.has_post_norms = config.post_norms
    if config.post_norms:
      self.attention_post_norm = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))
      self.mlp_post_norm = nnx.Param(jnp.ones((config.hidden_size,), param_dtype))

  def __call__(self, x_BSD, angles, attention, routed_BSE=None):
    """Runs the block.

    Args:
      x_BSD: the stream.
      angles: of the rotation.
      attention: `attention(query, key, value)` decides what is attended to.
      routed_BSE: experts to send each token to; None leaves it to the router.
    """
    normed = rms_norm(x_BSD, self.attention_norm[...], self.eps)
    heads, memory = attention(*self.attention.project(normed, angles))
    added = self.attention.merge(heads)
    if self.has_post_norms:
      added = rms_norm(added, self.attention_post_norm[...], self.eps)
    x_BSD = x_BSD + added
    given = () if routed_BSE is None else (routed_BSE,)
    added = self.mlp(rms_norm(x_BSD, self.mlp_norm[...], self.eps), *given)
    if self.has_post_norms:
      added = rms_norm(added, self.mlp_post_norm[...], self.eps)
    return x_BSD + added, memory
