"""What a sampler is told by its store: JSON that the learner writes there."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tis_jax.engines.native import PRECISIONS
from tis_jax.logprobs.kept import check_rules

_COUNTS = (
  "prompts_per_record",
  "group_size",
  "max_prompt_tokens",
  "max_new_tokens",
  "capacity",
  "writers",
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to generate, and for which prompts.

  Attributes:
    model: source of the architecture and the tokenizer, see `tis_jax.models.load`.
    task: name of the task, see `tis_jax.tasks.load`.
    task_options: its options.
    precision: "bfloat16" or "float32" for params and activations, "int8" for params
      in int8 under bfloat16 activations.
    temperature, top_k, top_p, min_p: see `tis_jax.engines.generate`.
    prompts_per_record: prompts a rollout record.
    group_size: responses a prompt.
    max_prompt_tokens: P; longer prompts are left out.
    max_new_tokens: T.
    capacity: records that all writers together may be ahead of the learner.
    seed: of the prompts' order and the sampling noise, with the writer's name.
    writers: samplers that the learner starts or expects, at least 1.
    kept_tokens: room in a record for the ids that top-k, top-p and min-p kept, without
      which ratios under them are approximate; 0 does not record them.

  Raises:
    ValueError: a setting outside its range.
  """

  model: str
  task: str
  task_options: Mapping[str, Any]
  precision: str
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  prompts_per_record: int
  group_size: int
  max_prompt_tokens: int
  max_new_tokens: int
  capacity: int
  seed: int
  writers: int = 1
  kept_tokens: int = 0

  def __post_init__(self):
    if self.precision not in PRECISIONS:
      raise ValueError(f"precision {self.precision!r} is not one of {PRECISIONS}")
    if not self.temperature > 0:
      raise ValueError(
        f"temperature {self.temperature}: greedy rollouts have no ratio to learn from"
      )
    check_rules(self.top_k, self.top_p, self.min_p)
    for name in _COUNTS:
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
