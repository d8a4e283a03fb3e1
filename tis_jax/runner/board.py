"""What the processes of a learner write for each other to read.

It lies in JAX's coordination service, which hosts reach beside whatever their devices
compute; it ends with process 0.
"""

import json
from collections.abc import Callable
from typing import Any

# The one part of JAX that hosts can talk through without their devices; Orbax takes it
# from there, too.
from jax._src import distributed
from jax.errors import JaxRuntimeError

_LOOK_SECONDS = 0.2
# Compilation is waited for; a process that never comes ends the others before that.
_MEET_SECONDS = 24 * 3600


class Board:
  """JSON by key, seen by all processes; after `join_processes`.

  Every method raises JaxRuntimeError where process 0 is gone.

  Attributes:
    index: of this process.
    count: of all.
  """

  def __init__(self):
    state = distributed.global_state
    self.index, self.count = state.process_id, state.num_processes
    self._client: Any = state.client

  def put(self, key: str, value: Any) -> None:
    """Writes a value, in place of one that was there."""
    text = json.dumps(value)
    self._client.key_value_set(f"tis/{key}", text, allow_overwrite=True)

  def delete(self, key: str) -> None:
    """Deletes a value, if it is there."""
    self._client.key_value_delete(f"tis/{key}")

  def get(self, key: str, while_waiting: Callable[[], None]) -> Any:
    """A value; waits for it.

    Args:
      key: of it.
      while_waiting: called again and again until it is there; may raise.
    """
    milliseconds = int(_LOOK_SECONDS * 1000)
    while True:
      while_waiting()
      try:
        text = self._client.blocking_key_value_get(f"tis/{key}", milliseconds)
        return json.loads(text)
      except JaxRuntimeError as error:
        if not str(error).startswith("DEADLINE_EXCEEDED"):
          raise

  def of_each(self, kind: str) -> dict[int, Any]:
    """The values of the keys `kind/NUMBER`, by number; of those that are there."""
    found = self._client.key_value_dir_get(f"tis/{kind}/")
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

  def meet(self, name: str) -> None:
    """Waits until all processes are here; each name serves once."""
    self._client.wait_at_barrier(f"tis/{name}", _MEET_SECONDS * 1000)
