"""Mixtures of experts: a router, and for each token the few gated MLPs that it chooses.

Letters in names: T tokens, K experts of each, R rows (a token once for each of its
experts), E experts, D width, F width inside an expert, I inputs and O outputs of a
matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.models.precision import multiply


class ExpertMatrix(NamedTuple):
  """One matrix of every expert.

  Attributes:
    numbers_EIO: floats, or the numbers that `quantize` made.
    scale_EO: fp32 scale an output of each; None of floats.
  """

  numbers_EIO: jax.Array
  scale_EO: jax.Array | None = None

  @classmethod
  def of(cls, weight: Any) -> "ExpertMatrix":
    """From an array or a `qwix.QArray` [E, I, O]."""
    if hasattr(weight, "qvalue"):
      return cls(weight.qvalue, weight.scale[:, 0, :].astype(jnp.float32))
    return cls(weight)

  def __call__(self, x_RI: jax.Array, expert_R, sizes_E) -> jax.Array:
    """x @ numbers * scale of each row's expert, in the dtype of x.

    Args:
      x_RI: rows in the order of their experts.
      expert_R: int32, of each row.
      sizes_E: int32, rows of each expert.
    """
    exact = x_RI.dtype == jnp.float32
    product_RO = jax.lax.ragged_dot(
      x_RI,
      self.numbers_EIO.astype(x_RI.dtype),
      sizes_E,
      precision=jax.lax.Precision.HIGHEST if exact else None,
      preferred_element_type=jnp.float32,
    )
    if self.scale_EO is not None:
      product_RO = product_RO * self.scale_EO[expert_R]
    return product_RO.astype(x_RI.dtype)


class Experts(NamedTuple):
  """The router and the matrices of a layer.

  Attributes:
    router_DE: floats.
    gate: I = D, O = F.
    up: I = D, O = F.
    down: I = F, O = D.
  """

  router_DE: jax.Array
  gate: ExpertMatrix
  up: ExpertMatrix
  down: ExpertMatrix

  def __call__(
    self,
    x_TD: jax.Array,
    chosen: int,
    normalized: bool,
    routed_TK: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """sum over the chosen e of share_e down_e(silu(gate_e(x)) * up_e(x)).

    No token is dropped, whatever the experts' loads: rows are sorted by expert, and
    each expert multiplies its own. Products as elsewhere: accumulated in fp32, rounded
    to the dtype of x; shares, and the sum over them, are fp32.

    Args:
      x_TD: activations.
      chosen: K.
      normalized: shares of the K add up to 1; else they are those among all experts.
      routed_TK: int, experts to take in place of those that the router finds most
        probable; a token that has a -1 has none. Shares are the router's all the same,
        and gradients reach it.

    Returns:
      (out_TD in the dtype of x, experts_TK int32, the most probable first).

    Example:
      >>> ones = ExpertMatrix(jnp.ones((2, 1, 1)))
      >>> double = ExpertMatrix(jnp.array([[[1.0]], [[2.0]]]))
      >>> experts = Experts(jnp.array([[0.0, 1.0]]), ones, ones, double)
      >>> out, chosen = experts(jnp.ones((1, 1)), 1, True)
      >>> round(float(out[0, 0] / jax.nn.silu(1.0)), 4), chosen.tolist()
      (2.0, [[1]])
    """
    tokens, count = x_TD.shape[0], self.router_DE.shape[1]
    logits_TE = multiply("td,de->te", x_TD, self.router_DE.astype(x_TD.dtype))
    shares_TE = jax.nn.softmax(logits_TE)
    shares_TK, experts_TK = jax.lax.top_k(shares_TE, chosen)
    if routed_TK is not None:
      given_T1 = (routed_TK >= 0).all(axis=1, keepdims=True)
      experts_TK = jnp.where(given_T1, routed_TK.astype(jnp.int32), experts_TK)
      shares_TK = jnp.take_along_axis(shares_TE, experts_TK, axis=1)
    if normalized:
      shares_TK = shares_TK / shares_TK.sum(axis=1, keepdims=True)
    order_R = jnp.argsort(experts_TK.reshape(-1))
    expert_R = experts_TK.reshape(-1)[order_R]
    sizes_E = jnp.bincount(expert_R, length=count).astype(jnp.int32)
    x_RD = x_TD[order_R // chosen]
    gate_RF, up_RF = (half(x_RD, expert_R, sizes_E) for half in (self.gate, self.up))
    out_RD = self.down(jax.nn.silu(gate_RF) * up_RF, expert_R, sizes_E)
    # Back to the order of the tokens.
    out_RD = jnp.zeros_like(out_RD).at[order_R].set(out_RD)
    out_TKD = out_RD.reshape(tokens, chosen, -1).astype(jnp.float32)
    out_TD = (out_TKD * shares_TK[:, :, None]).sum(axis=1)
    return out_TD.astype(x_TD.dtype), experts_TK
