"""`tis_jax.integrations.tunix` inside the released Tunix, on a two-layer Qwen3."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="Tunix is not installed: make test-tunix")

from flax import nnx
from tunix.rl import common
from tunix.rl import utils as rl_utils
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import Mode, RLCluster

import tis_jax as tis
from tis_jax.integrations.tunix import TISConfig, TISGRPOLearner

pytestmark = pytest.mark.tunix

PAD, EOS, G = 0, 2, 4
PROMPTS = np.array(["abc", "de"])


def reward(prompts, completions, **_):
  """A number for every answer, and hardly ever the same one twice in a group."""
  return [sum(int(x) for x in text.split()) % 7 / 7 for text in completions]


def make_learner(cluster, **settings):
  config = TISConfig(**{"num_generations": G, "beta": 0.0} | settings)
  return TISGRPOLearner(cluster, config, reward)


def generate(learner, mode=Mode.TRAIN):
  prompts = {"prompts": np.repeat(PROMPTS, learner.algo_config.num_generations)}
  return learner._generate_and_compute_advantage(prompts, mode)


def off(cluster, shift):
  """The cluster, its sampler reporting log-probs that are off by `shift(place)`.

  None where that is None. What it returned is kept in `outputs`.
  """
  honest, cluster.outputs = cluster.rollout.generate, []

  def generate(prompts, config, **options):
    output = honest(prompts, config, **options)
    output.logprobs = [
      [
        None if shift(place) is None else x + shift(place)
        for place, x in enumerate(row)
      ]
      for row in output.logprobs
    ]
    cluster.outputs.append(output)
    return output

  cluster.rollout.generate = generate
  return cluster


def params_of(cluster):
  return jax.tree.map(np.asarray, nnx.state(cluster.actor_trainer.model, nnx.Param))


def move(before, after):
  return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), before, after)


def assert_close(a, b, **tolerance):
  jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


def current_logp(model, example, temperature):
  return common.compute_per_token_logps(
    *nnx.split(model), example.prompt_ids, example.completion_ids, PAD, EOS,
    stop_gradient=False, temperature=temperature,
  )  # fmt: skip


class Kept(TISGRPOLearner):
  """Keeps what it made of each batch."""

  def _generate_and_compute_advantage(self, *args, **kwargs):
    example = super()._generate_and_compute_advantage(*args, **kwargs)
    self.examples = [*getattr(self, "examples", []), example]
    return example


def train(cluster, learner_class=Kept, batches=1, eval_ds=None, **settings):
  config = TISConfig(**{"num_generations": G, "beta": 0.0} | settings)
  learner = learner_class(cluster, config, reward)
  learner.train([{"prompts": PROMPTS}] * batches, eval_ds)
  return learner


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_at_unchanged_params_the_weights_are_1(make_cluster, temperature):
  example = generate(make_learner(make_cluster(temperature=temperature)))
  mask, weight = np.asarray(example.completion_mask), example.sampler_is_weights
  assert mask.sum() > 30
  np.testing.assert_allclose(weight, mask.astype(np.float32), atol=1e-5)


@pytest.mark.parametrize("split", [False, True])
def test_after_updates_the_weights_are_1_again(make_cluster, split):
  """On shared params Tunix's own copy of the old ones stays at the first."""
  cluster = make_cluster(split=split, training={"max_steps": 3})
  learner = train(cluster, batches=3)
  assert learner.should_sync_weights == split
  first, *_, last = learner.examples
  moved = current_logp(cluster.actor_trainer.model, first, 0.6)
  assert np.abs(moved - first.old_per_token_logps).max() > 0.1
  mask = np.asarray(last.completion_mask, np.float32)
  np.testing.assert_allclose(last.sampler_is_weights, mask, atol=1e-4)


def test_old_logp_is_of_the_temperature_and_the_stock_path_is_not(make_cluster):
  """0.6; with more than one iteration Tunix's loss is anchored on the stock one."""
  cluster = make_cluster(temperature=0.6)
  learner = make_learner(cluster, num_iterations=2)
  example = generate(learner)
  stock = RLCluster.get_old_per_token_logps(
    cluster, example.prompt_ids, example.completion_ids
  )
  right = current_logp(cluster.actor_trainer.model, example, 0.6)
  mask = np.asarray(example.completion_mask)
  assert np.abs(stock - right)[mask].mean() > 0.01
  np.testing.assert_allclose(
    np.asarray(example.old_per_token_logps)[mask], np.asarray(right)[mask], atol=1e-5
  )


