"""The fused path: a kernel's forward and backward, joined by a hand-written VJP."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from tis_jax.logprobs import xla
from tis_jax.logprobs.blockwise import peak_drop, tempered
from tis_jax.logprobs.plan import Cotangent, Gradients, Inputs, Plan, Stats, Wanted
from tis_jax.logprobs.types import TokenLogprobs, TopK
from tis_jax.logprobs.xla import merge_top


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_logprobs(plan: Plan, inputs: Inputs) -> TokenLogprobs:
  """`TokenLogprobs` of `inputs`, holding one block of logits at a time."""
  return _finish(_forward(plan, inputs), inputs, plan)[0]


def _fwd(plan, inputs):
  wanted = Wanted(
    hidden=inputs.hidden.perturbed,
    head=inputs.head.perturbed,
    bias=inputs.bias is not None and inputs.bias.perturbed,
    temperature=inputs.temperature is not None and inputs.temperature.perturbed,
  )
  inputs = Inputs._make(None if x is None else x.value for x in inputs)
  out, log_p_offset = _finish(_forward(plan, inputs), inputs, plan)
  return out, (inputs, log_p_offset, out.entropy, out.candidates, wanted)


def _bwd(plan, residuals, cotangents):
  inputs, (peak, log_total), entropy, candidates, wanted = residuals

  def live(x):
    return None if x is None or isinstance(x, SymbolicZero) else x

  d_logp, d_entropy = live(cotangents.logp), live(cotangents.entropy)
  d_normalizer = live(cotangents.log_normalizer)
  common = d_normalizer
  if d_logp is not None:
    common = -d_logp if common is None else common - d_logp
  d_candidates = live(cotangents.candidates)
  if d_candidates is not None:
    # One that is impossible, or no token at all, has log-prob -inf, which does not
    # move.
    d_candidates = jnp.where(candidates > -jnp.inf, d_candidates, 0.0)
    moved = jnp.sum(d_candidates, axis=-1)
    common = -moved if common is None else common - moved
  cotangent = Cotangent(common, d_logp, d_entropy, d_candidates)

  kernel = _kernel(plan)

  def local(inputs, log_p_offset, entropy, cotangent):
    out = kernel.backward(
      inputs, _offset(inputs, plan), log_p_offset, entropy, cotangent, wanted, plan
    )
    if plan.vocab_axes:
      out = out._replace(
        hidden=_psum(out.hidden, plan), temperature=_psum(out.temperature, plan)
      )
    return out

  specs = _specs(plan)
  whole: Any = PartitionSpec()
  out = _on_shards(
    local,
    plan,
    in_specs=(specs, whole, whole, whole),
    out_specs=Gradients(whole, specs.head, specs.bias, whole),
  )(inputs, (peak, log_total), entropy, cotangent)
  d_temperature = out.temperature
  if d_temperature is not None:
    # l moves by -l / T, l = (z - peak) / T + peak / T, and sum_v d loss/d l_v is the
    # cotangent of the normaliser.
    if d_normalizer is not None:
      d_temperature = d_temperature + d_normalizer * peak / inputs.temperature
    d_temperature = -d_temperature / inputs.temperature
  gradients = (out.hidden, out.head, out.bias, None, d_temperature, None, None)
  return (
    Inputs._make(
      None if x is None or d is None else d.astype(x.dtype)
      for x, d in zip(inputs, gradients, strict=True)
    ),
  )


fused_logprobs.defvjp(_fwd, _bwd, symbolic_zeros=True)


def _kernel(plan: Plan):
  """The module with the kernel's `forward` and `backward`."""
  if plan.kernel == "pallas":
    # Pallas takes longer to import than all that the core imports otherwise.
    from tis_jax.logprobs import pallas

    return pallas
  return xla


def _forward(plan: Plan, inputs: Inputs) -> Stats:
  kernel = _kernel(plan)

  def local(inputs):
    stats = kernel.forward(inputs, _offset(inputs, plan), plan)
    return _combine(stats, inputs.temperature, plan) if plan.vocab_axes else stats

  return _on_shards(local, plan, in_specs=(_specs(plan),), out_specs=PartitionSpec())(
    inputs
  )


