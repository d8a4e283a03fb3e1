"""A run for samplers to serve, in this process's memory."""

import contextlib
import dataclasses
import secrets
import threading

import jax
import pytest

from tis_jax import models
from tis_jax.sampler import Assignment, SamplerSettings, run_sampler
from tis_jax.store import Store


@pytest.fixture(scope="session")
def assignment():
  return Assignment(
    model="builtin:arithmetic",
    task="gsm8k_steps",
    task_options={},
    max_prompt_tokens=8,
    seed=0,
    capacity=2,
    sampler=SamplerSettings(prompts_per_record=4, group_size=2, max_new_tokens=5),
  )


@pytest.fixture(scope="session")
def params(assignment):
  """The base policy as a learner publishes it."""
  _, params, _ = models.load(assignment.model)
  return jax.device_get(models.flatten(models.cast(params, "bfloat16")))


@pytest.fixture(scope="session")
def open_run(assignment, params):
  """`open_run(capacity=1, sampler={"count": 2})`: a store with version 0 in it."""

  def open_run(url=None, sampler=None, **changes):
    sampler = dataclasses.replace(assignment.sampler, **sampler or {})
    config = dataclasses.replace(assignment, sampler=sampler, **changes).to_json()
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
      assert ended, "the sampler goes on though the store says stop"
      store.kv.delete("stop")

  return serving
