"""Tunix's GRPO learner with a correction between rollout and loss."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from tunix.rl.grpo.grpo_learner import GRPOLearner
from tunix.rl.rl_cluster import Mode
from tunix.rl.rollout.vanilla_rollout import VanillaRollout

from tis_jax.integrations.tunix.answers import Answers, read_answers
from tis_jax.integrations.tunix.checks import check_sampling, check_training
from tis_jax.integrations.tunix.config import TISConfig
from tis_jax.integrations.tunix.example import TISExample
from tis_jax.integrations.tunix.metrics import logged
from tis_jax.integrations.tunix.noise import FreshNoise
from tis_jax.integrations.tunix.policy_loss import metrics_of_loss
from tis_jax.integrations.tunix.tap import Tap
from tis_jax.losses import denominators
from tis_jax.numerics.metrics import fraction


class TISGRPOLearner(GRPOLearner[TISConfig]):
  """Takes the place of `GRPOLearner`; its arguments are the same.

  It hears the sampler's log-probs, asks the cluster for those of the actor at the
  params and the temperature that sampled, corrects by the config's chain, and logs the
  chain's metrics under their names beside Tunix's. Three things of the cluster are
  replaced for that: `generate`, `get_old_per_token_logps` (which leaves out the
  temperature), and the `generate` of Tunix's own sampler (which draws the same noise in
  every call). Evaluation is not corrected.

  Args:
    rl_cluster: Tunix's cluster.
    algo_config: a `TISConfig`.
    reward_fns: a function or several, `reward(prompts, completions, **fields)`.
    metric_fns: as Tunix has them.
    data_shuffle_seed: of the order of micro-batches; None leaves it.

  Raises:
    ValueError: a config that is none, and what `check_sampling` and `check_training`
      refuse.

  Source: Tunix 0.1.7, `rl/grpo/grpo_learner.py`.
  """

  def __init__(
    self,
    rl_cluster: Any,
    algo_config: TISConfig,
    reward_fns: Any,
    metric_fns: Any = None,
    data_shuffle_seed: int | None = None,
  ):
    if not isinstance(algo_config, TISConfig):
      raise ValueError(
        f"TISGRPOLearner takes a TISConfig, got a {type(algo_config).__name__}"
      )
    vanilla = isinstance(rl_cluster.rollout, VanillaRollout)
    check_sampling(
      rl_cluster.get_rollout_config(mode=Mode.TRAIN),
      vanilla=vanilla,
      inexact=algo_config.inexact,
    )
    check_training(rl_cluster.cluster_config.training_config)
    super().__init__(rl_cluster, algo_config, reward_fns, metric_fns, data_shuffle_seed)
    if vanilla:
      rl_cluster.rollout.generate = FreshNoise(
        rl_cluster.rollout.generate, lambda: rl_cluster.global_steps
      )
    self._tap = rl_cluster.generate = Tap(rl_cluster.generate)
    rl_cluster.get_old_per_token_logps = self._old_logp
    if algo_config.loss is not None:
      trainer = rl_cluster.actor_trainer
      reference = algo_config.beta not in (None, 0.0)
      trainer.with_rl_metrics_to_log(
        metrics_of_loss(algo_config.loss, reference=reference)
      )
      trainer.with_tqdm_metrics_to_display([])

  def _old_logp(self, prompt_tokens, completion_tokens, micro_batch_size=None):
    """`[B, T]` log-probs of the actor, at the params and temperature that sampled."""
    cluster = self.rl_cluster
    if not self.should_sync_weights:
      # Tunix renews this copy when it copies params to the sampler. A sampler on the
      # actor's own params never gets a copy, and the first one would stay.
      cluster._anchor_policy_state = nnx.state(cluster.actor_trainer.model)
    return cluster.get_actor_per_token_logps(
      prompt_tokens,
      completion_tokens,
      pad_id=cluster.rollout.pad_id(),
      eos_id=cluster.rollout.eos_id(),
      micro_batch_size=micro_batch_size,
    )

  def _generate_and_compute_advantage(self, training_input, mode=Mode.TRAIN):
    example = super()._generate_and_compute_advantage(training_input, mode)
    output = self._tap.take()
    old_logp = example.old_per_token_logps
    if old_logp is None:
      rows = self._compute_logps_micro_batch_size * self.algo_config.num_generations
      old_logp = self._old_logp(example.prompt_ids, example.completion_ids, rows)
    answers = read_answers(
      output.tokens,
      output.logprobs,
      self.rl_cluster.rollout.pad_id(),
      example.completion_ids.shape[1],
    )
    return self._corrected(example, answers, old_logp, mode)

  def _corrected(self, example, answers: Answers, old_logp, mode):
    """The example with what the correction made of its log-probs."""
    config, mask = self.algo_config, jnp.asarray(answers.mask)
    sampler_logp = jnp.asarray(answers.sampler_logp)
    if mode != Mode.TRAIN:
      sampler_logp = old_logp
    group_ids = jnp.arange(mask.shape[0]) // config.num_generations
    given = {"group_ids": group_ids, "advantages": jnp.asarray(example.advantages)}
    out = config.correction(old_logp, sampler_logp, mask, **given)
    if mode == Mode.TRAIN:
      after_pad = fraction(answers.sampled & ~answers.mask, answers.sampled)
      metrics = out.metrics | {"tokens/after_pad": after_pad}
      self.rl_cluster.buffer_metrics(logged(metrics), mode=mode)
    weight = jnp.where(out.mask, out.weight, 0.0)
    example = example.replace(
      completion_mask=mask, old_per_token_logps=old_logp, sampler_is_weights=weight
    )
    if config.loss is None:
      return example
    constant = config.aggregation == "sequence_sum_constant"
    denominator = denominators(
      mask,
      config.aggregation,
      group_ids=group_ids if config.aggregation == "prompt_mean" else None,
      length=mask.shape[1] if constant else None,
    )
    return TISExample(
      **{name: getattr(example, name) for name in example.__dataclass_fields__},
      # A missing one is a ratio of 1 to a loss too.
      sampler_logp=jnp.where(jnp.isnan(sampler_logp), old_logp, sampler_logp),
      accepted=out.mask,
      denominator=denominator,
    )

  def _process_accumulated_batches(self, micro_batches, micro_batch_sizes, mode):
    produced = super()._process_accumulated_batches(
      micro_batches, micro_batch_sizes, mode
    )
    if self.algo_config.loss is None:
      return produced
    # The optimizer averages micro-batches, and the denominators are of their sum.
    return [x.replace(denominator=x.denominator / len(produced)) for x in produced]
