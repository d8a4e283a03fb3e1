"""What one sampler makes records with: an engine, an environment, a walk, noise."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tis_jax import models, tasks
from tis_jax.engines import Engine, NativeEngine, play
from tis_jax.engines.served import ServedEngine
from tis_jax.rollouts import ABORTED, Header, Rollout
from tis_jax.sampler.carry import Carry, check_interruptible
from tis_jax.sampler.served import served_engine
from tis_jax.sampler.settings import Assignment
from tis_jax.store import StoreError, digest
from tis_jax.tasks import Environment, prompt_order


class Worker:
  """Makes rollout records for one writer.

  Record number `seq` holds the prompts `seq * n .. (seq + 1) * n - 1` of the writer's
  own walk over the task, whoever makes it: a restart repeats none. Its noise depends on
  the incarnation too, so that a record made again after a crash is not the same one.

  With `sampler.native.interrupt_after` it holds the n groups that are finished instead
  (`tis_jax.sampler.carry`), and `left` says which draws wait for a later one.

  Args:
    assignment: from the store.
    name: of the writer.
    incarnation: how often the name has been claimed.
    engine: what generates; whoever made it gives it its params.
    environment: what for.
    left: draws that an earlier holder of the name had begun (`RolloutWriter.left`).
  """

  def __init__(
    self,
    assignment: Assignment,
    name: str,
    incarnation: int,
    engine: Engine,
    environment: Environment,
    left: Sequence[int] = (),
  ):
    self._settings, self._assignment = assignment.sampler, assignment
    self._engine, self._environment = engine, environment
    self._order_seed = zlib.crc32(f"{assignment.seed}/{name}".encode())
    self._key = jax.random.fold_in(jax.random.key(self._order_seed), incarnation)
    self._carry = None
    if interrupt_after := self._settings.native.interrupt_after:
      check_interruptible(environment)
      assert isinstance(engine, NativeEngine)
      self._carry = Carry(
        engine,
        environment,
        order_seed=self._order_seed,
        key=self._key,
        prompts=self._settings.prompts_per_record,
        samples=self._settings.group_size,
        interrupt_after=interrupt_after,
        groups=-(-assignment.groups // assignment.writers),
        left=left,
      )

  @property
  def left(self) -> tuple[int, ...] | None:
    """The draws that are begun and in no record; None where records are in order."""
    return None if self._carry is None else self._carry.left

  @property
  def health(self) -> dict[str, float]:
    """Numbers of the last record, and counts of responses without a reward."""
    numbers = dict(getattr(self._engine, "health", {}))
    if self._carry is not None:
      numbers["under_way"] = float(self._carry.under_way)
    for cause, count in self._environment.set_aside.items():
      numbers[f"reward_{cause}"] = float(count)
    return numbers

  def rollout(self, seq: int, last: int | None = None) -> Rollout:
    """The record number `seq`, by the params that the engine holds.

    Args:
      seq: its place in the writer's sequence.
      last: the last record that may hold what is begun for it (`Turn.last`); None for
        itself.
    """
    size, samples = self._settings.prompts_per_record, self._settings.group_size
    key = jax.random.fold_in(self._key, seq)
    if self._carry is None:
      prompts = prompt_order(len(self._environment), self._order_seed, seq * size, size)
      played = play(self._engine, self._environment, prompts, samples=samples, key=key)
      digest = getattr(self._engine, "params_digest", "")
    else:
      played = self._carry.play(seq, seq if last is None else last)
      prompts, digest = played.rows[::samples], self._carry.digest
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
      params_digest=digest,
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
  decoder, params, tokenizer = models.load(assignment.model)
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
  graph, base = models.decoder_graph(decoder), base_of(assignment, params)
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
      routed_experts=settings.routed_experts,
      settings=settings.native,
      base=base,
      **asked,
    )
  else:
    engine = served_engine(assignment, graph, environment, name, asked, base)
  return engine, environment


def base_of(assignment: Assignment, params: nnx.State) -> models.Base | None:
  """The params that a run's adapters stand beside; None where it has no adapters.

  Args:
    assignment: from the store.
    params: of `assignment.model`, as they were loaded here.

  Raises:
    StoreError: they are others than the learner's.
  """
  if not assignment.lora.rank:
    return None
  told = digest(jax.tree.map(np.asarray, models.flatten(params)))
  if told != assignment.base_digest:
    raise StoreError(
      f"the params of {assignment.model} are others here ({told}) than the learner's "
      f"({assignment.base_digest}): its adapters are of no use beside them"
    )
  return models.Base(params, assignment.lora, told)
