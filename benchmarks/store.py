"""What the store costs beside the memory under it: records, and a publication.

  python benchmarks/store.py [--rounds 7] [--json FILE]

Records of 16 MB, put as a sampler puts them (encoded, summed, created once), got
(read, its sum checked, decoded) and taken as a learner takes them (every value looked
at, too), against `shutil.copyfile` of a file of as many bytes on the same file system.
Bytes a second, the median of the rounds, in turn, so that all meet the same machine.

A publication of SmolLM2-135M's params in bf16 (as many bytes of them, by the shapes of
its config) from JAX arrays of this process until another process, which polls as
samplers do, holds them all, checked. And the bytes of all that is in the store then.
"""

import argparse
import json
import multiprocessing
import secrets
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.models import DecoderConfig, abstract_params, flatten
from tis_jax.rollouts import Header, Rollout, Sampling
from tis_jax.store import RolloutReader, RolloutWriter, Store, default_url

# Published architecture of HuggingFaceTB/SmolLM2-135M.
SMOLLM2 = DecoderConfig(
  vocab_size=49_152,
  hidden_size=576,
  intermediate_size=1_536,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  tie_embeddings=True,
)
ROWS, PROMPT, RESPONSE = 576, 256, 2_048


def record() -> Rollout:
  """16 MB: 576 responses of 2,048 tokens."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 49_152, (ROWS, RESPONSE)).astype(np.int32)
  return Rollout(
    prompts=rng.integers(0, 49_152, (ROWS, PROMPT)).astype(np.int32),
    prompt_mask=np.ones((ROWS, PROMPT), bool),
    tokens=tokens,
    mask=np.ones(tokens.shape, bool),
    sampler_logp=-rng.random(tokens.shape, np.float32),
    versions=np.zeros(tokens.shape, np.int32),
    rewards=np.zeros(ROWS, np.float32),
    group_ids=np.arange(ROWS, dtype=np.int32) // 8,
    prompt_ids=np.arange(ROWS, dtype=np.int32) // 8,
    finish_reasons=np.zeros(ROWS, np.int8),
    header=Header(0, Sampling()),
  )


def records(store: Store, folder: Path, rounds: int) -> dict[str, float]:
  """Bytes a second of a put, a take and a copy, and the bytes of a record."""
  rollout = record()
  store.publish(0, {}, {"cursor": {}})
  reader = RolloutReader(store)
  seconds: dict[str, list[float]] = {"put": [], "get": [], "take": [], "copy": []}
  size, source = 0, folder / "source"
  for seq in range(rounds + 1):
    began = time.perf_counter()
    size = store.put_rollout("writer", seq, rollout)
    seconds["put"].append(time.perf_counter() - began)
    began = time.perf_counter()
    got = store.get_rollout("writer", seq)
    seconds["get"].append(time.perf_counter() - began)
    assert got is not None and len(got.rewards) == ROWS
    began = time.perf_counter()
    (taken,) = reader.take(1, 0)
    seconds["take"].append(time.perf_counter() - began)
    assert np.array_equal(taken.tokens, rollout.tokens)
    if not source.exists():
      source.write_bytes(secrets.token_bytes(size))
    began = time.perf_counter()
    shutil.copyfile(source, folder / f"copy{seq}")
    seconds["copy"].append(time.perf_counter() - began)
  rate = {x: size / statistics.median(took[1:]) for x, took in seconds.items()}
  return {
    "record_bytes": float(size),
    **{f"{name}_bytes_per_s": value for name, value in rate.items()},
    **{f"{name}_of_copy": rate[name] / rate["copy"] for name in ("put", "get", "take")},
  }


def receive(url: str, seen) -> None:
  """A sampler that says when it holds a version, and when it began to look."""
  with RolloutWriter(Store.open(url), "receiver", capacity=1000) as writer:
    for turn in writer.turns():
      if turn.params is not None:
        seen.put(
          (turn.version, time.time(), sum(x.nbytes for x in turn.params.values()))
        )


def publication(store: Store, rounds: int) -> dict[str, float]:
  """Seconds from the learner's arrays to a sampler's."""
  flat = flatten(abstract_params(SMOLLM2))
  key = jax.random.key(0)
  draw = jax.jit(
    lambda i: {
      n: jax.random.normal(jax.random.fold_in(key, i), x.shape) for n, x in flat.items()
    }
  )
  cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree))
  master = jax.block_until_ready(draw(0))
  context = multiprocessing.get_context("spawn")
  seen = context.Queue()
  process = context.Process(target=receive, args=(store.url, seen), daemon=True)
  process.start()
  visible, published, size = [], [], 0
  for version in range(1, rounds + 2):
    time.sleep(0.3)
    began = time.time()
    store.publish(version, jax.device_get(cast(master)), {"cursor": {}})
    published.append(time.time() - began)
    while True:
      got, when, size = seen.get(timeout=60)
      if got == version:
        break
    visible.append(when - began)
    store.delete_params(keep=2)
  store.stop("measured")
  process.join(30)
  return {
    "params_bytes": float(size),
    "publish_seconds": statistics.median(published[1:]),
    "visible_seconds": statistics.median(visible[1:]),
    "visible_seconds_max": max(visible[1:]),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--json", type=Path, help="file for the numbers")
  asked = parser.parse_args()
  url, where = default_url(f"benchmark-{secrets.token_hex(4)}", needed_bytes=4 << 30)
  place = Path(urlsplit(url).path)
  print(f"store in {where}")
  try:
    store = Store.open(url, create=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
      numbers = records(store, Path(folder), asked.rounds)
    store.delete_rollouts({"writer": asked.rounds + 1})
    numbers |= publication(store, asked.rounds)
    held = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    numbers["store_bytes"] = float(held)
  finally:
    shutil.rmtree(place, ignore_errors=True)
  mb = 1e-6
  print(f"records of {numbers['record_bytes'] * mb:.1f} MB")
  for name in ("put", "get", "take", "copy"):
    rate = numbers[f"{name}_bytes_per_s"]
    print(f"  {name:<5}{rate * mb:8.0f} MB/s, {rate / numbers['copy_bytes_per_s']:.2f}")
  print(
    f"params of {numbers['params_bytes'] * mb:.0f} MB: published in "
    f"{numbers['publish_seconds']:.2f} s, held by a sampler after "
    f"{numbers['visible_seconds']:.2f} s (at most {numbers['visible_seconds_max']:.2f}"
    f"); {numbers['store_bytes'] * mb:.0f} MB in the store with two versions"
  )
  if asked.json:
    asked.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
