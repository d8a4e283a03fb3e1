"""What an engine behind a server costs: updates, and time that is not spent in it.

  python benchmarks/engines.py --vllm .venv-vllm/bin/python [--json FILE]

SmolLM2-135M-Instruct, 16 prompts x 4 answers of 64 tokens. An update is timed from its
publication in a store to the engine that has been held against a forward pass; `load`
is the server's part, with the params' way to its disk. A batch is timed from the
prompts to the arrays. What of a batch is not between the first request sent and the
last answer received is the adapter's.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
from atlas import Model, vllm_server

from tis_jax.engines.served import Probe, ServedEngine
from tis_jax.logprobs import Sampling
from tis_jax.store import Store

ROUNDS, SAMPLES = 3, 4


class Timed:
  """A server, when its requests were under way, and how long its last load took."""

  def __init__(self, server):
    self._server = server
    self.first = self.last = self.load_seconds = 0.0

  def __getattr__(self, name):
    return getattr(self._server, name)

  def ask(self, request):
    if not self.first:
      self.first = time.perf_counter()
    answers = self._server.ask(request)
    self.last = time.perf_counter()
    return answers

  def load(self, params, label):
    began = time.perf_counter()
    self._server.load(params, label)
    self.load_seconds = time.perf_counter() - began


def measure(dtype: str, python: str) -> dict[str, float]:
  """The numbers of one precision, by name."""
  model = Model()
  with tempfile.TemporaryDirectory(dir=_shared()) as folder:
    store = Store.open(f"file://{folder}/store", create=True)
    server = vllm_server(model, dtype, python, f"{folder}/params")
    timed, law = Timed(server), Sampling()
    prompts = [p[h].tolist() for p, h in zip(model.prompts, model.held, strict=True)]
    probe = Probe(
      model.graph,
      prompts[:4],
      law=law,
      dtype=dtype,
      vocab_size=model.config.vocab_size,
      stop_ids=model.tokenizer.eos_ids,
    )
    engine = ServedEngine(
      timed, law, vocab_size=model.config.vocab_size, probe=probe, **model.asked
    )
    try:
      engine.update(model.flat, 0)
      updates, loads, shares, rates = [], [], [], []
      for version in range(1, ROUNDS + 1):
        # Every version is other params, as after a step.
        moved = {name: x * (1 + 1e-4 * version) for name, x in model.flat.items()}
        store.publish(version, moved, {"cursor": {}})
        began = time.perf_counter()
        manifest = store.latest()
        engine.update(store.read_params(manifest), version, manifest.digest)
        updates.append(time.perf_counter() - began)
        loads.append(timed.load_seconds)
        store.delete_params(keep=1)
        timed.first = 0.0
        began = time.perf_counter()
        out = engine.generate(
          model.prompts, model.held, samples=SAMPLES, key=jax.random.key(version)
        )
        wall = time.perf_counter() - began
        shares.append(1 - (timed.last - timed.first) / wall)
        rates.append(out.mask.sum() / wall)
    finally:
      engine.close()
  middle = lambda values: sorted(values)[len(values) // 2]
  return {
    f"vllm_{dtype}/update_seconds": middle(updates),
    f"vllm_{dtype}/load_seconds": middle(loads),
    f"vllm_{dtype}/adapter_share": middle(shares),
    f"vllm_{dtype}/tokens_per_s": middle(rates),
  }


def _shared() -> str | None:
  return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--vllm", metavar="PYTHON", required=True, help="that has vLLM")
  both = ("float32", "bfloat16")
  parser.add_argument("--dtypes", nargs="+", choices=both, default=both)
  parser.add_argument("--json", type=Path, help="also write the numbers there")
  known = parser.parse_args()
  numbers = {}
  for dtype in known.dtypes:
    numbers |= measure(dtype, known.vllm)
  for name, value in numbers.items():
    print(f"{name:30} {value:.3g}")
  if known.json:
    known.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
