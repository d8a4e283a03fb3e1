"""Where an engine's server listens: one that is started here, or one that is found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tis_jax.engines.served.errors import EngineDownError, EngineError
from tis_jax.engines.served.http import Client
from tis_jax.engines.served.process import ServerProcess, free_port


class Endpoint:
  """One server over HTTP, this process's own or somebody else's.

  Attributes:
    client: speaks to it.
    port: that a server of this process's own is to listen on; 0 for one that is found.
    process: the server, once it was started here.

  Args:
    program: starts it; "" to find it at `url`.
    url: of a server that runs already.
    needs: what is said where neither is given.

  Raises:
    EngineError: neither a program nor a URL.
  """

  def __init__(self, program: str, url: str, needs: str):
    if not program and not url:
      raise EngineError(needs)
    self.port = free_port() if program else 0
    self.client = Client(f"http://127.0.0.1:{self.port}" if program else url)
    self.process: ServerProcess | None = None

  @property
  def must_start(self) -> bool:
    """Whether it is this process's own, and not there."""
    return self.port > 0 and (self.process is None or not self.process.alive)

  def start(
    self,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    seconds: float,
  ) -> None:
    """Starts it, in the place of one that was started before.

    Raises:
      EngineError, EngineDownError: see `ServerProcess.start`.
    """
    self.stop()
    self.process = ServerProcess(command, environment, log)
    self.process.start(self._ready, seconds)

  def stop(self) -> None:
    """Ends it, if it was started here."""
    if self.process is not None:
      self.process.stop()

  def _ready(self) -> bool:
    try:
      self.client.get("/health")
    except EngineDownError:
      return False  # Or 503, while it loads.
    return True
