"""Samplers that are killed, records that are damaged, locks that nobody holds."""

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from tis_jax.engines import NativeSettings
from tis_jax.sampler import Assignment, Fleet
from tis_jax.sampler.worker import build
from tis_jax.store import Header, Rollout, RolloutReader, Sampling, Store, encode
from tis_jax.store.walks import read_left
from tis_jax.tasks import prompt_order

pytestmark = pytest.mark.chaos


def alive(pid):
  """Whether a process runs; one that ended and was not waited for does not."""
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"


def wait_until(condition, seconds):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "nothing happened"
    time.sleep(0.05)


def test_killed_samplers_and_damaged_records_cost_nothing_else(open_run, tmp_path):
  store = open_run(url=f"{tmp_path.as_uri()}/store/", capacity=8, sampler={"count": 2})
  events = []
  fleet = Fleet(store.url, 2, tmp_path / "logs", on_event=events.append)
  fleet.start()
  reader = RolloutReader(store)
  records = []

  def take_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
      assert time.monotonic() < deadline, "nothing happened"
      records.extend(reader.take(1, 0, timeout=300, while_waiting=fleet.check))
      store.release(reader.cursor)
      fleet.check()

  try:
    take_until(lambda: min(map(reader.cursor.get, ("local0", "local1"), (0, 0))) > 2)
    os.kill(store.heartbeats()["local0"]["pid"], signal.SIGKILL)
    # What lies there unread is damaged on disk, and a lock is left by the dead.
    folder = tmp_path / "store" / "rollouts" / "local1"
    wait_until(lambda: store.next_seq("local1") > reader.cursor["local1"] + 1, 60)
    unread = sorted(folder.glob("[0-9]*"))[-1]
    os.truncate(unread, unread.stat().st_size // 2)
    dead = store.next_seq("local0")
    lock = tmp_path / "store" / "rollouts" / "local0" / f"{dead:010d}.__lock"
    lock.write_bytes(b"half a record")
    take_until(lambda: reader.cursor["local0"] > dead + 5)
  finally:
    store.stop("enough")
    fleet.stop()
  assert any("local0 died by signal 9" in event for event in events)
  assert events.count("sampler local0 started again") == 1
  assert not any("local1" in event for event in events)
  assert reader.quarantined == {"truncated": 1}
  assert reader.lost == set()
  for writer in ("local0", "local1"):
    own = [record for record in records if record.header.writer == writer]
    seqs = [record.header.seq for record in own]
    aside = store.quarantined(writer)
    assert sorted(seqs + aside) == list(range(len(seqs) + len(aside)))
    # Well inside the first walk over the 5,541 prompts, and across the restart.
    prompts = np.concatenate([record.prompt_ids[::2] for record in own[:1000]])
    assert len(set(prompts.tolist())) == len(prompts)


def test_samplers_end_when_the_learner_is_killed(open_run, tmp_path):
  store = open_run(url=f"{tmp_path.as_uri()}/store/")
  learner = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import sys, time; from pathlib import Path; from tis_jax.sampler import Fleet\n"
      "fleet = Fleet(sys.argv[1], 1, Path(sys.argv[2]))\n"
      "fleet.start(); time.sleep(600)",
      store.url,
      str(tmp_path / "logs"),
    ],
  )
  try:
    RolloutReader(store).take(2, 0, timeout=300)
    pid = store.heartbeats()["local0"]["pid"]
    assert alive(pid)
  finally:
    learner.kill()
    learner.wait()
  wait_until(lambda: not alive(pid), 60)
  log = (tmp_path / "logs" / "local0.log").read_text()
  assert "that started this one is gone" in log


