"""Readings and gradients in float64 numpy, each from its textbook formula."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
  """Inputs of a call and cotangents of its three readings."""

  hidden: np.ndarray  # [..., D]
  head: np.ndarray  # [D, V]
  bias: np.ndarray  # [V]
  targets: np.ndarray  # [...]
  temperature: np.ndarray  # [...]
  cotangents: np.ndarray  # [3, ...]: of logp, entropy, log_normalizer


class Expected(NamedTuple):
  logp: np.ndarray
  entropy: np.ndarray
  log_normalizer: np.ndarray
  d_hidden: np.ndarray
  d_head: np.ndarray
  d_bias: np.ndarray
  d_temperature: np.ndarray
  log_p: np.ndarray  # [..., V]


def make_case(shape, width, vocab, seed=0) -> Case:
  rng = np.random.default_rng(seed)
  return Case(
    hidden=rng.normal(size=(*shape, width)).astype(np.float32),
    head=(rng.normal(size=(width, vocab)) * 3 / width**0.5).astype(np.float32),
    bias=rng.normal(size=vocab).astype(np.float32),
    targets=rng.integers(vocab, size=shape).astype(np.int32),
    temperature=rng.uniform(0.5, 1.5, size=shape).astype(np.float32),
    cotangents=rng.normal(size=(3, *shape)).astype(np.float32),
  )


def log_softmax(scaled):
  with np.errstate(invalid="ignore"):
    shifted = scaled - scaled.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected(case: Case, soft_cap=None, kept=None) -> Expected:
  """`kept` is `[..., V]` bool or None."""
  hidden, head, bias, _, temperature, cotangents = (
    np.asarray(x, np.float64) for x in case
  )
  logits = hidden @ head
  slope = 1.0
  if soft_cap is not None:
    logits = soft_cap * np.tanh(logits / soft_cap)
    slope = 1 - (logits / soft_cap) ** 2
  scaled = (logits + bias) / temperature[..., None]
  if kept is not None:
    scaled = np.where(kept, scaled, -np.inf)
  log_p = log_softmax(scaled)
  p = np.exp(log_p)
  finite = np.where(p > 0, log_p, 0.0)
  entropy = -(p * finite).sum(-1)
  one_hot = case.targets[..., None] == np.arange(head.shape[1])
  d_logp, d_entropy, d_normalizer = cotangents[..., None]
  d_scaled = d_logp * (one_hot - p) + d_normalizer * p
  d_scaled = d_scaled - d_entropy * p * (finite + entropy[..., None])
  d_biased = d_scaled / temperature[..., None]
  d_logits = d_biased * slope
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return Expected(
    logp=np.where(one_hot, log_p, 0.0).sum(-1),
    entropy=entropy,
    log_normalizer=(
      np.log(np.exp(scaled - scaled.max(-1, keepdims=True)).sum(-1)) + scaled.max(-1)
    ),
    d_hidden=d_logits @ head.T,
    d_head=flat(hidden).T @ flat(d_logits),
    d_bias=flat(d_biased).sum(0),
    d_temperature=-(d_scaled * np.where(p > 0, scaled, 0.0)).sum(-1) / temperature,
    log_p=log_p,
  )


def relative_error(got, want) -> float:
  """Norm of the difference over the norm."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def run(token_logprobs, case: Case, **options):
  """`(TokenLogprobs, gradients of hidden, head, bias, temperature)`, not jitted."""
  import jax
  import jax.numpy as jnp

  def loss(hidden, head, bias, temperature):
    out = token_logprobs(
      hidden, head, case.targets, bias=bias, temperature=temperature, **options
    )
    readings = jnp.stack([out.logp, out.entropy, out.log_normalizer])
    return jnp.sum(readings * case.cotangents), out

  grads, out = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(
    case.hidden, case.head, case.bias, case.temperature
  )
  return out, grads
