"""A server that is started here ends with whoever started it, workers and all."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tis_jax.engines.served import EngineDownError, EngineError
from tis_jax.engines.served.http import Client
from tis_jax.engines.served.process import ServerProcess, free_port

# Answers GET /, and has a worker that does not care what becomes of it.
_SERVER = """
import http.server, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200)
    self.send_header("Content-Length", "2")
    self.end_headers()
    self.wfile.write(b"{}")
  def log_message(self, *_):
    pass

address = "127.0.0.1", int(sys.argv[1])
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def ready(port):
  def ask():
    try:
      Client(f"http://127.0.0.1:{port}").get("/")
    except EngineDownError:
      return False
    return True

  return ask


def alive(pid):
  """Whether there is such a process, and it is not only waiting to be buried."""
  try:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False


def gone(pid, seconds=20):
  deadline = time.monotonic() + seconds
  while alive(pid) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not alive(pid)


def started(tmp_path):
  port = free_port()
  log = tmp_path / "logs" / "server.log"
  server = ServerProcess([sys.executable, "-c", _SERVER, str(port)], {}, log)
  server.start(ready(port), 60)
  return server, int(log.read_text().split()[1])


def test_it_ends_with_its_workers(tmp_path):
  server, worker = started(tmp_path)
  assert server.alive and alive(worker)
  server.stop()
  assert not server.alive and gone(worker)


def test_the_workers_of_one_that_died_end_too(tmp_path):
  server, worker = started(tmp_path)
  os.kill(server._process.pid, signal.SIGKILL)
  server._process.wait()
  assert not server.alive and alive(worker)
  server.stop()
  assert gone(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it on Linux only")
def test_it_does_not_outlive_a_process_that_was_killed(tmp_path):
  port = free_port()
  parent = textwrap.dedent(
    f"""
    import sys, time
    sys.path.insert(0, {str(Path(__file__).parents[2])!r})
    from pathlib import Path
    from tis_jax.engines.served.process import ServerProcess
    command = [sys.executable, "-c", {_SERVER!r}, "{port}"]
    server = ServerProcess(command, {{}}, Path({str(tmp_path)!r}) / "server.log")
    server.start(lambda: True, 60)
    print(server._process.pid, flush=True)
    time.sleep(600)
    """
  )
  process = subprocess.Popen(
    [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
  )
  pid = int(process.stdout.readline())
  while not ready(port)():
    time.sleep(0.05)
  process.kill()
  process.wait()
  try:
    assert gone(pid)
  finally:
    os.killpg(pid, signal.SIGKILL)  # Its worker does not care.


def test_what_does_not_start_is_said_with_its_last_words(tmp_path):
  log = tmp_path / "server.log"
  code = "print('ValueError: no such model'); [print('at', i) for i in range(99)]"
  log.write_text("OSError: of an earlier start\n")
  server = ServerProcess([sys.executable, "-c", code], {}, log)
  with pytest.raises(
    EngineDownError, match=r"(?s)ValueError: no such model.*at 98$"
  ) as e:
    server.start(lambda: False, 60)
  assert "earlier" not in str(e.value) and "at 50" not in str(e.value)
  slow = ServerProcess([sys.executable, "-c", "import time; time.sleep(99)"], {}, log)
  with pytest.raises(EngineDownError, match="was not ready after 0 s"):
    slow.start(lambda: False, 0.2)
  assert not slow.alive
  with pytest.raises(EngineError, match="there is no program /nowhere/python"):
    ServerProcess(["/nowhere/python"], {}, log).start(lambda: False, 1)
