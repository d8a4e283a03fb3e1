"""What it brings to hand long answers over: tokens a second of ragged records.

  python benchmarks/partial.py [--json FILE]

Records of 8 prompts x 8 answers, by a decoder of 5 million random params in fp32, whose
answers end after any token at some chance, and after 128 at the latest. As many slots
as a record has rows, so that nothing but the answers' own lengths leaves slots free.
Each record is by newer params; the first three are not counted.

Every answer finished in its record, against `interrupt_after` of 8, 16 and 32 tokens
with two records of room for the carry.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tis_jax import models, tasks
from tis_jax.engines import NativeEngine, NativeSettings
from tis_jax.logprobs import Sampling
from tis_jax.sampler import Assignment, SamplerSettings
from tis_jax.sampler.worker import Worker
from tis_jax.tasks import Environment

PROMPTS, SAMPLES, LONGEST = 8, 8, 128
WARM, RECORDS, AHEAD = 3, 12, 3


class Counted(NativeEngine):
  """Adds up what every call says of itself."""

  def __init__(self, *args, **options):
    super().__init__(*args, **options)
    self.total: Counter[str] = Counter()

  def generate(self, *args, **options):
    return self._counted(super().generate(*args, **options))

  def go_on(self, *args, **options):
    return self._counted(super().go_on(*args, **options))

  def _counted(self, out):
    self.total.update({name: self.health[name] for name in ("steps", "tokens")})
    return out


def measure(interrupt_after: int) -> Iterator[tuple[str, float]]:
  """Tokens a second of records, and the share of slot steps that drew one."""
  _, _, tokenizer = models.load("builtin:arithmetic")
  config = models.DecoderConfig(
    vocab_size=17,
    hidden_size=256,
    intermediate_size=768,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
  )
  native = NativeSettings(slots=PROMPTS * SAMPLES, interrupt_after=interrupt_after)
  told = Assignment(
    model="builtin:arithmetic",
    task="gsm8k_steps",
    task_options={},
    max_prompt_tokens=8,
    seed=0,
    capacity=AHEAD + 1,
    sampler=SamplerSettings(
      precision="float32",
      prompts_per_record=PROMPTS,
      group_size=SAMPLES,
      max_new_tokens=LONGEST,
      native=native,
    ),
  )
  task = tasks.load("gsm8k_steps")
  environment = Environment(task, tokenizer, task.train, 8)
  engine = Counted(
    models.decoder_graph(config),
    Sampling(),
    max_new_tokens=LONGEST,
    eos_ids=tokenizer.eos_ids,
    pad_id=tokenizer.pad_id,
    precision="float32",
    settings=native,
  )
  worker = Worker(told, "bench", 1, engine, environment)
  params = models.flatten(models.init_params(config, jax.random.key(0)))
  params = {name: np.asarray(x) for name, x in params.items()}
  tokens, lengths, began = 0, [], 0.0
  for seq in range(WARM + RECORDS):
    if seq == WARM:
      began = time.perf_counter()
      engine.total.clear()
    engine.update(params, seq)
    record = worker.rollout(seq, last=seq + AHEAD)
    if seq >= WARM:
      tokens += int(record.mask.sum())
      lengths += record.mask.sum(axis=1).tolist()
  seconds = time.perf_counter() - began
  slot_steps = engine.total["steps"] * native.slots
  yield "tokens_per_s", tokens / seconds
  yield "occupancy", engine.total["tokens"] / slot_steps
  yield "tokens_per_answer", float(np.mean(lengths))
  yield "longest_answer", float(max(lengths))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=Path, help="also write the numbers there")
  known = parser.parse_args()
  numbers = {}
  for interrupt_after in (0, 8, 16, 32):
    how = f"after_{interrupt_after}" if interrupt_after else "whole"
    for name, value in measure(interrupt_after):
      numbers[f"{how}/{name}"] = value
      print(f"{how}/{name:20} {value:8.3g}", flush=True)
  if known.json:
    known.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
