"""Runs whose params depend on nobody's speed, and on no kill."""

from collections.abc import Mapping
from typing import Any

from tis_jax.runner.config import ConfigError
from tis_jax.runner.settings import Settings
from tis_jax.sampler.fleet import local_names

_BY_VERSION = frozenset(("reject_stale", "truncate_parts"))


def check_deterministic(settings: Settings) -> None:
  """Refuses settings under which timing decides what is trained on.

  Raises:
    ValueError: says which setting, and what to set.
  """
  if not settings.deterministic:
    return
  sampler, train = settings.sampler, settings.train
  records = sampler.prompts_per_record * sampler.count
  whole = sampler.count and train.prompts_per_step % records == 0
  one = sampler.count == 1 and train.prompts_per_step == sampler.prompts_per_record
  wants = {
    "store.max_staleness=0": settings.store.max_staleness == 0,
    "sampler.engine='native'": sampler.engine == "native",
    "sampler.native.new_params='after'": sampler.native.new_params == "after",
    "train.prompts_per_step a multiple of sampler.count * sampler.prompts_per_record, "
    "so that every step takes as many whole records of each sampler": bool(whole),
    "sampler.count=1 and one record a step, under train.dynamic_sampling": (
      one or not train.dynamic_sampling
    ),
    # What was made before a kill is of an older publication of the same params.
    "no stage that asks for the version of a token": not _BY_VERSION.intersection(
      stage.name for stage in settings.algorithm.correct.stages
    ),
  }
  if unmet := [wish for wish, met in wants.items() if not met]:
    raise ValueError(f"deterministic=True wants {'; '.join(unmet)}")


def strict_order(
  settings: Settings, position: Mapping[str, Any] | None
) -> list[str] | None:
  """The writers whose records are taken strictly in turn; None for anyone's.

  Args:
    settings: of the run.
    position: of its stream, from a checkpoint; None for a new run.

  Raises:
    ConfigError: the run had other samplers so far.
  """
  if not settings.deterministic:
    return None
  names = local_names(settings.sampler.count)
  before = sorted(position["cursor"]) if position else names
  if before != sorted(names):
    raise ConfigError(
      f"a deterministic run goes on with the samplers it began with: sampler.count was "
      f"{len(before)}, and is {len(names)}"
    )
  return names
