"""Train state, the sharded update step, its batches and its checkpoints."""

from tis_jax.learner.algorithm import KL as KL
from tis_jax.learner.algorithm import Aggregation as Aggregation
from tis_jax.learner.algorithm import Algorithm as Algorithm
from tis_jax.learner.algorithm import Critic as Critic
from tis_jax.learner.algorithm import Overlong as Overlong
from tis_jax.learner.batch import Batch as Batch
from tis_jax.learner.batch import concatenate as concatenate
from tis_jax.learner.batch import from_rollouts as from_rollouts
from tis_jax.learner.batch import load_batch as load_batch
from tis_jax.learner.batch import pad as pad
from tis_jax.learner.batch import save_batch as save_batch
from tis_jax.learner.batch import take_rows as take_rows
from tis_jax.learner.checkpoint import Checkpoints as Checkpoints
from tis_jax.learner.forward import make_score as make_score
from tis_jax.learner.forward import score as score
from tis_jax.learner.learner import Learner as Learner
from tis_jax.learner.mesh import make_mesh as make_mesh
from tis_jax.learner.optimizer import AdamW as AdamW
from tis_jax.learner.optimizer import learning_rate as learning_rate
from tis_jax.learner.optimizer import make_optimizer as make_optimizer
from tis_jax.learner.state import CriticState as CriticState
from tis_jax.learner.state import TrainState as TrainState
from tis_jax.learner.state import abstract_state as abstract_state
from tis_jax.learner.state import init_state as init_state
from tis_jax.learner.update import make_update as make_update
