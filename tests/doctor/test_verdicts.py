"""The doctor on batches whose fault is known, drawn from exact laws."""

import functools

import numpy as np
import pytest

from tis_jax import doctor, lab
from tis_jax.lab import faults

drawn = functools.cache(lab.drawn)


def dump_of(batch, *, versions=False, tokens=False) -> doctor.Dump:
  more = {}
  if versions:
    more |= {"versions": batch.versions, "learner_version": batch.learner_version}
  if tokens:
    more |= {"tokens": batch.tokens}
  return doctor.from_arrays(batch.old_logp, batch.sampler_logp, batch.mask, **more)


def verdict(batch, **how) -> str:
  return doctor.diagnose(dump_of(batch, **how), resamples=0).verdict


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
  "noise, expected", [(1e-5, "healthy"), (0.03, "numerics"), (0.06, "numerics")]
)
def test_a_healthy_batch_gives_no_alarm(noise, expected, seed):
  batch = lab.drawn(noise, seed=seed)
  assert verdict(batch) == expected
  assert verdict(batch, versions=True, tokens=True) == expected


CASES = [
  ("shifted_tokens", (1.0, 0.2), {}),
  ("missing_end", (1.0, 0.2), {}),
  ("wrong_end", (1.0, 0.3), {}),
  ("zero_filled", (0.3, 0.02), {}),
  ("padding_counted", (1.0, 0.5), {}),
  ("padding_of_zeros", (1.0, 0.5), {}),
  ("prompt_in_mask", (1, 8), {}),
  ("retokenised", (1.0, 0.3), {}),
  ("replaced_tokens", (0.02,), {}),
  ("temperature", (0.7, 0.9, 1.2), {}),
  ("unprocessed", (1.0,), {"temperature": 0.7}),
  ("unprocessed", (1.0,), {"temperature": 0.9}),
  ("probabilities", (1, 2), {}),
  ("support", (1.0,), {"top_p": 0.8}),
  ("support", (1.0,), {"top_p": 0.95}),
  ("other_model", (1.0,), {}),
]


@pytest.mark.parametrize("noise", [1e-5, 0.03])
@pytest.mark.parametrize(
  "kind, strength, law",
  [(kind, strength, law) for kind, all_, law in CASES for strength in all_],
)
def test_every_fault_is_named(kind, strength, law, noise):
  batch = faults.inject(kind, drawn(noise, **law), strength, seed=3)
  assert verdict(batch) == faults.VERDICTS[kind]


def test_a_temperature_is_the_samplers_law_or_it_is_not():
  """Tokens of the sampler's law: the learner's temperature is at fault."""
  batch = drawn(0.03, temperature=0.7)
  assert verdict(faults.inject("temperature", batch, 1.0)) == "temperature"
  assert verdict(faults.inject("unprocessed", batch, 1.0)) == "unprocessed"


def test_log_probs_divided_after_the_softmax_are_a_temperature():
  batch = drawn(1e-5)
  dump = doctor.from_arrays(batch.old_logp, batch.old_logp / 0.7, batch.mask)
  report = doctor.diagnose(dump, resamples=0)
  assert report.verdict == "temperature"
  assert "0.7 times" in report.finding.evidence


def sure(change=0.0, temperature=1.0, seed=0) -> faults.Sampled:
  """Short answers of a policy that is nearly sure, as a trained one is of digits.

  `change` is added to the learner's logit of what it holds for right, and noise of the
  size of bf16's to all of the sampler's.
  """
  rng = np.random.default_rng(seed)
  shape = (256, 4, 12)
  logits = rng.normal(0, 3.0, shape)
  logits += 9.0 * rng.random(shape[:2])[..., None] * (np.arange(12) == 4)
  law = lambda x: x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
  sampler = law((logits + 0.02 * rng.normal(size=shape)) / temperature)
  tokens = (sampler + rng.gumbel(size=shape)).argmax(axis=-1)
  learner = logits + change * (logits == logits.max(axis=-1, keepdims=True))
  of = lambda x: np.take_along_axis(x, tokens[..., None], -1)[..., 0]
  at = {t: of(law(learner / t)) for t in (0.7, 0.9, 1.0, 1.2)}
  ones = np.ones(shape[:2], int)
  return faults.Sampled(
    old_logp=at[temperature],
    sampler_logp=of(sampler),
    mask=ones > 0,
    tokens=tokens + 2,
    versions=7 * ones,
    learner_version=7,
    temperature=temperature,
    at=at,
  )


