"""Log-probs: memory and time of the fused path beside versions that hold all logits.

  python benchmarks/logprobs.py                      # one head, then SmolLM2's step
  python benchmarks/logprobs.py --cases accelerator  # D=4096, V=152,000, bf16

Memory is the compiler's own account (`memory_analysis().temp_size_in_bytes`). Every
round runs all versions in turn, and a time ratio is the median over rounds of ratios
within a round, so that a busy machine slows all of them alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tis_jax.logprobs import token_logprobs

MIB = 2**20


def fused(hidden, head, targets):
  out = token_logprobs(hidden, head, targets)
  return out.logp, out.entropy


def fused_tied(hidden, head, targets):
  """As the learner calls it: the transposes cancel, and the table is read in place."""
  out = token_logprobs(hidden, head.T, targets, tied=True)
  return out.logp, out.entropy


def fused_logp(hidden, head, targets):
  return token_logprobs(hidden, head, targets, entropy=False).logp, None


def reference(hidden, head, targets):
  out = token_logprobs(hidden, head, targets, implementation="reference")
  return out.logp, out.entropy


def reference_logp(hidden, head, targets):
  out = token_logprobs(hidden, head, targets, implementation="reference", entropy=False)
  return out.logp, None


def usual(hidden, head, targets):
  """What is found in most training code."""
  logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
  log_p = jax.nn.log_softmax(logits)
  logp = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  return logp, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def usual_logp(hidden, head, targets):
  return usual(hidden, head, targets)[0], None


def optax_logp(hidden, head, targets):
  logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
  return -optax.softmax_cross_entropy_with_integer_labels(logits, targets), None


def tokamax_logp(hidden, head, targets):
  import tokamax

  loss = tokamax.linear_softmax_cross_entropy_loss(
    hidden, targets, head, reduction="none"
  )
  return -loss, None


def with_gradients(version: Callable) -> Callable:
  """Both gradients of a weighted sum of log-probs; the entropy is a metric."""

  def loss(hidden, head, targets, weights):
    logp, entropy = version(hidden, head, targets)
    return jnp.sum(logp * weights), None if entropy is None else jnp.mean(entropy)

  return jax.grad(loss, (0, 1), has_aux=True)


def compare(versions: dict[str, Callable], arguments: tuple, rounds: int):
  """`{name: (temporary bytes, seconds of each round)}`, all compiled beforehand."""
  compiled = {
    name: jax.jit(version).lower(*arguments).compile()
    for name, version in versions.items()
  }
  for run in compiled.values():
    jax.block_until_ready(run(*arguments))
  seconds = {name: [] for name in compiled}
  for _ in range(rounds):
    for name, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(*arguments))
      seconds[name].append(time.perf_counter() - start)
  return {
    name: (run.memory_analysis().temp_size_in_bytes, seconds[name])
    for name, run in compiled.items()
  }


def report(results: dict, against: str, tokens: int):
  base = results[against][1]
  print(f"{'version':<34}{'temporary':>13}{'best':>9}{'tokens/s':>11}{'ratio':>8}")
  for name, (memory, seconds) in results.items():
    ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
    best = min(seconds)
    print(
      f"{name:<34}{memory / MIB:>9.1f} MiB{best:>8.3f}s{tokens / best:>11,.0f}"
      f"{ratio:>8.2f}"
    )


def inputs(tokens: int, width: int, vocab: int, dtype):
  keys = jax.random.split(jax.random.key(0), 4)
  return (
    jax.random.normal(keys[0], (tokens, width), dtype),
    jax.random.normal(keys[1], (width, vocab), dtype) / jnp.sqrt(width).astype(dtype),
    jax.random.randint(keys[2], (tokens,), 0, vocab),
    jax.random.normal(keys[3], (tokens,)),
  )


def head_only(rounds: int):
  tokens, width, vocab = 2048, 256, 32_000
  print(f"\nN={tokens} D={width} V={vocab} fp32, both gradients")
  logits = 4 * tokens * vocab / MIB
  print(f"one copy of the logits is {logits:.0f} MiB; ratio to `usual, logp`")
  versions = {
    "usual, logp": usual_logp,
    "optax, logp": optax_logp,
    "reference, logp": reference_logp,
    "fused, logp": fused_logp,
    "usual, logp and entropy": usual,
    "reference, logp and entropy": reference,
    "fused, logp and entropy": fused,
  }
  versions = {name: with_gradients(version) for name, version in versions.items()}
  results = compare(versions, inputs(tokens, width, vocab, jnp.float32), rounds)
  report(results, "usual, logp", tokens)
  for ours, theirs in (
    ("fused, logp", "reference, logp"),
    ("fused, logp and entropy", "usual, logp and entropy"),
    ("fused, logp and entropy", "reference, logp and entropy"),
  ):
    pairs = zip(results[ours][1], results[theirs][1], strict=True)
    print(f"  {ours} / {theirs}: {statistics.median(a / b for a, b in pairs):.2f}")


def learner_step(rounds: int, rows: int, length: int):
  """Gradients of the whole of SmolLM2-135M, randomly initialised."""
  from flax import nnx

  from tis_jax.models import DecoderConfig, decoder_graph, init_params

  config = DecoderConfig(
    vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_layers=30,
    num_heads=9, num_kv_heads=3, head_dim=64, rope_theta=1e4, rms_norm_eps=1e-5,
    tie_embeddings=True,
  )  # fmt: skip
  graph = decoder_graph(config, remat=True)
  params = init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab_size)

  def step(version):
    def loss(params, tokens):
      model = nnx.merge(graph, params)
      hidden, _ = model(tokens)
      logp, entropy = version(hidden[:, :-1], model.head(), tokens[:, 1:])
      return jnp.mean(logp), jnp.mean(entropy)

    return jax.grad(loss, has_aux=True)

  print(f"\nSmolLM2-135M, D=576 V=49,152 tied, fp32, {rows} x {length} tokens, remat")
  versions = {
    "usual": step(usual),
    "reference": step(reference),
    "fused": step(fused_tied),
  }
  report(compare(versions, (params, tokens), rounds), "usual", rows * length)


def accelerator(rounds: int, tokens: int, width: int, vocab: int):
  """Share of the measured matrix peak, forward and backward."""
  side = max(width, 1024)
  square = (
    jnp.ones((8 * side, side), jnp.bfloat16),
    jnp.ones((side, side), jnp.bfloat16),
  )
  product = lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
  (_, seconds) = compare({"peak": product}, square, 10 * rounds)["peak"]
  peak = 2 * 8 * side**3 / min(seconds)
  print(f"\nN={tokens} D={width} V={vocab} bf16 on {jax.devices()[0].device_kind}")
  print(f"measured matrix peak {peak / 1e12:.1f} TFLOP/s")

  versions = {"fused": fused, "fused, logp": fused_logp, "usual, logp": usual_logp}
  versions |= {"optax, logp": optax_logp}
  try:
    import tokamax  # noqa: F401

    versions["tokamax, logp"] = tokamax_logp
  except ImportError:
    print("tokamax is not installed")
  arguments = inputs(tokens, width, vocab, jnp.bfloat16)
  forward = lambda version: lambda h, w, y, _: version(h, w, y)
  for title, wrap, products in (
    ("forward", forward, 1),
    ("forward and backward", with_gradients, 3),
  ):
    results = compare({k: wrap(v) for k, v in versions.items()}, arguments, rounds)
    print(f"\n{title}")
    report(results, "usual, logp", tokens)
    for name, (_, seconds) in results.items():
      # The products that any version needs; recomputing the logits earns nothing.
      done = products * 2 * tokens * width * vocab / min(seconds)
      print(f"  {name}: {100 * done / peak:.0f}% of the peak")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--cases", nargs="+", default=["head", "learner"],
    choices=["head", "learner", "accelerator"],
  )  # fmt: skip
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--rows", type=int, default=4, help="of the learner step")
  parser.add_argument("--length", type=int, default=256, help="of the learner step")
  parser.add_argument(
    "--shape", type=int, nargs=3, default=(16_384, 4096, 152_000),
    metavar=("N", "D", "V"), help="of the accelerator case",
  )  # fmt: skip
  args = parser.parse_args()
  print(f"jax {jax.__version__}, {jax.default_backend()}, {args.rounds} rounds")
  if "head" in args.cases:
    head_only(args.rounds)
  if "learner" in args.cases:
    learner_step(args.rounds, args.rows, args.length)
  if "accelerator" in args.cases:
    accelerator(args.rounds, *args.shape)


if __name__ == "__main__":
  main()