def test_weights_are_the_ratio_to_what_the_sampler_reported(make_cluster):
  shift = lambda place: 0.3 * (-1) ** place - 0.5 * (place == 3)
  cluster = off(make_cluster(), shift)
  correction = tis.chain(tis.reject(1.5, 0.5, level="token"), tis.truncate(1.3))
  example = generate(make_learner(cluster, correction=correction))
  mask = np.asarray(example.completion_mask)
  log_ratio = np.broadcast_to([-shift(place) for place in range(8)], mask.shape)
  ratio = np.exp(log_ratio)
  expected = np.where(mask & (ratio >= 0.5) & (ratio <= 1.5), np.minimum(ratio, 1.3), 0)
  assert len(np.unique(expected.round(3))) > 2
  np.testing.assert_allclose(example.sampler_is_weights, expected, atol=1e-4)


def test_a_correction_is_given_the_groups_and_the_advantages(make_cluster):
  """Weights average 1 over a group; a bad answer that was left behind goes."""
  cluster = off(make_cluster(), lambda place: 0.3 * (place - 2))
  stages = tis.truncate(2.0), tis.normalize(over="group")
  example = generate(make_learner(cluster, correction=tis.chain(*stages)))
  mask, weight = np.asarray(example.completion_mask), example.sampler_is_weights
  for rows in (slice(0, G), slice(G, 2 * G)):
    assert np.asarray(weight)[rows].sum() / mask[rows].sum() == pytest.approx(1.0, 1e-4)
  cluster = off(make_cluster(), lambda place: 0.3 * (place - 2))
  correction = tis.chain(tis.reject_negative_divergence(0.1))
  example = generate(make_learner(cluster, correction=correction))
  kept = np.asarray(example.sampler_is_weights) > 0
  falls = np.asarray(example.advantages) < 0
  np.testing.assert_array_equal(
    kept[~falls], np.asarray(example.completion_mask)[~falls]
  )
  assert (kept[falls] != np.asarray(example.completion_mask)[falls]).any()


def test_the_stock_loss_takes_the_weights(make_cluster):
  """All ratios are 3 and cut at 2: an update by plain SGD is twice as long."""
  moves = []
  for shift in (0.0, -np.log(3.0)):
    cluster = off(make_cluster(), lambda place, shift=shift: shift)
    before = params_of(cluster)
    train(cluster)
    moves.append(move(before, params_of(cluster)))
  assert max(np.abs(x).max() for x in jax.tree.leaves(moves[0])) > 1e-3
  assert_close(jax.tree.map(lambda x: 2 * x, moves[0]), moves[1], rtol=1e-3, atol=2e-6)


def test_a_loss_of_ours_gives_the_gradient_written_out(make_cluster):
  """Rejection, weight, KL, the mask's denominator and RLOO, in one line of SGD."""
  shift = lambda place: 0.4 * (-1) ** place - (place == 5)
  cluster = off(make_cluster(reference=True), shift)
  model = nnx.clone(cluster.actor_trainer.model)
  before = params_of(cluster)
  learner = train(
    cluster,
    correction=tis.chain(tis.reject(2.0, 0.5, level="token"), tis.truncate(1.2)),
    loss=tis.losses.ppo,
    estimator=tis.advantages.rloo,
    aggregation="token_mean",
    beta=0.1,
    kl_loss_mode="mse_kl",
  )
  (example,) = learner.examples
  mask = np.asarray(example.completion_mask)
  ratio = np.exp(np.broadcast_to([-shift(place) for place in range(8)], mask.shape))
  accepted = mask & (ratio >= 0.5) & (ratio <= 2.0)
  assert 0 < accepted.sum() < mask.sum()
  weight = np.minimum(ratio, 1.2)
  (output,) = cluster.outputs
  rewards = np.array(reward(None, output.text)).reshape(-1, G)
  others = (rewards.sum(1, keepdims=True) - rewards) / (G - 1)
  advantages = (rewards - others).reshape(-1, 1)
  np.testing.assert_allclose(example.advantages, advantages[:, 0], atol=1e-6)

  def loss(model):
    logp = current_logp(model, example, 0.6)
    surrogate = -advantages * weight * jnp.exp(logp - jax.lax.stop_gradient(logp))
    kl = 0.5 * (logp - example.ref_per_token_logps) ** 2
    return jnp.where(accepted, surrogate + 0.1 * kl, 0.0).sum() / mask.sum()

  gradient = nnx.grad(loss)(model)
  expected = jax.tree.map(lambda g: -0.1 * np.asarray(g), gradient)
  assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-3
  assert_close(expected, move(before, params_of(cluster)), rtol=1e-3, atol=2e-6)


