"""The store: whose it is, how params appear and vanish, and who may write."""

import dataclasses
import http.server
import itertools
import json
import socket
import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from tis_jax.store import (
  AlreadyExistsError,
  BadRolloutError,
  ParamsGoneError,
  Store,
  StoreError,
  StoreReadOnlyError,
  StoreUnreachableError,
  TakenOverError,
  WrongRunError,
  WrongStoreSchemaError,
  default_url,
)
from tis_jax.store.keyvalue import KeyValue
from tis_jax.store.location import on_memory_file_system

_PARAMS = {
  "layers/mlp/up": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "embedding": np.linspace(-1, 1, 6).astype(ml_dtypes.bfloat16).reshape(3, 2),
  "scale": np.array(7, np.int8),
  "empty": np.zeros((0, 3), np.float32),
}


def test_conditions_hold_and_failing_them_is_no_exception(store_url):
  kv = KeyValue(store_url)
  assert kv.create("k/a", b"1")
  assert not kv.create("k/a", b"2")
  first = kv.get("k/a")
  assert first.value == b"1"
  assert kv.get("k/a", unless=first.generation).unchanged
  assert kv.swap("k/a", b"3", first.generation)
  assert not kv.swap("k/a", b"4", first.generation)
  assert kv.get("k/a", unless=first.generation).value == b"3"
  with pytest.raises(StoreError, match="generation"):
    kv.swap("k/a", b"5", b"")


def test_a_race_that_is_always_lost_ends_with_words(store_url):
  kv, wins = KeyValue(store_url), itertools.count()

  def too_late(found):
    kv.put("k", str(next(wins)).encode())
    return b"mine"

  with pytest.raises(StoreError, match=f"{kv.url}: 'k' was changed by others at 50"):
    kv.update("k", too_late)
  assert next(wins) == 50


def test_listing_and_deleting_stay_below_their_prefix(store_url):
  kv = KeyValue(store_url)
  kv.put_many(dict.fromkeys(("a/1", "a/2", "a/3", "a.b/1", "ab/1", "b/1"), b""))
  assert kv.keys("a/") == ["a/1", "a/2", "a/3"]
  assert kv.keys("a/", "2") == ["a/2", "a/3"]
  kv.delete_span("a/", "3")
  assert kv.keys("a/") == ["a/3"]
  kv.delete_span("a/")
  kv.delete("a/1")
  assert [k for p in ("a/", "a.b/", "ab/", "b/") for k in kv.keys(p)] == [
    "a.b/1",
    "ab/1",
    "b/1",
  ]


def test_one_url_is_one_run(store_url):
  with pytest.raises(WrongRunError, match="holds no run"):
    Store.open(store_url)
  first = Store.open(store_url, run="mine", create=True, config={"a": 1})
  first.stop("the end")
  assert Store.open(store_url).stopped() == "the end"
  again = Store.open(store_url, run="mine", create=True)
  assert (first.incarnation, again.incarnation) == (1, 2)
  assert again.config == {"a": 1}
  assert again.stopped() is None
  assert Store.open(store_url, run="mine").config == {"a": 1}
  assert not first.reconfigured()
  changed = Store.open(store_url, run="mine", create=True, config={"a": 2})
  assert first.reconfigured()
  assert (changed.incarnation, Store.open(store_url).config) == (3, {"a": 2})
  for create in (True, False):
    with pytest.raises(WrongRunError, match="belongs to run 'mine'"):
      Store.open(store_url, run="other", create=create)
  with pytest.raises(WrongRunError, match="already"):
    Store.open(store_url, create=True)


def test_only_the_incarnation_of_now_stops_the_samplers(store_url):
  first = Store.open(store_url, run="mine", create=True)
  sampler = Store.open(store_url)
  second = Store.open(store_url, run="mine", create=True)
  first.stop("the first has failed")
  assert sampler.stopped() is None
  # Also when the first had looked just before the second came.
  late = {"reason": "the first has failed", "incarnation": 1}
  second.kv.put("stop", json.dumps(late).encode())
  assert sampler.stopped() is None
  second.stop("the second has ended")
  assert sampler.stopped() == "the second has ended"


