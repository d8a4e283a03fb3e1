"""Every setting at its default: docs/settings.md says what each of them does.

  tis train --config=default --workdir=runs/default \
    --config.sampler.count=2 --config.algorithm.correction.truncate.high=3.0

The task is GSM8K's calculator steps, the policy the one in the package, the algorithm
GRPO with DAPO's clip and token-level truncated importance sampling at 2.0. Expected: a
run of 300 steps in a few minutes on two CPU cores; for a tuned one take quickstart.
"""

from ml_collections import ConfigDict

from tis_jax.runner import default_config


def get_config() -> ConfigDict:
  return default_config()
