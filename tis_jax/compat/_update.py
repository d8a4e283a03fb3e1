"""A peer's whole configuration as what a learner's update does."""

from typing import Any

from tis_jax.compat._stage import dialect, stage
from tis_jax.compat.options import Config
from tis_jax.corrections import chain


def update(
  peer: str, config: Config = None, *, response_length: int | None = None
) -> dict[str, Any]:
  """Fields of `tis_jax.learner.Algorithm` that a peer's configuration decides.

  Every peer's gives `correct`, the chain of its correction under its own metric names
  (`stage`). A configuration of verl or SkyRL that says more than its correction gives
  all that an update does: loss, advantages, aggregation, KL, entropy bonus, critic's
  clip and epochs, those that it leaves out as the peer has them. prime-rl's gives its
  loss. What is not given is the learner's own.

  Args:
    peer: one of `PEERS`.
    config: the peer's configuration, whole or a section.
    response_length: tokens that a response may have, for verl's
      seq-mean-token-sum-norm.

  Returns:
    Functions and settings by the names of the fields; nested settings as dicts.

  Raises:
    ValueError: no such peer; what the peer refuses; what only the peer's own trainer
      can do, with what to do.

  >>> sorted(update("verl", {"rollout_is": "token"}))
  ['correct']
  >>> fields = update("skyrl", {"policy_loss_type": "gspo"})
  >>> fields["aggregation"], fields["old_logp"]
  ({'mode': 'token_mean', 'denominator': 'sampled', 'length': None}, 'recompute')
  """
  module = dialect(peer)
  if not hasattr(module, "update"):
    return {"correct": chain(stage(peer, config))}
  return module.update(config, response_length=response_length)
