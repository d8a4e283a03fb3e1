"""How far ahead a writer may run, and when a sampler notices that it should end."""

import json
import os
import time

import pytest

from tis_jax.store import Store
from tis_jax.store.allowance import Allowance
from tis_jax.store.watch import RECONFIGURED, Watch


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch):
  monkeypatch.setattr("tis_jax.store.allowance._REFRESH_SECONDS", -1.0)


@pytest.fixture
def store(tmp_path):
  return Store.open(tmp_path.as_uri(), run="r", create=True, config={"a": 1})


def permitted(allowance, start):
  """How many records from `start` on may be made without the learner moving."""
  return max(0, allowance.last() + 1 - start)


def test_the_share_is_of_the_planned_and_of_the_living(store):
  assert permitted(Allowance(store, "a", capacity=6, writers=1), 0) == 6
  assert permitted(Allowance(store, "a", capacity=5, writers=2), 0) == 3
  one = Allowance(store, "a", capacity=6, writers=1)
  store.heartbeat("a", state="generating")
  store.heartbeat("b", state="waiting for the learner")
  assert permitted(one, 0) == 3
  store.heartbeat("b", state="ended")
  assert permitted(one, 0) == 6
  store.kv.put("heartbeats/b", json.dumps({"time": time.time() - 3600}).encode())
  assert permitted(one, 0) == 6
  for guest in range(20):
    store.heartbeat(f"guest{guest}")
  assert permitted(one, 0) == 1


def test_progress_and_what_was_set_aside_make_room(store):
  allowance = Allowance(store, "a", capacity=2, writers=1)
  assert permitted(allowance, 2) == 0
  store.release({"a": 1})
  assert permitted(allowance, 2) == 1
  store.publish(0, {}, {"cursor": {"a": 2, "b": 9}})
  assert permitted(allowance, 2) == 2
  for seq in (0, 3):
    store.kv.put(f"quarantine/a/{seq:010d}", b"")
    store.kv.put(f"quarantine/a/{seq:010d}.json", b"{}")
  # Record 3 was set aside after the cursor, record 0 before it.
  assert permitted(allowance, 4) == 1


def noticed(watch):
  deadline = time.monotonic() + 20
  while watch.reason is None and time.monotonic() < deadline:
    time.sleep(0.01)
  return watch.reason


def test_a_watch_says_that_the_sampler_lives(store):
  with Watch(store, "a", store.claim("a"), 7, os.getppid(), period=0.02) as watch:
    assert store.heartbeats()["a"]["state"] == "starting"
    watch.state, watch.version, watch.seq = "generating", 3, 8
    time.sleep(0.2)
    beat = store.heartbeats()["a"]
    assert (beat["state"], beat["version"], beat["seq"]) == ("generating", 3, 8)
    assert (beat["pid"], beat["age"] < 5) == (os.getpid(), True)
    assert watch.reason is None
  assert store.heartbeats()["a"]["state"] == "ended"
  assert store.next_seq("a") == 8


def test_a_watch_sees_that_the_parent_is_gone(store):
  with Watch(store, "a", store.claim("a"), 0, os.getpid(), period=0.02) as watch:
    assert "that started this one is gone" in noticed(watch)


def test_a_watch_sees_the_stop_the_claim_and_the_config(store):
  with Watch(store, "a", store.claim("a"), 0, period=0.02) as watch:
    store.stop("the end")
    assert noticed(watch) == "the end"
  store.kv.delete("stop")
  with Watch(store, "a", store.claim("a"), 0, period=0.02) as watch:
    store.claim("a")
    assert "has taken the name a" in noticed(watch)
    store.heartbeat("a", state="the new holder's")
  # Leaving does not write over the new holder's heartbeat.
  assert store.heartbeats()["a"]["state"] == "the new holder's"
  with Watch(store, "a", store.claim("a"), 0, period=0.02) as watch:
    Store.open(store.url, run="r", create=True, config={"a": 2})
    assert noticed(watch) == RECONFIGURED
