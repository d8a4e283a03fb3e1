"""The native engine: this library's decoder, in low precision, batched continuously."""

from tis_jax.engines.native.answers import INTERRUPTED as INTERRUPTED
from tis_jax.engines.native.engine import NativeEngine as NativeEngine
from tis_jax.engines.native.precision import PRECISIONS as PRECISIONS
from tis_jax.engines.native.settings import NativeSettings as NativeSettings