def test_a_loss_of_the_sampler_ratio_takes_missing_log_probs_as_ratio_1(make_cluster):
  """With `sampler_cispo`: r = pi / mu, off by a shift, 1 where none is known."""
  shift = lambda place: None if place == 2 else 0.2
  cluster = off(make_cluster(), shift)
  model, before = nnx.clone(cluster.actor_trainer.model), params_of(cluster)
  learner = train(
    cluster,
    correction=tis.chain(tis.veto(1e-4)),
    loss=partial(tis.losses.sampler_cispo, clip_low=0.5, clip_high=0.5),
    aggregation="sequence_mean",
  )
  (example,) = learner.examples
  mask = np.asarray(example.completion_mask)
  ratio = np.where(np.arange(8) == 2, 1.0, np.exp(-0.2))

  def loss(model):
    logp = current_logp(model, example, 0.6)
    token_loss = -example.advantages[:, None] * ratio * logp
    rows = jnp.where(mask, token_loss, 0.0).sum(1) / np.maximum(mask.sum(1), 1)
    return rows.sum() / mask.any(1).sum()

  expected = jax.tree.map(lambda g: -0.1 * np.asarray(g), nnx.grad(loss)(model))
  assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-3
  assert_close(expected, move(before, params_of(cluster)), rtol=1e-3, atol=2e-6)


def test_micro_batches_add_up_to_the_batch(make_cluster):
  """The denominator is of the generated batch, whatever it is cut into."""
  moves = []
  for micro in (2, 1):
    sizes = {"mini_batch_size": 2, "train_micro_batch_size": micro}
    cluster = off(make_cluster(training=sizes), lambda place: 0.1 * place)
    before = params_of(cluster)
    learner = train(cluster, loss=tis.losses.ppo)
    rows = np.asarray(learner.examples[0].completion_mask).sum(1)
    assert rows[:G].sum() != rows[G:].sum()
    moves.append(move(before, params_of(cluster)))
  assert max(np.abs(x).max() for x in jax.tree.leaves(moves[0])) > 1e-3
  assert_close(*moves, rtol=1e-3, atol=2e-6)


def test_metrics_arrive_under_our_names_and_pooled(make_cluster):
  sizes = {"mini_batch_size": 2, "train_micro_batch_size": 1}
  sizes |= {"rollout_micro_batch_size": 1, "compute_logps_micro_batch_size": 1}
  cluster = off(make_cluster(training=sizes, seed=3), lambda place: 0.1 * place)
  learner = train(cluster, loss=tis.losses.ppo)
  logger = cluster._rl_metrics_logger
  read = lambda prefix, name: float(logger.get_metric(prefix, name, "train"))
  masks = [np.asarray(x.completion_mask) for x in learner.examples]
  assert len(masks) == 2 and masks[0].sum() != masks[1].sum()
  mask = np.concatenate(masks)
  gap = np.broadcast_to(0.1 * np.arange(8), mask.shape)[mask]
  assert read("mismatch", "abs_log_ratio") == pytest.approx(gap.mean(), rel=1e-4)
  assert read("mismatch", "log_ratio_min") == pytest.approx(-gap.max(), rel=1e-4)
  assert read("tokens", "count") == mask.sum()
  deviation = gap.std()
  assert read("mismatch", "abs_log_ratio/std") == pytest.approx(deviation, rel=1e-3)
  assert read("actor", "policy/clipped") == 0.0
  assert logger.metric_exists("rewards", "score/mean", "train")


def test_behind_a_sampled_pad_nothing_trains(make_cluster):
  cluster = off(make_cluster(max_tokens_to_generate=16), lambda place: 0.0)
  example = generate(make_learner(cluster))
  ids, mask = np.asarray(example.completion_ids), np.asarray(example.completion_mask)
  (answers,) = cluster.outputs
  cut = [row for row, x in enumerate(answers.tokens) if (x[:-1] == PAD).any()]
  assert cut
  old, worst = np.asarray(example.old_per_token_logps), 0.0
  for row, (tokens, logp) in enumerate(
    zip(answers.tokens, answers.logprobs, strict=True)
  ):
    n = list(tokens).index(PAD) + 1 if PAD in tokens else len(tokens)
    np.testing.assert_array_equal(mask[row], np.arange(16) < n)
    gap = np.abs(old[row, : len(tokens)] - np.array(logp))
    assert gap[:n].max(initial=0) < 1e-5
    worst = max(worst, gap[n:].max(initial=0))
  assert worst > 1e-3
  assert ids.shape == mask.shape