def _finish(stats: Stats, inputs: Inputs, plan: Plan):
  """Readings from `Stats`, and what the backward pass computes log p with."""
  log_total = jnp.log(stats.total)
  vocab = inputs.head.shape[plan.vocab_dim]
  in_range = (inputs.targets >= 0) & (inputs.targets < vocab)
  logp = tempered(stats.at_target - stats.peak, inputs.temperature) - log_total
  top_k = None
  if stats.top is not None:
    values, tokens = stats.top
    shifted = values - stats.peak[..., None]
    if inputs.temperature is not None:
      shifted = shifted / inputs.temperature[..., None]
    top_k = TopK(shifted - log_total[..., None], tokens)
  entropy = None
  if stats.moment is not None:
    entropy = log_total - stats.moment / stats.total
  squared = None
  if stats.squared is not None:
    squared = stats.squared / stats.total**2
  candidates = None
  if stats.at_candidates is not None and inputs.candidates is not None:
    shifted = stats.at_candidates - stats.peak[..., None]
    if inputs.temperature is not None:
      shifted = shifted / inputs.temperature[..., None]
    is_token = (inputs.candidates >= 0) & (inputs.candidates < vocab)
    candidates = jnp.where(is_token, shifted - log_total[..., None], -jnp.inf)
  out = TokenLogprobs(
    logp=jnp.where(in_range, logp, jnp.nan),
    entropy=entropy,
    log_normalizer=tempered(stats.peak, inputs.temperature) + log_total,
    top_k=top_k,
    sum_squared_probs=squared,
    candidates=candidates,
  )
  return out, (stats.peak, log_total)


def _combine(stats: Stats, temperature, plan: Plan) -> Stats:
  """One shard's `Stats` to those of the whole vocabulary, on every shard."""
  peak = lax.pmax(stats.peak, plan.vocab_axes)
  drop = peak_drop(stats.peak, peak, temperature)
  decay = jnp.exp(drop)
  moment = None
  if stats.moment is not None:
    moment = _psum(decay * (stats.moment + stats.total * drop), plan)
  squared = None
  if stats.squared is not None:
    squared = _psum(decay**2 * stats.squared, plan)
  top = None
  if stats.top is not None:
    values, tokens = (
      lax.all_gather(x, plan.vocab_axes, axis=x.ndim - 1, tiled=True) for x in stats.top
    )
    nothing = (values[..., :0], tokens[..., :0])
    top = merge_top((values, tokens), nothing, plan.top_k)
  return Stats(
    peak=peak,
    total=_psum(decay * stats.total, plan),
    moment=moment,
    at_target=_psum(stats.at_target, plan),
    top=top,
    squared=squared,
    at_candidates=_psum(stats.at_candidates, plan),
  )


def _on_shards(local, plan: Plan, in_specs, out_specs):
  """`local` per vocab shard, manual over the vocab axes and over nothing else.

  The batch axes stay with the compiler (Auto) or the types (Explicit).
  """
  if not plan.vocab_axes:
    return local
  return jax.shard_map(
    local,
    mesh=plan.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=set(plan.vocab_axes),
    check_vma=False,
  )


def _specs(plan: Plan) -> Inputs:
  """A `PartitionSpec` for each input."""
  whole: Any = PartitionSpec()
  vocab = plan.vocab_axes or None
  bias: Any = PartitionSpec(vocab)
  head: Any = PartitionSpec(vocab, None)
  if plan.vocab_dim:
    head = PartitionSpec(None, vocab)
  return Inputs(whole, head, bias, whole, whole, whole, whole)


def _offset(inputs: Inputs, plan: Plan):
  if not plan.vocab_axes:
    return 0
  return lax.axis_index(plan.vocab_axes) * inputs.head.shape[plan.vocab_dim]


def _psum(x, plan: Plan) -> Any:
  return None if x is None else lax.psum(x, plan.vocab_axes)
