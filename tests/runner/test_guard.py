"""Alarms: on what, how often, and what a run does about them."""

import math

import numpy as np
import pytest
from tiny_run import small, steps_of

import tis_jax as tis
from tis_jax.learner import load_batch
from tis_jax.runner import GuardError, GuardSettings, train
from tis_jax.runner.guard import Guard
from tis_jax.runner.tighten import tightened

HEALTHY = {
  "mismatch/k3": 1e-4,
  "staleness/max": 0.0,
  "weight/ess": 0.99,
  "weight/raw_mean": 1.0,
  "rejected/tokens": 0.0,
}
STALE = HEALTHY | {"staleness/max": 8.0}


def alarms(*steps, precision="bfloat16", **settings):
  """Which bound each step sounds the alarm for."""
  guard = Guard(GuardSettings(**{"patience": 1} | settings), precision)
  said = [guard.look(step) for step in steps]
  assert all(f"guard.{x}" in words for look in said for x, words in look.items())
  return [list(look) for look in said]


@pytest.mark.parametrize(
  ("change", "bound"),
  [
    ({"mismatch/k3": 0.011, "staleness/max": 0.0}, "fresh_k3"),
    ({"mismatch/k3": 0.31}, "max_k3"),
    ({"weight/ess": 0.09}, "min_ess"),
    ({"rejected/tokens": 0.948}, "max_rejected"),
    ({"weight/raw_mean": 2.1}, "max_mean_weight"),
    ({"weight/raw_mean": 0.49}, "max_mean_weight"),
  ],
)
def test_what_is_out_of_range_is_said_once_and_again_after_it_was_in_range(
  change, bound
):
  sick = STALE | change
  said = alarms(HEALTHY, STALE, sick, sick, STALE, sick)
  assert said == [[], [], [bound], [], [], [bound]]
  assert alarms(sick, action="off") == [[]]


def test_patience_counts_steps_in_a_row():
  sick = STALE | {"mismatch/k3": 1.0}
  said = alarms(sick, sick, STALE, sick, sick, sick, sick, patience=3)
  assert said == [[], [], [], [], [], ["max_k3"], []]


def test_a_precision_has_its_own_normal_range():
  fresh = HEALTHY | {"mismatch/k3": 0.02}
  assert alarms(fresh, precision="bfloat16") == [["fresh_k3"]]
  assert alarms(fresh, precision="int8") == [[]]
  assert alarms(fresh, precision="int4") == [[]]  # nothing is known of it
  assert alarms(fresh, precision="int8", fresh_k3=0.01) == [["fresh_k3"]]
  assert alarms(fresh, precision="bfloat16", fresh_k3=0.0) == [[]]


def test_growth_is_of_twenty_steps_over_twenty_and_of_what_is_large():
  rising = [STALE | {"mismatch/k3": 0.002 * 1.1**i} for i in range(53)]
  said = alarms(*rising)
  assert said.index(["max_growth"]) >= 39 and sum(map(len, said)) == 1
  small_k3 = [STALE | {"mismatch/k3": 1e-6 * 1.1**i} for i in range(60)]
  assert not any(alarms(*small_k3))


def test_what_is_not_measured_or_not_a_number_is_no_alarm():
  assert alarms({}, dict.fromkeys(HEALTHY, math.nan)) == [[], []]


def test_bounds_of_zero_are_not_looked_at():
  sick = {"mismatch/k3": 9.0, "rejected/tokens": 1.0, "weight/raw_mean": 9.0}
  off = {"max_k3": 0, "max_rejected": 0, "max_mean_weight": 0, "min_ess": 0}
  assert alarms(sick | {"weight/ess": 0.0}, **off) == [[]]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"action": "panic"}, "action"),
    ({"patience": 0}, "patience"),
    ({"max_k3": -1.0}, "max_k3"),
  ],
)
def test_impossible_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    GuardSettings(**change)


@pytest.mark.chaos
def test_a_run_stops_on_an_alarm_with_its_batch_and_goes_on_when_told_to(
  tmp_path, capsys
):
  guard = {"guard.action": "stop", "guard.patience": 1, "guard.max_k3": 1e-12}
  with pytest.raises(GuardError, match=r"step 1: mismatch/k3 .*guard.action=warn"):
    train(small(tmp_path, 3, **guard), tmp_path)
  batch, more = load_batch(tmp_path / "guard_000001.npz")
  assert np.isfinite(more["old_logp"][batch.mask]).all()
  train(small(tmp_path, 3, **guard | {"guard.action": "warn"}), tmp_path)
  assert steps_of(tmp_path)[-1] == 3
  assert "alarm at step 2: mismatch/k3" in capsys.readouterr().out


@pytest.mark.chaos
def test_an_alarm_tightens_the_caps_and_a_run_that_goes_on_keeps_them_so(
  tmp_path, capsys
):
  guard = {
    "guard.action": "tighten",
    "guard.patience": 1,
    "guard.max_k3": 1e-12,
    "guard.max_mean_weight": 0.0,
    "guard.max_growth": 0.0,
  }
  train(small(tmp_path, 3, **guard), tmp_path)
  said = capsys.readouterr().out
  assert said.count("tightened from step") == 1
  assert "tightened from step 2 on: truncate(high=1.414" in said
  train(small(tmp_path, 4, **guard), tmp_path)
  # A new attempt, so a new alarm: the second pull is counted from the first.
  assert "truncate(high=1.189" in capsys.readouterr().out


def test_caps_are_tightened_and_nothing_else():
  given = tis.chain(
    tis.veto(1e-4), tis.watch(tis.truncate(8.0)), tis.clip(4.0, 0.25, level="sequence")
  )
  once = tightened(given, times=1)
  assert once.stages[:2] == given.stages[:2]
  assert once.stages[2] == tis.clip(2.0, 0.5, level="sequence")
  nearest = tightened(given, times=50).stages[2].thresholds
  assert nearest["high"] == pytest.approx(1.01)
  assert nearest["low"] == pytest.approx(1 / 1.01)
  assert tightened(tis.chain(tis.truncate(1.005)), times=3) == tis.chain(
    tis.truncate(1.005)
  )


@pytest.mark.parametrize("correct", [tis.chain(), tis.chain(tis.importance("token"))])
def test_nothing_to_tighten_is_refused(correct):
  with pytest.raises(ValueError, match=r"no cap to tighten .* truncate or a clip"):
    tightened(correct, times=1)
