"""Which loss takes which correction, decided by the arguments that the loss names.

A loss that takes `sampler_logp` holds the ratio to the sampler itself; one that takes
`old_logp` holds the ratio to the start of the update; one that takes neither holds
none. That is all there is to know, and it is true of a loss of your own, or a
`functools.partial`, as well.
"""

import inspect
from collections.abc import Callable

import jax

from tis_jax.diagnostics.metrics import Metrics
from tis_jax.losses.covariance import clip_cov_loss, kl_cov_loss
from tis_jax.losses.dro import dro_loss
from tis_jax.losses.m2po import m2po_loss

# Takes old_logp to pull towards it, not to weigh by a ratio to it.
_WITHOUT_RATIO = (dro_loss,)
_SELECTING = (clip_cov_loss, kl_cov_loss, m2po_loss)


def uses_sampler_ratio(loss: Callable, *, bypass: bool = False) -> bool:
  """Whether a loss already multiplies by the policy's ratio to the sampler.

  Args:
    loss: a policy loss.
    bypass: whether `old_logp` will be the sampler's (two policies).

  >>> from tis_jax import losses
  >>> uses_sampler_ratio(losses.dppo_loss), uses_sampler_ratio(losses.ppo_loss)
  (True, False)
  >>> uses_sampler_ratio(losses.ppo_loss, bypass=True)
  True
  """
  if _unwrapped(loss) in _WITHOUT_RATIO:
    return False
  arguments = inspect.signature(loss).parameters
  return "sampler_logp" in arguments or (bypass and "old_logp" in arguments)


def check_composition(loss: Callable, *, weighted: bool, bypass: bool = False) -> None:
  """Refuses a correction and a loss that together would count the ratio twice.

  Args:
    loss: a policy loss.
    weighted: whether the correction multiplies the loss by importance weights;
      rejections alone go with every loss.
    bypass: whether `old_logp` will be the sampler's (two policies).

  Raises:
    ValueError: with what to do instead.

  >>> from tis_jax import losses
  >>> check_composition(losses.ppo_loss, weighted=True)
  >>> check_composition(losses.dppo_loss, weighted=False)
  >>> check_composition(losses.dppo_loss, weighted=True)
  Traceback (most recent call last):
  ...
  ValueError: dppo_loss already multiplies by the ratio to the sampler ...
  """
  if not (weighted and uses_sampler_ratio(loss, bypass=bypass)):
    return
  name = _name(loss)
  if uses_sampler_ratio(loss):
    raise ValueError(
      f"{name} already multiplies by the ratio to the sampler (it takes sampler_logp), "
      "so importance weights would count that ratio twice: keep the stages that reject "
      "and drop those that weight, or take a loss anchored on old_logp, such as "
      "ppo_loss or cispo_loss"
    )
  raise ValueError(
    f"in bypass mode old_logp is the sampler's, so {name} already multiplies by the "
    "ratio to the sampler and importance weights would count it twice: keep the stages "
    "that reject and drop those that weight, or recompute old_logp (decoupled mode), "
    "or take reinforce_loss, which has no ratio of its own"
  )


def selects_over_batch(loss: Callable) -> bool:
  """Whether a loss ranks a token among the others of its batch.

  If so, splitting the batch into micro-batches changes what is selected; every other
  loss is the same number however the batch is split.

  >>> from tis_jax import losses
  >>> selects_over_batch(losses.m2po_loss), selects_over_batch(losses.ppo_loss)
  (True, False)
  """
  return _unwrapped(loss) in _SELECTING


def call_loss(loss: Callable, **arrays) -> tuple[jax.Array, Metrics]:
  """Calls a loss with those of the given arrays that it names.

  Lets one training step serve every loss: hand in what there is (`logp`, `old_logp`,
  `sampler_logp`, `advantages`, `mask`, `segment_ids`, `key`), None for what there is
  not.

  Returns:
    `(token_loss, metrics)`.

  Raises:
    ValueError: the loss needs an argument that is not there.

  >>> import jax.numpy as jnp
  >>> from tis_jax import losses
  >>> batch = dict(logp=jnp.array([[-0.5]]), old_logp=None, advantages=jnp.ones(1))
  >>> call_loss(losses.reinforce_loss, **batch)[0].tolist()
  [[0.5]]
  >>> call_loss(losses.ppo_loss, **batch)
  Traceback (most recent call last):
  ...
  ValueError: ppo_loss needs old_logp, which is not given
  """
  given = {name: array for name, array in arrays.items() if array is not None}
  parameters = inspect.signature(loss).parameters
  for name, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and name not in given:
      raise ValueError(f"{_name(loss)} needs {name}, which is not given")
  return loss(**{name: given[name] for name in parameters if name in given})


def _unwrapped(loss):
  """The function under any `functools.partial`."""
  while hasattr(loss, "func"):
    loss = loss.func
  return loss


def _name(loss):
  return getattr(_unwrapped(loss), "__name__", repr(loss))
