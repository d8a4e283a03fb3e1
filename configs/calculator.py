"""draft"""

from ml_collections import ConfigDict

from tis_jax.runner import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.data.task = "gsm8k_calculator"
  config.data.max_prompt_tokens = 8
  # Two numbers with their ends, and what the calculator shows between them.
  config.sampler.max_turns = 2
  config.sampler.max_turn_tokens = 5
  config.sampler.max_new_tokens = 24

  config.algorithm.advantage.name = "turn_grpo"
  # One update a batch: its own pass gives old_logp, without another.
  config.algorithm.old_logp = "current"
  config.algorithm.micro_batches = 8
  config.model.remat = True
  config.algorithm.correction.stages = ("truncate",)
  config.algorithm.correction.truncate.high = 2.0

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 10
  config.optimizer.schedule = "linear"
  config.optimizer.b2 = 0.99

  config.train.steps = 600
  config.eval.every = 100
  config.eval.prompts = 0
  return config
