"""Experiments: from a config to a trained policy, its logs and its figures.

The only package, beside `experiments/` and `tis_jax.learner`, that reads configs.
"""

from tis_jax.runner.config import ConfigChangedError as ConfigChangedError
from tis_jax.runner.config import ConfigError as ConfigError
from tis_jax.runner.evaluate import Evaluation as Evaluation
from tis_jax.runner.restore import evaluate_run as evaluate_run
from tis_jax.runner.run import BadUpdateError as BadUpdateError
from tis_jax.runner.train import train as train
from tis_jax.sampler import SamplerFailedError
from tis_jax.store import StoreError
from tis_jax.tasks import MissingDatasetError

# What a person can mend: said in a sentence, without a traceback.
ExpectedError = (
  BadUpdateError,
  ConfigError,
  MissingDatasetError,
  SamplerFailedError,
  StoreError,
)
