"""Prompts that a writer has passed over: begun, and in no record yet.

A writer walks through its task's prompts, draw by draw, and a record holds the next n
of them. One that hands over groups as they are finished leaves some behind: record
`seq` then begins with these draws left, and with all below `seq * n + len(left)` begun.

```
walks/<writer>/<seq:010d>     JSON: the draws left before record `seq`
```

It is written before record `seq - 1` is, which appears whole or not at all: whatever
dies between the two, the next number of the sequence finds the draws that belong to it.
Where there is no such key nothing is left: the writer hands over its draws in order.
"""

import json
from collections.abc import Sequence

from tis_jax.store.store import Store, check_writer


def read_left(store: Store, writer: str, seq: int) -> tuple[int, ...]:
  """The draws that were left before record `seq`.

  >>> store = Store.open("memory://doctest-walks", create=True)
  >>> write_left(store, "a", 3, [4, 7])
  >>> read_left(store, "a", 3), read_left(store, "a", 4)
  ((4, 7), ())
  """
  found = store.kv.get(_key(writer, seq)).value
  return () if found is None else tuple(json.loads(found)["left"])


def write_left(store: Store, writer: str, seq: int, left: Sequence[int]) -> None:
  """Says what will be left before record `seq`; before record `seq - 1` is written."""
  value = json.dumps({"left": list(left)}).encode()
  store.kv.put(_key(writer, seq), value)


def delete_left(store: Store, writer: str, below: int) -> None:
  """Deletes what was said of records below a number, once it is the next."""
  store.kv.delete_span(f"walks/{check_writer(writer)}/", f"{below:010d}")


def _key(writer: str, seq: int) -> str:
  return f"walks/{check_writer(writer)}/{seq:010d}"
