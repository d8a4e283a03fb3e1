"""What a look at a run tells: who lives, what waits, what went wrong."""

import json
import time

import numpy as np

from tis_jax.rollouts import Limits
from tis_jax.store import RolloutReader
from tis_jax.store.overview import overview

_W = {"w": np.ones(1, np.float32)}


def test_a_look_counts_what_is_there_and_writes_nothing(store, make_rollout):
  assert (overview(store).version, overview(store).writers) == (None, ())
  store.publish(0, _W, {"cursor": {}, "step": 4})
  store.kv.put("params/v0000000001/w.0000", b"torn")
  for seq in range(3):
    store.put_rollout("a", seq, make_rollout())
  store.put_rollout("b", 0, make_rollout(rows=6))
  store.heartbeat("a", state="generating", version=0, seq=3)
  beat = {"time": time.time() - 600, "state": "generating"}
  store.kv.put("heartbeats/b", json.dumps(beat).encode())
  reader = RolloutReader(store, limits=Limits(shape=(4, 3, 5)))
  reader.take(2, 0)
  store.publish(2, _W, {"cursor": reader.cursor, "step": 5})
  keys = {p: store.kv.keys(p) for p in ("rollouts/", "params/", "quarantine/")}
  seen = overview(store)
  a, b = seen.writers
  assert (a.state, a.version, a.behind, a.taken) == ("generating", 0, 2, 2)
  assert (b.state, b.version, b.aside) == ("silent", None, 1)
  assert (a.waiting, b.waiting, seen.waiting) == (1, 0, 1)
  assert (seen.version, seen.step, seen.versions, seen.torn) == (2, 5, (0, 2), (1,))
  (bad,) = seen.set_aside
  assert (bad.writer, bad.seq, bad.reason) == ("b", 0, "shape")
  text = seen.as_text()
  assert "2, of step 5, 0 s ago; 2 can be read, torn: 1" in text
  assert "0 (2 behind)" in text and "10 min ago" in text
  assert f"b/0  0 s ago  shape: {bad.error}" in text
  assert keys == {p: store.kv.keys(p) for p in keys}


def test_a_reason_that_cannot_be_read_is_no_end(store):
  for seq, why in enumerate((b"", b"[]", b'{"time": "x"}')):
    store.kv.put(f"quarantine/a/{seq:010d}", b"")
    store.kv.put(f"quarantine/a/{seq:010d}.json", why)
  seen = overview(store, errors=2)
  assert [x.seq for x in seen.set_aside] == [1, 2]
  assert "its reason cannot be read" in seen.as_text()
