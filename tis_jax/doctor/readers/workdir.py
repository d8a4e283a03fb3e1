"""A run of this library: its workdir, its store, or one record."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.readers.npz import read_npz

_RECORDS = 4
"""The newest so many records of a store are read, and scored by its params."""


def is_record(path: Path) -> bool:
  """Whether a file is one record of a store."""
  with path.open("rb") as file:
    return file.read(8) == b"TISROLL1"


def read_workdir(folder: Path) -> Dump:
  """The newest batch that a run has left with log-probs of both sides.

  Raises:
    DumpError: the folder is no workdir, or has no such batch.
  """
  bad = sorted(folder.glob("bad_batch_*.npz"), reverse=True)
  kept = [*bad, *sorted(folder.glob("*.npz"), reverse=True)]
  for path in kept:
    with np.load(path, allow_pickle=False) as file:
      both = {"old_logp", "sampler_logp"} <= set(file.files)
    if both:
      return _with_config(read_npz(path), folder)
  if (folder / "run").is_file():
    return read_store(f"file://{folder.resolve()}")
  if kept:
    raise DumpError(
      f"{folder}: {', '.join(path.name for path in kept[:3])} hold no old_logp, the "
      "learner's log-probs; while the run's store is there, give its URL"
    )
  raise DumpError(
    f"{folder} is no workdir with a saved batch: a run writes batch.npz when it ends, "
    "and bad_batch_*.npz when a loss is not finite"
  )


def _with_config(dump: Dump, folder: Path) -> Dump:
  """What the run's config says of its sampler."""
  try:
    sampler = json.loads((folder / "config.json").read_text())["sampler"]
    said: dict[str, Any] = {"temperature": float(sampler["temperature"])}
    if sampler.get("engine", "native") == "native":
      said["sampler_dtype"] = str(sampler["precision"])
  except (OSError, ValueError, KeyError, TypeError):
    return dump
  return dataclasses.replace(dump, **said)


def read_record(path: Path) -> Dump:
  """Refuses a record by itself, which has one side only; says what would do.

  Raises:
    DumpError: always.
  """
  raise DumpError(
    f"{path} is a record of a sampler: it holds no log-probs of the learner. Give the "
    "URL of its store, whose params score it, or the run's workdir"
  )


def read_store(url: str) -> Dump:
  """The newest records of a store, scored by the newest params published in it.

  Needs the `train` extra: a model runs.

  Raises:
    DumpError: there is no run, no record or no params; or the extra is missing.
  """
  try:
    from tis_jax import models
    from tis_jax.learner import comparable_batch, from_rollouts, make_mesh, make_score
    from tis_jax.models import unflatten
    from tis_jax.sampler.settings import Assignment
    from tis_jax.store import Store, StoreError
  except ModuleNotFoundError as error:
    raise DumpError(
      f"{url}: a store is scored by its own params, which needs {error.name}: pip "
      'install "tis_jax[train]"'
    ) from error
  try:
    store = Store.open(url)
    manifest = store.latest()
    if manifest is None:
      raise DumpError(f"{url} has no params yet")
    keys = [k for k in store.kv.keys("rollouts/") if k.rpartition("/")[2].isdecimal()]
    newest = sorted(keys, key=lambda key: key.rpartition("/")[2])[-_RECORDS:]
    found = []
    for key in newest:
      _, writer, seq = key.split("/")
      record = store.get_rollout(writer, int(seq))
      found += [] if record is None else [record]
    if not found:
      raise DumpError(f"{url} has no records now: a learner deletes those it has used")
    told = Assignment.from_json(store.config)
    decoder, _, _ = models.load(told.model)
    graph = models.decoder_graph(decoder)
    params = unflatten(graph, store.read_params(manifest))
  except StoreError as error:
    raise DumpError(f"{url}: {error}") from error
  law = found[0].header.sampling
  batch, _ = comparable_batch(told.sampler.sampling, from_rollouts(found), "train")
  score = make_score(graph, make_mesh(), temperature=law.temperature)
  out = score(params, batch)
  asked = {
    "tokens": np.asarray(batch.tokens, np.int64),
    "versions": np.asarray(batch.versions, np.int64),
    "rewards": np.asarray(batch.rewards, np.float64),
    "group_ids": np.asarray(batch.group_ids, np.int64),
    "prompts": np.where(batch.prompt_mask, batch.prompts, -1).astype(np.int64),
    "entropy": np.asarray(out.entropy, np.float64),
  }
  return Dump(
    np.asarray(out.logp, np.float64),
    np.asarray(batch.sampler_logp, np.float64),
    np.asarray(batch.mask, bool),
    learner_version=manifest.version,
    temperature=law.temperature,
    sampler_dtype=law.dtype,
    source=url,
    columns={"sampler_logp": "sampler_logp", "old_logp": "scored by the params"},
    notes=(
      f"{len(found)} records, the newest of {len(keys)}, scored by params of version "
      f"{manifest.version}",
    ),
    **asked,
  )
