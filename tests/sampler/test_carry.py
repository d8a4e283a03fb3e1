"""Answers that are handed over from record to record: none lost, none repeated."""

import dataclasses
import itertools
import zlib

import numpy as np
import pytest
from flax import nnx

from tis_jax import models
from tis_jax.engines import NativeSettings
from tis_jax.logprobs import token_logprobs
from tis_jax.rollouts import Limits, validate
from tis_jax.sampler import SamplerSettings
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import RolloutReader, RolloutWriter, digest
from tis_jax.store.errors import AlreadyExistsError
from tis_jax.store.walks import read_left
from tis_jax.tasks import prompt_order

PARTIAL = NativeSettings(slots=4, interrupt_after=1)
N, SAMPLES, T = 4, 2, 5


@pytest.fixture(scope="module")
def told(assignment):
  sampler = dataclasses.replace(
    assignment.sampler, native=PARTIAL, precision="float32", top_logprobs=2
  )
  return dataclasses.replace(assignment, sampler=sampler, capacity=8)


@pytest.fixture(scope="module")
def parts(told):
  return build(told)


def worker_of(told, parts, incarnation=1, left=()):
  return Worker(told, "a", incarnation, *parts, left)


def walk(told, environment, count):
  """The prompts of the writer's first draws."""
  seed = zlib.crc32(f"{told.seed}/a".encode())
  order = prompt_order(len(environment), seed, 0, count)
  return environment.ids[order].tolist()


def handed(records):
  """The prompt of every group of some records."""
  return np.concatenate([record.prompt_ids[::SAMPLES] for record in records]).tolist()


def scaled(params, factor):
  return {name: factor * x.astype(np.float32) for name, x in params.items()}


@pytest.mark.slow
def test_records_hold_finished_groups_each_prompt_once(told, parts, params):
  engine, environment = parts
  worker, records = worker_of(told, parts), []
  for seq in range(12):
    newest = scaled(params, 1 + 0.02 * seq)
    engine.update(newest, seq)
    record = worker.rollout(seq, last=seq + 3)
    assert record.shape == (N * SAMPLES, 8, T)
    validate(
      record,
      Limits(shape=(8, 8, T), group_size=SAMPLES),
      learner_version=seq,
      params_digest=digest(newest) if record.header.version == seq else None,
    )
    ends = (record.tokens == environment._tokenizer.eos_ids[0]) & record.mask
    assert (ends.any(axis=1) | record.mask.all(axis=1)).all()
    assert len(worker.left) <= N
    records.append(record)
  order = walk(told, environment, 12 * N + len(worker.left))
  begun = handed(records) + [order[draw] for draw in worker.left]
  assert sorted(begun) == sorted(order)
  # Some answers were begun by one version and finished by a later one.
  mixed = sum(
    len(set(v[m].tolist())) > 1
    for record in records
    for v, m in zip(record.versions, record.mask, strict=True)
  )
  assert mixed > 5


@pytest.mark.slow
def test_log_probs_of_an_answer_handed_over_are_those_of_each_versions_params(
  told, parts, params
):
  engine, _ = parts
  worker, seen = worker_of(told, parts, incarnation=2), 0
  score = models.decoder_graph(models.load(told.model)[0])
  for seq in range(4):
    engine.update(scaled(params, 1 + 0.1 * seq), seq)
    record = worker.rollout(seq, last=seq + 3)
    for version in range(seq + 1):
      there = (record.versions == version) & record.mask
      found = full_pass(score, scaled(params, 1 + 0.1 * version), record)
      np.testing.assert_allclose(record.sampler_logp[there], found[there], atol=1e-4)
      seen += int(there.sum()) * (version < seq)
  assert seen > 10


def full_pass(graph, params, record):
  """Log-probs of a record's tokens, from one pass over its rows."""
  model = nnx.merge(graph, models.unflatten(graph, params))
  both = np.concatenate([record.prompts, record.tokens], axis=1)
  there = np.concatenate([record.prompt_mask, record.mask], axis=1).astype(np.int32)
  hidden, _ = model(both[:, :-1], segment_ids_BS=there[:, :-1])
  width = record.prompts.shape[1]
  found = token_logprobs(hidden[:, width - 1 :], model.head(), both[:, width:])
  return np.asarray(found.logp)


def test_a_digest_is_that_of_the_params_that_drew_the_newest_token(told, params):
  """Also where newer ones come while a group that is finished waits for others."""
  native = NativeSettings(slots=4, interrupt_after=64, new_params="switch")
  sampler = dataclasses.replace(told.sampler, native=native)
  switching = dataclasses.replace(told, sampler=sampler)
  engine, environment = build(switching)
  worker, version, said = worker_of(switching, (engine, environment)), 0, {}

  def publish():
    nonlocal version
    version += 1
    newest = scaled(params, 1 + 0.001 * version)
    said[version] = digest(newest)
    return newest, version, said[version]

  looks = itertools.count()
  engine.newer = lambda: None if next(looks) % 3 else publish()
  engine.update(*publish())
  checked = 0
  for seq in range(20):
    header = worker.rollout(seq, last=seq + 3).header
    if header.params_digest:
      assert header.params_digest == said[header.version]
      checked += 1
  assert 0 < checked < 20


