"""Samples of real engines for `benchmarks/doctor.py`, one `.npz` a batch.

  python benchmarks/doctor_samples.py FOLDER --arithmetic runs/quickstart-store
  python benchmarks/doctor_samples.py FOLDER --smollm2
  python benchmarks/doctor_samples.py FOLDER --vllm .venv-vllm/bin/python \
    --llama .venv-llama/bin/python --transformers .venv-vllm/bin/python

What each file holds: the tokens that an engine drew at a temperature, its log-probs of
them, and the fp32 learner's at several temperatures. The arithmetic policy is the
newest in the store of a quickstart run of 100 steps (`--config.store.url=file:///...
--config.train.steps=100`); older params lie on the line from what that run started
from. SmolLM2's later params are one Adam step from its own samples. Engines that are
somebody else's answer as they do for the atlas.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import atlas
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import models, tasks
from tis_jax.engines import Generation, NativeEngine
from tis_jax.learner import Batch, score
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import LENGTH, STOP
from tis_jax.store import Store

TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
"""At which the learner scores a batch of the arithmetic policy."""
FEW = (0.7, 0.9, 1.0, 1.2)
"""The same for SmolLM2, whose vocabulary is large."""

FRESH = ("float32", "bfloat16", "int8", "int4")
BEHIND = (1, 4, 16)
SERVED = {
  "vllm": atlas.vllm,
  "llama": atlas.llama,
  "transformers": atlas.transformers,
}
NEWEST = 100  # the learner's version of the arithmetic policy


class Policy:
  """A model, its prompts, and what samples from it and scores."""

  def __init__(self, config, tokenizer, prompts, held, temperatures, samples, length):
    self.graph = models.decoder_graph(config)
    self.prompts, self.held, self.samples = prompts, held, samples
    self.temperatures = temperatures
    self.asked: dict[str, Any] = {
      "max_new_tokens": length,
      "eos_ids": tokenizer.eos_ids,
      "pad_id": tokenizer.pad_id,
    }
    self._engines: dict[Any, NativeEngine] = {}

  def sampled(self, params, precision, law: Sampling, rows, seed: int, config=None):
    """What an engine with `params` (by name) answers to some of the prompts."""
    graph = self.graph if config is None else models.decoder_graph(config)
    key = (precision, law, config)
    if key not in self._engines:
      self._engines[key] = NativeEngine(graph, law, precision=precision, **self.asked)
    engine = self._engines[key]
    engine.update(params, 0)
    return engine.generate(
      self.prompts[rows],
      self.held[rows],
      samples=self.samples,
      key=jax.random.key(seed),
    )

  def scored(self, params, rows, out) -> np.ndarray:
    """`[N, B, T]` fp32: the learner's log-probs at each of the temperatures."""
    prompts = np.repeat(self.prompts[rows], self.samples, axis=0)
    held = np.repeat(self.held[rows], self.samples, axis=0)
    found = []
    for part in np.array_split(np.arange(len(prompts)), max(1, len(prompts) // 64)):
      batch = Batch(
        prompts[part], held[part], out.tokens[part], out.mask[part], *[None] * 5
      )
      found.append(np.asarray(_score(self.graph, self.temperatures, params, batch)))
    return np.concatenate(found, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(graph, temperatures, params, batch):
  at = [score(graph, params, batch, temperature=t).logp for t in temperatures]
  return jnp.stack(at)


def write(folder: Path, name: str, drawn: Policy, params, rows, out, **said) -> None:
  """One file: the arrays, and what they are of."""
  arrays = {
    "prompts": np.repeat(drawn.prompts[rows], drawn.samples, axis=0),
    "prompt_mask": np.repeat(drawn.held[rows], drawn.samples, axis=0),
    "tokens": out.tokens,
    "mask": out.mask,
    "sampler_logp": out.sampler_logp,
    "learner_at": drawn.scored(params, rows, out),
    "temperatures": np.float64(drawn.temperatures),
    "finish_reasons": out.finish_reasons,
  }
  if out.kept_mass is not None:
    arrays["kept_mass"] = out.kept_mass
  said_arrays = {key: np.asarray(value) for key, value in said.items()}
  np.savez_compressed(folder / f"{name}.npz", **arrays, **said_arrays)
  print(name, int(out.mask.sum()), "tokens", flush=True)


def laws(temperatures=(1.0, 0.7)) -> Iterator[tuple[str, Sampling]]:
  for temperature in temperatures:
    yield f"t{temperature:g}", Sampling(temperature)


def arithmetic(folder: Path, url: str, seeds: int) -> None:
  """The quickstart's policy: hundreds of short answers a batch."""
  config, base, tokenizer = models.load("builtin:arithmetic")
  task = tasks.load("gsm8k_steps")
  found = tasks.encode_prompts(tokenizer, task.train, 8, chat=False)
  policy = Policy(
    config, tokenizer, found.tokens, found.mask, TEMPERATURES, samples=8, length=5
  )
  store = Store.open(url)
  manifest = store.latest()
  if manifest is None or manifest.version != NEWEST:
    raise SystemExit(f"{url} is not of a run of {NEWEST} steps")
  newest = store.read_params(manifest)
  first = {name: np.asarray(x) for name, x in models.flatten(base).items()}
  on_the_line = lambda part: {
    name: first[name] + np.float32(part) * (x - first[name])
    for name, x in newest.items()
  }
  versions = (0, *(NEWEST - k for k in BEHIND), NEWEST)
  params = {version: on_the_line(version / NEWEST) for version in versions}
  for seed in range(seeds):
    arithmetic_batches(folder, policy, config, params, seed)


def arithmetic_batches(folder: Path, policy: Policy, config, params, seed) -> None:
  """Every batch of one seed: its prompts, and what each engine answers to them."""
  newest = params[NEWEST]
  tree = models.unflatten(policy.graph, newest)
  rows = np.random.default_rng(seed).choice(len(policy.prompts), 64, replace=False)

  def take(name, arrays, precision, law, config=None, **said):
    out = policy.sampled(arrays, precision, law, rows, seed, config)
    said |= _said("arithmetic", name, precision, law, seed)
    write(folder, f"arithmetic_{name}_{seed:03d}", policy, tree, rows, out, **said)

  for name, law in laws((1.0, 0.7, 0.9, 0.8)):
    for precision in FRESH if law.temperature in (1.0, 0.7) else ("bfloat16",):
      take(f"fresh-{precision}-{name}", newest, precision, law)
  for behind in BEHIND:
    old = params[NEWEST - behind]
    take(f"behind-{behind}", old, "bfloat16", Sampling(), behind=behind)
  for top_p in (0.8, 0.95):
    law = Sampling(top_p=top_p)
    take(f"nucleus-{top_p:g}", newest, "bfloat16", law, strength=top_p)
  take("topk-2", newest, "bfloat16", Sampling(top_k=2), strength=2)
  for name, arrays, other in sick_params(config, params, newest):
    take(name, arrays, "bfloat16", Sampling(), config=other)


def _said(policy: str, name: str, precision: str, law: Sampling, seed: int):
  return {
    "policy": policy,
    "kind": name.split("-")[0],
    "dtype": precision,
    "temperature": law.temperature,
    "seed": seed,
  }


def sick_params(config, params, newest) -> Iterator[tuple[str, Mapping, Any]]:
  """Params that an engine may hold by mistake, said to be the newest."""
  for behind in BEHIND:
    old = params[NEWEST - behind]
    yield f"stale-{behind}", old, None
    yield f"head-{behind}", *stale_head(config, old, newest)
    yield (
      f"half-{behind}",
      {name: half(name, old[name], x) for name, x in newest.items()},
      None,
    )
  yield "other-base", params[0], None
  for noise in (0.05, 0.2):
    yield f"other-noise{noise:g}", perturbed(newest, noise), None


def half(name: str, old, new):
  """The layers' first half new, the rest as it was."""
  old, new = np.asarray(old), np.asarray(new)
  if not name.startswith("layers/"):
    return new
  cut = len(new) // 2
  return np.concatenate([new[:cut], old[cut:]])


def stale_head(config, old, new):
  """The newest body under the head of before, which is tied to the embedding."""
  untied = dataclasses.replace(config, tie_embeddings=False)
  names = models.flatten(models.abstract_params(untied))
  (head,) = names.keys() - new.keys()
  (table,) = (n for n, x in new.items() if x.shape == names[head].shape[::-1])
  return {**new, head: np.asarray(old[table]).T}, untied


def perturbed(arrays, noise: float):
  """Every matrix with noise of this share of its own spread: another model."""
  rng = np.random.default_rng(7)
  return {
    name: np.asarray(x)
    + noise * np.std(x) * rng.standard_normal(x.shape).astype(np.float32)
    for name, x in arrays.items()
  }


def smollm2(folder: Path, seeds: int) -> None:
  """SmolLM2-135M-Instruct: 32 answers of 64 tokens a batch, of the atlas's texts."""
  model = atlas.Model()
  policy, step = of_the_atlas(model, samples=2), None
  for seed in range(seeds):
    step = smollm2_batches(folder, policy, model.config, model.params, seed, step)


def of_the_atlas(model: atlas.Model, samples: int) -> Policy:
  """SmolLM2 with the texts that the atlas continues."""
  asked = model.config, model.tokenizer, model.prompts, model.held
  return Policy(*asked, FEW, samples=samples, length=atlas.LENGTH)


def smollm2_batches(folder: Path, policy: Policy, config, base, seed, step):
  """Every batch of one seed; gives the step back that later params are made by."""
  flat = {name: np.asarray(x) for name, x in models.flatten(base).items()}
  rows = np.arange(len(policy.prompts))

  def take(name, arrays, precision, law, learner=base, config=None, **said):
    out = policy.sampled(arrays, precision, law, rows, seed, config)
    said |= _said("smollm2", name, precision, law, seed)
    write(folder, f"smollm2_{name}_{seed:03d}", policy, learner, rows, out, **said)
    return out

  for name, law in laws():
    for precision in FRESH:
      out = take(f"fresh-{precision}-{name}", flat, precision, law)
      if step is None and precision == "float32":
        step = adam_step(policy, base, rows, out)
  take("nucleus-0.95", flat, "bfloat16", Sampling(top_p=0.95), strength=0.95)
  for behind in (1, 4):
    newest = _moved(base, step, behind)
    new = {name: np.asarray(x) for name, x in models.flatten(newest).items()}
    take(f"behind-{behind}", flat, "bfloat16", Sampling(), newest, behind=behind)
    head, untied = stale_head(config, flat, new)
    take(f"head-{behind}", head, "float32", Sampling(), newest, config=untied)
  take("other-noise0.05", perturbed(flat, 0.05), "bfloat16", Sampling())
  return step


def served(folder: Path, model: atlas.Model, found: Iterator[atlas.Samples]) -> None:
  """What the atlas has of an engine: one batch of each dtype and temperature."""
  rows = np.arange(len(model.prompts))
  for batch in found:
    policy = of_the_atlas(model, samples=len(batch.tokens) // len(rows))
    out = Generation(
      tokens=batch.tokens,
      mask=batch.mask,
      sampler_logp=batch.logp,
      versions=np.zeros(batch.mask.shape, np.int32),
      finish_reasons=np.where(batch.mask.all(axis=1), LENGTH, STOP).astype(np.int8),
    )
    name = f"fresh-{batch.dtype}-t{batch.temperature:g}"
    said = _said("smollm2", name, batch.dtype, Sampling(batch.temperature), seed=1)
    engine = batch.engine.split()[0]
    said["engine"] = engine
    write(folder, f"{engine}_{name}", policy, model.params, rows, out, **said)


def _moved(params, step, times):
  return jax.tree.map(lambda x, d: x + times * d, params, step)


def adam_step(policy: Policy, params, rows, out, rate=2e-6):
  """The first Adam step of a policy gradient on its own samples, as a tree."""
  prompts = np.repeat(policy.prompts[rows], policy.samples, axis=0)
  held = np.repeat(policy.held[rows], policy.samples, axis=0)
  advantages = np.random.default_rng(0).choice([-1.0, 1.0], len(prompts))

  @jax.jit
  def gradient(params, batch, advantages):
    def gain(params):
      logp = score(policy.graph, params, batch).logp
      return (jnp.where(batch.mask, logp, 0) * advantages[:, None]).sum()

    return jax.grad(gain)(params)

  total: nnx.State | None = None
  for part in np.array_split(np.arange(len(prompts)), len(prompts) // 8):
    batch = Batch(
      prompts[part], held[part], out.tokens[part], out.mask[part], *[None] * 5
    )
    found = gradient(params, batch, jnp.asarray(advantages[part], jnp.float32))
    total = found if total is None else jax.tree.map(jnp.add, total, found)
  return jax.tree.map(lambda g: rate * g / (jnp.abs(g) + 1e-8), total)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--arithmetic", metavar="URL", help="store of a quickstart run")
  parser.add_argument("--smollm2", action="store_true")
  parser.add_argument("--seeds", type=int, default=4, help="batches of each kind (4)")
  for name in SERVED:
    parser.add_argument(f"--{name}", metavar="PYTHON", help=f"that has {name}")
  given = parser.parse_args()
  given.folder.mkdir(parents=True, exist_ok=True)
  if given.arithmetic:
    arithmetic(given.folder, given.arithmetic, given.seeds)
  if given.smollm2:
    smollm2(given.folder, given.seeds)
  pythons = {name: getattr(given, name) for name in SERVED}
  if any(pythons.values()):
    model = atlas.Model()
    for name, python in pythons.items():
      if python:
        served(given.folder, model, SERVED[name](model, python))


if __name__ == "__main__":
  main()
