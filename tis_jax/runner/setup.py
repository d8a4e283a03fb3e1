"""From settings to the parts of a run that live in this process."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from flax import nnx

from tis_jax import learner, models, tasks
from tis_jax.engines import NativeEngine
from tis_jax.learner import Algorithm, Batch, Learner, PackedBatch
from tis_jax.learner.processes import local_mesh
from tis_jax.learner.state import placed
from tis_jax.logprobs import Sampling, truncates
from tis_jax.models import Base, DecoderConfig
from tis_jax.models.params import config_of
from tis_jax.models.tokenizers import Tokenizer
from tis_jax.numerics.arguments import bind, check_name
from tis_jax.numerics.checks import check_choice
from tis_jax.runner.adapters import first_adapter, frozen_base
from tis_jax.runner.config import refusing
from tis_jax.runner.deterministic import check_deterministic
from tis_jax.runner.evaluate import Accuracy, Evaluation
from tis_jax.runner.settings import DataSettings, Settings
from tis_jax.runner.tighten import tightened
from tis_jax.sampler import Assignment
from tis_jax.sampler.carry import check_interruptible
from tis_jax.tasks import Environment


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of a learner's process, built and not yet run.

  Attributes:
    decoder: shapes of the model.
    tokenizer: of the model.
    params: of what is trained: what the run starts from, and its reference policy.
    learner: what updates are compiled from.
    evaluate: `evaluate(params)`, held-out accuracy.
    prompts: how many there are to train on.
    notes: sentences on the task's rows and held-out prompts, to be said once.
    base: under LoRA, the params that stay, on the learner's mesh; else None.
  """

  decoder: DecoderConfig
  tokenizer: Tokenizer
  params: nnx.State
  learner: Learner
  evaluate: Callable[[nnx.State], Accuracy]
  prompts: int
  notes: tuple[str, ...] = ()
  base: Base | None = None

  @functools.cached_property
  def update(self) -> Callable:
    """`update(state, batch, version, *frozen) -> (state, metrics)`."""
    parts = self.learner
    return learner.make_update(
      parts.graph,
      parts.algorithm,
      parts.optimizer,
      parts.mesh,
      sampling=parts.sampling,
      critic_optimizer=parts.critic_optimizer,
      lora=parts.lora,
    )

  def pack(self, batch: Batch) -> Batch | PackedBatch:
    """The batch as `update` is to have it."""
    parts = self.learner
    if not parts.algorithm.packs:
      return batch
    width = config_of(parts.graph).hidden_size
    return learner.pack(batch, parts.algorithm, parts.mesh, width)

  def tightened(self, times: int) -> "Parts":
    """The parts with the correction's caps pulled to 1 so many times."""
    if not times:
      return self
    algorithm = self.learner.algorithm
    nearer = tightened(algorithm.correct, times)
    algorithm = dataclasses.replace(algorithm, correct=nearer)
    return dataclasses.replace(self, learner=self.learner._replace(algorithm=algorithm))

  @functools.cached_property
  def score(self) -> Callable:
    """`score(params, batch)`, the learner's log-probs."""
    graph, algorithm, mesh = (
      self.learner.graph,
      self.learner.algorithm,
      self.learner.mesh,
    )
    whole = learner.make_score(
      graph,
      mesh,
      temperature=algorithm.temperature,
      replay=algorithm.replay_experts,
    )
    return lambda params, batch: whole(self.whole(params), batch)

  @functools.cached_property
  def frozen(self) -> tuple[nnx.State, ...]:
    """Further arguments of `update`: what it reads and does not train."""
    reference = ()
    if self.learner.algorithm.needs_reference:
      reference = (self.params,)
      if jax.process_count() > 1:
        there = models.params_sharding(self.params, self.learner.mesh)
        reference = (placed(self.params, there),)
    return (*reference, *(() if self.base is None else (self.base.params,)))

  @property
  def base_digest(self) -> str:
    """Of the params under adapters; "" where all params train."""
    return "" if self.base is None else self.base.digest

  def whole(self, params: nnx.State) -> nnx.State:
    """The decoder's params, from those that are trained."""
    if self.base is None:
      return params
    return models.adapt(self.base.params, params, self.base.lora)

  def identity(self, run: str) -> dict[str, str]:
    """What a checkpoint of a run must agree in, to be one of these parts."""
    return {"run": run} | ({"base": self.base_digest} if self.base else {})

  def header(self, settings: Settings) -> str:
    """What is trained, and on what."""
    trained = ""
    if self.base is not None:
      count = sum(x.size for x in jax.tree.leaves(self.params))
      trained = f"; {count:,} of adapters train"
    model = f"{settings.model.source}, {self.decoder.num_parameters:,} params"
    return "\n".join(
      (
        f"model    {model}{trained}",
        f"task     {settings.data.task}, {self.prompts:,} prompts",
        f"regime   {settings.regime}",
        *(f"         {note}" for note in self.notes),
      )
    )


