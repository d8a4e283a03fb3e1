"""Train state, the sharded update step, its batches and its checkpoints."""

from tis_jax.learner.algorithm import Algorithm
from tis_jax.learner.batch import (
  Batch,
  concatenate,
  from_rollouts,
  load_batch,
  pad,
  save_batch,
  take_groups,
  take_rows,
)
from tis_jax.learner.checkpoint import Checkpoints
from tis_jax.learner.config import algorithm_from_config, default_config
from tis_jax.learner.forward import make_score, score
from tis_jax.learner.mesh import make_mesh
from tis_jax.learner.optimizer import (
  make_optimizer,
  optimizer_from_config,
  warmup_schedule,
)
from tis_jax.learner.state import TrainState, abstract_state, init_state
from tis_jax.learner.update import make_update

__all__ = [
  "Algorithm",
  "Batch",
  "Checkpoints",
  "TrainState",
  "abstract_state",
  "algorithm_from_config",
  "concatenate",
  "default_config",
  "from_rollouts",
  "init_state",
  "load_batch",
  "make_mesh",
  "make_optimizer",
  "make_score",
  "make_update",
  "optimizer_from_config",
  "pad",
  "save_batch",
  "score",
  "take_groups",
  "take_rows",
  "warmup_schedule",
]
