"""What a finished run leaves in memory: nothing that nobody needs."""

import shutil
from collections.abc import Collection

from tis_jax.store.location import default_folders, remove_empty_folders
from tis_jax.store.store import Store, rollout_key

# Samplers elsewhere on this machine, that have not yet seen that the run has ended.
_FRESH_SECONDS = 10.0


def clear(
  store: Store,
  needed: Collection[tuple[str, int]] = (),
  gone: Collection[str] = (),
) -> list[str]:
  """Empties the store of a finished run, and what its engines left beside it.

  Records that were set aside stay, and so do those that a longer run would begin with.

  Args:
    store: of the run, in the place that `default_url` gave it.
    needed: (writer, sequence number) of records to keep.
    gone: writers that are known to have ended, whatever they said last.

  Returns:
    Sentences on what stays; none where nothing does.

  >>> store = Store.open("memory://doctest-clear", run="demo", create=True)
  >>> store.heartbeat("a", state="ended")
  >>> store.kv.put_many({rollout_key("a", 0): b"", rollout_key("a", 1): b""})
  >>> clear(store, {("a", 1)})
  ['store    memory://doctest-clear/ keeps 1 record for a longer run']
  >>> store.kv.keys("rollouts/"), store.kv.keys("heartbeats/")
  (['rollouts/a/0000000001'], [])
  """
  living = [
    name
    for name, beat in store.heartbeats(_FRESH_SECONDS).items()
    if beat.get("state") != "ended" and name not in gone
  ]
  if living:
    return [f"store    {store.url} stays: {', '.join(living)} may still write to it"]
  for parent in default_folders():
    for folder in (parent / "engines").glob(f"{store.run}-*"):
      shutil.rmtree(folder, ignore_errors=True)
  keep = {rollout_key(writer, seq) for writer, seq in needed}
  aside = store.kv.keys("quarantine/")
  for prefix in ("rollouts/", "params/", "heartbeats/", "claims/"):
    for key in store.kv.keys(prefix):
      if key not in keep:
        store.kv.delete(key)
  if not keep and not aside:
    for key in ("cursor", "stop", "run"):
      store.kv.delete(key)
  remove_empty_folders(store.url)
  if not keep and not aside:
    return []
  records = "1 record" if len(keep) == 1 else f"{len(keep)} records"
  kept = [f"{records} for a longer run"] if keep else []
  if aside:
    kept.append(
      f"{sum(not key.endswith('.json') for key in aside)} that were set aside"
    )
  return [f"store    {store.url} keeps {' and '.join(kept)}"]
