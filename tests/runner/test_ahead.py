"""Reading and publishing beside the steps: the same batches, and no step that waits."""

import secrets
import threading
import time

import jax
import numpy as np
import pytest
from test_stream import GROUPS, record, rows, stream

from tis_jax.runner.ahead import Ahead
from tis_jax.runner.lineage import Lineage
from tis_jax.runner.publisher import Publisher
from tis_jax.store import Store, TakenOverError


@pytest.fixture
def store():
  return Store.open(f"memory://{secrets.token_hex(4)}", run="r", create=True)


def nothing():
  pass


def test_batches_read_ahead_are_those_of_the_stream_and_positions_of_what_was_taken(
  store,
):
  for seq in range(4):
    store.put_rollout("a", seq, record(seq, [0, 1] * GROUPS))
  expected = stream(store, groups=2)
  batches, positions = [], [expected.position]
  for _ in range(3):
    batches.append(rows(expected.next(0, nothing)))
    positions.append(expected.position)
  with Ahead(stream(store, groups=2), jax.devices()[0]) as ahead:
    ahead.begin(0, 0)
    for step in range(3):
      # The next batch may have been read: it is in no position before it is taken.
      time.sleep(0.05)
      assert ahead.position == positions[step]
      batch = ahead.take(nothing)
      assert isinstance(batch.tokens, jax.Array)
      assert rows(batch) == batches[step]
      ahead.begin(step + 1, 0)


def test_waiting_can_be_interrupted_and_the_thread_ends(store):
  def interrupt():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), Ahead(stream(store, groups=2)) as ahead:
    ahead.begin(0, 0)
    ahead.take(interrupt)
  assert not [t for t in threading.enumerate() if t.name.startswith("reader")]


def test_writers_are_let_go_on_only_when_the_learner_waits(store):
  """A filtered group asks for more records, but not while an update computes."""
  store.publish(0, {}, {"cursor": {}})
  store.put_rollout("a", 0, record(0, [1, 1, 1, 1, 1, 0]))
  with Ahead(stream(store, groups=2, filter_groups=True)) as ahead:
    ahead.begin(0, 0)
    time.sleep(0.2)
    assert store.taken() == {}

    def released():
      if store.taken() == {"a": 1} and store.next_seq("a") == 1:
        store.put_rollout("a", 1, record(1, [0, 1] * GROUPS))

    batch = ahead.take(released)
  assert rows(batch) == [(0, 4), (0, 5), (1, 0), (1, 1)]


def test_a_short_step_is_no_deadlock_while_params_are_being_published(store):
  """What is released before a publication is seen has to hold after it, too."""
  store.publish(0, {}, {"cursor": {}})
  store.put_rollout("a", 0, record(0, [1, 1, 1, 1, 1, 0]))
  with Ahead(stream(store, groups=2, filter_groups=True), prepare=rows) as ahead:
    ahead.begin(1, 1)
    until = time.monotonic() + 0.3

    def published():
      if store.next_version() == 1 and time.monotonic() > until:
        store.publish(1, {}, {"cursor": {}})
      if store.taken() == {"a": 1} and store.next_seq("a") == 1:
        store.put_rollout("a", 1, record(1, [0, 1] * GROUPS))

    assert ahead.take(published) == [(0, 4), (0, 5), (1, 0), (1, 1)]


def params(value):
  return {"w": jax.numpy.full((4, 4), value, jax.numpy.float32)}


def test_params_are_published_beside_updates_that_take_their_buffers(store):
  update = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
  state = params(0.0)
  with Publisher(store, 2, dtype=None, flatten=dict) as publisher:
    for version in range(4):
      publisher.publish(version, state, {"cursor": {}})
      state = update(state)
    publisher.wait()
    assert publisher.seconds > 0
  latest = store.latest()
  assert latest is not None and latest.version == 3
  np.testing.assert_array_equal(store.read_params(latest)["w"], np.full((4, 4), 3.0))
  assert store.manifest(0) is None  # two are kept


def test_a_publication_that_fails_is_heard_of(store):
  Store.open(store.url, "r", create=True)  # another learner
  with Publisher(store, 2, flatten=dict) as publisher:
    publisher.publish(0, params(0.0), {"cursor": {}})
    with pytest.raises(TakenOverError):
      while True:
        publisher.check()
        time.sleep(0.01)


def test_one_publication_is_under_way_at_a_time(store, monkeypatch):
  write, may_write, writing = store.publish, threading.Event(), []

  def slow(version, *args):
    writing.append(version)
    may_write.wait()
    return write(version, *args)

  monkeypatch.setattr(store, "publish", slow)
  with Publisher(store, 2, flatten=dict) as publisher:
    publisher.publish(0, params(0.0), {"cursor": {}})
    # It is not waited for: nothing is published yet.
    assert store.latest() is None
    next_one = threading.Thread(
      target=publisher.publish, args=(1, params(1.0), {"cursor": {}})
    )
    next_one.start()
    next_one.join(0.2)
    assert next_one.is_alive() and writing in ([], [0])
    may_write.set()
    next_one.join()
  assert store.latest().version == 1


def test_versions_are_steps_over_all_attempts(tmp_path):
  path = tmp_path / "versions.json"
  Lineage(path).begins(0, 0)
  again = Lineage(path)
  again.begins(8, 5)
  found = Lineage(path)
  assert found.steps(np.array([0, 7, 8, 10])).tolist() == [0, 7, 5, 7]
  assert found.version(6) == 9
