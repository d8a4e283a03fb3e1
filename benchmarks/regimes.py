"""What a regime is worth: learner steps a second at controlled delays.

  python benchmarks/regimes.py [--seconds 0.25] [--steps 24] [--json FILE]

A sampler process that takes SECONDS for a record and a learner that takes SECONDS for a
step (both sleep), through the parts of a run: allowance, writer, store in shared
memory, reader, batches read ahead, publication in a thread, checks of staleness. One
record is a step's. The first four steps are not counted.

Synchronous (max_staleness 0) one waits for the other: 2 x SECONDS a step at best. One
step off (1) and asynchronous (4) they work side by side: SECONDS at best. With an even
sampler the bound changes nothing beyond one step; with an uneven one (delays of a
quarter to seven quarters of SECONDS, the same mean) a wider bound takes up the slack.
"""

import argparse
import json
import multiprocessing
import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import jax
import numpy as np

from tis_jax.rollouts import Header, Rollout, Sampling
from tis_jax.runner.ahead import Ahead
from tis_jax.runner.publisher import Publisher
from tis_jax.runner.stream import BatchStream
from tis_jax.store import RolloutReader, RolloutWriter, Store, default_url

ROWS, PROMPT, RESPONSE, WARM = 64, 32, 128, 4
REGIMES = {"synchronous": 0, "one_step_off": 1, "asynchronous": 4}


def record(version: int) -> Rollout:
  tokens = np.ones((ROWS, RESPONSE), np.int32)
  return Rollout(
    prompts=np.ones((ROWS, PROMPT), np.int32),
    prompt_mask=np.ones((ROWS, PROMPT), bool),
    tokens=tokens,
    mask=tokens > 0,
    sampler_logp=np.full(tokens.shape, -1.0, np.float32),
    versions=np.full(tokens.shape, version, np.int32),
    rewards=np.tile(np.float32([0, 1]), ROWS // 2),
    group_ids=np.repeat(np.arange(ROWS // 2, dtype=np.int32), 2),
    prompt_ids=np.repeat(np.arange(ROWS // 2, dtype=np.int32), 2),
    finish_reasons=np.zeros(ROWS, np.int8),
    header=Header(version, Sampling()),
  )


def sample(url: str, seconds: float, uneven: bool) -> None:
  """The sampler: one record at each of its turns, for which it sleeps."""
  rng = np.random.default_rng(0)
  with RolloutWriter(Store.open(url), "sampler") as writer:
    for turn in writer.turns():
      time.sleep(seconds * (rng.choice([0.25, 1.75]) if uneven else 1.0))
      writer.write(record(turn.version))


def learn(bound: int, seconds: float, steps: int, uneven: bool) -> dict[str, float]:
  """A run of one regime: steps a second, the learner's idle share, staleness."""
  url, _ = default_url(f"regimes-{secrets.token_hex(4)}")
  store = Store.open(url, create=True, config={"capacity": bound + 1})
  process = multiprocessing.get_context("spawn").Process(
    target=sample, args=(url, seconds, uneven)
  )
  stream = BatchStream(RolloutReader(store), groups=ROWS // 2, max_staleness=bound)
  params = {"w": jax.numpy.zeros((1 << 20,))}
  ages, idle, began = [], 0.0, 0.0
  try:
    with (
      Ahead(stream, jax.devices()[0]) as ahead,
      Publisher(store, 3, flatten=dict) as publisher,
    ):
      publisher.publish(0, params, {"cursor": {}})
      ahead.begin(0, 0)
      process.start()
      for step in range(steps + WARM):
        if step == WARM:
          began, idle = time.monotonic(), 0.0
        asked = time.monotonic()
        batch = ahead.take(publisher.check)
        idle += time.monotonic() - asked
        ages.append(step - int(batch.versions[0, 0]))
        if step + 1 < steps + WARM:
          ahead.begin(step + 1, step + 1)
        time.sleep(seconds)
        publisher.publish(step + 1, params, {"cursor": ahead.position["cursor"]})
      took = time.monotonic() - began
      store.stop("measured")
  finally:
    process.join(30)
    shutil.rmtree(Path(urlsplit(url).path), ignore_errors=True)
  late = sum(count for name, count in stream.rows.items() if name.startswith("late_"))
  return {
    "steps_per_s": steps / took,
    "learner_idle_share": idle / took,
    "staleness_max": float(max(ages)),
    "late_rows": float(late),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=0.25)
  parser.add_argument("--steps", type=int, default=24)
  parser.add_argument("--json", type=Path, help="file for the numbers")
  asked = parser.parse_args()
  numbers: dict[str, float] = {"seconds": asked.seconds, "steps": float(asked.steps)}
  print(f"sampler and learner {asked.seconds:g} s each, {asked.steps} steps")
  for uneven in (False, True):
    for regime, bound in REGIMES.items():
      found = learn(bound, asked.seconds, asked.steps, uneven)
      name = f"{'uneven' if uneven else 'even'}/{regime}"
      numbers |= {f"{name}/{key}": value for key, value in found.items()}
      of_sync = f"{'uneven' if uneven else 'even'}/synchronous/steps_per_s"
      gain = found["steps_per_s"] / numbers[of_sync]
      numbers[f"{name}/of_synchronous"] = gain
      print(
        f"{name:<22} {found['steps_per_s']:6.2f} steps/s, {gain:5.2f} x synchronous, "
        f"learner idle {found['learner_idle_share']:4.0%}, "
        f"staleness at most {found['staleness_max']:.0f}"
      )
  if asked.json:
    asked.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
