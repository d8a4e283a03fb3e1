"""Stores to try things on."""

import itertools

import pytest

from tis_jax.store import Store

_stores = itertools.count()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  """Readers look for new writers often, so that no test waits for it."""
  monkeypatch.setattr("tis_jax.store.reader._DISCOVERY_SECONDS", 0.02)


@pytest.fixture(params=["memory", "file"])
def store_url(request, tmp_path):
  """A fresh place, once in this process's memory and once on disk."""
  if request.param == "memory":
    return f"memory://test-{next(_stores)}/"
  return f"{tmp_path.as_uri()}/store/"


@pytest.fixture
def store(store_url):
  return Store.open(store_url, run="r", create=True)