def test_a_learner_that_was_taken_over_writes_nothing_of_its_own(store, store_url):
  store.publish(0, _PARAMS, {})
  second = Store.open(store_url, run="r", create=True)
  params = {name: array * 0 for name, array in _PARAMS.items()}
  manifest = second.publish(1, params, {})
  with pytest.raises(TakenOverError, match="incarnation 2; this one is 1"):
    store.publish(1, _PARAMS, {})
  assert not second.read_params(manifest)["layers/mlp/up"].any()
  second.kv.delete("run")
  with pytest.raises(WrongRunError, match="holds run 'r' no longer"):
    second.publish(2, _PARAMS, {})
  second.stop("the end")
  assert second.kv.get("stop").value is None


def test_another_schema_is_refused(store_url):
  kv = KeyValue(store_url)
  kv.put("run", json.dumps({"schema": 99, "run": "r"}).encode())
  with pytest.raises(WrongStoreSchemaError, match="schema 99"):
    Store.open(store_url)
  kv.put("run", b"something else")
  with pytest.raises(WrongStoreSchemaError, match="not a run record"):
    Store.open(store_url, run="r", create=True)


@pytest.mark.parametrize("url", ["", "/srv/run", "nonsense://x"])
def test_what_is_no_url_is_named(url):
  with pytest.raises(StoreUnreachableError) as raised:
    Store.open(url, run="r", create=True)
  assert repr(url) in str(raised.value) or f"{url}/" in str(raised.value)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_object_stores_are_the_same_code(scheme):
  # Nothing is sent before the first read.
  assert KeyValue(f"{scheme}://some-bucket/run").url == f"{scheme}://some-bucket/run/"


def test_an_unreachable_url_is_named_in_time():
  url = "http://127.0.0.1:9/run/"
  with pytest.raises(StoreUnreachableError, match=url):
    Store.open(url, timeout=0.5)


