"""One process of a learner: trains on a store's records, checkpoints, publishes.

  python learner_process.py INDEX COUNT COORDINATOR FOLDER STEPS [DIE]

Every process reads the records itself, keeps its own rows, goes on from the newest
checkpoint in FOLDER, and with DIE kills itself in the middle of that step's update. At
the end it publishes the shards that it has, and exports the step for TPUs.
"""

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def meet(store, index, count, attempt):
  """Waits for the others: gloo gives up on one that compiles half a minute longer."""
  store.heartbeat(f"{attempt}-{index}")
  while sum(name.startswith(f"{attempt}-") for name in store.heartbeats()) < count:
    time.sleep(0.1)


def main(index, count, coordinator, folder, steps, die=-1):
  devices = 8 // count
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import multihost_utils

  from tis_jax import learner, models
  from tis_jax.learner.mesh import row_sharding

  if count > 1:
    learner.join_processes(coordinator, count, index)
  from learner_oracle import make_algorithm

  from tis_jax.models import DecoderConfig, abstract_params, decoder_graph
  from tis_jax.store import RolloutReader, Store

  config = DecoderConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
  )
  graph = decoder_graph(config)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: rng.normal(0.0, 0.3, x.shape).astype(x.dtype), abstract_params(config)
  )
  settings = learner.AdamW(0.01, warmup_steps=0, epsilon=1e-3)
  optimizer = learner.make_optimizer(settings, updates=100)
  mesh = learner.make_mesh(data=2, fsdp=2, tensor=2)
  update = learner.make_update(graph, make_algorithm(), optimizer, mesh)
  store = Store.open((folder / "store").as_uri())
  folder_of_checkpoints = folder / f"checkpoints{count}"
  like = learner.abstract_state(graph, optimizer, mesh)
  with learner.Checkpoints(folder_of_checkpoints, {"run": store.run}) as checkpoints:
    restored = checkpoints.restore(like)
    if restored is None:
      state = learner.init_state(params, optimizer, jax.random.key(1), mesh)
      cursor = None
    else:
      state, info = restored
      cursor = info["cursor"]
    reader, compiled = RolloutReader(store, cursor), None
    while int(state.step) < steps:
      (rollout,) = reader.take(1, 0, timeout=10.0)
      whole = learner.from_rollouts([rollout])
      rows = len(whole.rewards)
      mine = learner.take_rows(whole, learner.local_rows(mesh, rows))
      batch = learner.assemble(mine, mesh, rows)
      assert all(x is None or x.sharding == row_sharding(mesh) for x in batch)
      if compiled is None:
        compiled = update.lower(state, batch, np.int32(0)).compile()
        # Of this attempt: its coordinator has a port of its own.
        meet(store, index, count, coordinator.rpartition(":")[2])
      state, metrics = compiled(state, batch, np.int32(0))
      if int(state.step) == die:
        os.kill(os.getpid(), signal.SIGKILL)
      assert np.isfinite(float(metrics["loss/total"]))
      checkpoints.save(state, {"cursor": dict(reader.cursor)})
    checkpoints.wait()

  version = store.next_version()
  if count > 1:
    # Before anybody has written a part of it, and the same in all.
    version = int(multihost_utils.broadcast_one_to_all(np.int32(version)))
  blocks = learner.local_blocks(models.flatten(state.params))
  store.publish_blocks(version, blocks, {"cursor": {}}, part=index, parts=count)
  held = sum(x.values.nbytes for b in blocks.values() for x in b.held)
  print(f"publishes {held} bytes")
  if index == 0 and steps > 3:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
    )
    version = jax.ShapeDtypeStruct((), jnp.int32)
    exported = jax.export.export(update, platforms=("tpu",))(like, abstract, version)
    print(f"exported for {exported.platforms[0]} on {exported.nr_devices} devices")


if __name__ == "__main__":
  main(
    int(sys.argv[1]),
    int(sys.argv[2]),
    sys.argv[3],
    Path(sys.argv[4]),
    *map(int, sys.argv[5:]),
  )
