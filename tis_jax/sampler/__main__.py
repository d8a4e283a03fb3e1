"""Starts one sampler: `python -m tis_jax.sampler --store=URL --name=NAME`."""

import signal
import sys

from absl import app, flags

from tis_jax.sampler.process import run_sampler
from tis_jax.store import StoreError

_STORE = flags.DEFINE_string("store", None, "URL of the run's store")
_NAME = flags.DEFINE_string("name", None, "of this sampler; one at a time may have it")
_PARENT = flags.DEFINE_integer("parent", None, "end when this process is gone")


def main(_):
  # A record appears whole or not at all, so ending anywhere does no harm.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
  store, name = _STORE.value, _NAME.value
  assert store is not None and name is not None, "`run` requires both"
  try:
    run_sampler(store, name, _PARENT.value)
  except StoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")


def run():
  """The command line."""
  flags.mark_flags_as_required(["store", "name"])
  app.run(main)


if __name__ == "__main__":
  run()
