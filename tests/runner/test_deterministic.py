"""What a deterministic run refuses, since timing would decide it."""

import pytest
from tiny_run import small

from tis_jax.runner import ConfigError, read_config
from tis_jax.runner.deterministic import check_deterministic, strict_order

_FITS = {"deterministic": True, "store.max_staleness": 0}


def settings(tmp_path, **changes):
  return read_config(small(tmp_path, 1, **_FITS | changes))


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"sampler.count": 2, "train.prompts_per_step": 16},
    {"train.dynamic_sampling": True},
  ],
  ids=str,
)
def test_what_fits(changes, tmp_path):
  check_deterministic(settings(tmp_path, **changes))


@pytest.mark.parametrize(
  ("changes", "wants"),
  [
    ({"store.max_staleness": 1}, "store.max_staleness=0"),
    ({"sampler.native.new_params": "switch"}, "sampler.native.new_params='after'"),
    ({"sampler.count": 0}, "train.prompts_per_step a multiple"),
    ({"sampler.count": 2}, "train.prompts_per_step a multiple"),
    ({"train.prompts_per_step": 6}, "train.prompts_per_step a multiple"),
    (
      {"train.prompts_per_step": 8, "train.dynamic_sampling": True},
      "one record a step, under train.dynamic_sampling",
    ),
  ],
  ids=str,
)
def test_what_timing_would_decide_is_refused_with_what_to_set(changes, wants, tmp_path):
  with pytest.raises(ValueError, match="deterministic=True wants") as raised:
    check_deterministic(settings(tmp_path, **changes))
  assert wants in str(raised.value) and ";" not in str(raised.value)


def test_a_stage_that_looks_at_versions_is_refused(tmp_path):
  config = small(tmp_path, 1, **_FITS)
  config.algorithm.correction.stages = ("reject_stale",)
  config.algorithm.correction.reject_stale.high = 4
  with pytest.raises(ValueError, match="no stage that asks for the version"):
    check_deterministic(read_config(config))


def test_the_order_is_that_of_the_samplers_the_run_began_with(tmp_path):
  two = settings(tmp_path, **{"sampler.count": 2, "train.prompts_per_step": 8})
  assert strict_order(two, None) == ["local0", "local1"]
  assert strict_order(two, {"cursor": {"local1": 3, "local0": 4}}) is not None
  with pytest.raises(ConfigError, match=r"sampler.count was 1, and is 2"):
    strict_order(two, {"cursor": {"local0": 4}})
  assert strict_order(read_config(small(tmp_path, 1)), None) is None