@pytest.mark.parametrize("wrong", [0.7, 0.9, 1.2])
def test_a_temperature_shows_where_the_policy_is_nearly_sure(wrong):
  assert verdict(sure()) == "numerics"
  assert verdict(faults.inject("temperature", sure(), wrong)) == "temperature"


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_shows_where_few_tokens_are_unsure(seed):
  batch = sure(temperature=0.7, seed=seed).rows(np.arange(128))
  assert verdict(faults.inject("shifted_tokens", batch, 1.0, seed)) == "shifted_tokens"


def test_the_engines_own_temperature_shows_there_too():
  batch = faults.inject("unprocessed", sure(temperature=0.7), 1.0)
  assert verdict(batch) == "unprocessed"


def test_no_token_of_a_sure_policy_stands_out_for_its_temperature_alone():
  """Unlikely tokens are a nat apart among others that agree: the same tokens, still."""
  batch = faults.inject("temperature", sure(), 0.7)
  found = doctor.diagnose(dump_of(batch), resamples=0).findings
  assert not any(finding.kind == "retokenised" and finding.found for finding in found)
  replaced = faults.inject("replaced_tokens", sure(), 0.02)
  assert verdict(replaced) == "retokenised"


def test_params_that_made_the_policy_surer_are_stale_and_no_temperature():
  """No larger a gap than an int8 sampler has, but one that follows the log-odds."""
  batch = sure(change=0.2)
  report = doctor.diagnose(dump_of(batch, versions=True), resamples=0)
  assert report.verdict == "stale_weights"
  assert report.scale.mean_abs < 0.1
  alone = doctor.diagnose(dump_of(batch), resamples=0)
  assert alone.verdict == "staleness"
  assert {"staleness", "stale_weights"} <= {x.kind for x in alone.findings if x.found}


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_rounding_to_digits_is_no_law_of_its_own(digits):
  batch = sure()
  rounded = np.round(batch.sampler_logp, digits)
  dump = doctor.from_arrays(batch.old_logp, rounded, batch.mask)
  assert doctor.diagnose(dump, resamples=0).verdict == "numerics"


def test_a_law_that_does_not_show_leaves_both_temperatures():
  """A few hundred tokens do not say which of two near laws they are of."""
  batch = sure(temperature=0.9, seed=4).rows(np.arange(40))
  report = doctor.diagnose(
    dump_of(faults.inject("unprocessed", batch, 1.0)), resamples=0
  )
  kinds = {finding.kind for finding in report.findings if finding.found}
  assert {"temperature", "unprocessed"} <= kinds


def test_two_equal_columns_are_healthy():
  batch = drawn(0.03)
  dump = doctor.from_arrays(batch.old_logp, batch.old_logp, batch.mask)
  assert doctor.diagnose(dump, resamples=0).verdict == "healthy"


def test_a_dozen_rows_are_enough_for_their_ends():
  batch = drawn(0.03).rows(np.arange(12))
  assert verdict(batch) == "numerics"
  assert verdict(faults.inject("wrong_end", batch, 0.5)) == "missing_end"


def test_one_row_of_padding_is_enough_if_it_is_long():
  rows = drawn(0.03).rows(np.arange(16))
  left = np.flatnonzero(rows.mask.sum(axis=1) < 30)[0]
  one = faults.inject("padding_of_zeros", rows.rows([left]), 1.0)
  zeros = lambda name: np.where(
    np.arange(16)[:, None] == left, getattr(one, name), getattr(rows, name)
  )
  dump = doctor.from_arrays(zeros("old_logp"), zeros("sampler_logp"), zeros("mask"))
  assert doctor.diagnose(dump, resamples=0).verdict == "padding_counted"


def test_versions_tell_a_stale_sampler_from_stale_params():
  batch = drawn(0.35)
  assert verdict(batch) == "staleness"
  assert verdict(batch, versions=True) == "stale_weights"
  behind = faults.dataclasses.replace(batch, versions=batch.versions - 4)
  assert verdict(behind, versions=True) == "staleness"
  again = faults.inject("stale_weights", behind, 1.0)
  assert verdict(again, versions=True) == "stale_weights"