def test_a_sampler_ends_on_sigterm_and_its_name_is_free_again(open_run, tmp_path):
  store = open_run(url=f"{tmp_path.as_uri()}/store/")
  command = [sys.executable, "experiments/sample.py", f"--store={store.url}"]
  sampler = subprocess.Popen(
    [*command, "--name=guest"], stderr=subprocess.PIPE, text=True
  )
  reader = RolloutReader(store)
  reader.take(2, 0, timeout=300)
  sampler.terminate()
  assert "ended by SIGTERM" in sampler.communicate(timeout=60)[1]
  assert store.heartbeats()["guest"]["state"] == "ended"
  assert store.next_seq("guest") == 2


def test_a_sampler_that_is_killed_with_answers_under_way_begins_them_again(
  open_run, tmp_path, params
):
  native = NativeSettings(slots=4, interrupt_after=2)
  store = open_run(
    url=f"{tmp_path.as_uri()}/store/", capacity=4, sampler={"native": native}
  )
  fleet = Fleet(store.url, 1, tmp_path / "logs")
  fleet.start()
  reader, records, version = RolloutReader(store), [], 0
  try:
    for killed in range(3):
      for _ in range(12):
        records += reader.take(1, version, timeout=300, while_waiting=fleet.check)
        version += 1
        store.publish(version, params, {"cursor": reader.cursor})
        store.delete_params(keep=2)
        store.delete_rollouts(reader.cursor)
      if killed < 2:
        os.kill(store.heartbeats()["local0"]["pid"], signal.SIGKILL)
  finally:
    store.stop("enough")
    fleet.stop()
  records += reader.take(store.next_seq("local0") - len(records), version)
  left = read_left(store, "local0", len(records))
  assert [record.header.seq for record in records] == list(range(len(records)))
  # All of the first draws of the walk, each in one record or left.
  seed = zlib.crc32(b"0/local0")
  ids = build(Assignment.from_json(store.config))[1].ids
  order = ids[prompt_order(len(ids), seed, 0, 4 * len(records) + len(left))].tolist()
  found = np.concatenate([record.prompt_ids[::2] for record in records]).tolist()
  assert sorted(found + [order[draw] for draw in left]) == sorted(order)
  assert store.claim("local0") == 4 and not reader.quarantined
  spread = [
    len(set(v[m])) for r in records for v, m in zip(r.versions, r.mask, strict=True)
  ]
  assert max(spread) > 1


_WRITE_FOREVER = """
import sys
from tis_jax.store import Store, decode
store = Store.open(sys.argv[1])
record = decode(open(sys.argv[2], "rb").read())
seq = store.next_seq("w")
print("writing", flush=True)
while True:
  store.put_rollout("w", seq, record)
  seq += 1
"""


def test_records_are_whole_or_absent_when_a_writer_is_killed(open_run, tmp_path):
  url = f"{tmp_path.as_uri()}/store/"
  store = open_run(url=url)
  rows, length = 512, 256
  floats = np.zeros((rows, length), np.float32)
  ints, flags = floats.astype(np.int32), np.ones((rows, length), bool)
  one = np.zeros(rows, np.int32)
  record = Rollout(
    prompts=ints,
    prompt_mask=flags,
    tokens=ints,
    mask=flags,
    sampler_logp=floats - 0.5,
    versions=ints,
    rewards=np.zeros(rows, np.float32),
    group_ids=one,
    prompt_ids=one,
    finish_reasons=one.astype(np.int8),
    header=Header(0, Sampling()),
  )
  (tmp_path / "record").write_bytes(encode(record))
  rng = np.random.default_rng(0)
  for _ in range(5):
    writer = subprocess.Popen(
      [sys.executable, "-c", _WRITE_FOREVER, url, str(tmp_path / "record")],
      stdout=subprocess.PIPE,
      text=True,
    )
    assert writer.stdout.readline() == "writing\n"
    time.sleep(float(rng.uniform(0.1, 1.0)))
    writer.kill()
    writer.wait()
  reader = RolloutReader(Store.open(url))
  head = store.next_seq("w")
  assert head > 5
  assert [r.header.seq for r in reader.take(head, 0)] == list(range(head))
  assert not reader.quarantined
