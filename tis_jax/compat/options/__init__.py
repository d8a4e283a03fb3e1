"""Reading a peer's configuration: every mistake in it is named, with the peer.

The peers read their options one by one and ignore what they do not know, so that a
misspelt key silently trains without correction. Here a config fails when it is built.
"""

from tis_jax.compat.options.mappings import Config as Config
from tis_jax.compat.options.mappings import leaves as leaves
from tis_jax.compat.options.mappings import parse as parse
from tis_jax.compat.options.mappings import read as read
from tis_jax.compat.options.sections import Sections as Sections
from tis_jax.compat.options.values import band as band
from tis_jax.compat.options.values import choice as choice
from tis_jax.compat.options.values import flag as flag
from tis_jax.compat.options.values import number as number
from tis_jax.compat.options.values import order as order
