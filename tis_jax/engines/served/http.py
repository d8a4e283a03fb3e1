"""JSON over HTTP, with the standard library, from several threads at once."""

import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit

from tis_jax.engines.served.errors import (
  EngineAnswerError,
  EngineDownError,
  EngineRefusedError,
)

_SHOWN = 400


class Client:
  """One server. Each thread keeps a connection of its own.

  Attributes:
    url: `http://HOST:PORT`.

  Args:
    url: of the server.
    timeout: seconds without a byte, after which it counts as down.

  Raises:
    ValueError: not the URL of an HTTP server.
  """

  def __init__(self, url: str, timeout: float = 600.0):
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"{url!r} is not http://HOST:PORT")
    self.url, self._timeout = url.rstrip("/"), timeout
    https = parts.scheme == "https"
    self._kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
    self._address, self._prefix = parts.netloc, parts.path.rstrip("/")
    self._mine = threading.local()

  def post(self, path: str, body: Any = None) -> Any:
    """What the server answers to `body`, both as JSON; None to an empty answer.

    Raises:
      EngineDownError: it does not answer, or says that it cannot (5xx).
      EngineRefusedError: it will not (4xx); the message has its words.
      EngineAnswerError: it answers with something that is not JSON.
    """
    return self._call("POST", path, json.dumps({} if body is None else body))

  def get(self, path: str) -> Any:
    """Like `post`, without a body."""
    return self._call("GET", path, None)

  def _call(self, method: str, path: str, body: str | None) -> Any:
    headers = {} if body is None else {"Content-Type": "application/json"}
    fresh = False
    while True:
      connection = getattr(self._mine, "connection", None)
      if connection is None:
        fresh = True
        connection = self._kind(self._address, timeout=self._timeout)
        self._mine.connection = connection
      try:
        connection.request(method, self._prefix + path, body, headers)
        response = connection.getresponse()
        data = response.read()
        break
      except (OSError, http.client.HTTPException) as error:
        connection.close()
        self._mine.connection = None
        # A connection that was kept may have been closed meanwhile: once more, anew.
        if fresh or isinstance(error, TimeoutError):
          raise EngineDownError(
            f"{self.url}{path} does not answer: {type(error).__name__}: {error}"
          ) from error
    if response.status >= 400:
      words = data.decode(errors="replace")[:_SHOWN]
      # 5xx is the server's own trouble: vLLM says so when its engine has died.
      error = EngineDownError if response.status >= 500 else EngineRefusedError
      raise error(f"{self.url}{path}: HTTP {response.status}: {words}")
    try:
      return json.loads(data) if data.strip() else None
    except ValueError as error:
      raise EngineAnswerError(
        f"{self.url}{path} answers {data[:60]!r}, which is not JSON"
      ) from error
