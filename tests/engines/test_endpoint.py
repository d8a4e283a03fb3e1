"""A server that is started here and one that is found, seen from the same side."""

import os
import signal
import sys

import pytest

from tis_jax.engines.served import VLLM, EngineDownError, EngineError, LlamaCpp
from tis_jax.engines.served.endpoint import Endpoint

_SERVER = """
import http.server, sys

class Healthy(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200)
    self.end_headers()
    self.wfile.write(b'{"pid": %d}' % __import__("os").getpid())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def start(endpoint, tmp_path):
  command = [sys.executable, "-c", _SERVER, str(endpoint.port)]
  endpoint.start(command, {}, tmp_path / "server.log", 60)
  return endpoint.client.get("/")["pid"]


def test_its_own_server_is_started_again_where_it_is_not_there(tmp_path):
  endpoint = Endpoint("python", "", "nothing is given")
  assert endpoint.must_start
  first = start(endpoint, tmp_path)
  assert not endpoint.must_start
  os.kill(first, signal.SIGKILL)
  endpoint.process._process.wait()
  assert endpoint.must_start
  second = start(endpoint, tmp_path)
  found = Endpoint("", endpoint.client.url, "nothing is given")
  assert not found.must_start and found.client.get("/") == {"pid": second}
  found.stop()  # Somebody else's: it stays.
  assert start(endpoint, tmp_path) not in (first, second)
  endpoint.stop()
  assert endpoint.must_start
  with pytest.raises(EngineDownError):
    endpoint.client.get("/health")


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda folder: VLLM(None, dtype="float32", folder=folder, max_length=8), "vllm"),
    (
      lambda folder: LlamaCpp(
        None, folder, precision="int8", folder=folder, max_length=8
      ),
      "llama",
    ),
  ],
)
def test_an_engine_that_nobody_named_says_how_it_is_had(make, words, tmp_path):
  with pytest.raises(EngineError, match=rf"make {words} builds one"):
    make(tmp_path)
