"""draft"""

from ml_collections import ConfigDict

from tis_jax.runner import default_config


def get_config() -> ConfigDict:
  config = default_config()
  config.data.task = "gsm8k_calculator"
  # Steps that the policy cannot do in its head are among them.
  config.data.options.max_operands = 3
  config.data.options.max_length = 9
  config.data.options.max_digits = 5
  config.data.max_prompt_tokens = 10
  # An answer or a question, what the calculator shows, and what is made of it.
  config.sampler.max_turns = 2
  config.sampler.max_turn_tokens = 6
  config.sampler.max_new_tokens = 18

  # Few ask at first, so that a second turn has no sibling: it then goes by its reward.
  config.algorithm.advantage.name = "turn_grpo"
  config.algorithm.advantage.turn_grpo.singleton = "raw"

  # The rest is the quickstart's.
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
  config.log.tensorboard = True
  return config
