"""Which loss takes which correction, by what the loss says of itself."""

import inspect
from collections.abc import Callable

import jax

from tis_jax.losses._traits import traits
from tis_jax.numerics.metrics import Metrics


def uses_sampler_ratio(loss: Callable, *, bypass: bool = False) -> bool:
  """Whether a loss already multiplies by the policy's ratio to the sampler.

  Args:
    loss: a policy loss.
    bypass: whether `old_logp` will be the sampler's (two policies).

  >>> from tis_jax import losses
  >>> uses_sampler_ratio(losses.dppo), uses_sampler_ratio(losses.ppo)
  (True, False)
  >>> uses_sampler_ratio(losses.ppo, bypass=True)
  True
  """
  ratio_to = traits(loss).ratio_to
  return ratio_to == "sampler" or (bypass and ratio_to == "old")


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
  >>> check_composition(losses.ppo, weighted=True)
  >>> check_composition(losses.dppo, weighted=False)
  >>> check_composition(losses.dppo, weighted=True)
  Traceback (most recent call last):
  ...
  ValueError: dppo already multiplies by the ratio to the sampler ...
  """
  if not (weighted and uses_sampler_ratio(loss, bypass=bypass)):
    return
  name = traits(loss).name
  if uses_sampler_ratio(loss):
    raise ValueError(
      f"{name} already multiplies by the ratio to the sampler (it takes sampler_logp), "
      "so importance weights would count that ratio twice: keep the stages that reject "
      "and drop those that weight, or take a loss anchored on old_logp, such as ppo or "
      "cispo"
    )
  raise ValueError(
    f"in bypass mode old_logp is the sampler's, so {name} already multiplies by the "
    "ratio to the sampler and importance weights would count it twice: keep the stages "
    "that reject and drop those that weight, or recompute old_logp (decoupled mode), "
    "or take reinforce, which has no ratio of its own"
  )


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
  >>> call_loss(losses.reinforce, **batch)[0].tolist()
  [[0.5]]
  >>> call_loss(losses.ppo, **batch)
  Traceback (most recent call last):
  ...
  ValueError: ppo needs old_logp, which is not given
  """
  given = {name: array for name, array in arrays.items() if array is not None}
  parameters = inspect.signature(loss).parameters
  for name, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and name not in given:
      raise ValueError(f"{traits(loss).name} needs {name}, which is not given")
  return loss(**{name: given[name] for name in parameters if name in given})
