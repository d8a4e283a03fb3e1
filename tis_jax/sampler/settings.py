"""How rollouts are generated, and what a sampler is told by its store."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tis_jax.engines.native import PRECISIONS, NativeSettings
from tis_jax.engines.served.settings import (
  LlamaCppSettings,
  SGLangSettings,
  VLLMSettings,
)
from tis_jax.logprobs.contract import Sampling, check_rules, truncates
from tis_jax.models import LoRA
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.tasks import Environment
from tis_jax.tasks.conversation import Turns

ENGINES = ("native", "vllm", "llama_cpp", "sglang")

KEPT_TOKENS = 64
"""Room for the ids that top-p and min-p keep, where nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
  """How rollouts are generated.

  Attributes:
    count: sampler processes on this machine; 0 for samplers that run elsewhere.
    engine: what generates: "native" (this library's decoder), "vllm", "llama_cpp" or
      "sglang".
    precision: "bfloat16", "float32" or "float16" for params and activations, "int8",
      "int4" or "float8" (e4m3) for params in it under bfloat16 activations. vLLM and
      SGLang have the first two; llama.cpp those too, int8 as Q8_0 and int4 as Q4_1.
    temperature: divides the logits, of the sampler and of the policy that is trained.
    top_k: tokens that may be drawn, 0 for all.
    top_p: probability mass that may be drawn, 1 for all.
    min_p: least probability that may be drawn, relative to the most probable token.
    kept_tokens: room in a record for the ids that top-k, top-p and min-p kept. None is
      top_k where there is one, else 64 for top_p and min_p (the whole vocabulary where
      that is smaller), and 0 where nothing is truncated. It costs 4 bytes each a token
      (256 at 64, beside 17 for all else) and as many compares a logit in the
      learner's passes. Ratios are exact where the set fits; what becomes of the other
      tokens, and of all of them at 0, algorithm.inexact says.
    top_logprobs: how many of the most probable tokens a record has the log-probs of, at
      each place; 0 for none. For algorithm.score_centering. It costs 8 bytes each a
      token, and as many compares a logit in the learner's passes.
    routed_experts: record to which experts of a mixture each layer sent each token of
      prompt and response, with engine "native". For algorithm.replay_experts. It costs
      2 bytes for each of a token's experts in each layer (768 a token at 48 layers of
      8).
    prompts_per_record: prompts a rollout record.
    group_size: responses a prompt.
    max_new_tokens: the length limit of a response; of a conversation, all of it, what
      the environment says included.
    max_turns: turns of a conversation, in tasks that have them.
    max_turn_tokens: the length limit of one turn of a conversation; None for what is
      left of the response.
    turn_seconds: that an environment may take to answer a turn; a conversation that
      takes longer is set aside.
    native: slots, head, cache and newer params, with engine "native".
    vllm: how vLLM is found or started, with engine "vllm".
    llama_cpp: how llama.cpp is, with engine "llama_cpp".
    sglang: where SGLang is, with engine "sglang".

  Raises:
    ValueError: a setting outside its range, or one that the engine does not have.
  """

  count: int = 1
  engine: str = "native"
  precision: str = "bfloat16"
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  kept_tokens: int | None = None
  top_logprobs: int = 0
  routed_experts: bool = False
  prompts_per_record: int = 64
  group_size: int = 8
  max_new_tokens: int = 8
  max_turns: int = 8
  max_turn_tokens: int | None = None
  turn_seconds: float = 60.0
  native: NativeSettings = NativeSettings()
  vllm: VLLMSettings = VLLMSettings()
  llama_cpp: LlamaCppSettings = LlamaCppSettings()
  sglang: SGLangSettings = SGLangSettings()

  def __post_init__(self):
    check_choice("engine", self.engine, ENGINES)
    check_choice("precision", self.precision, PRECISIONS)
    if self.engine in ("vllm", "sglang"):
      known = ("bfloat16", "float32")
      check_choice(f"precision of {self.engine}", self.precision, known)
    if self.engine == "llama_cpp":
      known = ("bfloat16", "float32", "int8", "int4")
      check_choice("precision of llama_cpp", self.precision, known)
    if self.engine != "native" and self.native.interrupt_after:
      raise ValueError(
        f"sampler.native.interrupt_after: {self.engine} does not hand over answers "
        "that are under way; set it to 0, or engine to 'native'"
      )
    if self.engine != "native" and self.routed_experts:
      raise ValueError(
        f"sampler.routed_experts: {self.engine} is not asked where a mixture sends its "
        "tokens; set it to False, or engine to 'native'"
      )
    altered = self.temperature != 1 or truncates(self.sampling)
    if self.engine == "llama_cpp" and altered:
      raise ValueError(
        "llama.cpp's log-probs are those at temperature 1 of all tokens, so it can only"
        " sample by that law: set temperature 1, and no top_k, top_p or min_p"
      )
    if not self.temperature > 0:
      raise ValueError(
        f"temperature {self.temperature}: greedy rollouts have no ratio to learn from"
      )
    check_rules(self.top_k, self.top_p, self.min_p)
    check_number("count", self.count, at_least=0)
    if self.kept_tokens is not None:
      check_number("kept_tokens", self.kept_tokens, at_least=0)
    check_number("top_logprobs", self.top_logprobs, at_least=0)
    for name in ("prompts_per_record", "group_size", "max_new_tokens", "max_turns"):
      check_number(name, getattr(self, name), at_least=1)
    if self.max_turn_tokens is not None:
      limit = self.max_new_tokens
      check_number("max_turn_tokens", self.max_turn_tokens, at_least=1, at_most=limit)
    check_number("turn_seconds", self.turn_seconds, above=0)

  @property
  def sampling(self) -> Sampling:
    """The law that tokens are drawn by."""
    return Sampling(
      temperature=self.temperature,
      top_k=self.top_k,
      top_p=self.top_p,
      min_p=self.min_p,
      logprobs="processed" if self.engine == "vllm" else "raw",
    )

  @property
  def turns(self) -> Turns:
    """How long a conversation may become."""
    return Turns(self.max_turns, self.max_new_tokens, self.turn_seconds)

  def tokens_at_once(self, environment: Environment) -> int:
    """Tokens that an engine samples at most in one call: a response, or a turn."""
    if environment.turns is None or self.max_turn_tokens is None:
      return self.max_new_tokens
    return self.max_turn_tokens

  def kept_width(self, vocab_size: int) -> int:
    """Room in a record for the ids that sampling kept.

    >>> SamplerSettings(top_p=0.9).kept_width(49_152), SamplerSettings().kept_width(17)
    (64, 0)
    >>> SamplerSettings(top_k=100, top_p=0.9).kept_width(49_152)
    100
    """
    if self.kept_tokens is not None:
      return self.kept_tokens
    return min(self.top_k or KEPT_TOKENS, vocab_size) if truncates(self.sampling) else 0

  def keeps_at_least(self, vocab_size: int) -> int:
    """The least number of tokens that sampling may choose from."""
    if self.top_p < 1 or self.min_p > 0:
      return 1
    return min(self.top_k or vocab_size, vocab_size)