def test_a_store_that_does_not_answer_is_named_in_time():
  with socket.create_server(("127.0.0.1", 0)) as silent:
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/run/"
    began = time.monotonic()
    with pytest.raises(StoreUnreachableError, match=r"got no answer in 0.3 s"):
      Store.open(url, timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_read_only_url_is_named(tmp_path):
  writable = Store.open(tmp_path.as_uri(), run="r", create=True)
  writable.publish(0, _PARAMS, {})

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
      super().__init__(*args, directory=tmp_path)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    url = f"http://127.0.0.1:{server.server_port}/"
    assert Store.open(url).latest().version == 0
    with pytest.raises(StoreReadOnlyError, match=url):
      Store.open(url, run="r", create=True)
  finally:
    server.shutdown()
    server.server_close()


def test_a_file_in_the_way_is_an_error_that_names_the_url(tmp_path):
  (tmp_path / "taken").write_text("not a directory")
  url = f"{tmp_path.as_uri()}/taken/"
  with pytest.raises(StoreError, match=url):
    Store.open(url, run="r", create=True)


def test_params_come_back_as_they_were(store, store_url):
  assert store.latest() is None
  store.publish(3, _PARAMS, {"cursor": {"a": 2}, "step": 1})
  reader = Store.open(store_url)
  manifest = reader.latest()
  assert (manifest.version, manifest.cursor, manifest.info["step"]) == (3, {"a": 2}, 1)
  arrays = reader.read_params(manifest)
  assert arrays.keys() == _PARAMS.keys()
  for name, value in _PARAMS.items():
    assert arrays[name].dtype == value.dtype
    assert arrays[name].shape == value.shape
    np.testing.assert_array_equal(arrays[name], value)
  assert reader.latest(if_newer_than=3) is None
  store.publish(4, _PARAMS, {})
  assert reader.latest(if_newer_than=3).version == 4


def test_large_arrays_are_cut_and_joined(store, monkeypatch):
  monkeypatch.setattr("tis_jax.store.params._CHUNK_BYTES", 10)
  manifest = store.publish(0, _PARAMS, {})
  assert len(manifest.arrays["layers/mlp/up"]["checksums"]) == 10
  arrays = store.read_params(store.latest())
  np.testing.assert_array_equal(arrays["layers/mlp/up"], _PARAMS["layers/mlp/up"])


def test_versions_only_grow(store, store_url):
  assert store.next_version() == 0
  assert store.next_version(at_least=5) == 5
  store.publish(5, _PARAMS, {})
  for version in (5, 4):
    with pytest.raises(AlreadyExistsError, match="another learner"):
      store.publish(version, _PARAMS, {})
  assert Store.open(store_url).latest().version == 5
  assert store.next_version(at_least=2) >= 6


def test_a_torn_publication_is_never_seen_and_its_number_is_skipped(store):
  store.publish(0, _PARAMS, {})
  store.kv.put("params/v0000000001/embedding.0000", b"torn")
  assert store.latest().version == 0
  assert store.next_version() == 2
  assert store.delete_params(keep=1) == []
  store.publish(2, _PARAMS, {})
  assert store.delete_params(keep=1) == [0, 1]
  assert store.kv.keys("params/v0000000001/") == []


def test_of_a_store_that_vanished_under_a_publication_the_end_is_not_taken(store):
  other = Store.open(store.url)
  store.publish(0, _PARAMS, {})
  for key in ("run", "params/v0000000000/manifest"):
    store.kv.delete(key)
  with pytest.raises(WrongRunError, match="holds run 'r' no longer"):
    other.latest()


def test_old_params_go_unless_someone_is_using_them(store):
  for version in range(5):
    store.publish(version, _PARAMS, {})
  manifest = store.latest()
  store.heartbeat("slow", version=1)
  assert store.delete_params(keep=2) == [0, 2]
  assert store.delete_params(keep=2, fresh=-1.0) == [1]
  store.publish(5, _PARAMS, {})
  assert store.delete_params(keep=1) == [3, 4]
  with pytest.raises(ParamsGoneError, match="version 4"):
    store.read_params(manifest)
  assert store.read_params(store.latest()).keys() == _PARAMS.keys()
  with pytest.raises(ValueError, match="keep"):
    store.delete_params(keep=0)


def test_damaged_params_are_noticed(store):
  manifest = store.publish(0, _PARAMS, {})
  store.kv.put("params/v0000000000/embedding.0000", b"x" * 12)
  with pytest.raises(StoreError, match="is damaged"):
    store.read_params(manifest)
  store.kv.delete("params/v0000000000/manifest")
  with pytest.raises(StoreError, match="missing"):
    Store.open(store.url).latest()


def test_a_rollout_is_written_once_and_stamped(store, make_rollout):
  store.put_rollout("a", 0, make_rollout())
  with pytest.raises(AlreadyExistsError, match="two samplers"):
    store.put_rollout("a", 0, make_rollout(seed=1))
  header = store.get_rollout("a", 0).header
  assert (header.run, header.writer, header.seq) == ("r", "a", 0)
  assert header.created > 1.7e9
  for name in ("../a", "a/b", "", ".hidden"):
    with pytest.raises(ValueError, match="cannot name a writer"):
      store.put_rollout(name, 0, make_rollout())


def test_a_rollout_is_got_as_it_was_put(store, store_url, make_rollout):
  rollout = make_rollout()
  store.put_rollout("a", 3, rollout)
  found = Store.open(store_url).get_rollout("a", 3)
  for name, value in rollout.arrays().items():
    np.testing.assert_array_equal(getattr(found, name), value)
  assert found.header.sampling == rollout.header.sampling
  assert store.get_rollout("a", 4) is None
  store.delete_rollouts({"a": 4})
  assert store.get_rollout("a", 3) is None
  with pytest.raises(ValueError, match="cannot name a writer"):
    store.get_rollout("a/b", 0)


def test_a_damaged_rollout_is_not_got(store, make_rollout):
  store.put_rollout("a", 0, make_rollout())
  data = store.kv.get("rollouts/a/0000000000").value
  store.kv.put("rollouts/a/0000000000", data[:-1])
  with pytest.raises(BadRolloutError, match="bytes of"):
    store.get_rollout("a", 0)


def test_a_sequence_number_is_never_given_twice(store, make_rollout):
  assert store.next_seq("a") == 0
  store.put_rollout("a", 0, make_rollout())
  store.put_rollout("a", 1, make_rollout())
  assert (store.next_seq("a"), store.next_seq("b")) == (2, 0)
  store.kv.put("quarantine/a/0000000004.json", b"{}")
  assert store.next_seq("a") == 5
  store.publish(0, _PARAMS, {"cursor": {"a": 7}})
  store.delete_rollouts({"a": 7})
  assert store.next_seq("a") == 7
  store.heartbeat("a", seq=9)
  assert store.next_seq("a") == 9


def test_only_the_consumed_is_deleted(store, make_rollout):
  for writer in ("a", "ab"):
    for seq in range(3):
      store.put_rollout(writer, seq, make_rollout())
  store.delete_rollouts({"a": 2, "nobody": 4})
  assert store.kv.keys("rollouts/a/") == ["rollouts/a/0000000002"]
  assert len(store.kv.keys("rollouts/ab/")) == 3


def test_taken_is_the_later_of_published_and_released(store):
  assert store.taken() == {}
  store.publish(0, _PARAMS, {"cursor": {"a": 3, "b": 1}})
  store.release({"a": 2, "c": 5})
  assert store.taken() == {"a": 3, "b": 1, "c": 5}


def test_the_last_claim_wins(store):
  assert store.claim("a") == 1
  assert store.holds("a", 1)
  assert store.claim("a") == 2
  assert (store.holds("a", 1), store.holds("a", 2)) == (False, True)
  assert not store.holds("b", 1)


def test_racing_claims_are_all_different(store):
  claimed = []

  def race():
    for _ in range(20):
      claimed.append(store.claim("a"))

  threads = [threading.Thread(target=race) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(claimed) == list(range(1, 81))


def test_heartbeats_say_who_is_fresh(store):
  store.heartbeat("a", state="generating", version=3)
  store.kv.put("heartbeats/old", json.dumps({"time": 0.0}).encode())
  assert store.heartbeats().keys() == {"a", "old"}
  fresh = store.heartbeats(fresh=60)
  assert fresh.keys() == {"a"}
  assert (fresh["a"]["state"], fresh["a"]["version"]) == ("generating", 3)


def test_default_location_is_said_in_words(monkeypatch, tmp_path):
  url, why = default_url("r", needed_bytes=1 << 60)
  assert "temporary directory, because" in why
  assert url.startswith("file:///")
  assert url.endswith("/tis_jax/r/")
  monkeypatch.setattr("tis_jax.store.location._SHARED_MEMORY", tmp_path)
  url, why = default_url("r", needed_bytes=1)
  assert url == f"{tmp_path.as_uri()}/tis_jax/r/"
  assert "GiB free" in why
  monkeypatch.setattr("tis_jax.store.location._SHARED_MEMORY", tmp_path / "none")
  assert "temporary" in default_url("r", needed_bytes=1)[1]


def test_only_memory_file_systems_go_without_fsync(monkeypatch, tmp_path):
  mounts = "/dev/root / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"
  monkeypatch.setattr("pathlib.Path.read_text", lambda self: mounts)
  assert on_memory_file_system("/dev/shm/tis_jax/not/yet")
  assert not on_memory_file_system("/dev/shmoo")
  assert not on_memory_file_system(str(tmp_path))


def test_what_others_left_in_a_store_stops_nobody(store, make_rollout):
  store.publish(0, _PARAMS, {})
  for key in ("params/README", "params/v1/x", "params/vx/manifest", "params/v0/"):
    store.kv.put(key.rstrip("/") or key, b"")
  for name, beat in {
    "empty": b"",
    "list": b"[1]",
    "old": b'{"time": "yesterday"}',
    "odd": json.dumps({"time": time.time(), "version": [1]}).encode(),
    "deep": b"[" * 100_000,
    "health": json.dumps({"time": time.time(), "health": {"x": "y"}}).encode(),
  }.items():
    store.kv.put(f"heartbeats/{name}", beat)
  store.kv.put("rollouts/a/x", b"")
  store.kv.put("quarantine/a/x", b"")
  assert store.heartbeats() == {}
  assert store.publish(store.next_version(), _PARAMS, {}).version == 1
  assert store.delete_params(keep=1) == [0]
  assert (store.next_seq("a"), store.quarantined("a")) == (0, [])


def test_a_note_that_is_damaged_is_named(store):
  store.kv.put("claims/a", b"{}")
  with pytest.raises(StoreError, match="'claims/a' is not what tis_jax writes there"):
    store.claim("a")
  store.kv.put("stop", b"x")
  with pytest.raises(StoreError, match="'stop' is not what"):
    store.stopped()
  store.kv.put("params/LATEST", b"[]")
  with pytest.raises(StoreError, match="'params/LATEST' is not what"):
    store.latest()


def test_what_was_released_holds_until_the_next_publication(store):
  store.publish(0, _PARAMS, {"cursor": {"a": 1}})
  store.release({"a": 5})
  assert store.taken() == {"a": 5}
  # A learner that goes on from further back has not taken what was taken before it.
  store.publish(1, _PARAMS, {"cursor": {"a": 2}})
  assert store.taken() == {"a": 2}
  store.kv.put("cursor", b'{"a": 9}')
  assert store.taken() == {"a": 2}


def test_what_is_released_under_a_publication_under_way_holds_with_it(store):
  store.publish(0, _PARAMS, {"cursor": {"a": 1}})
  store.release({"a": 4}, version=1)
  assert store.taken() == {"a": 1}
  # Nothing of one publication is taken back.
  store.release({"a": 3, "b": 2}, version=1)
  store.publish(1, _PARAMS, {"cursor": {"a": 2}})
  assert store.taken() == {"a": 4, "b": 2}


def test_what_a_killed_writer_had_begun_goes_with_its_folder(tmp_path):
  kv = KeyValue(tmp_path.as_uri())
  kv.put("params/v1/w", b"x")
  (tmp_path / "params/v1/w.1234.__lock").write_bytes(b"half")
  kv.delete_span("params/v1/")
  assert not (tmp_path / "params/v1").exists()


def test_no_name_leaves_the_runs_prefix(tmp_path, make_rollout):
  outside = tmp_path / "outside"
  outside.write_bytes(b"mine")
  store = Store.open(f"{tmp_path.as_uri()}/run/", run="r", create=True)
  for name in ("..", "../x", "a/../../x", "/etc", "a\x00b", "a" * 300, "\u0430"):
    for use in (store.claim, store.heartbeat, store.next_seq, store.quarantined):
      with pytest.raises(ValueError, match="cannot name a writer"):
        use(name)
    with pytest.raises(ValueError, match="cannot name a writer"):
      store.put_rollout(name, 0, make_rollout())
  manifest = store.publish(0, _PARAMS, {})
  described = manifest.arrays["scale"]
  for name in ("../../../outside", "a/../../../../outside"):
    lying = dataclasses.replace(manifest, arrays={name: described})
    with pytest.raises(StoreError):
      store.read_params(lying)
  with pytest.raises(StoreError):
    store.kv.put("../outside", b"theirs")
  assert outside.read_bytes() == b"mine"


def test_a_full_disk_is_said(tmp_path):
  script = _ON_A_SMALL_DISK.format(folder=tmp_path)
  done = subprocess.run(
    ["unshare", "-rm", "sh", "-c", script, sys.executable],
    capture_output=True,
    text=True,
  )
  if "unshare" in done.stderr or "mount" in done.stderr:
    pytest.skip(f"no file system of one's own here: {done.stderr.strip()[:80]}")
  assert done.stdout.strip() == "StoreFullError", done.stderr


_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=200k none {folder} || exit 1
exec "$0" -c "
from tis_jax.store import StoreError
from tis_jax.store.keyvalue import KeyValue
kv = KeyValue('file://{folder}/run/')
try:
  kv.put('a', bytes(1 << 20))
except StoreError as error:
  assert 'there is no room left: make some' in str(error), error
  print(type(error).__name__)
"
"""


def test_no_folder_of_a_deleted_version_is_left(tmp_path):
  store = Store.open(f"{tmp_path.as_uri()}/run/", run="r", create=True)
  for version in range(4):
    store.publish(version, _PARAMS, {})
    store.delete_params(keep=2)
  folders = sorted(path.name for path in (tmp_path / "run" / "params").iterdir())
  assert folders == ["LATEST", "v0000000002", "v0000000003"]


@pytest.mark.parametrize(
  "change",
  [
    {"shape": [10**9, 10**9]},
    {"shape": [-1]},
    {"shape": ["3"]},
    {"dtype": "object"},
    {"dtype": "V8,O"},
    {"checksums": "x"},
    {"unknown": 1},
  ],
  ids=str,
)
def test_a_manifest_that_lies_is_refused(store, change):
  manifest = store.publish(0, _PARAMS, {})
  arrays = manifest.arrays | {"embedding": manifest.arrays["embedding"] | change}
  lying = dataclasses.replace(manifest, arrays=arrays)
  text = json.dumps(dataclasses.asdict(lying)).encode()
  store.kv.put("params/v0000000000/manifest", text)
  reader = Store.open(store.url)
  with pytest.raises(StoreError, match="manifest"):
    reader.read_params(reader.latest())
