"""Tunix trains with tis_jax's corrections, and with its losses where asked to.

`TISConfig` and `TISGRPOLearner` stand where `GRPOConfig` and `GRPOLearner` of Tunix
stood. The sampler's log-probs are heard where the cluster generates, those of the
learner are taken at the sampler's temperature and params, and the correction's weights
go into Tunix's own loss; or the whole loss is one of `tis_jax.losses`. docs/tunix.md
says what is handled and what is refused.
"""

try:
  import tunix as _tunix  # noqa: F401
except ImportError as error:
  raise ImportError(
    "tis_jax.integrations.tunix works inside Tunix, which is not installed; on Python "
    '3.12: pip install "google-tunix==0.1.7"'
  ) from error

from tis_jax.integrations.tunix.config import TISConfig as TISConfig
from tis_jax.integrations.tunix.learner import TISGRPOLearner as TISGRPOLearner