@dataclasses.dataclass(frozen=True)
class Assignment:
  """What the learner tells the samplers of its run, as JSON in the store.

  Attributes:
    model: source of the architecture and the tokenizer, see `tis_jax.models.load`.
    task: name of the task, see `tis_jax.tasks.load`; a file by its absolute path.
    task_options: its options.
    max_prompt_tokens: P; longer prompts are left out.
    seed: of the prompts' order and the sampling noise, with the writer's name.
    capacity: records that all writers together may be ahead of the learner.
    sampler: how to generate.
    groups: that the run trains on; beyond them nothing is begun before it is needed. 0
      where nobody can say.
    greedy: record the reward of one greedy answer a prompt, too.
    named_rewards: record the task's further rewards, too.
    lora: the adapters that are published; those of rank 0 are none, and params are.
    base_digest: of the params that adapters stand beside (`tis_jax.store.digest`).
    reward_seconds: that the rewards of one response may take, of a task of one's own.
    reward_processes: that judge responses to such a task, a sampler.
    deterministic: a record made again is the same again, and not of other noise.

  Raises:
    ValueError: a setting outside its range.
  """

  model: str
  task: str
  task_options: Mapping[str, Any]
  max_prompt_tokens: int
  seed: int
  capacity: int
  sampler: SamplerSettings
  groups: int = 0
  greedy: bool = False
  named_rewards: bool = False
  lora: LoRA = LoRA()
  base_digest: str = ""
  reward_seconds: float = 10.0
  reward_processes: int = 2
  deterministic: bool = False

  def __post_init__(self):
    for name in ("max_prompt_tokens", "capacity", "reward_processes"):
      check_number(name, getattr(self, name), at_least=1)
    check_number("reward_seconds", self.reward_seconds, above=0)

  @property
  def writers(self) -> int:
    """Samplers that the learner starts or expects, at least 1."""
    return max(self.sampler.count, 1)

  def to_json(self) -> dict[str, Any]:
    """For the store."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Assignment":
    """From the store."""
    told = dict(config)
    sampler = _from_json(SamplerSettings, told.pop("sampler"))
    lora = _from_json(LoRA, told.pop("lora", {}))
    return cls(sampler=sampler, lora=lora, **told)


def _from_json(cls: type, told: Mapping[str, Any]) -> Any:
  """A dataclass of settings, dataclasses and tuples in it restored."""
  values = dict(told)
  for field in dataclasses.fields(cls):
    value = values.get(field.name)
    if dataclasses.is_dataclass(field.default) and value is not None:
      values[field.name] = _from_json(type(field.default), value)
    elif isinstance(value, list):
      values[field.name] = tuple(value)
  return cls(**values)
