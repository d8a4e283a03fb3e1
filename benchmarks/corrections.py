"""Corrections: time beside verl's helper, beside a copy, and inside a learner step.

  python benchmarks/corrections.py          # all cases; verl's needs the `peers` extra

The case is [256, 4096] fp32 on the CPU: token TIS at 2.0, a geometric band and a bound
on each sequence's mean k3. Every round runs all versions in turn, and a ratio is the
median over rounds of ratios within a round, so that a busy machine slows all alike. A
version finds the caches as the others left them, as it would in a learner.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import tis_jax as tis

ROWS, LENGTH = 256, 4096
VERL = {
  "rollout_is": "token",
  "rollout_is_threshold": 2.0,
  "rollout_rs": "seq_mean_k1,seq_mean_k3",
  "rollout_rs_threshold": "0.99_1.01,0.01",
}


def rollouts(rows: int, length: int) -> tuple[np.ndarray, ...]:
  """Log-probs of both sides 0.05 nats apart, and a mask of ragged rows."""
  rng = np.random.default_rng(0)
  sampler = -rng.gamma(1.0, 0.5, (rows, length)).astype(np.float32)
  old = sampler + rng.normal(0.0, 0.05, sampler.shape).astype(np.float32)
  mask = np.arange(length) < rng.integers(length // 4, length + 1, (rows, 1))
  return old, sampler, mask


def ours(metrics: str, high: float = 2.0) -> tis.Chain:
  return tis.chain(
    tis.truncate(high),
    tis.reject(low=0.99, high=1.01, level="geometric"),
    tis.reject_divergence(0.01, kind="k3", reduce="mean"),
    metrics=metrics,
  )


@jax.jit
def correct(chain, old, sampler, mask):
  """Weights, mask, and the metrics as the scalars a run logs."""
  out = chain(old, sampler, mask)
  return out.weight, out.mask, tis.finalize(out.metrics)


def verl_helper(arrays) -> Callable | None:
  """verl's own function on the same arrays, or None where it is not installed."""
  try:
    import torch
    from verl.trainer.ppo import rollout_corr_helper
  except ImportError as error:
    print(f"verl is left out ({error}): pip install -e '.[peers]', see the Makefile")
    return None
  old, sampler, mask = (torch.from_numpy(np.array(x)) for x in arrays)
  mask = mask.float()
  helper = rollout_corr_helper.compute_rollout_correction_and_rejection_mask
  return lambda: helper(old, sampler, mask, **VERL)


def rounds_of(versions: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
  """Seconds of each version in each round; one call goes first, unmeasured."""
  for run in versions.values():
    jax.block_until_ready(run())
  seconds = {name: [] for name in versions}
  for _ in range(rounds):
    for name, run in versions.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
  return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def alone(rounds: int):
  arrays = tuple(jnp.asarray(x) for x in rollouts(ROWS, LENGTH))
  four = (*arrays[:2], arrays[2].astype(jnp.float32), arrays[0])
  copy = jax.jit(lambda *xs: [jnp.copy(x) for x in xs])
  pasted = jax.jit(tis.compat.verl.correction(VERL))
  versions = {
    "copy of four arrays": lambda: copy(*four),
    "chain, no metrics": lambda: correct(ours("none"), *arrays),
    "chain, core metrics": lambda: correct(ours("core"), *arrays),
    "chain, full metrics": lambda: correct(ours("full"), *arrays),
    "compat.verl, verl's metrics": lambda: pasted(*arrays),
  }
  if helper := verl_helper(rollouts(ROWS, LENGTH)):
    versions["verl"] = helper
  seconds = rounds_of(versions, rounds)
  copying, peer = seconds["copy of four arrays"], seconds.get("verl")
  print(f"\n[{ROWS}, {LENGTH}] fp32, token TIS + geometric band + k3")
  print(f"{'version':<30}{'median':>11}{'of a copy':>11}{'verl is':>10}")
  for name, mine in seconds.items():
    slower = f"{ratio(peer, mine):>9.1f}x" if peer else ""
    median = 1e3 * statistics.median(mine)
    print(f"{name:<30}{median:>8.2f} ms{ratio(mine, copying):>11.1f}{slower}")
  correct.clear_cache()
  for high in np.linspace(1.1, 10.0, 100):
    correct(ours("core", high), *arrays)
  print(f"a sweep of 100 caps compiled {correct._cache_size()} time(s)")


def step(rounds: int):
  """The quickstart's learner step, and what correction and metrics add to it."""
  from tis_jax import learner, models, runner

  config, params, _ = models.load("builtin:arithmetic")
  graph = models.decoder_graph(config, remat=True)
  batch, _ = learner.load_batch("notebooks/quickstart_batch.npz")
  optimizer = learner.make_optimizer(learner.AdamW(1e-4), updates=1000)
  mesh = learner.make_mesh(devices=jax.devices()[:1])

  def version(**settings) -> Callable:
    algorithm = runner.algorithm_of(
      {"old_logp": "current", "micro_batches": 8, "correction": settings}
    )
    update = learner.make_update(graph, algorithm, optimizer, mesh)
    state = learner.init_state(params, optimizer, jax.random.key(0), mesh)

    def run():
      nonlocal state
      state, metrics = update(state, batch, np.int32(0))
      return metrics

    return run

  arrays = (batch.sampler_logp, batch.sampler_logp, batch.mask)
  versions = {
    "step, no correction": version(stages=(), metrics="none"),
    "step, core metrics": version(stages=("truncate",), metrics="core"),
    "step, full metrics": version(stages=("truncate",), metrics="full"),
    "correction alone, core": lambda: correct(ours("core"), *arrays),
    "correction alone, full": lambda: correct(ours("full"), *arrays),
  }
  seconds = rounds_of(versions, rounds)
  base = seconds["step, no correction"]
  shape = "x".join(map(str, batch.mask.shape))
  print(f"\nquickstart's learner step, {shape} response tokens")
  print(f"{'version':<30}{'median':>11}{'share of the step':>20}")
  for name, mine in seconds.items():
    median = 1e3 * statistics.median(mine)
    print(f"{name:<30}{median:>8.2f} ms{100 * ratio(mine, base):>18.2f} %")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--cases", nargs="+", default=["alone", "step"], choices=["alone", "step"]
  )
  parser.add_argument("--rounds", type=int, default=30)
  args = parser.parse_args()
  print(f"jax {jax.__version__}, {jax.default_backend()}, {args.rounds} rounds")
  if "alone" in args.cases:
    alone(args.rounds)
  if "step" in args.cases:
    step(args.rounds)


if __name__ == "__main__":
  main()
