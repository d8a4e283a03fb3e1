"""Experiments: from a config to a trained policy, its logs and its figures.

The only package, beside `experiments/`, that reads configs.
"""

from tis_jax.learner import CheckpointError
from tis_jax.runner.algorithm import algorithm_config as algorithm_config
from tis_jax.runner.algorithm import algorithm_of as algorithm_of
from tis_jax.runner.config import ConfigError as ConfigError
from tis_jax.runner.evaluate import Evaluation as Evaluation
from tis_jax.runner.export import export_run as export_run
from tis_jax.runner.guard import GuardSettings as GuardSettings
from tis_jax.runner.passes import majority_at_k as majority_at_k
from tis_jax.runner.passes import pass_at_k as pass_at_k
from tis_jax.runner.report import Report as Report
from tis_jax.runner.report import Scores as Scores
from tis_jax.runner.report import scored as scored
from tis_jax.runner.restore import EvaluationPlan as EvaluationPlan
from tis_jax.runner.restore import evaluate_run as evaluate_run
from tis_jax.runner.restore import evaluate_store as evaluate_store
from tis_jax.runner.run import BadUpdateError as BadUpdateError
from tis_jax.runner.run import GuardError as GuardError
from tis_jax.runner.settings import Settings as Settings
from tis_jax.runner.settings import default_config as default_config
from tis_jax.runner.settings import read_config as read_config
from tis_jax.runner.team import ProcessFailedError as ProcessFailedError
from tis_jax.runner.team import ProcessSettings as ProcessSettings
from tis_jax.runner.train import train as train
from tis_jax.runner.workdir import ConfigChangedError as ConfigChangedError
from tis_jax.runner.workdir import WorkdirInUseError as WorkdirInUseError
from tis_jax.sampler import SamplerFailedError
from tis_jax.store import StoreError
from tis_jax.tasks import MissingDatasetError, TaskError

# What a person can mend: said in a sentence, without a traceback.
ExpectedError = (
  BadUpdateError,
  CheckpointError,
  ConfigError,
  GuardError,
  MissingDatasetError,
  ProcessFailedError,
  SamplerFailedError,
  StoreError,
  TaskError,
  WorkdirInUseError,
)