def build(settings: Settings) -> Parts:
  """Loads the model and the task, and compiles nothing yet.

  Raises:
    ConfigError: settings that contradict each other; says what to do.
    MissingDatasetError: the task's dataset is not here; says how to get it.
  """
  with refusing():
    decoder, params, tokenizer = models.load(settings.model.source)
    _check_record(settings, decoder.vocab_size)
    check_deterministic(settings)
    if settings.guard.action == "tighten":
      tightened(settings.algorithm.correct, times=1)
    if settings.algorithm.score_centering and not settings.sampler.top_logprobs:
      raise ValueError(
        "algorithm.score_centering needs the sampler's most probable tokens in the "
        "record: set sampler.top_logprobs, to 20 say"
      )
    if settings.algorithm.replay_experts and not settings.sampler.routed_experts:
      raise ValueError(
        "algorithm.replay_experts needs the experts in the record: set "
        "sampler.routed_experts=True"
      )
    if settings.sampler.routed_experts and not decoder.num_experts:
      raise ValueError(
        f"sampler.routed_experts: {settings.model.source} is no mixture of experts, so "
        "there is nothing to record; set it to False"
      )
    graph = models.decoder_graph(
      decoder, dtype=settings.model.dtype, remat=settings.model.remat
    )
    task = load_task(settings.data)
    algorithm = _weigh(settings.algorithm, task)
    updates = settings.train.steps * algorithm.updates
    critic_optimizer = None
    if algorithm.needs_critic:
      critic_optimizer = learner.make_optimizer(algorithm.critic.optimizer, updates)
    mesh = learner.make_mesh(**settings.mesh)
    base = base_here = None
    if lora := settings.model.lora if settings.model.lora.rank else None:
      base = base_here = frozen_base(params, lora, mesh)
      if jax.process_count() > 1:
        # The first evaluates, by itself.
        first = jax.process_index() == 0
        base_here = frozen_base(params, lora, local_mesh()) if first else None
      params = first_adapter(settings, decoder)
    parts = Learner(
      graph,
      algorithm,
      learner.make_optimizer(settings.optimizer, updates),
      mesh,
      settings.sampler.sampling,
      critic_optimizer,
      lora,
    )
    environment = environment_of(
      task, task.test, tokenizer, settings.data, settings.sampler.turns
    )
    _check_interrupted(settings, environment)
  evaluation = Evaluation(
    environment,
    prompts=settings.eval.prompts,
    samples=settings.eval.samples,
    rows=settings.eval.rows,
  )

  def evaluate(params: nnx.State) -> Accuracy:
    # An engine that outlived the call would keep the params in memory until the next.
    engine = NativeEngine(
      graph,
      Sampling(temperature=settings.eval.temperature),
      max_new_tokens=settings.sampler.tokens_at_once(environment),
      eos_ids=tokenizer.eos_ids,
      pad_id=tokenizer.pad_id,
      base=base_here,
    )
    engine.update(params, version=0)
    with environment:
      return evaluation(engine)

  prompts, notes = len(task.train), environment.notes
  return Parts(decoder, tokenizer, params, parts, evaluate, prompts, notes, base)


def environment_of(
  task: tasks.Task,
  examples: Sequence[tasks.Example],
  tokenizer,
  data: DataSettings,
  turns: tasks.Turns,
) -> Environment:
  """A split of the task, with the run's limits.

  Raises:
    ValueError: no prompt of it fits.
  """
  return Environment(
    task,
    tokenizer,
    examples,
    data.max_prompt_tokens,
    turns=turns,
    reward_seconds=data.reward_seconds,
    reward_processes=data.reward_processes,
  )


