"""A run for samplers to serve, in this process's memory."""

import contextlib
import dataclasses
import secrets
import threading

import jax
import pytest

from tis_jax import models
from tis_jax.sampler import Settings, run_sampler
from tis_jax.store import Store


@pytest.fixture(scope="session")
def settings():
  return Settings(
    model="builtin:arithmetic",
    task="gsm8k_steps",
    task_options={},
    precision="bfloat16",
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    prompts_per_record=4,
    group_size=2,
    max_prompt_tokens=8,
    max_new_tokens=5,
    capacity=2,
    seed=0,
  )


@pytest.fixture(scope="session")
def params(settings):
  """The base policy as a learner publishes it."""
  _, params, _ = models.load(settings.model)
  return jax.device_get(models.flatten(models.cast(params, "bfloat16")))


@pytest.fixture(scope="session")
def open_run(settings, params):
  """`open_run(**settings)`: a store with version 0 in it."""

  def open_run(url=None, **changes):
    config = dataclasses.asdict(dataclasses.replace(settings, **changes))
    url = url or f"memory://{secrets.token_hex(4)}"
    store = Store.open(url, run="r", create=True, config=config)
    store.publish(0, params, {"cursor": {}})
    return store

  return open_run


@pytest.fixture(scope="session")
def serving():
  """`with serving(store) as ended`: a sampler in a thread; why it ended, afterwards."""

  @contextlib.contextmanager
  def serving(store, name="a"):
    ended = []
    thread = threading.Thread(
      target=lambda: ended.append(run_sampler(store.url, name)), daemon=True
    )
    thread.start()
    try:
      yield ended
    finally:
      store.stop("enough")
      thread.join(60)
      store.kv.delete("stop")

  return serving
