"""SmolLM2 learns from a four-bit sampler: llama.cpp with Q4_1 matrices, on two cores.

  make llama
  tis train --config=llama_cpp_smollm2 --workdir=runs/llama --config.data.gsm8k_dir=...

The task and the algorithm are those of `smollm2_steps`, smaller: 4 prompts x 8 answers
a step, 6 steps; `llama_cpp_smollm2:none` is the same without a correction. llama.cpp
samples at temperature 1, the only one that its log-probs are of, and is started again
for each version of the params, which it gets as a new GGUF file. The learner is fp32.
"""

from ml_collections import ConfigDict

from tis_jax.runner.recipes import load_recipe


def get_config(arm: str = "tis") -> ConfigDict:
  config = load_recipe(f"smollm2_steps:{arm}")
  config.sampler.engine = "llama_cpp"
  config.sampler.precision = "int4"
  config.sampler.temperature = 1.0
  config.sampler.prompts_per_record = 4
  config.sampler.llama_cpp.python = ".venv-llama/bin/python"
  # A second thread waits for the first one in a loop, beside a learner.
  config.sampler.llama_cpp.threads = 1
  config.train.prompts_per_step = 4
  config.train.steps = 6
  config.optimizer.warmup_steps = 2
  config.algorithm.micro_batches = 2
  config.eval.every = 0
  config.eval.prompts = 64
  config.eval.temperature = 1.0
  return config