def _check_record(settings: Settings, vocab_size: int) -> None:
  """Refuses room for kept ids in which nothing that is kept can ever fit."""
  width = settings.sampler.kept_width(vocab_size)
  least = settings.sampler.keeps_at_least(vocab_size)
  truncated = truncates(settings.sampler.sampling)
  if truncated and width < least and settings.algorithm.inexact == "reject":
    raise ValueError(
      f"sampler.kept_tokens={width} has no room for what truncated sampling keeps, at "
      f"least {least} tokens, so that no ratio would be exact and nothing train: leave "
      "it unset, or train on approximate ratios with algorithm.inexact='train'"
    )


def _check_interrupted(settings: Settings, environment: Environment) -> None:
  """Refuses answers that are handed over where none can be."""
  if not settings.sampler.native.interrupt_after:
    return
  check_interruptible(environment)
  if settings.store.max_staleness < 1:
    raise ValueError(
      "sampler.native.interrupt_after: an answer that is handed over is finished by "
      "later params, and store.max_staleness=0 allows none; raise it to 1 or more"
    )


def load_task(data: DataSettings) -> tasks.Task:
  """The task, its options checked against the arguments of its `load`.

  Raises:
    ValueError: the task, or an option of it, does not exist, or cannot be loaded.
    MissingDatasetError: its dataset is not here.
  """
  name, options = task_source(data)
  if not tasks.is_imported(name):
    check_choice("data.task", name, tasks.TASKS)
  function = tasks.loader(name)
  kinds = [x.kind for x in inspect.signature(function).parameters.values()]
  if inspect.Parameter.VAR_KEYWORD not in kinds:
    bind("data.options", function, options)
  return tasks.load(name, **options)


def _weigh(algorithm: Algorithm, task: tasks.Task) -> Algorithm:
  """The algorithm with weights of the task's rewards in their order, not by name."""
  if not algorithm.takes("named_rewards"):
    return algorithm
  if not task.rewards:
    raise ValueError(
      f"task {task.name!r} gives one reward, and algorithm.advantage.name asks for "
      "several by name; take another estimator, or a task that has `rewards`"
    )
  keywords = getattr(algorithm.advantage, "keywords", {})
  weights = keywords.get("weights")
  if not isinstance(weights, Mapping):
    return algorithm
  path = "algorithm.advantage weights"
  for name in weights:
    check_name(path, name, task.rewards)
  if missing := [name for name in task.rewards if name not in weights]:
    raise ValueError(f"{path} lack {', '.join(missing)}, of task {task.name!r}")
  ordered = tuple(float(weights[name]) for name in task.rewards)
  advantage = functools.partial(algorithm.advantage, weights=ordered)
  return dataclasses.replace(algorithm, advantage=advantage)


def task_source(data: DataSettings) -> tasks.Source:
  """The name and the options of the task, as any process here finds it."""
  options = dict(data.options)
  if data.gsm8k_dir:
    options["gsm8k_dir"] = str(Path(data.gsm8k_dir).resolve())
  return tasks.settled(data.task, options)


def assignment(settings: Settings, base_digest: str = "") -> Assignment:
  """What the samplers of a run are told.

  Args:
    settings: of the run.
    base_digest: of the params under adapters.
  """
  # Records of one learner step; a step's worth more for each step that a rollout may be
  # late.
  records = settings.train.prompts_per_step / settings.sampler.prompts_per_record
  task, options = task_source(settings.data)
  interrupted = settings.sampler.native.interrupt_after > 0
  return Assignment(
    model=str(settings.model.source),
    task=task,
    task_options=options,
    max_prompt_tokens=settings.data.max_prompt_tokens,
    seed=settings.seed,
    capacity=math.ceil((settings.store.max_staleness + 1) * records),
    sampler=settings.sampler,
    groups=settings.train.steps * settings.train.prompts_per_step * interrupted,
    greedy=settings.algorithm.takes("greedy_rewards"),
    named_rewards=settings.algorithm.takes("named_rewards"),
    lora=settings.model.lora,
    base_digest=base_digest,
    reward_seconds=settings.data.reward_seconds,
    reward_processes=settings.data.reward_processes,
    deterministic=settings.deterministic,
  )