def test_no_token_is_staler_than_the_run_allows(told, parts, params):
  # A learner that takes a record a step, and a sampler that runs ahead by turns.
  engine, _ = parts
  staleness, version, taken, seen = 2, 0, 0, []
  share = staleness + 1
  worker, rng = worker_of(told, parts, incarnation=3), np.random.default_rng(0)
  records = []
  for seq in range(24):
    ahead = rng.integers(0, share)
    while len(records) - taken > ahead:
      seen.append(version - records[taken].versions[records[taken].mask].min())
      taken, version = taken + 1, version + 1
    engine.update(params, version)
    records.append(worker.rollout(seq, last=taken + share - 1))
  assert max(seen) == staleness and min(seen) < staleness
  # One that is as far ahead as it may be interrupts nothing.
  worker.rollout(24, last=24)
  assert worker.left == ()


def test_towards_the_end_nothing_is_begun_that_nobody_takes(told, parts, params):
  engine, environment = parts
  engine.update(params, 0)
  short = dataclasses.replace(told, groups=6 * N)
  worker = worker_of(short, parts, incarnation=4)
  records = [worker.rollout(seq, last=seq + 3) for seq in range(6)]
  assert worker.left == ()
  assert sorted(handed(records)) == sorted(walk(told, environment, 6 * N))
  # A learner that asks for more is served.
  assert worker.rollout(6, last=9).shape == (N * SAMPLES, 8, T)
  assert worker.left == ()


class Killed(BaseException):
  pass


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_restart_repeats_no_prompt_and_loses_none(
  told, parts, params, open_run, monkeypatch, when
):
  """Ended before, between and after the two writes that hand a record over."""
  store = open_run()
  reader, engine = RolloutReader(store), parts[0]
  put, records = store.put_rollout, []

  def dies(*args):
    if when == "after":
      put(*args)
    raise Killed

  for died in range(3):
    with RolloutWriter(store, "a", capacity=99) as writer:
      worker = worker_of(told, parts, writer.incarnation, writer.left)
      for turn in writer.turns():
        if turn.params is not None:
          engine.update(turn.params, turn.version)
        record = worker.rollout(turn.seq, turn.seq + 3)
        if turn.seq == 2 + 2 * died:
          # As SIGKILL would have it: nothing more is said.
          with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(store, "put_rollout", dies)
            if when == "before":
              patch.setattr("tis_jax.store.writer.write_left", dies)
            writer.write(record, worker.left)
          break
        writer.write(record, worker.left)
    ready = store.next_seq("a") - reader.cursor.get("a", 0)
    records += reader.take(ready, died, timeout=60)
    newer = scaled(params, 1 + 0.01 * died)
    store.publish(died + 1, newer, {"cursor": reader.cursor})
    store.delete_rollouts(reader.cursor)
  left = read_left(store, "a", store.next_seq("a"))
  count = len(records) * N + len(left)
  order = walk(told, parts[1], count)
  assert [record.header.seq for record in records] == list(range(len(records)))
  assert sorted(handed(records) + [order[d] for d in left]) == sorted(order)
  assert len(records) >= 4 and not reader.quarantined
  # What was said of records that are there is gone.
  assert len(store.kv.keys("walks/a/")) <= 2


def test_one_that_has_lost_its_name_says_nothing_of_the_walk(open_run, parts, told):
  store = open_run()
  with RolloutWriter(store, "a") as writer:
    store.claim("a")
    parts[0].update(store.read_params(store.latest()), 0)
    record = worker_of(told, parts).rollout(0)
    with pytest.raises(AlreadyExistsError, match="has taken the name 'a'"):
      writer.write(record, [5])
  assert read_left(store, "a", 1) == () and store.next_seq("a") == 0


def test_draws_that_were_left_are_begun_again_first(told, parts, params):
  engine, environment = parts
  engine.update(params, 0)
  worker = worker_of(told, parts, incarnation=5, left=(9, 5, 6))
  record = worker.rollout(2, last=2)
  order = walk(told, environment, 12)
  assert handed([record]) == [order[draw] for draw in (5, 6, 9, 11)]
  assert worker.left == ()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama_cpp"])
def test_served_engines_are_refused_by_name(engine):
  with pytest.raises(ValueError, match=f"{engine} does not hand over answers that are"):
    SamplerSettings(engine=engine, native=PARTIAL)
