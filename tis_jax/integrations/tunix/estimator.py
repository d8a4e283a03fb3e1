"""An estimator of `tis_jax.advantages` where Tunix looks for one of its own."""

import inspect
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from tunix.rl import function_registry

from tis_jax.losses import traits

_CATEGORY = "advantage_estimator"


def register_estimator(estimator: Callable) -> str:
  """Gives Tunix an estimator, and returns the name that it goes by there.

  Args:
    estimator: `estimator(rewards, group_ids)` of `[B]` and `[B]`, what else it takes
      having a default or bound by `functools.partial`.

  Raises:
    ValueError: it needs more than rewards and groups.

  >>> from tis_jax import advantages
  >>> name = register_estimator(advantages.rloo)
  >>> rewards = np.array([1.0, 0.0, 1.0, 1.0])
  >>> function_registry.get_advantage_estimator(name)(rewards, num_generations=2)
  array([ 1., -1.,  0.,  0.], dtype=float32)
  """
  parameters = inspect.signature(estimator).parameters.values()
  needs = {p.name for p in parameters if p.default is inspect.Parameter.empty}
  if needs - {"rewards", "group_ids"}:
    raise ValueError(
      f"{traits(estimator).name} needs {sorted(needs - {'rewards', 'group_ids'})}: "
      "inside Tunix an estimator has rewards and group_ids, as grpo, dr_grpo and rloo"
    )

  def of_tunix(rewards, num_generations):
    group_ids = jnp.arange(len(rewards)) // num_generations
    given = {"rewards": jnp.asarray(rewards), "group_ids": group_ids}
    return np.asarray(estimator(**{name: given[name] for name in needs}))

  name = f"tis_jax: {estimator!r}"
  if name not in function_registry.default_registry.list_functions(_CATEGORY):
    function_registry.register_advantage_estimator(name)(of_tunix)
  return name
