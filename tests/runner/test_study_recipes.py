"""The studies that come with the library."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import study
from tis_jax.corrections import presets
from tis_jax.runner import ConfigError, read_config
from tis_jax.runner.setup import build
from tis_jax.runner.study import load_study, plan

PARTS = (
  *("headline", "long", "arms", "staleness", "precision", "learning_rate", "top_p"),
)


def test_runs_of_one_name_are_one_run_in_all_parts():
  configs, count = {}, 0
  for part in PARTS:
    for run in plan(load_study(f"study:{part}")):
      assert configs.setdefault(run.name, run.config) == run.config, run.name
      count += 1
  assert len(configs) < count
  shown = [run.name for run in plan(load_study("compare"))]
  assert shown == ["none_seed-0", "token_tis_seed-0", "sequence_tis_seed-0"]
  headline = plan(load_study("study:headline").only(seeds=[0]))
  assert [run.config for run in plan(load_study("compare"))] == [
    run.config for run in headline
  ]


def test_a_part_varies_what_it_is_named_after():
  settings = {
    "staleness": ("store.max_staleness", {0, 1, 4, 8, 16}),
    "precision": ("sampler.precision", {"float32", "bfloat16", "int8", "int4"}),
    "learning_rate": ("optimizer.learning_rate", {1e-4, 2e-4, 3e-4, 5e-4}),
  }
  for part, (name, values) in settings.items():
    runs = plan(load_study(f"study:{part}"))
    group, _, last = name.partition(".")
    assert {run.config[group][last] for run in runs} == values
    staleness = {run.config.store.max_staleness for run in runs}
    assert part == "staleness" or staleness == {0 if part == "precision" else 8}


def test_a_part_that_there_is_not_is_said():
  with pytest.raises(ConfigError, match="no part 'headlin'; there are headline, long"):
    load_study("study:headlin")


@pytest.mark.parametrize(
  ("arm", "preset"),
  [
    ("sequence_is", presets.seq_is()),
    ("token_tis", presets.tis()),
    ("sequence_tis", presets.seq_tis()),
    ("adaptive_cap", presets.adaptive()),
    ("icepop", presets.icepop()),
    ("geometric_mask", presets.geometric_mask()),
    ("kpop", presets.kpop()),
    ("length_aware_mask", presets.length_aware_mask()),
  ],
)
def test_an_arm_is_its_preset(arm, preset):
  (run,) = plan(load_study("study:arms").only([arm], [0]))
  assert read_config(run.config).algorithm.correct == preset


@pytest.mark.parametrize("arm", [*study.ARMS, *study.TOP_P_ARMS])
def test_an_arm_can_be_built(arm):
  part = "arms" if arm in study.ARMS else "top_p"
  (run,) = plan(load_study(f"study:{part}").only([arm], [0]))
  build(read_config(run.config))
