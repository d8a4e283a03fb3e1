"""REINFORCE: the plain score-function loss, and GPG, which is the same loss."""

import jax
from jax.typing import ArrayLike

from tis_jax.losses._inputs import policy_inputs
from tis_jax.numerics.metrics import Metrics


def reinforce(
  logp: ArrayLike, advantages: ArrayLike, mask: ArrayLike | None = None
) -> tuple[jax.Array, Metrics]:
  """Score-function loss, per token: `loss = -A logp`.

  It holds no ratio of its own. Multiplied by the weight of a correction it is REINFORCE
  with importance weights: in bypass mode (`weight = pi / mu`, truncated as you like)
  that is the policy gradient itself, corrected for mismatch and drift together.
  GPG (Group Policy Gradient) is this loss with the advantages of
  `tis_jax.advantages.gpg`.

  Args:
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    advantages: `[B, T]`, or `[B]` for one number a sequence.
    mask: `[B, T]` bool or 0/1; None trains every token.

  Returns:
    `(token_loss, metrics)`: `[B, T]` fp32, 0 where the mask is False; no metrics.

  Raises:
    ValueError: a wrong shape or dtype.

  >>> import jax.numpy as jnp
  >>> token_loss, _ = reinforce(jnp.array([[-0.5, -2.0]]), jnp.array([3.0]))
  >>> token_loss.tolist()
  [[1.5, 6.0]]

  References: Williams 1992; GPG: Chu et al. 2025, arXiv:2504.02546.
  """
  _, advantages, logp = policy_inputs(mask, advantages, logp=logp)
  return -advantages * logp, {}
