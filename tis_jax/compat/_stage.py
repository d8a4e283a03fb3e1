"""A peer's correction as a stage of a native chain."""

import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tis_jax.compat.options import Config, Sections
from tis_jax.corrections import Incoming, Stage, State, make_stage
from tis_jax.corrections.state import reject_tokens
from tis_jax.numerics.checks import check_choice
from tis_jax.numerics.metrics import Metrics, ratio

PEERS = (
  *("areal", "ms_swift", "nemo_rl", "openrlhf", "prime_rl"),
  *("roll", "skyrl", "slime", "trl", "tunix", "verl"),
)


def dialect(peer: str) -> Any:
  """The module of a peer.

  >>> dialect("verl").__name__
  'tis_jax.compat.verl'
  """
  check_choice("peer", peer, PEERS)
  return importlib.import_module(f"tis_jax.compat.{peer}")


def sections_of(peer: str) -> Sections:
  """Where a peer's options stand in its configuration.

  >>> sections_of("verl").parse("algorithm.gamma=1")
  {'algorithm': {'gamma': 1}}
  """
  check_choice("peer", peer, PEERS)
  return importlib.import_module(f"tis_jax.compat.sections.{peer}").SECTIONS


def stage(peer: str, config: Config = None) -> Stage:
  """The correction of a peer's configuration, for `tis_jax.chain`.

  The peer's own numbers, quirks included, under the peer's own metric names, beside the
  metrics of the chain, whose `weight/raw_` ones are of token ratios here. A token
  without a sampler log-prob, which no peer knows, is not shown to it: it stays, with
  the weight 1.

  A metric of the peer's is a number of the batch it was made on; pooled over
  micro-batches, it is their mean, as it is in the peers' own logs.

  Args:
    peer: one of `PEERS`, the names of the modules of `tis_jax.compat`.
    config: its options, as its `correction` takes them.

  Returns:
    A stage. Where the peer weights it is the one of its chain that does.

  Raises:
    ValueError: no such peer; what the peer's `correction` refuses.

  >>> from tis_jax import chain, finalize
  >>> correct = chain(stage("verl", {"rollout_is": "token"}))
  >>> out = correct(jnp.zeros((1, 2)), jnp.array([[-1.0, 0.0]]), jnp.ones((1, 2)))
  >>> out.weight.tolist()
  [[2.0, 1.0]]
  >>> found = finalize(out.metrics)
  >>> found["rollout_corr/rollout_is_max"].item(), found["weight/max"].item()
  (2.0, 2.0)
  """
  module = dialect(peer)
  config = sections_of(peer).parse(config)
  correct = module.correction(config)
  weighs = _weighs(correct)
  return make_stage(
    _peer,
    makes="weight" if weighs else "mask",
    needs=("advantages",) if _needs_advantages(correct) else (),
    pools=_pools(module, config),
    named=False,
    peer=peer,
    config=json.dumps(config, sort_keys=True),
  )


def _peer(
  batch: Incoming, state: State, *, peer: str, config: str
) -> tuple[State, Metrics]:
  correct = dialect(peer).correction(json.loads(config))
  given = batch.inputs
  shown = state.mask & batch.known
  extras = {}
  if "advantages" in inspect.signature(correct).parameters:
    extras["advantages"] = given.advantages
  weight, mask, found = correct(given.old_logp, given.sampler_logp, shown, **extras)
  metrics: Metrics = {name: ratio(x, 1.0) for name, x in found.items()}
  state = reject_tokens(state, shown & (mask == 0))
  if weight is not None:
    state = state._replace(weight=jnp.where(shown, weight, 1.0))
  return state, metrics


def _weighs(correct: Callable) -> bool:
  """Whether it makes a weight, which is not a matter of the numbers."""
  return _on_one_token(correct)[0] is not None


def _needs_advantages(correct: Callable) -> bool:
  if "advantages" not in inspect.signature(correct).parameters:
    return False
  try:
    _on_one_token(correct, advantages=None)
  except ValueError:
    return True
  return False


def _pools(module: Any, config: dict[str, Any]) -> bool:
  """Whether a row depends on the others, which the native chain knows."""
  try:
    return module.native(config).pools
  except ValueError:  # it has no native chain; what pools has one
    return False


def _on_one_token(correct: Callable, **given):
  one = jnp.zeros((1, 1))
  takes = inspect.signature(correct).parameters
  extras = {"advantages": jnp.zeros(1)} if "advantages" in takes else {}
  return jax.eval_shape(lambda: correct(one, one, one, **extras | given))
