"""What merging a LoRA adapter into low-precision params costs, beside not merging it.

  python benchmarks/lora.py [--json FILE]

SmolLM2-135M-Instruct, its params rounded to bf16 first, as models are published. An
adapter of rank 16 on every matrix learns eight texts by AdamW at 1e-4; after 1, 8 and
32 updates its log-probs of 256 tokens that the base sampled are taken. The yardstick is
fp32 arithmetic with the fp32 adapter beside the params.

  moved    mean |change of a log-prob| by the adapter, on the yardstick, nats
  missed   |change that is not there| / |change|: of params alone, in fp32 arithmetic
  gap      mean |log-prob - yardstick's|, all in the precision: a sampler's mismatch
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from atlas import Model

from tis_jax import models
from tis_jax.engines import NativeEngine
from tis_jax.learner import Batch, score
from tis_jax.logprobs import Sampling

LORA = models.LoRA(rank=16, alpha=32.0)
UPDATES = (1, 8, 32)
TEXTS, LENGTH = 8, 32
RATE = 1e-4


def texts(model: Model) -> Batch:
  """The texts, to be learned: their first tokens are the prompts."""
  tokens, held = model.prompts[:TEXTS], model.held[:TEXTS]
  lengths = held.sum(axis=1)
  rows = [row[mask] for row, mask in zip(tokens, held, strict=True)]
  padded = np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows])
  mask = np.arange(lengths.max())[None, :] < lengths[:, None]
  return Batch(padded[:, :1], mask[:, :1], padded[:, 1:], mask[:, 1:], *[None] * 5)


def sampled(model: Model, params) -> Batch:
  """What the base continues the texts by: tokens to take log-probs of."""
  engine = NativeEngine(
    model.graph,
    Sampling(),
    max_new_tokens=LENGTH,
    eos_ids=(),
    pad_id=model.tokenizer.pad_id,
  )
  engine.update(params, 0)
  prompts, held = model.prompts[:TEXTS], model.held[:TEXTS]
  out = engine.generate(prompts, held, samples=1, key=jax.random.key(0))
  return Batch(prompts, held, out.tokens, out.mask, *[None] * 5)


def learned(model: Model, params) -> Iterator[tuple[int, object]]:
  """The adapter after so many updates."""
  batch, optimizer = texts(model), optax.adamw(RATE, b2=0.95, weight_decay=0.0)
  adapter = models.init_adapter(model.config, LORA, jax.random.key(1))
  state = optimizer.init(adapter)

  @jax.jit
  def update(adapter, state, params):
    def loss(adapter):
      logp = score(model.graph, models.adapt(params, adapter, LORA), batch).logp
      return -jnp.where(batch.mask, logp, 0.0).sum() / batch.mask.sum()

    gradient = jax.grad(loss)(adapter)
    moved, state = optimizer.update(gradient, state, adapter)
    return optax.apply_updates(adapter, moved), state

  for step in range(1, max(UPDATES) + 1):
    adapter, state = update(adapter, state, params)
    if step in UPDATES:
      yield step, adapter


def measured(model: Model) -> Iterator[tuple[str, float]]:
  params = models.cast(models.cast(model.params, jnp.bfloat16), jnp.float32)
  batch = sampled(model, params)
  fp32, bf16 = model.graph, models.decoder_graph(model.config, dtype=jnp.bfloat16)
  taken = jax.jit(score, static_argnums=0)

  def logp(graph, params):
    return np.asarray(taken(graph, params, batch).logp)[batch.mask]

  base = logp(fp32, params)
  started = {"bfloat16": base, "int8": logp(fp32, models.quantize(params, "int8"))}
  for updates, adapter in learned(model, params):
    exact = logp(fp32, models.adapt(params, adapter, LORA))
    moved = exact - base
    yield f"updates_{updates}/moved", float(np.abs(moved).mean())
    merged = models.merge(params, adapter, LORA)
    small = models.cast(adapter, jnp.bfloat16)
    for precision in ("bfloat16", "int8"):

      def low(whole, precision=precision):
        if precision == "bfloat16":
          return models.cast(whole, jnp.bfloat16)
        return models.quantize(whole, precision)

      held = low(params)
      # What the precision itself moves is not the adapter's.
      start = started[precision]
      for name, whole in (
        ("beside", models.adapt(held, small, LORA)),
        ("merged", low(merged)),
      ):
        lost = logp(fp32, whole) - start - moved
        prefix = f"updates_{updates}/{precision}/{name}"
        missed = np.linalg.norm(lost) / np.linalg.norm(moved)
        yield f"{prefix}/missed", float(missed)
        gap = np.abs(logp(bf16, whole) - exact)
        yield f"{prefix}/gap", float(gap.mean())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", type=Path, metavar="FILE", help="for the numbers")
  given = parser.parse_args()
  model, found = Model(), {}
  whole = models.flatten(model.params)
  adapter = models.flatten(models.abstract_adapter(model.config, LORA))
  found["params"] = float(sum(x.size for x in whole.values()))
  found["adapter_params"] = float(sum(x.size for x in adapter.values()))
  for name, value in measured(model):
    found[name] = value
    print(f"{name:<40} {value:.3g}", flush=True)
  if given.json:
    given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
