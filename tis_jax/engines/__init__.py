"""What generates: one protocol, and the native low-precision engine."""

from tis_jax.engines.native import NativeEngine as NativeEngine
from tis_jax.engines.native import NativeSettings as NativeSettings
from tis_jax.engines.play import Played as Played
from tis_jax.engines.play import play as play
from tis_jax.engines.protocol import Engine as Engine
from tis_jax.engines.protocol import Generation as Generation