def test_a_dtype_that_is_told_moves_the_bounds():
  """vLLM's stale head: 0.054 nats, which int8 may have and fp32 may not."""
  dump = dump_of(drawn(0.08), versions=True)
  assert doctor.diagnose(dump, resamples=0).verdict == "numerics"
  told = doctor.diagnose(dump, sampler_dtype="float32", resamples=0)
  assert told.verdict == "stale_weights"
  coarse = dump_of(drawn(0.35), versions=True)
  assert (
    doctor.diagnose(coarse, sampler_dtype="int4", resamples=0).verdict == "numerics"
  )


def test_ids_that_differ_are_named_before_anything_else():
  batch = drawn(1e-5)
  sampled = batch.tokens.copy()
  sampled[5, 2] += 1
  dump = doctor.from_arrays(
    batch.old_logp,
    batch.sampler_logp,
    batch.mask,
    tokens=batch.tokens,
    sampler_tokens=sampled,
  )
  report = doctor.diagnose(dump)
  assert report.verdict == "retokenised"
  assert report.finding.rows[0].row == 5


def test_a_gap_in_a_few_rows_is_a_remark_beside_the_verdict():
  batch = drawn(1e-5)
  old = batch.old_logp.copy()
  old[7] = np.minimum(old[7] + np.random.default_rng(0).normal(0, 1.0, old[7].shape), 0)
  report = doctor.diagnose(doctor.from_arrays(old, batch.sampler_logp, batch.mask))
  found = {finding.kind: finding for finding in report.findings}
  assert found["few_rows"].found
  assert found["few_rows"].rows[0].row == 7


def test_too_few_tokens_are_unclear():
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1.0, (2, 5))
  report = doctor.diagnose(doctor.from_arrays(sampler, sampler))
  assert report.verdict == "unclear"
  assert "10 tokens" in report.finding.evidence


def test_log_probs_rounded_to_some_digits_are_not_filled_in():
  batch = drawn(1e-5)
  rounded = np.round(batch.sampler_logp, 3)
  assert (rounded[batch.mask] == 0).sum() > 10
  dump = doctor.from_arrays(batch.old_logp, rounded, batch.mask)
  assert doctor.diagnose(dump, resamples=0).verdict == "healthy"


def test_answers_to_one_prompt_repeat_their_log_probs():
  """The same token after the same prompt has the same log-prob: that is no fill."""
  batch = drawn(0.03)
  same = batch.rows(np.repeat(np.arange(6), 8))
  assert verdict(same) == "numerics"
  assert verdict(faults.inject("shifted_tokens", same, 1.0)) == "shifted_tokens"


def test_garbage_outside_the_mask_changes_nothing():
  batch = drawn(0.03)
  clean = doctor.diagnose(dump_of(batch))
  rng = np.random.default_rng(1)
  junk = np.where(
    rng.random(batch.mask.shape) < 0.5, np.nan, rng.normal(0, 99, batch.mask.shape)
  )
  dirty = doctor.from_arrays(
    np.where(batch.mask, batch.old_logp, junk),
    np.where(batch.mask, batch.sampler_logp, -junk),
    batch.mask,
  )
  found = doctor.diagnose(dirty)
  assert found.scale == clean.scale
  assert [f.kind for f in found.findings] == [f.kind for f in clean.findings]


def test_a_report_says_all_that_it_promises():
  batch = faults.inject("shifted_tokens", drawn(0.03), 1.0, seed=1)
  report = doctor.diagnose(dump_of(batch, tokens=True))
  finding = report.finding
  assert finding.kind == report.verdict in doctor.VERDICTS
  assert finding.score == pytest.approx(finding.statistic / finding.threshold)
  assert report.confidence == 1.0
  assert len(finding.rows) == 3
  assert all(any(place.marked for place in row.places) for row in finding.rows)
  assert finding.link.startswith("https://") and finding.cause and finding.do
  assert set(report.to_json()["findings"][0]) >= {"score", "evidence", "rows"}


def test_the_mean_ratio_names_the_missing_mass():
  """Under top-p the mean ratio is the learner's mass on what was kept."""
  batch = faults.inject("support", drawn(1e-5, top_p=0.8), 1.0)
  report = doctor.diagnose(dump_of(batch), resamples=0)
  mass = batch.kept_mass[batch.mask].mean()
  assert report.scale.ratio_mean == pytest.approx(mass, abs=1e-3)
