"""From a config to the parts of a run that live in this process."""

import dataclasses
import functools
import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tis_jax import learner, models, tasks
from tis_jax.engines import NativeEngine
from tis_jax.learner import Algorithm, TrainState
from tis_jax.logprobs import Sampling
from tis_jax.models import DecoderConfig
from tis_jax.runner.evaluate import Accuracy, Evaluation
from tis_jax.sampler import Settings
from tis_jax.store import default_url
from tis_jax.tasks import Environment


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of a learner, built and not yet run.

  Attributes:
    decoder: shapes of the model.
    graph: its static part.
    params: what the run starts from, and its reference policy.
    algorithm: what an update does.
    optimizer: of the updates.
    mesh: where they run.
    update: `update(state, batch, version, *reference) -> (state, metrics)`.
    score: `score(params, batch)`, the learner's log-probs.
    evaluate: `evaluate(graph, params)`, held-out accuracy.
    prompts: how many there are to train on.
  """

  decoder: DecoderConfig
  graph: nnx.GraphDef
  params: nnx.State
  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  mesh: Mesh
  update: Callable
  score: Callable
  evaluate: Callable[[nnx.GraphDef, nnx.State], Accuracy]
  prompts: int

  @property
  def reference(self) -> tuple[nnx.State, ...]:
    """Further arguments of `update`."""
    return (self.params,) if self.algorithm.needs_reference else ()

  def fresh_state(self, seed: int) -> TrainState:
    """The state at step 0."""
    key = jax.random.key(seed)
    return learner.init_state(self.params, self.optimizer, key, self.mesh)

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, to restore into."""
    return learner.abstract_state(self.graph, self.optimizer, self.mesh)


def build(config: ConfigDict) -> Parts:
  """Loads the model and the task, and compiles nothing yet.

  Raises:
    ValueError: settings that are unknown or contradict each other; says what to do.
    MissingDatasetError: the task's dataset is not here; says how to get it.
  """
  decoder, params, tokenizer = models.load(config.model.source)
  graph = models.decoder_graph(decoder, remat=config.model.remat)
  task = tasks.load(config.data.task, **task_options(config))
  algorithm = learner.algorithm_from_config(config.algorithm)
  updates = config.train.steps * algorithm.updates
  optimizer = learner.optimizer_from_config(config.optimizer, updates)
  mesh = learner.make_mesh(**config.mesh)
  sampling = Sampling(
    temperature=config.sampler.temperature,
    top_k=config.sampler.top_k,
    top_p=config.sampler.top_p,
    min_p=config.sampler.min_p,
  )
  evaluation = Evaluation(
    Environment(task, tokenizer, task.test, config.data.max_prompt_tokens),
    prompts=config.eval.prompts,
    samples=config.eval.samples,
    rows=config.eval.rows,
  )
  make_engine = functools.partial(
    NativeEngine,
    sampling=Sampling(temperature=config.eval.temperature),
    max_new_tokens=config.sampler.max_new_tokens,
    eos_ids=tokenizer.eos_ids,
    pad_id=tokenizer.pad_id,
  )

  def evaluate(graph: nnx.GraphDef, params: nnx.State) -> Accuracy:
    # An engine that outlived the call would keep the params in memory until the next.
    engine = make_engine(graph)
    engine.update(params, version=0)
    return evaluation(engine)

  return Parts(
    decoder,
    graph,
    params,
    algorithm,
    optimizer,
    mesh,
    learner.make_update(graph, algorithm, optimizer, mesh, sampling=sampling),
    learner.make_score(graph, mesh, temperature=algorithm.temperature),
    evaluate,
    len(task.train),
  )


def task_options(config: ConfigDict) -> dict[str, Any]:
  """The options of the config's task."""
  options = config.data.options.to_dict()
  if config.data.gsm8k_dir:
    options["gsm8k_dir"] = str(Path(config.data.gsm8k_dir).resolve())
  return options


def sampler_settings(config: ConfigDict) -> Settings:
  """What the samplers of a run are told."""
  sampler = config.sampler
  # Records of one learner step; a step's worth more for each step that a rollout may be
  # late.
  records = config.train.prompts_per_step / sampler.prompts_per_record
  return Settings(
    model=str(config.model.source),
    task=config.data.task,
    task_options=task_options(config),
    precision=sampler.precision,
    temperature=sampler.temperature,
    top_k=sampler.top_k,
    top_p=sampler.top_p,
    min_p=sampler.min_p,
    prompts_per_record=sampler.prompts_per_record,
    group_size=sampler.group_size,
    max_prompt_tokens=config.data.max_prompt_tokens,
    max_new_tokens=sampler.max_new_tokens,
    capacity=math.ceil((config.store.max_staleness + 1) * records),
    writers=max(sampler.count, 1),
    seed=config.seed,
  )


@dataclasses.dataclass(frozen=True)
class Identity:
  """What tells a run from others, kept in the workdir.

  Attributes:
    run: id of the run; its store and checkpoints carry it.
    store: URL of its store.
    where: why the store is there, in words; "" if the config says so.
  """

  run: str
  store: str
  where: str = ""


def identify(config: ConfigDict, workdir: Path) -> Identity:
  """The identity of the run in `workdir`; a new one for a new workdir."""
  path = workdir / "run.json"
  if path.exists():
    return Identity(**json.loads(path.read_text()))
  run = secrets.token_hex(6)
  url, where = (config.store.url, "") if config.store.url else default_url(run)
  identity = Identity(run, url, where)
  path.write_text(json.dumps(dataclasses.asdict(identity), indent=2) + "\n")
  return identity
