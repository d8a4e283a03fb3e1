"""How many tokens a second the native engine samples, beside other ways to do it.

  python benchmarks/sampler.py [--transformers PYTHON] [--vllm PYTHON] [--json FILE]
                               [--parts native ragged ...]
  python benchmarks/sampler.py --quickstart

SmolLM2-135M-Instruct on the machine's cores: 16 prompts of 40 tokens (out of the texts
of atlas.py, others in every batch), 64 new tokens each, none of which ends an answer,
so that everyone does the same work. The first batch compiles and is not counted, the
median of the next three is.

Ragged: 64 answers of 4 to 256 tokens, 16 at once, continuously batched against the same
engine given 16 at a time, each batch waiting for its longest, and against vLLM, which
is asked for all 64 at once.

Transformers and vLLM run in environments of their own; `make vllm` builds one that has
both. --quickstart times batches of the small policy instead.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from atlas import Model, vllm_server

from tis_jax import models
from tis_jax.engines import NativeEngine, NativeSettings
from tis_jax.engines.served.answer import Request
from tis_jax.logprobs import Sampling

PROMPT, LENGTH, ROUNDS, SLOTS = 40, 64, 3, 16
RAGGED, SHORTEST, LONGEST = 64, 4, 256
Numbers = dict[str, float]


def prompts(model: Model, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """`[count, 40]` tokens and their mask: windows of all texts in a row."""
  stream = np.concatenate(
    [ids[held] for ids, held in zip(model.prompts, model.held, strict=True)]
  )
  starts = np.random.default_rng(seed).integers(0, len(stream), (count, 1))
  tokens = stream[(starts + np.arange(PROMPT)) % len(stream)]
  return tokens, np.ones(tokens.shape, bool)


def rate(sample: Callable[[int], int], rounds: int = ROUNDS, warm=True) -> float:
  """Tokens a second of `sample(seed)`, which says how many it drew."""
  if warm:
    sample(0)
  found = []
  for seed in range(1, rounds + 1):
    began = time.perf_counter()
    tokens = sample(seed)
    found.append(tokens / (time.perf_counter() - began))
  return statistics.median(found)


def engine_of(model: Model, precision: str, length: int, **settings) -> NativeEngine:
  engine = NativeEngine(
    model.graph,
    Sampling(),
    max_new_tokens=length,
    eos_ids=(),
    pad_id=model.tokenizer.pad_id,
    precision=precision,
    settings=NativeSettings(slots=SLOTS, **settings),
  )
  engine.update(model.flat, 0)
  return engine


def rows_of(model: Model, *variants) -> Iterator[tuple[str, float]]:
  for name, settings in variants:
    engine = engine_of(model, name, LENGTH, **settings)

    def sample(seed, engine=engine):
      asked = prompts(model, SLOTS, seed)
      out = engine.generate(*asked, samples=1, key=jax.random.key(seed))
      return int(out.mask.sum())

    more = "".join(f"_{what}_{dtype}" for what, dtype in settings.items())
    yield f"engine_{name}{more}/tokens_per_s", rate(sample)


def native(model: Model) -> Iterator[tuple[str, float]]:
  return rows_of(model, ("float32", {}), ("bfloat16", {}))


def mixed(model: Model) -> Iterator[tuple[str, float]]:
  head, cache = {"head": "float32"}, {"cache": "int8"}
  return rows_of(model, ("bfloat16", head), ("int8", {}), ("bfloat16", cache))


def lengths() -> np.ndarray:
  """Tokens of each ragged answer: given, so that everyone draws as many."""
  rng = np.random.default_rng(0)
  return rng.integers(SHORTEST, LONGEST + 1, RAGGED)


def ragged(model: Model) -> Iterator[tuple[str, float]]:
  limits = lengths()
  for precision, name in (("bfloat16", "engine"), ("float32", "engine_float32")):
    engine = engine_of(model, precision, LONGEST)

    def answer(tokens, mask, seed, limits, engine=engine):
      key = jax.random.key(seed)
      found = engine.generate(tokens, mask, samples=1, key=key, limits=limits)
      return int(found.mask.sum())

    def continuous(seed, answer=answer):
      return answer(*prompts(model, RAGGED, seed), seed, limits)

    def static(seed, answer=answer):
      tokens, mask = prompts(model, RAGGED, seed)
      parts = [slice(i, i + SLOTS) for i in range(0, RAGGED, SLOTS)]
      return sum(answer(tokens[p], mask[p], seed, limits[p]) for p in parts)

    yield f"{name}/ragged/tokens_per_s", rate(continuous, rounds=1)
    yield f"{name}/ragged/occupancy", engine.health["occupancy"]
    if precision == "bfloat16":
      # Compiled above: the same slots, the same widths.
      yield "static/ragged/tokens_per_s", rate(static, rounds=1, warm=False)


def transformers(model: Model, python: str) -> Iterator[tuple[str, float]]:
  """Timed by a script in the other environment, from safetensors."""
  script = Path(__file__).parent / "sampler_transformers.py"
  with tempfile.TemporaryDirectory() as folder:
    models.write_hugging_face(f"{folder}/model", model.config, model.params)
    asked = {
      "prompts": [
        prompts(model, SLOTS, seed)[0].tolist() for seed in range(ROUNDS + 1)
      ],
      "length": LENGTH,
      "pad": model.tokenizer.pad_id,
    }
    (Path(folder) / "asked.json").write_text(json.dumps(asked))
    subprocess.run([python, str(script), folder, "float32"], check=True)
    seconds = json.loads((Path(folder) / "seconds.json").read_text())
    yield "transformers/tokens_per_s", SLOTS * LENGTH / statistics.median(seconds)


def vllm(model: Model, python: str) -> Iterator[tuple[str, float]]:
  room = PROMPT + LONGEST
  for dtype in ("float32", "bfloat16"):
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(RAGGED) as pool:
      server = vllm_server(model, dtype, python, folder, SLOTS, max_length=room)

      def answer(tokens, limits, seed, server=server, pool=pool):
        requests = [
          Request(
            prompt=row.tolist(),
            samples=1,
            seed=seed * RAGGED + index,
            law=Sampling(),
            max_new_tokens=int(limit),
            stop_ids=(),
            vocab_size=model.config.vocab_size,
          )
          for index, (row, limit) in enumerate(zip(tokens, limits, strict=True))
        ]
        found = sum(len(one.tokens) for (one,) in pool.map(server.ask, requests))
        assert found == sum(limits)
        return found

      def fixed(seed, answer=answer):
        return answer(prompts(model, SLOTS, seed)[0], [LENGTH] * SLOTS, seed)

      def ragged(seed, answer=answer):
        return answer(prompts(model, RAGGED, seed)[0], lengths(), seed)

      try:
        server.load(model.flat, "0")
        yield f"vllm_{dtype}/tokens_per_s", rate(fixed)
        yield f"vllm_{dtype}/ragged/tokens_per_s", rate(ragged, rounds=1)
      finally:
        server.close()


def quickstart() -> Iterator[tuple[str, float]]:
  """The quickstart's policy: 8 or 16 answers of at most 5 tokens to 64 prompts."""
  config, params, tokenizer = models.load("builtin:arithmetic")
  rng = np.random.default_rng(0)
  mask = np.arange(8) >= rng.integers(0, 5, (64, 1))
  prompts = np.where(mask, rng.integers(2, config.vocab_size, (64, 8)), 0)
  # A record of the sampler's, and a batch of an evaluation.
  for precision, samples in (("bfloat16", 8), ("float32", 16)):
    engine = NativeEngine(
      models.decoder_graph(config),
      Sampling(),
      max_new_tokens=5,
      eos_ids=tokenizer.eos_ids,
      pad_id=tokenizer.pad_id,
      precision=precision,
    )
    engine.update(params, 0)

    def sample(seed, engine=engine, samples=samples):
      out = engine.generate(
        prompts.astype(np.int32), mask, samples=samples, key=jax.random.key(seed)
      )
      return out.tokens.shape[0]

    answers = rate(sample, rounds=30)
    rows = len(prompts) * samples
    yield f"quickstart_{precision}/ms_per_batch", 1e3 * rows / answers


PARTS = {"native": native, "mixed": mixed, "ragged": ragged}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--transformers", metavar="PYTHON", help="that has transformers")
  parser.add_argument("--vllm", metavar="PYTHON", help="that has vLLM")
  parser.add_argument("--quickstart", action="store_true", help="the small policy")
  parser.add_argument(
    "--parts", nargs="*", choices=PARTS, default=list(PARTS), help="of the run; all"
  )
  parser.add_argument("--json", type=Path, help="also write the numbers there")
  known = parser.parse_args()
  numbers: Numbers = {}

  def tell(found: Iterator[tuple[str, float]]) -> None:
    for name, value in found:
      numbers[name] = value
      print(f"{name:44} {value:8.3g}", flush=True)

  if known.quickstart:
    tell(quickstart())
  else:
    model = Model()
    for part, of in PARTS.items():
      if part in known.parts:
        tell(of(model))
    if known.transformers:
      tell(transformers(model, known.transformers))
    if known.vllm:
      tell(vllm(model, known.vllm))
  if known.json:
    known.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
