"""The rollout contract: a record that any engine can write and any learner read.

Needs numpy alone, so that it can be had inside an engine's own environment. `Rollout`
says what there is to say, `validate` whether it was said without doubt, `encode` and
`decode` make it bytes. `tis_jax.store.RolloutWriter` takes it to a learner.

Example:
  >>> import numpy as np
  >>> from tis_jax import rollouts
  >>> prompts, sampled = np.int32([[0, 5, 6]]), np.int32([[7, 1]])
  >>> record = rollouts.Rollout(
  ...   prompts=prompts,
  ...   prompt_mask=prompts > 0,
  ...   tokens=sampled,
  ...   mask=np.ones((1, 2), bool),
  ...   sampler_logp=np.float32([[-0.2, np.nan]]),
  ...   present=np.array([[True, False]]),  # the engine lost the last one
  ...   versions=np.int32([[3, 3]]),
  ...   rewards=np.float32([1]),
  ...   group_ids=np.int32([0]),
  ...   prompt_ids=np.int32([17]),
  ...   finish_reasons=np.int8([rollouts.STOP]),
  ...   header=rollouts.Header(3, rollouts.Sampling(temperature=0.7, engine="mine")),
  ... )
  >>> rollouts.validate(record)
  >>> rollouts.decode(rollouts.encode(record)).header.sampling.engine
  'mine'
"""

from tis_jax.logprobs.contract import Sampling as Sampling
from tis_jax.rollouts.errors import BadRolloutError as BadRolloutError
from tis_jax.rollouts.frame import SCHEMA as SCHEMA
from tis_jax.rollouts.frame import decode as decode
from tis_jax.rollouts.frame import encode as encode
from tis_jax.rollouts.kept_sets import padded_sets as padded_sets
from tis_jax.rollouts.kept_sets import tight_sets as tight_sets
from tis_jax.rollouts.kept_sets import with_padded_sets as with_padded_sets
from tis_jax.rollouts.record import ABORTED as ABORTED
from tis_jax.rollouts.record import LENGTH as LENGTH
from tis_jax.rollouts.record import STOP as STOP
from tis_jax.rollouts.record import Header as Header
from tis_jax.rollouts.record import Rollout as Rollout
from tis_jax.rollouts.turns import spread_turns as spread_turns
from tis_jax.rollouts.turns import turn_ids as turn_ids
from tis_jax.rollouts.turns import up_to_last as up_to_last
from tis_jax.rollouts.validate import Limits as Limits
from tis_jax.rollouts.validate import validate as validate
