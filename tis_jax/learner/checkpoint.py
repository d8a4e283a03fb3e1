"""Checkpoints: the learner's state on disk, with what the run needs to go on from it.

The one file that knows Orbax.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from tis_jax.learner.state import TrainState


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the message says where and why."""


class Checkpoints:
  """The newest committed checkpoints of one run, in one folder.

  A save runs in the background and is committed when its folder has its final name; a
  process that is killed in between leaves nothing that counts. What a checkpoint makes
  superfluous (consumed rollouts) may go once `committed` says that it is there.

    with Checkpoints(folder, identity, keep=2) as checkpoints:
      state, info = checkpoints.restore(abstract_state(graph, optimizer, mesh))
      ...
      checkpoints.save(state, {"cursor": reader.cursor, "version": version})

  Args:
    folder: where; made if it is not there.
    identity: JSON of what must be equal for a state to fit: the model's architecture,
      the run id, a hash of the config's parts that may not change.
    keep: how many to keep; 1 or more.
  """

  def __init__(self, folder: str | Path, identity: Mapping[str, Any], *, keep: int = 2):
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    self.folder = Path(folder).absolute()
    self.folder.mkdir(parents=True, exist_ok=True)
    # As it will be read back: tuples become lists, for one.
    self._identity = json.loads(json.dumps(dict(identity)))
    training, context = ocp.training, ocp.Context()
    # Off: a replicated array would be cut, shape by shape compiled, for each replica.
    context.array.saving.use_replica_parallel = False
    self._checkpointer = training.Checkpointer(
      self.folder,
      context=context,
      save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )
    self._saving: tuple[dict[str, Any], Any] | None = None
    self._committed = self._read_info()

  @property
  def committed(self) -> dict | None:
    """The `info` of the newest checkpoint that is safely on disk; None if none is.

    Raises what made a save fail.
    """
    if self._saving and not self._checkpointer.is_saving_in_progress():
      self.wait()
    return self._committed

  def save(self, state: TrainState, info: Mapping[str, Any]) -> None:
    """Starts saving `state` as the checkpoint of its step; waits for the one before.

    The state is copied before this returns, so the next update may have it. A step that
    has a checkpoint already is not saved again.

    Args:
      state: of any layout.
      info: JSON of what else the run needs to go on: the store cursor, the data
        position, the publication version.
    """
    self.wait()
    step = int(state.step)
    if any(checkpoint.step == step for checkpoint in self._checkpointer.checkpoints):
      return
    written = json.loads(json.dumps(dict(info)))
    with self._explained("written"):
      response = self._checkpointer.save_async(
        step,
        _leaves(_raw(state)),
        custom_metadata={"identity": self._identity, "info": written},
      )
    self._saving = (written, response)

  def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The newest committed state and its info; None when there is no checkpoint.

    Args:
      like: shapes, dtypes and shardings to restore into: `abstract_state`, or a state.

    Raises:
      CheckpointError: it cannot be read.
      ValueError: the checkpoint is of another run, config or architecture; says which
        of its values differ.
    """
    self.wait()
    if self._checkpointer.latest is None:
      return None
    with self._explained("read"):
      found = self._checkpointer.metadata()
    self._check_identity(found.custom_metadata["identity"])
    abstract = _raw(jax.tree.map(_abstract, like))
    wanted = _leaves(abstract)
    self._check_shapes(wanted, found.metadata)
    with self._explained("read"):
      leaves = self._checkpointer.load(abstract_state=wanted)
    raw = jax.tree.unflatten(jax.tree.structure(abstract), [leaves[x] for x in wanted])
    state = raw._replace(key=jax.random.wrap_key_data(raw.key))
    return state, found.custom_metadata["info"]

  def wait(self) -> None:
    """Blocks until no save is in progress.

    Raises:
      CheckpointError: it failed.
    """
    if self._saving is None:
      return
    info, response = self._saving
    self._saving = None
    with self._explained("written"):
      response.result()
    self._committed = info

  def close(self) -> None:
    """Waits for a save in progress and lets go of the folder."""
    try:
      self.wait()
    finally:
      with self._explained("finished"):
        self._checkpointer.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _, error: BaseException | None, __) -> None:
    try:
      self.close()
    except CheckpointError as late:
      if error is None:
        raise
      error.add_note(str(late))

  @contextlib.contextmanager
  def _explained(self, what: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      raise CheckpointError(
        f"a checkpoint in {self.folder} could not be {what} "
        f"({type(error).__name__}: {error}); is there room, and is it writable?"
      ) from error

  def _read_info(self) -> dict | None:
    if self._checkpointer.latest is None:
      return None
    with self._explained("read"):
      return self._checkpointer.metadata().custom_metadata["info"]

  def _check_identity(self, found: dict) -> None:
    names = sorted(found.keys() | self._identity.keys())
    differ = [
      f"{name} is {found.get(name)!r} there and {self._identity.get(name)!r} here"
      for name in names
      if found.get(name) != self._identity.get(name)
    ]
    if differ:
      raise ValueError(
        f"the checkpoint in {self.folder} belongs to another run: {'; '.join(differ)}. "
        "Use another workdir, or the config that made it."
      )

  def _check_shapes(self, wanted: dict, found: Mapping) -> None:
    missing, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    differ = [
      f"{name} is {tuple(found[name].shape)} there and {x.shape} here"
      for name, x in wanted.items()
      if name in found and tuple(found[name].shape) != x.shape
    ]
    differ += [f"{name} is not there" for name in sorted(missing)]
    differ += [f"{name} is only there" for name in sorted(unknown)]
    if differ:
      shown = "; ".join(differ[:5]) + ("; ..." if len(differ) > 5 else "")
      raise ValueError(
        f"the checkpoint in {self.folder} is of another model or optimizer: {shown}"
      )


def _raw(state: Any) -> TrainState:
  """The state with its key as plain integers, the only leaf that is no plain array."""
  if isinstance(state.key, jax.ShapeDtypeStruct):
    key = jax.eval_shape(jax.random.key_data, state.key)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=state.key.sharding)
  else:
    key = jax.random.key_data(state.key)
  return state._replace(key=key)


def _leaves(tree) -> dict[str, Any]:
  """Leaves by name, in the order of the tree: independent of what its nodes are."""
  named = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): leaf for path, leaf in named}


def _abstract(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=x.sharding)
