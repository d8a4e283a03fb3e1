"""What one sampler makes records with: an engine, an environment, a walk, noise."""

import zlib
from typing import Any

import jax
import numpy as np

from tis_jax import models, tasks
from tis_jax.engines import Engine, NativeEngine, play
from tis_jax.engines.served import ServedEngine
from tis_jax.rollouts import ABORTED, Header, Rollout
from tis_jax.sampler.served import served_engine
from tis_jax.sampler.settings import Assignment
from tis_jax.tasks import Environment, prompt_order


class Worker:
  """Makes rollout records for one writer.

  Record number `seq` holds the prompts `seq * n .. (seq + 1) * n - 1` of the writer's
  own walk over the task, whoever makes it: a restart repeats none. Its noise depends on
  the incarnation too, so that a record made again after a crash is not the same one.

  Args:
    assignment: from the store.
    name: of the writer.
    incarnation: how often the name has been claimed.
    engine: what generates; whoever made it gives it its params.
    environment: what for.
  """

  def __init__(
    self,
    assignment: Assignment,
    name: str,
    incarnation: int,
    engine: Engine,
    environment: Environment,
  ):
    self._settings, self._assignment = assignment.sampler, assignment
    self._engine, self._environment = engine, environment
    self._order_seed = zlib.crc32(f"{assignment.seed}/{name}".encode())
    self._key = jax.random.fold_in(jax.random.key(self._order_seed), incarnation)

  def rollout(self, seq: int) -> Rollout:
    """The record number `seq`, by the params that the engine holds."""
    size, samples = self._settings.prompts_per_record, self._settings.group_size
    prompts = prompt_order(len(self._environment), self._order_seed, seq * size, size)
    key = jax.random.fold_in(self._key, seq)
    played = play(self._engine, self._environment, prompts, samples=samples, key=key)
    rows, generation = played.rows, played.generation
    if played.aborted:
      reason, _ = played.aborted.most_common(1)[0]
      count = played.aborted.total()
      print(f"{count} of {len(rows)} conversations are set aside; most often: {reason}")
    # What has no reward neither trains nor makes a baseline: it is an aborted row.
    judged = np.isfinite(played.rewards)
    greedy_rewards = named_rewards = None
    if self._assignment.greedy:
      answers = play(
        self._engine, self._environment, prompts, samples=1, key=key, greedy=True
      )
      greedy_rewards = np.repeat(answers.rewards, samples)
      judged &= np.isfinite(greedy_rewards)
    if self._assignment.named_rewards:
      named_rewards = self._environment.named_rewards(
        rows, generation.tokens, generation.mask, where=judged
      )
      judged &= np.isfinite(named_rewards).all(axis=1)
    header = Header(
      int(generation.versions[generation.mask].max()),
      self._engine.sampling,
      params_digest=getattr(self._engine, "params_digest", ""),
    )
    finish = np.where(judged, generation.finish_reasons, ABORTED).astype(np.int8)
    generation = generation._replace(finish_reasons=finish)
    return Rollout(
      prompts=played.prompts,
      prompt_mask=played.prompt_mask,
      rewards=played.rewards,
      group_ids=np.repeat(np.arange(size, dtype=np.int32), samples),
      prompt_ids=self._environment.ids[rows],
      header=header,
      greedy_rewards=greedy_rewards,
      named_rewards=named_rewards,
      turn_rewards=played.turn_rewards,
      **generation._asdict(),
    )


def build(
  assignment: Assignment, name: str = ""
) -> tuple[NativeEngine | ServedEngine, Environment]:
  """The engine and the environment that a run asks for.

  Args:
    assignment: from the store.
    name: of the run and the sampler; an engine behind a server keeps its files there.
  """
  decoder, _, tokenizer = models.load(assignment.model)
  task = tasks.load(assignment.task, **assignment.task_options)
  settings = assignment.sampler
  environment = Environment(
    task,
    tokenizer,
    task.train,
    assignment.max_prompt_tokens,
    turns=settings.turns,
    reward_seconds=assignment.reward_seconds,
    reward_processes=assignment.reward_processes,
  )
  graph = models.decoder_graph(decoder)
  asked: dict[str, Any] = {
    "max_new_tokens": settings.tokens_at_once(environment),
    "eos_ids": tokenizer.eos_ids,
    "pad_id": tokenizer.pad_id,
    "kept_width": settings.kept_width(decoder.vocab_size),
    "top_logprobs": min(settings.top_logprobs, decoder.vocab_size),
  }
  if settings.engine == "native":
    engine = NativeEngine(
      graph,
      settings.sampling,
      precision=settings.precision,
      settings=settings.native,
      **asked,
    )
  else:
    engine = served_engine(assignment, graph, environment, name, asked)
  return engine, environment
