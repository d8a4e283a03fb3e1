"""What may be trained on, and what is refused in which words."""

import dataclasses

import numpy as np
import pytest

from tis_jax.rollouts import (
  ABORTED,
  STOP,
  Header,
  Limits,
  Sampling,
  encode,
  tight_sets,
  validate,
  with_padded_sets,
)
from tis_jax.rollouts.errors import (
  AmbiguousLawError,
  AnotherLawError,
  ForeignRolloutError,
  FutureRolloutError,
  NonFiniteRolloutError,
  OtherParamsError,
  RolloutShapeError,
  RolloutValueError,
)


def test_top_tokens_and_their_log_probs_go_together_and_are_looked_at(make_rollout):
  good = make_rollout()
  shape = (*good.mask.shape, 3)
  tokens = np.broadcast_to(np.int32([4, 2, -1]), shape).copy()
  logp = np.broadcast_to(np.float32([-0.6, -1.0, -np.inf]), shape).copy()

  def check(**changes):
    rollout = dataclasses.replace(good, top_tokens=tokens, top_logp=logp)
    rollout = dataclasses.replace(rollout, **changes)
    encode(rollout)
    validate(rollout, Limits(vocab_size=19))

  check()
  for fill, place, error in (
    (np.nan, 0, NonFiniteRolloutError),
    (-np.inf, 1, NonFiniteRolloutError),
    (0.0, 2, RolloutValueError),
    (0.0, 1, RolloutValueError),
  ):
    bad = logp.copy()
    bad[..., place] = fill
    with pytest.raises(error, match="top_"):
      check(top_logp=bad)
    check(top_logp=np.where(good.mask[..., None], logp, bad))  # or under the mask
  with pytest.raises(RolloutValueError, match="top_tokens has an id outside"):
    check(top_tokens=np.where(tokens == 4, 19, tokens).astype(np.int32))
  with pytest.raises(RolloutShapeError, match="go together"):
    check(top_logp=None)
  with pytest.raises(RolloutShapeError, match=r"top_logp \[BTN\] has shape"):
    check(top_logp=logp[..., :2].copy())


def _with(rollout, name, value):
  """The rollout with one entry, of a sampled token or row, changed."""
  array = getattr(rollout, name).copy()
  array[tuple(0 for _ in array.shape)] = value
  return dataclasses.replace(rollout, **{name: array})


@pytest.mark.parametrize(
  ("name", "value", "error"),
  [
    ("sampler_logp", np.nan, NonFiniteRolloutError),
    ("sampler_logp", -np.inf, NonFiniteRolloutError),
    ("sampler_logp", 0.5, RolloutValueError),
    ("rewards", np.nan, NonFiniteRolloutError),
    ("versions", 8, FutureRolloutError),
    ("versions", -1, RolloutValueError),
    ("tokens", -1, RolloutValueError),
    ("tokens", 19, RolloutValueError),
  ],
)
def test_bad_values_have_names(make_rollout, name, value, error):
  limits = Limits(vocab_size=19, shape=(4, 3, 5), run="", group_size=2)
  good = make_rollout(version=7)
  validate(good, limits, learner_version=7)
  with pytest.raises(error):
    validate(_with(good, name, value), limits, learner_version=7)


