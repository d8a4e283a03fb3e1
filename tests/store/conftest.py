"""Rollouts and stores to try things on."""

import itertools

import numpy as np
import pytest

from tis_jax.store import Header, Rollout, Sampling, Store

_stores = itertools.count()


def build_rollout(rows=4, prompt=3, length=5, version=0, seed=0, **changes) -> Rollout:
  """A plausible rollout with garbage wherever the masks allow it."""
  rng = np.random.default_rng(seed)
  prompt_lengths = rng.integers(1, prompt + 1, rows)
  lengths = rng.integers(1, length + 1, rows)
  mask = np.arange(length) < lengths[:, None]
  logp = np.where(mask, -rng.exponential(size=(rows, length)), np.nan)
  fields = {
    "prompts": rng.integers(0, 19, (rows, prompt)).astype(np.int32),
    "prompt_mask": np.arange(prompt) >= prompt - prompt_lengths[:, None],
    "tokens": np.where(mask, rng.integers(0, 19, (rows, length)), -7).astype(np.int32),
    "mask": mask,
    "sampler_logp": logp.astype(np.float32),
    "versions": np.where(mask, version, 10**6).astype(np.int32),
    "rewards": rng.random(rows).astype(np.float32),
    "group_ids": (np.arange(rows) // 2).astype(np.int32),
    "prompt_ids": rng.integers(0, 1000, rows).astype(np.int32),
    "finish_reasons": rng.integers(0, 2, rows).astype(np.int8),
    "header": Header(version, Sampling(dtype="bfloat16")),
  }
  return Rollout(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  """Readers look for new writers often, so that no test waits for it."""
  monkeypatch.setattr("tis_jax.store.reader._DISCOVERY_SECONDS", 0.02)


@pytest.fixture(scope="session")
def make_rollout():
  return build_rollout


@pytest.fixture(params=["memory", "file"])
def store_url(request, tmp_path):
  """A fresh place, once in this process's memory and once on disk."""
  if request.param == "memory":
    return f"memory://test-{next(_stores)}/"
  return f"{tmp_path.as_uri()}/store/"


@pytest.fixture
def store(store_url):
  return Store.open(store_url, run="r", create=True)
