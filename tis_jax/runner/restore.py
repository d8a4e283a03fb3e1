"""A finished, stopped or running run, read back: from its workdir or its store."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from tis_jax import models, tasks
from tis_jax.engines import NativeEngine
from tis_jax.engines.native import PRECISIONS
from tis_jax.learner import Checkpoints, TrainState
from tis_jax.logprobs import Sampling
from tis_jax.models import Base, DecoderConfig
from tis_jax.numerics.checks import check_choice, check_number
from tis_jax.runner.config import refusing
from tis_jax.runner.evaluate import Evaluation
from tis_jax.runner.report import Report, scored
from tis_jax.runner.settings import DataSettings, Settings, read_config
from tis_jax.runner.setup import Parts, build, environment_of, load_task
from tis_jax.runner.workdir import identify, load_config
from tis_jax.sampler import Assignment, SamplerSettings
from tis_jax.sampler.worker import base_of
from tis_jax.store import ParamsGoneError, Store

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
  """How a policy is evaluated.

  Attributes:
    split: "train" or "test".
    prompts: of the split, evenly spread; 0 for all.
    samples: answers a prompt.
    ks: of pass@k and, from 3 on, maj@k; those above `samples` are refused.
    temperature: of sampling; 0 is greedy.
    passes: an answer is right whose reward is at least this.
    precisions: of the params and activations, each evaluated on the same prompts with
      the same noise.
    max_new_tokens: of an answer; 0 for what the run has.
    rows: answers generated at once.
    seed: of the noise.

  Raises:
    ValueError: a setting outside its range.
  """

  split: str = "test"
  prompts: int = 0
  samples: int = 8
  ks: tuple[int, ...] = (1,)
  temperature: float = 1.0
  passes: float = 1.0
  precisions: tuple[str, ...] = ("float32",)
  max_new_tokens: int = 0
  rows: int = 1024
  seed: int = 0

  def __post_init__(self):
    check_choice("split", self.split, SPLITS)
    for precision in self.precisions:
      check_choice("precision", precision, PRECISIONS)
    if len(set(self.precisions)) != len(self.precisions) or not self.precisions:
      raise ValueError(f"precisions are {self.precisions}: give each once")
    check_number("samples", self.samples, at_least=1)
    check_number("prompts", self.prompts, at_least=0)
    check_number("temperature", self.temperature, at_least=0)
    for k in self.ks:
      check_number("k", k, at_least=1, at_most=self.samples)


def evaluate_run(
  workdir: Path, plan: EvaluationPlan | None = None, *, base: bool = False
) -> Report:
  """The newest checkpoint of a run on one of its task's splits.

  Args:
    workdir: of the run.
    plan: how; None is the default.
    base: evaluate what the run started from instead.

  Raises:
    FileNotFoundError: no run there, or none that has a checkpoint.
    ConfigError: its task, or the plan, is impossible.
  """
  settings = read_config(load_config(workdir))
  parts = build(settings)
  params, origin = parts.params, {"policy": "base"}
  if not base:
    state = newest_state(parts, settings, workdir)
    params, origin = state.params, {"policy": f"step {int(state.step)}"}
  decoder, tokenizer = parts.decoder, parts.tokenizer
  data, sampler = settings.data, settings.sampler
  return _report(decoder, params, tokenizer, data, sampler, plan, origin, parts.base)


def newest_state(parts: Parts, settings: Settings, workdir: Path) -> TrainState:
  """The state of the newest checkpoint of the run in `workdir`.

  Raises:
    FileNotFoundError: it has none.
    ValueError: it is of other params than these parts are.
  """
  identity = parts.identity(identify(settings.store.url, workdir).run)
  with Checkpoints(workdir / "checkpoints", identity) as checkpoints:
    restored = checkpoints.restore(parts.learner.abstract_state())
  if restored is None:
    raise FileNotFoundError(f"{workdir} has no checkpoint yet")
  return restored[0]


def evaluate_store(
  url: str, plan: EvaluationPlan | None = None, version: int | None = None
) -> Report:
  """A published version of a run's params on one of its task's splits.

  Args:
    url: of the store.
    plan: how; None is the default.
    version: which; None for the newest.

  Raises:
    StoreError: no run there, or no such version in it.
    ConfigError: its task, or the plan, is impossible.
  """
  store = Store.open(url)
  manifest = store.latest() if version is None else store.manifest(version)
  if manifest is None:
    which = "no version" if version is None else f"no version {version}"
    raise ParamsGoneError(f"store {store.url} has {which} of the params")
  told = Assignment.from_json(store.config)
  decoder, given, tokenizer = models.load(told.model)
  data = DataSettings(
    task=told.task,
    options=told.task_options,
    max_prompt_tokens=told.max_prompt_tokens,
    reward_seconds=told.reward_seconds,
    reward_processes=told.reward_processes,
  )
  dtypes = sorted({array["dtype"] for array in manifest.arrays.values()})
  origin = {"policy": f"version {manifest.version} ({', '.join(dtypes)})"}
  params, base = store.read_params(manifest), base_of(told, given)
  return _report(decoder, params, tokenizer, data, told.sampler, plan, origin, base)


def _report(
  decoder: DecoderConfig,
  params: nnx.State | Mapping[str, Any],
  tokenizer,
  data: DataSettings,
  sampler: SamplerSettings,
  plan: EvaluationPlan | None,
  origin: Mapping[str, Any],
  base: Base | None,
) -> Report:
  plan = plan or EvaluationPlan()
  if plan.max_new_tokens:
    sampler = dataclasses.replace(sampler, max_new_tokens=plan.max_new_tokens)
  with refusing():
    task = load_task(data)
    examples: Sequence[tasks.Example] = getattr(task, plan.split)
    environment = environment_of(task, examples, tokenizer, data, sampler.turns)
  evaluation = Evaluation(
    environment,
    prompts=plan.prompts,
    samples=plan.samples,
    seed=plan.seed,
    rows=plan.rows,
  )
  scores = {}
  with environment:
    for precision in plan.precisions:
      engine = NativeEngine(
        models.decoder_graph(decoder),
        Sampling(temperature=plan.temperature),
        max_new_tokens=sampler.tokens_at_once(environment),
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        precision=precision,
        base=base,
      )
      engine.update(params, version=0)
      sampled = evaluation.sample(engine, answers=True)
      scores[precision] = scored(sampled, plan.ks, plan.passes)
  about = {
    "task": data.task,
    "split": plan.split,
    **origin,
    "prompts": evaluation.size,
    "samples": plan.samples,
    "temperature": plan.temperature,
  }
  causes = [
    f"{count} answers without a reward {cause}: {environment.said[cause]}"
    for cause, count in environment.set_aside.items()
  ]
  return Report(about, scores, (*environment.notes, *causes))