def test_kept_mass_prompts_runs_and_shapes_are_checked(make_rollout):
  good = make_rollout()
  law = Sampling(top_p=0.9, dtype="bfloat16")
  good = dataclasses.replace(good, header=Header(0, law))
  with pytest.raises(NonFiniteRolloutError, match="kept_mass"):
    kept_mass = np.where(good.mask, np.inf, 1).astype(np.float32)
    validate(dataclasses.replace(good, kept_mass=kept_mass))
  greedy = np.full_like(good.rewards, np.nan)
  with pytest.raises(NonFiniteRolloutError, match="greedy_rewards is not finite"):
    validate(dataclasses.replace(good, greedy_rewards=greedy))
  with pytest.raises(RolloutShapeError, match=r"greedy_rewards \[B\] has shape"):
    encode(dataclasses.replace(good, greedy_rewards=greedy[:2]))
  with pytest.raises(RolloutValueError, match="kept_tokens"):
    kept_tokens = np.full((4, 5, 2), 19, np.int32)
    validate(dataclasses.replace(good, kept_tokens=kept_tokens), Limits(vocab_size=19))
  with pytest.raises(RolloutValueError, match="not among the kept_tokens"):
    kept_tokens = np.where(good.tokens[..., None] == 3, 4, [3, -1]).astype(np.int32)
    validate(dataclasses.replace(good, kept_tokens=kept_tokens), Limits(vocab_size=19))
  kept_tokens[good.tokens != 3] = -1  # sets that did not fit say nothing
  kept_tokens[good.tokens == 3] = [3, 4]
  validate(dataclasses.replace(good, kept_tokens=kept_tokens), Limits(vocab_size=19))
  for mass in (0.0, -0.5, 1.1):
    with pytest.raises(RolloutValueError, match="kept_mass is outside"):
      kept_mass = np.full(good.mask.shape, mass, np.float32)
      validate(dataclasses.replace(good, kept_mass=kept_mass))
  with pytest.raises(RolloutValueError, match="left"):
    prompt_mask = np.array([[True, False, True]] * 4)
    validate(dataclasses.replace(good, prompt_mask=prompt_mask))
  with pytest.raises(ForeignRolloutError):
    validate(good, Limits(run="another"))
  with pytest.raises(RolloutShapeError):
    validate(good, Limits(shape=(4, 3, 6)))
  with pytest.raises(FutureRolloutError):
    header = dataclasses.replace(good.header, version=3)
    validate(dataclasses.replace(good, header=header), learner_version=2)


def law_of(good, **law):
  return dataclasses.replace(good, header=Header(0, Sampling(**law)))


def test_a_law_that_cannot_be_told_is_refused_in_words(make_rollout):
  good = make_rollout()
  with pytest.raises(
    AmbiguousLawError, match=r"before the temperature, which is 0.7: ask the engine"
  ):
    validate(law_of(good, temperature=0.7, logprobs="untempered"))
  with pytest.raises(
    AmbiguousLawError, match="renormalised over the tokens that top_p"
  ):
    validate(law_of(good, top_p=0.9, logprobs="processed"))
  with pytest.raises(AmbiguousLawError, match="a greedy choice"):
    validate(law_of(good, temperature=0.0))
  with pytest.raises(AmbiguousLawError, match="is not one of"):
    validate(law_of(good, logprobs="normalised"))
  with pytest.raises(AmbiguousLawError, match="nothing was left out"):
    mass = np.ones(good.mask.shape, np.float32)
    validate(dataclasses.replace(good, kept_mass=mass))
  validate(law_of(good, logprobs="untempered"))


def test_a_record_of_another_law_than_the_runs_is_refused(make_rollout):
  run = Limits(sampling=Sampling(temperature=0.7))
  validate(law_of(make_rollout(), temperature=0.7, logprobs="processed"), run)
  with pytest.raises(AnotherLawError, match=r"temperature was 1.0, the run has 0.7"):
    validate(make_rollout(), run)
  with pytest.raises(AnotherLawError, match=r"top_p was 0.9, the run has 1.0"):
    validate(law_of(make_rollout(), temperature=0.7, top_p=0.9), run)


def test_missing_is_nan_and_said_and_never_zero(make_rollout):
  good = make_rollout(length=40)
  present = good.mask & (np.arange(40) % 3 > 0)
  missing = np.where(present, good.sampler_logp, np.nan).astype(np.float32)
  validate(dataclasses.replace(good, present=present, sampler_logp=missing))
  with pytest.raises(NonFiniteRolloutError, match="`present` says so"):
    validate(dataclasses.replace(good, sampler_logp=missing))
  filled = np.where(present, good.sampler_logp, 0).astype(np.float32)
  with pytest.raises(RolloutValueError, match="must be NaN"):
    validate(dataclasses.replace(good, present=present, sampler_logp=filled))
  with pytest.raises(RolloutValueError, match="as if every token had been certain"):
    validate(dataclasses.replace(good, sampler_logp=np.zeros_like(filled)))


