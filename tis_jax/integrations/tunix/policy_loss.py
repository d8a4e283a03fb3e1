"""A loss of `tis_jax.losses` where Tunix looks for one of its own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.rl import common, function_registry

from tis_jax.integrations.tunix.metrics import logged
from tis_jax.losses import aggregate, call_loss, kl_penalty
from tis_jax.numerics.metrics import Metrics, mean

_CATEGORY = "policy_loss_fn"
_KL_KINDS = {"kl": "k1", "mse_kl": "k2", "low_var_kl": "k3"}


def register_policy_loss(loss: Callable) -> str:
  """Gives Tunix a loss, and returns the name that it goes by there.

  With `w` the correction's weight, `m` its mask and `d` the denominators of the batch:

    sum_bt m (w token_loss + beta kl) / d

  Args:
    loss: a policy loss, see `tis_jax.losses`.
  """

  def of_tunix(model, train_example, algo_config, pad_id, eos_id, **_):
    logp = _current_logp(model, train_example, algo_config, pad_id, eos_id)
    total, metrics = batch_loss(
      loss, logp, train_example, algo_config.beta or 0.0, algo_config.kl_loss_mode
    )
    return total, {name: value for name, (value, _) in logged(metrics).items()}

  name = f"tis_jax: {loss!r}"
  if name not in function_registry.default_registry.list_functions(_CATEGORY):
    function_registry.register_policy_loss_fn(name)(of_tunix)
  return name


def batch_loss(
  loss: Callable, logp: jax.Array, example: Any, beta: float, kl_loss_mode: str
) -> tuple[jax.Array, Metrics]:
  """The loss of rows whose denominators are known.

  Args:
    loss: a policy loss.
    logp: `[B, T]` log-probs of the current policy, in nats; carries the gradient.
    example: a `TISExample`.
    beta: of the KL to the reference.
    kl_loss_mode: its estimator by Tunix's name; "kl", "mse_kl" and "low_var_kl" are k1,
      k2 and k3 of `losses.kl_penalty`.

  Returns:
    `(loss, metrics)`: an fp32 scalar, and poolable metrics.
  """
  token_loss, metrics = call_loss(
    loss,
    logp=logp,
    old_logp=example.old_per_token_logps,
    sampler_logp=example.sampler_logp,
    advantages=example.advantages,
    mask=example.accepted,
  )
  token_loss = token_loss * example.sampler_is_weights
  if example.ref_per_token_logps is not None:
    kind = _KL_KINDS[kl_loss_mode]
    kl = kl_penalty(logp, example.ref_per_token_logps, kind, example.accepted)
    metrics |= {
      "policy/kl_to_reference": mean(jax.lax.stop_gradient(kl), example.accepted)
    }
    token_loss = token_loss + beta * kl
  total = aggregate(token_loss, example.accepted, denominator=example.denominator)
  return total, metrics


def metrics_of_loss(loss: Callable, *, reference: bool) -> dict[str, Callable]:
  """The numbers that a loss logs by name, each with what pools it."""

  def trace(x_BT):
    example = SimpleNamespace(
      accepted=x_BT > 0,
      advantages=x_BT[:, 0],
      denominator=x_BT[:, 0],
      old_per_token_logps=x_BT,
      ref_per_token_logps=x_BT if reference else None,
      sampler_is_weights=x_BT,
      sampler_logp=x_BT,
    )
    return batch_loss(loss, x_BT, example, 1.0, "kl")[1]

  metrics = jax.tree.map(
    lambda x: jnp.zeros(x.shape), jax.eval_shape(trace, jnp.ones((2, 2)))
  )
  return {name: pool for name, (_, pool) in logged(metrics).items()}


def _current_logp(model, example, algo_config, pad_id, eos_id) -> jax.Array:
  """`[B, T]` fp32 log-probs of the model that is trained, by Tunix's own forward."""
  graphdef, state = nnx.split(model)
  logp = common.compute_per_token_logps(
    graphdef,
    state,
    prompt_tokens=example.prompt_ids,
    completion_tokens=example.completion_ids,
    pad_id=pad_id,
    eos_id=eos_id,
    stop_gradient=False,
    return_logits=False,
    temperature=algo_config.temperature,
  )
  return logp.astype(jnp.float32)
