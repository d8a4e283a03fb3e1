"""Times this library's own step: a part of step.py.

python step_native.py FOLDER

Reads FOLDER/model and FOLDER/asked.json, writes FOLDER/tis_jax.json.
"""

import functools
import json
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np

import tis_jax as tis
from tis_jax import advantages, learner, losses, models
from tis_jax.engines import NativeEngine
from tis_jax.learner import (
  AdamW,
  Algorithm,
  Batch,
  init_state,
  make_mesh,
  make_optimizer,
  make_update,
  pack,
  take_rows,
)
from tis_jax.logprobs import Sampling
from tis_jax.models.hugging_face import read_hugging_face

MINI_BATCHES = 2


def distinct(tokens: np.ndarray) -> np.ndarray:
  """Share of an answer's tokens that are distinct."""
  return np.float32([len(set(row)) / len(row) for row in tokens.tolist()])


def main(folder: str) -> None:
  asked = json.loads((Path(folder) / "asked.json").read_text())
  config, params = read_hugging_face(f"{folder}/model", lambda _, x: jax.numpy.array(x))
  graph, mesh = models.decoder_graph(config), make_mesh()
  updates = MINI_BATCHES * len(asked["prompts"])
  optimizer = make_optimizer(
    AdamW(asked["learning_rate"], warmup_steps=0, b2=0.999), updates
  )
  algorithm = Algorithm(
    correct=tis.chain(),
    loss=functools.partial(losses.ppo, clip_low=0.2, clip_high=0.2),
    advantage=advantages.grpo,
    mini_batches=MINI_BATCHES,
    packing=True,
  )
  update = make_update(graph, algorithm, optimizer, mesh)
  score = jax.jit(functools.partial(learner.score, graph))
  state = init_state(params, optimizer, jax.random.key(0), mesh)
  del params
  engine = NativeEngine(
    graph,
    Sampling(),
    max_new_tokens=asked["length"],
    eos_ids=(),
    pad_id=asked["pad"],
    precision="float32",
  )
  found = {name: [] for name in ("generate", "log_probs", "update", "step")}
  for step, prompts in enumerate(asked["prompts"]):
    prompts = np.int32(prompts)
    began = time.perf_counter()
    engine.update(state.params, step)
    out = engine.generate(
      prompts,
      np.ones(prompts.shape, bool),
      samples=asked["group"],
      key=jax.random.key(step),
    )
    generate = time.perf_counter() - began
    assert out.mask.all()
    rows = np.repeat(prompts, asked["group"], axis=0)
    batch = Batch(
      prompts=rows,
      prompt_mask=np.ones(rows.shape, bool),
      tokens=out.tokens,
      mask=out.mask,
      sampler_logp=out.sampler_logp,
      versions=out.versions,
      rewards=distinct(out.tokens),
      group_ids=np.arange(len(rows), dtype=np.int32) // asked["group"],
      finish_reasons=out.finish_reasons,
    )
    packed = pack(batch, algorithm, mesh, config.hidden_size)
    paused = time.perf_counter()
    # The pass that the update makes too, in as many parts, timed beside the step.
    parts = [
      (
        take_rows(batch, slice(part, None, MINI_BATCHES)),
        jax.tree.map(lambda x, part=part: x[:, 0, part], packed.packing),
      )
      for part in range(MINI_BATCHES)
    ]
    scored = [score(state.params, *part).logp for part in parts]
    scored = jax.block_until_ready(scored)
    log_probs = time.perf_counter() - paused
    state, metrics = update(state, packed, np.int32(step))
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - began - log_probs
    # The engine's log-probs are those of the learner: it is the same step.
    gap = np.abs(np.concatenate(scored) - _strided(out.sampler_logp))
    assert gap.max() < 1e-3, gap.max()
    found["generate"].append(generate)
    found["log_probs"].append(log_probs)
    found["step"].append(seconds)
    found["update"].append(seconds - generate - log_probs)
  found["peak_memory_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  (Path(folder) / "tis_jax.json").write_text(json.dumps(found))


def _strided(logp: np.ndarray) -> np.ndarray:
  """In the order of the parts."""
  return np.concatenate([logp[part::MINI_BATCHES] for part in range(MINI_BATCHES)])


main(*sys.argv[1:])