def test_every_call_draws_noise_of_its_own_and_a_run_draws_it_again(make_cluster):
  def tokens(seed=None, calls=2):
    cluster = make_cluster(seed=seed)
    make_learner(cluster)
    outputs = [cluster.generate(list(PROMPTS)) for _ in range(calls)]
    cluster.global_steps += 1
    outputs.append(cluster.generate(list(PROMPTS)))
    return [np.concatenate(x.tokens).tolist() for x in outputs]

  once = tokens()
  assert len({str(x) for x in once}) == 3
  assert tokens() == once
  assert tokens(seed=1)[0] != once[0]
  cluster, stock = make_cluster(), make_cluster()
  make_learner(cluster)
  apart = cluster.generate(["abc", "abc"], micro_batch_size=1).tokens
  assert apart[0].tolist() != apart[1].tolist()
  together = stock.generate(["abc", "abc"], micro_batch_size=1).tokens
  np.testing.assert_array_equal(*together)
  same = [np.concatenate(stock.generate(list(PROMPTS)).tokens) for _ in range(2)]
  np.testing.assert_array_equal(*same)


def test_packing_would_leave_the_weights_behind(make_cluster):
  """Why it is refused: this is Tunix's own."""
  example = generate(make_learner(make_cluster()))
  assert example.sampler_is_weights is not None
  assert "sampler_is_weights" not in rl_utils.unpad_train_example(example)[0]


def test_evaluation_is_sampled_afresh_and_not_corrected(make_cluster):
  cluster = off(make_cluster(training={"eval_every_n_steps": 1}), lambda place: -1.0)
  learner = train(cluster, eval_ds=[{"prompts": PROMPTS}], loss=tis.losses.ppo)
  trained, evaluated = learner.examples
  if trained.sampler_is_weights.max() < 1.5:
    trained, evaluated = evaluated, trained
  mask = np.asarray(evaluated.completion_mask, np.float32)
  np.testing.assert_allclose(evaluated.sampler_is_weights, mask, atol=1e-6)
  np.testing.assert_allclose(trained.sampler_is_weights.max(), 2.0, atol=1e-6)
  assert not cluster._rl_metrics_logger.metric_exists("mismatch", "k3", "eval")


REFUSED = [
  ({"top_p": 0.9}, {}, "top_p=0.9"),
  ({"top_k": 5}, {}, "part of the vocabulary"),
  ({"top_p": None}, {}, "greedy"),
  ({"temperature": 0.0}, {}, "greedy"),
  ({"training": {"max_seq_token_per_tpu": 64}}, {}, "packing"),
]


@pytest.mark.parametrize(("rollout", "settings", "words"), REFUSED)
def test_what_would_make_a_wrong_ratio_is_refused(
  make_cluster, rollout, settings, words
):
  cluster = make_cluster(**rollout)
  with pytest.raises(ValueError, match=words):
    make_learner(cluster, **settings)


def test_truncated_sampling_may_be_accepted(make_cluster):
  assert generate(make_learner(make_cluster(top_k=5), inexact="train"))


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"loss": tis.losses.dppo}, "already multiplies"),
    ({"loss": tis.losses.ppo, "epsilon": 0.3}, "epsilon=0.3"),
    ({"loss": tis.losses.ppo, "loss_agg_mode": "token-mean"}, "aggregation="),
    ({"aggregation": "token-mean"}, "aggregation"),
    ({"correction": tis.truncate(2.0)}, "chain"),
    ({"correction": tis.chain(tis.reject_stale(2))}, "reject_stale needs"),
    ({"estimator": tis.advantages.gae}, "gae needs"),
    ({"inexact": "reject"}, "inexact"),
  ],
)
def test_a_config_that_cannot_be_right_is_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    TISConfig(**settings)


def test_another_config_is_refused(make_cluster):
  with pytest.raises(ValueError, match="takes a TISConfig, got a GRPOConfig"):
    TISGRPOLearner(make_cluster(), GRPOConfig(), reward)


def test_the_names_stand_where_tunix_has_its_own():
  assert issubclass(TISConfig, GRPOConfig) and issubclass(TISGRPOLearner, GRPOLearner)
