"""What an injected fault leaves as it was, and what it does not."""

import dataclasses

import numpy as np
import pytest

from tis_jax.lab import faults


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  old = -rng.exponential(1.0, (10, 8))
  return faults.Sampled(
    old_logp=old,
    sampler_logp=old - 0.01,
    mask=np.arange(8) < rng.integers(3, 8, 10)[:, None],
    tokens=rng.integers(2, 9, (10, 8)),
    versions=np.zeros((10, 8), int),
    learner_version=2,
    at={1.0: old, 0.7: old * 1.2},
    kept_mass=np.full((10, 8), 0.9),
    other_logp=old - 1,
  )


def test_every_fault_is_seeded_and_leaves_its_batch_alone(batch):
  strengths = dict.fromkeys(faults.FAULTS, 0.5) | {"prompt_in_mask": 2}
  strengths |= {"temperature": 0.7, "unprocessed": 0.7}
  before = {f.name: np.copy(getattr(batch, f.name)) for f in _arrays(batch)}
  for kind, strength in strengths.items():
    one, two = (faults.inject(kind, batch, strength, seed=4) for _ in range(2))
    assert all(
      np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in _arrays(one)
    )
    changed = any(
      not np.array_equal(getattr(one, name), x) for name, x in before.items()
    )
    assert changed, kind
  for name, x in before.items():
    np.testing.assert_array_equal(getattr(batch, name), x)


def _arrays(batch):
  fields = dataclasses.fields(batch)
  return [f for f in fields if isinstance(getattr(batch, f.name), np.ndarray)]


def test_a_shift_moves_log_probs_within_the_tokens_of_a_row(batch):
  sick = faults.inject("shifted_tokens", batch, 1.0)
  for row, mask in enumerate(batch.mask):
    was, is_ = batch.sampler_logp[row, mask], sick.sampler_logp[row, mask]
    assert any(np.array_equal(is_, np.roll(was, lag)) for lag in (-1, 1))


def test_support_is_the_logarithm_of_the_kept_mass(batch):
  sick = faults.inject("support", batch, 1.0)
  moved = (sick.sampler_logp - batch.sampler_logp)[batch.mask]
  np.testing.assert_allclose(moved, -np.log(0.9))


def test_what_a_fault_needs_is_asked_for(batch):
  with pytest.raises(ValueError, match=r"not scored at 0\.5"):
    faults.inject("temperature", batch, 0.5)
  with pytest.raises(ValueError, match="kept_mass"):
    faults.inject("support", dataclasses.replace(batch, kept_mass=None), 1.0)
  with pytest.raises(ValueError, match="older params"):
    faults.inject("stale_weights", dataclasses.replace(batch, learner_version=0), 1.0)
  with pytest.raises(ValueError, match="no fault 'shift'"):
    faults.inject("shift", batch, 1.0)
