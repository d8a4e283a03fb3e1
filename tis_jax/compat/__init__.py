"""Peers' dialects: a peer's own configuration in, its exact numbers out.

One module a peer. `correction(config)` takes the peer's options, alone or among all of
its configuration or command line, pasted as it is, fails when it is built if a key is
unknown or a value impossible, and returns
`fn(old_logp, sampler_logp, mask) -> (weight or None, mask, metrics)` under the peer's
metric names. `native(config)` is the same correction as a chain of
`tis_jax.corrections`; `used(config)` lists which function reads which key; `VERSION`
says which version of the peer it reproduces. verl and SkyRL have their losses and
advantages here too, prime-rl its losses. `stage` is any peer's correction as a stage of
a native chain, `update` all that a learner takes of a peer's configuration. No peer is
imported.
"""

from tis_jax.compat import (
  areal,
  ms_swift,
  nemo_rl,
  openrlhf,
  prime_rl,
  roll,
  skyrl,
  slime,
  trl,
  tunix,
  verl,
)
from tis_jax.compat._stage import PEERS, dialect, sections_of, stage
from tis_jax.compat._update import update

__all__ = [
  "PEERS",
  "areal",
  "dialect",
  "ms_swift",
  "nemo_rl",
  "openrlhf",
  "prime_rl",
  "roll",
  "sections_of",
  "skyrl",
  "slime",
  "stage",
  "trl",
  "tunix",
  "update",
  "verl",
]
