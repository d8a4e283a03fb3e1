"""The parts of `tis_jax.integrations.tunix` that need no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="Tunix is not installed: make test-tunix")

from tunix.rl.rollout.base_rollout import RolloutConfig

import tis_jax as tis
from tis_jax.integrations.tunix.answers import read_answers
from tis_jax.integrations.tunix.checks import check_sampling
from tis_jax.integrations.tunix.metrics import logged
from tis_jax.integrations.tunix.noise import seed_of
from tis_jax.numerics import metrics

pytestmark = pytest.mark.tunix


def test_answers_of_an_engine_that_pads_end_with_their_log_probs():
  """As vLLM's rollout returns them: the ids padded, the log-probs not."""
  padded = read_answers([[5, 6, 0, 0], [7, 0, 0, 0]], [[-1, -2], [-3, -4]], 0, 4)
  assert padded.mask.tolist() == [[True, True, False, False]] * 2
  plain = read_answers([[5, 6], [7, 0]], [[-1, -2], [-3, -4]], 0, 4)
  for a, b in zip(padded, plain, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_missing_log_prob_is_missing():
  answers = read_answers([[5, 6, 7]], [[-1.0, None, -1.0]], 0, 3)
  old_logp = jnp.full((1, 3), -2.0)
  out = tis.chain(tis.truncate(2.0))(old_logp, answers.sampler_logp, answers.mask)
  np.testing.assert_allclose(out.weight, np.exp([[-1.0, 0.0, -1.0]]), rtol=1e-6)
  assert tis.finalize(out.metrics)["tokens/missing"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
  ("tokens", "logprobs", "words"),
  [
    ([[5, 6]], None, "return_logprobs=True"),
    ([[5]], [[-1.0, -2.0]], "answer 0 has 2 log-probs and 1 tokens"),
    ([[5], [6, 7]], [[-1.0], [-1.0]], "answer 1 has 1 log-probs, and tokens behind"),
  ],
)
def test_answers_that_do_not_fit_their_log_probs_are_refused(tokens, logprobs, words):
  with pytest.raises(ValueError, match=words):
    read_answers(tokens, logprobs, 0, 4)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"return_logprobs": False}, "set return_logprobs=True"),
    ({"seed": 7}, "seed=7 would draw the same noise"),
    ({"rollout_vllm_logprobs_mode": "raw_logprobs"}, "before the temperature"),
    ({"rollout_vllm_kwargs": {"logprobs_mode": "raw_logprobs"}}, "raw_logprobs"),
    ({"top_k": 50}, "top_k=50"),
  ],
)
def test_an_engine_that_would_give_a_wrong_ratio_is_refused(settings, words):
  good = {"return_logprobs": True, "temperature": 0.9}
  check_sampling(RolloutConfig(**good), vanilla=False, inexact="refuse")
  # -1 is vLLM's word for all of them.
  check_sampling(RolloutConfig(**good, top_k=-1), vanilla=False, inexact="refuse")
  with pytest.raises(ValueError, match=words):
    check_sampling(RolloutConfig(**good | settings), vanilla=False, inexact="refuse")


def test_seeds_differ_by_all_that_they_are_made_of():
  bases = [None, 1, -1, 2**40, jax.random.key(1), jax.random.PRNGKey(2)]
  seeds = [seed_of(base, *at) for base in bases for at in ((0, 0), (0, 1), (1, 0))]
  assert len(set(seeds)) == len(seeds)
  assert all(0 <= seed < 2**31 for seed in seeds)


def test_every_kind_of_metric_is_pooled_as_merge_pools_it():
  rng = np.random.default_rng(0)

  def kinds(n):
    x, mask = jnp.asarray(rng.exponential(size=n), jnp.float32), jnp.ones(n)
    return {
      "mean": metrics.mean(x, mask),
      "total": metrics.total(x),
      "maximum": metrics.maximum(x, mask),
      "ratio": metrics.ratio(x.sum(), jnp.float32(n + 1)),
      "histogram": metrics.histogram(x, mask, jnp.linspace(0.0, 3.0, 9)),
    }

  parts = [kinds(3), kinds(50)]
  expected = tis.finalize(tis.merge(*parts))
  packed = [logged(part) for part in parts]
  assert set(packed[0]) == set(expected)
  for name, number in expected.items():
    pool = packed[0][name][1]
    assert pool([part[name][0] for part in packed]) == pytest.approx(
      float(number), rel=1e-5
    )
