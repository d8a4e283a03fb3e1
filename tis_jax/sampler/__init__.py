"""The processes that generate rollouts: a fleet of them, and their settings."""

from tis_jax.sampler.fleet import Fleet as Fleet
from tis_jax.sampler.fleet import SamplerFailedError as SamplerFailedError
from tis_jax.sampler.process import run_sampler as run_sampler
from tis_jax.sampler.settings import Assignment as Assignment
from tis_jax.sampler.settings import SamplerSettings as SamplerSettings
