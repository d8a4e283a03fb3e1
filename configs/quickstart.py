"""A policy of 0.66M parameters learns arithmetic from rollouts of a bf16 sampler.

  python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

The task is GSM8K's own calculator steps (`48/2=24`), the base policy the one in the
package, the algorithm GRPO with token-level truncated importance sampling at 2.0. One
sampler process in bfloat16, one fp32 learner, weights at most one step old.

Expected: held-out pass@1 from about 0.51 to about 0.71.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.max_prompt_tokens = 8
  config.sampler.max_new_tokens = 5

  # One update a batch: its own pass gives old_logp, without another.
  config.algorithm.old_logp = "current"
  # Small passes stay in the processor's cache: 0.33 s a step where one takes 0.55 s.
  config.algorithm.micro_batches = 8
  config.algorithm.correction.stages = ("truncate",)
  config.algorithm.correction.truncate.high = 2.0

  # At 2e-4 greedy accuracy erodes, at 5e-4 the policy collapses.
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 10
  config.optimizer.schedule = "linear"
  config.optimizer.b2 = 0.99

  config.train.steps = 300
  config.eval.every = 50
  config.eval.prompts = 0
  config.log.tensorboard = True
  return config
