"""The shared array store: rollouts one way, params the other, and who is alive.

Samplers write below `rollouts/`, `claims/`, `heartbeats/` and `walks/`, the learner
below `params/` and `quarantine/`; the keys are in `store.py` and `params.py`. No module
here needs jax: a record can be written and checked beside any engine.
"""

from tis_jax.rollouts import BadRolloutError as BadRolloutError
from tis_jax.rollouts import Header as Header
from tis_jax.rollouts import Rollout as Rollout
from tis_jax.rollouts import Sampling as Sampling
from tis_jax.rollouts import decode as decode
from tis_jax.rollouts import encode as encode
from tis_jax.store.blocks import Block as Block
from tis_jax.store.blocks import Blocks as Blocks
from tis_jax.store.errors import AlreadyExistsError as AlreadyExistsError
from tis_jax.store.errors import NoRolloutsError as NoRolloutsError
from tis_jax.store.errors import ParamsGoneError as ParamsGoneError
from tis_jax.store.errors import StoreError as StoreError
from tis_jax.store.errors import StoreFullError as StoreFullError
from tis_jax.store.errors import StoreReadOnlyError as StoreReadOnlyError
from tis_jax.store.errors import StoreUnreachableError as StoreUnreachableError
from tis_jax.store.errors import TakenOverError as TakenOverError
from tis_jax.store.errors import WrongRunError as WrongRunError
from tis_jax.store.errors import WrongStoreSchemaError as WrongStoreSchemaError
from tis_jax.store.location import default_url as default_url
from tis_jax.store.params import Manifest as Manifest
from tis_jax.store.params import digest as digest
from tis_jax.store.reader import RolloutReader as RolloutReader
from tis_jax.store.store import Store as Store
from tis_jax.store.watch import RECONFIGURED as RECONFIGURED
from tis_jax.store.writer import RolloutWriter as RolloutWriter
from tis_jax.store.writer import Turn as Turn
