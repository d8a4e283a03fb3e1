"""The store on a server that speaks S3's protocol, in a process of its own."""

import http.server
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

from tis_jax.store import (
  NoRolloutsError,
  RolloutReader,
  RolloutWriter,
  Store,
  StoreError,
  StoreUnreachableError,
  WrongRunError,
)
from tis_jax.store.keyvalue import KeyValue
from tis_jax.store.params import move_latest

pytestmark = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("moto", "flask"))),
  reason="needs moto[server], of the extra `test`, as the S3 server",
)

_PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


class Server:
  """A running S3 server, and the log of its requests."""

  def __init__(self, log, **environment):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self.port = free.getsockname()[1]
    self._log = log
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1"]
    with log.open("wb") as file:
      self._process = subprocess.Popen(
        [*command, "-p", str(self.port)],
        stdout=file,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
      )

  def wait(self):
    deadline = time.monotonic() + 120
    while True:
      try:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
          return
      except OSError:
        assert self._process.poll() is None, self._log.read_text()
        assert time.monotonic() < deadline, "the S3 server does not answer"
        time.sleep(0.1)

  def end(self):
    os.kill(self._process.pid, signal.SIGTERM)
    self._process.wait(30)

  def make_bucket(self, name):
    request = urllib.request.Request(
      f"http://127.0.0.1:{self.port}/{name}", method="PUT"
    )
    urllib.request.urlopen(request).close()

  def url(self, bucket):
    return f"s3+http://127.0.0.1:{self.port}/{bucket}/runs/a/"

  def requests(self):
    return self._log.read_text().count(" HTTP/1.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  server = Server(tmp_path_factory.mktemp("s3") / "log")
  try:
    server.wait()
    yield server
  finally:
    server.end()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")


def test_a_run_on_an_s3_server_is_the_same_as_on_disk(server, make_rollout):
  server.make_bucket("whole")
  url = server.url("whole")
  store = Store.open(url, run="r", create=True, config={"a": 1})
  store.publish(0, _PARAMS, {"cursor": {}})
  sampler = Store.open(url)
  np.testing.assert_array_equal(
    sampler.read_params(sampler.latest())["w"], _PARAMS["w"]
  )
  assert [sampler.claim("w"), sampler.claim("w")] == [1, 2]
  for seq in range(3):
    sampler.put_rollout("w", seq, make_rollout())
  assert [r.header.seq for r in RolloutReader(store).take(3, 0)] == [0, 1, 2]
  store.publish(1, _PARAMS, {"cursor": {"w": 3}})
  assert sampler.latest(if_newer_than=0).cursor == {"w": 3}
  store.delete_rollouts({"w": 3})
  assert store.kv.keys("rollouts/") == []
  again = Store.open(url, run="r", create=True)
  assert (again.incarnation, again.config) == (2, {"a": 1})
  store.stop("late")
  assert sampler.stopped() is None
  again.stop("the end")
  assert sampler.stopped() == "the end"


def test_an_s3_servers_url_names_a_bucket():
  for url in ("s3+http://127.0.0.1:9000/", "s3+https:///bucket/run"):
    with pytest.raises(StoreUnreachableError, match="HOST:PORT/BUCKET/PREFIX"):
      KeyValue(url)


@pytest.mark.parametrize(
  "write",
  [
    lambda url: Store.open(url, run="r", create=True),
    lambda url: move_latest(KeyValue(url), 0),
    lambda url: Store(
      KeyValue(url), {"run": "r", "incarnation": 1, "config": {}}
    ).claim("w"),
    lambda url: KeyValue(url).create("k", b"v"),
    lambda url: KeyValue(url).put("k", b"v"),
    lambda url: Store.open(url),
  ],
  ids=["create", "move_latest", "claim", "create_key", "put", "open"],
)
def test_a_missing_bucket_is_said_in_a_sentence_after_few_requests(server, write):
  url, before = server.url("missing"), server.requests()
  with pytest.raises(StoreUnreachableError) as raised:
    write(url)
  said = f"store {url}: its bucket does not exist; create it, or mend the URL"
  assert str(raised.value) == said
  assert 0 < server.requests() - before < 25


def test_refused_credentials_are_named_for_reading_and_for_writing(tmp_path):
  # One request makes the bucket, one finds it; whoever asks then must be known.
  server = Server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="2")
  try:
    server.wait()
    server.make_bucket("guarded")
    kv = KeyValue(server.url("guarded"))
    for use in (lambda: kv.get("k"), lambda: kv.put("k", b"v"), lambda: kv.keys("a/")):
      with pytest.raises(
        StoreUnreachableError, match="AWS_ACCESS_KEY_ID and"
      ) as raised:
        use()
      assert "refused to these credentials" in str(raised.value)
      assert "InvalidAccessKeyId" in str(raised.value)
  finally:
    server.end()


def test_an_existing_bucket_without_a_run_is_told_from_a_missing_one(server):
  server.make_bucket("empty")
  with pytest.raises(WrongRunError, match="holds no run"):
    Store.open(server.url("empty"))


class _Refusing(http.server.BaseHTTPRequestHandler):
  """A bucket that is there, is empty, and refuses every conditional write."""

  def do_HEAD(self):
    self._answer(200 if self.path.count("/") == 1 else 404)

  def do_GET(self):
    listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
    self._answer(*((200, listing) if "list-type" in self.path else (404,)))

  def do_PUT(self):
    self.rfile.read(int(self.headers["Content-Length"]))
    self._answer(412)

  def _answer(self, code, body=b""):
    self.send_response(code)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args):
    pass


def test_writes_refused_though_nobody_else_won_are_not_retried_for_ever():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    url = f"s3+http://127.0.0.1:{server.server_port}/bucket/run/"
    with pytest.raises(StoreError, match="refused, though nobody else") as raised:
      Store.open(url, run="r", create=True)
    assert url in str(raised.value)
  finally:
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_waiting_costs_few_requests(server, make_rollout):
  """Of a learner and of a sampler, each on its own, once it has waited a little."""
  server.make_bucket("waiting")
  url = server.url("waiting")
  store = Store.open(url, run="r", create=True, config={"capacity": 1})
  store.publish(0, _PARAMS, {"cursor": {}})
  store.put_rollout("w", 0, make_rollout())
  reader = RolloutReader(store)
  reader.take(1, 0)

  def rate(wait):
    waiting = threading.Thread(target=wait, args=(6.0,))
    waiting.start()
    time.sleep(2.0)
    before = server.requests()
    time.sleep(3.5)
    count = server.requests() - before
    waiting.join()
    return count / 3.5

  def learn(seconds):
    with pytest.raises(NoRolloutsError):
      reader.take(1, 0, timeout=seconds)

  def sample(seconds):
    with RolloutWriter(Store.open(url), "w", capacity=0) as writer:
      threading.Timer(seconds, store.stop, ["enough"]).start()
      assert list(writer.turns()) == []

  # Before: 24 and 10.
  assert rate(learn) < 2
  assert rate(sample) < 4
