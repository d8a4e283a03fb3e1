"""Rollout correction for LLM reinforcement learning in JAX.

The functions here take arrays and return arrays. What a run needs beside them stands in
its own packages, imported by name: `tis_jax.models`, `tis_jax.tasks`,
`tis_jax.engines`, `tis_jax.sampler`, `tis_jax.store`, `tis_jax.learner`,
`tis_jax.runner`. The table of contents is `__init__.pyi`.
"""

from tis_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
