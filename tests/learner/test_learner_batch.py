"""Assembling batches on the host."""

from types import SimpleNamespace

import numpy as np
import pytest

from tis_jax import learner
from tis_jax.advantages.shaping import has_variance
from tis_jax.rollouts import ABORTED


def columns(batch):
  return {name: x for name, x in batch._asdict().items() if x is not None}


def record(batch, rows):
  """Rows as the store's reader hands them out: attributes, and others beside them."""
  taken = learner.take_rows(batch, rows)
  return SimpleNamespace(**taken._asdict(), prompt_ids=None, header=None)


def test_records_are_joined_and_groups_of_different_records_stay_apart(batch):
  first, second = record(batch, slice(0, 8)), record(batch, slice(4, 12))
  joined = learner.from_rollouts([first, second])
  held = batch.mask[4:12]
  np.testing.assert_array_equal(joined.tokens[8:][held], batch.tokens[4:12][held])
  np.testing.assert_array_equal(joined.group_ids, np.repeat(np.arange(4), 4))
  assert joined.kept_mass is None
  for name, x in columns(joined).items():
    assert x.dtype == getattr(batch, name).dtype, name


def test_ids_that_nothing_reads_are_ids_of_the_model(batch):
  mask = np.array([[True, False, True, False, False, False]] * 4)
  tokens = np.array([[3, 4, 5, -9, 10**6, 7]] * 4, np.int32)
  rows = record(batch, slice(0, 4))
  rows.mask, rows.tokens = mask, tokens
  rows.prompts = np.where(rows.prompt_mask, rows.prompts, -1)
  read = learner.from_rollouts([rows])
  np.testing.assert_array_equal(read.tokens, [[3, 4, 5, 0, 0, 0]] * 4)
  assert (read.prompts >= 0).all()


def test_nothing_of_an_aborted_answer_trains(batch):
  rows = record(batch, slice(0, 4))
  rows.finish_reasons = np.int8([0, ABORTED, 1, 0])
  rows.rewards = np.float32([1, np.nan, 0, 1])
  read = learner.from_rollouts([rows])
  np.testing.assert_array_equal(read.mask.any(axis=1), [True, False, True, True])
  np.testing.assert_array_equal(read.rewards, [1, 0, 0, 1])
  np.testing.assert_array_equal(read.finish_reasons, rows.finish_reasons)


def test_optional_arrays_are_in_all_records_or_in_none(batch):
  mass = np.ones(batch.tokens.shape, np.float32)
  with_mass = record(batch._replace(kept_mass=mass), slice(0, 4))
  assert learner.from_rollouts([with_mass, with_mass]).kept_mass.shape == (8, 6)
  greedy = record(batch._replace(greedy_rewards=batch.rewards), slice(0, 4))
  named = np.stack([batch.rewards[:4], np.ones(4, np.float32)], 1)
  greedy.named_rewards = named
  again = learner.pad(
    learner.from_rollouts([greedy, greedy]), rows=9, response_length=8
  )
  want = np.concatenate([named, named, np.zeros((1, 2))])
  np.testing.assert_array_equal(again.named_rewards, want)
  want = [*batch.rewards[:4], *batch.rewards[:4], 0]
  np.testing.assert_array_equal(again.greedy_rewards, want)
  with pytest.raises(ValueError, match="some rollouts record kept_mass and some"):
    learner.from_rollouts([with_mass, record(batch, slice(4, 8))])
  with pytest.raises(ValueError, match="no rows"):
    learner.from_rollouts([])


def test_dynamic_sampling_drops_groups_without_signal(batch):
  rows = learner.take_rows(batch, batch.mask.any(1))
  keep = np.asarray(has_variance(rows.rewards, rows.group_ids))
  kept = learner.take_rows(rows, keep)
  assert 0 < len(kept.rewards) < len(rows.rewards)
  for group in set(kept.group_ids):
    assert len(set(kept.rewards[kept.group_ids == group])) == 2


def test_padding_keeps_prompts_right_and_responses_left(batch):
  tokens = np.full((*batch.tokens.shape, 2), 3, np.int32)
  padded = learner.pad(
    batch._replace(
      kept_tokens=tokens, top_tokens=tokens, top_logp=-tokens.astype(np.float32)
    ),
    rows=40,
    prompt_length=7,
    response_length=9,
    pad_id=1,
  )
  np.testing.assert_array_equal(padded.prompts[:32, 3:], batch.prompts)
  np.testing.assert_array_equal(padded.tokens[:32, :6], batch.tokens)
  assert not padded.mask[32:].any() and not padded.mask[:, 6:].any()
  assert not padded.prompt_mask[:, :3].any()
  assert (padded.tokens[:, 6:] == 1).all() and (padded.prompts[:, :3] == 1).all()
  assert (padded.kept_tokens[:, 6:] == -1).all()
  assert (padded.top_tokens[:, 6:] == -1).all()
  assert (padded.top_logp[:, 6:] == -np.inf).all()
  assert set(padded.group_ids[32:]) == {-1}
  with pytest.raises(ValueError, match="exceeds response_length by 2"):
    learner.pad(batch, response_length=4)


def test_a_saved_batch_comes_back(batch, tmp_path):
  old_logp = np.float32(batch.sampler_logp - 0.1)
  learner.save_batch(tmp_path / "batch.npz", batch, old_logp=old_logp, step=3)
  again, extra = learner.load_batch(tmp_path / "batch.npz")
  assert columns(again).keys() == columns(batch).keys()
  for name, x in columns(batch).items():
    np.testing.assert_array_equal(getattr(again, name), x)
  np.testing.assert_array_equal(extra["old_logp"], old_logp)
  assert extra["step"] == 3
