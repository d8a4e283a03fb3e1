"""A writer that knows numpy and a URL: turns, params, words, and its end."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from tis_jax.rollouts import Header, Sampling
from tis_jax.rollouts.errors import AmbiguousLawError
from tis_jax.store import RolloutReader, RolloutWriter, digest


def published(store, version, value, reader=None):
  arrays = {"w": np.full(3, value, np.float32)}
  cursor = {} if reader is None else reader.cursor
  return store.publish(version, arrays, {"cursor": cursor})


def test_turns_come_as_the_learner_permits_with_params_that_are_new(
  store, make_rollout
):
  published(store, 0, 0.0)
  reader, seen = RolloutReader(store), []
  with RolloutWriter(store, "mine", capacity=2) as writer:
    for turn in writer.turns():
      seen.append((turn.seq, turn.version, turn.params and turn.params["w"][0]))
      writer.write(make_rollout(version=turn.version))
      if turn.seq == 1:
        reader.take(2, 0)
        published(store, 1, 1.0, reader)
      if turn.seq == 3:
        break
  assert seen == [(0, 0, 0.0), (1, 0, None), (2, 1, 1.0), (3, 1, None)]
  assert [r.header.version for r in reader.take(2, 1)] == [1, 1]
  assert store.heartbeats()["mine"]["state"] == "ended"


def test_it_waits_for_its_turn_and_ends_with_the_run(store, make_rollout):
  published(store, 0, 0.0)
  with RolloutWriter(store, "mine", capacity=1) as writer:
    stop = threading.Timer(0.3, store.stop, ["enough"])
    stop.start()
    seqs = []
    for turn in writer.turns():
      seqs.append(turn.seq)
      writer.write(make_rollout())
  assert seqs == [0] and writer.reason == "enough"


def test_what_the_learner_would_set_aside_is_not_written(store, make_rollout):
  published(store, 0, 0.0)
  vague = Header(0, Sampling(temperature=0.7, logprobs="untempered"))
  with RolloutWriter(store, "mine", capacity=1) as writer:
    turn = next(writer.turns())
    with pytest.raises(AmbiguousLawError, match="ask the engine for processed ones"):
      writer.write(dataclasses.replace(make_rollout(), header=vague))
    writer.write(make_rollout())
  assert turn.seq == 0 and store.next_seq("mine") == 1


def test_a_digest_tells_params_apart_and_the_reader_looks_at_it(store, make_rollout):
  manifest = published(store, 0, 0.5)
  assert manifest.digest == digest({"w": np.full(3, 0.5, np.float32)})
  assert manifest.digest != digest({"w": np.full(3, 0.25, np.float32)})
  assert manifest.digest != digest({"w": np.full((3, 1), 0.5, np.float32)})
  for seq, said in enumerate((manifest.digest, "0" * 16, "")):
    header = Header(0, Sampling(), params_digest=said)
    store.put_rollout("a", seq, dataclasses.replace(make_rollout(), header=header))
  reader = RolloutReader(store)
  assert [r.header.seq for r in reader.take(2, 0)] == [0, 2]
  assert reader.quarantined == {"other_params": 1}


def test_a_record_under_another_name_is_set_aside(store, make_rollout):
  store.put_rollout("a", 0, make_rollout())
  store.put_rollout("a", 1, make_rollout())
  data = store.kv.get("rollouts/a/0000000000").value
  store.kv.put("rollouts/b/0000000000", data)
  reader = RolloutReader(store)
  assert [r.header.writer for r in reader.take(2, 0)] == ["a", "a"]
  published(store, 0, 0.0)
  store.put_rollout("a", 2, make_rollout())
  reader.take(1, 0)
  assert reader.quarantined == {"another_run": 1}


def test_inside_a_turn_newer_params_are_given_once_and_not_again_by_the_next(
  store, make_rollout
):
  published(store, 0, 0.0)
  with RolloutWriter(store, "mine", capacity=4) as writer:
    turns = writer.turns()
    assert next(turns).version == 0
    assert writer.newer() is None
    published(store, 1, 1.0)
    published(store, 2, 2.0)
    time.sleep(0.05)  # It looks no more often than turns do.
    params, version, told = writer.newer()
    assert version == 2 and params["w"].tolist() == [2, 2, 2]
    assert told == digest(params)
    time.sleep(0.05)
    assert writer.newer() is None
    writer.write(make_rollout(version=2))
    turn = next(turns)
    assert (turn.version, turn.params, turn.digest) == (2, None, told)


def test_numbers_of_its_health_go_with_the_heartbeats(store):
  published(store, 0, 0.0)
  with RolloutWriter(store, "mine", capacity=1) as writer:
    writer.health = {"tokens_per_s": 12.5}
  assert store.heartbeats()["mine"]["health"] == {"tokens_per_s": 12.5}


def test_progress_that_a_learner_takes_back_permits_nothing(store, make_rollout):
  """As one does that goes on from an older checkpoint."""
  published(store, 0, 0.0)
  store.publish(1, {"w": np.ones(3, np.float32)}, {"cursor": {"mine": 4}})
  store.release({"mine": 9})
  store.heartbeat("mine", seq=5)  # It had come so far.
  store.publish(2, {"w": np.zeros(3, np.float32)}, {"cursor": {"mine": 3}})
  with RolloutWriter(store, "mine", capacity=1) as writer:
    stop = threading.Timer(0.3, store.stop, ["enough"])
    stop.start()
    assert [turn.seq for turn in writer.turns()] == []


def test_a_writer_says_what_share_of_its_time_it_waited(store, make_rollout):
  published(store, 0, 0.0)
  with RolloutWriter(store, "mine", capacity=1) as writer:
    turns = writer.turns()
    next(turns)
    assert writer.idle < 0.5
    writer.write(make_rollout())
    threading.Timer(0.3, store.release, ({"mine": 1},)).start()
    next(turns)
    assert writer.idle > 0.5
