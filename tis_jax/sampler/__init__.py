"""The processes that run an engine: the fleet, and what each of its members does."""

from tis_jax.sampler.fleet import Fleet as Fleet
from tis_jax.sampler.fleet import SamplerFailedError as SamplerFailedError
from tis_jax.sampler.process import run_sampler as run_sampler
from tis_jax.sampler.settings import Settings as Settings