def test_other_params_than_those_published_are_refused(make_rollout):
  header = Header(0, Sampling(), params_digest="aa")
  record = dataclasses.replace(make_rollout(), header=header)
  validate(record, params_digest="aa")
  validate(record)
  validate(make_rollout(), params_digest="aa")  # an engine that cannot say
  with pytest.raises(OtherParamsError, match="held aa as version 0, and published was"):
    validate(record, params_digest="bb")


def test_rows_are_looked_at(make_rollout):
  good = make_rollout()
  with pytest.raises(RolloutShapeError, match="groups of"):
    validate(good, Limits(group_size=4))
  with pytest.raises(RolloutValueError, match="has no prompt"):
    empty = good.prompt_mask & (np.arange(4) > 0)[:, None]
    validate(dataclasses.replace(good, prompt_mask=empty))
  with pytest.raises(RolloutValueError, match="finish_reasons are"):
    validate(_with(good, "finish_reasons", 3))
  with pytest.raises(RolloutValueError, match="header's newest is 0"):
    validate(_with(good, "versions", 1))


def test_what_a_tool_said_must_be_tokens_and_what_follows_need_not(make_rollout):
  good = make_rollout()
  mask = np.array([[True, False, True, False, False]] * 4)
  tokens = np.array([[3, 4, 5, -9, 10**6]] * 4, np.int32)
  logp = np.where(mask, -0.5, np.nan).astype(np.float32)
  versions = np.zeros_like(tokens)
  turned = dataclasses.replace(
    good, mask=mask, tokens=tokens, sampler_logp=logp, versions=versions
  )
  validate(turned, Limits(vocab_size=19))
  tokens[0, 1] = 19
  with pytest.raises(RolloutValueError, match="tokens has an id outside"):
    validate(turned, Limits(vocab_size=19))
  tokens[0, 1] = 4
  per_turn = np.ones((4, 3), np.float32) * np.float32([1, 2, np.nan])
  validate(dataclasses.replace(turned, turn_rewards=per_turn))
  for bad in (per_turn[:, :1].copy(), np.nan_to_num(per_turn)):
    with pytest.raises(RolloutShapeError, match="a number for each turn"):
      validate(dataclasses.replace(turned, turn_rewards=bad))


def test_tight_kept_sets_hold_what_was_drawn(make_rollout):
  good = law_of(make_rollout(), top_p=0.9, logprobs="processed")
  places = zip(good.tokens.ravel().tolist(), good.mask.ravel(), strict=True)
  offsets, ids = tight_sets([[token, 18] if held else [] for token, held in places])
  record = dataclasses.replace(good, kept_offsets=offsets, kept_ids=ids)
  validate(record, Limits(vocab_size=19))
  padded = with_padded_sets(record, 2)
  validate(padded, Limits(vocab_size=19))
  drawn, other = padded.kept_tokens[good.mask].T
  assert (drawn == good.tokens[good.mask]).all() and (other == 18).all()
  assert with_padded_sets(record, 0).kept_tokens is None
  with pytest.raises(RolloutValueError, match="not among"):
    validate(dataclasses.replace(record, kept_ids=np.full_like(ids, 18)))
  with pytest.raises(RolloutShapeError, match="do not cut"):
    validate(dataclasses.replace(record, kept_offsets=offsets + 1))
  with pytest.raises(RolloutShapeError, match="go together"):
    validate(dataclasses.replace(record, kept_ids=None))
  with pytest.raises(RolloutShapeError, match="there twice"):
    validate(dataclasses.replace(record, kept_tokens=padded.kept_tokens))


def test_an_aborted_row_may_lack_its_reward(make_rollout):
  good = make_rollout(finish_reasons=np.int8([ABORTED, STOP, STOP, STOP]))
  validate(_with(good, "rewards", np.nan))
