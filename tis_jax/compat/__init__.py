"""Peers' dialects: a peer's own configuration in, its exact numbers out.

One module a peer. Each takes the peer's config mapping, pasted as it is, and fails when
it is built if a key is unknown or a value impossible. No peer is imported.
"""

from tis_jax.compat import skyrl, slime, verl

__all__ = ["skyrl", "slime", "verl"]
