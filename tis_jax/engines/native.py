"""Generation: prefill once a prompt, then decode token by token with a cache."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax.engines.protocol import Generation
from tis_jax.logprobs import (
  Sampling,
  kept_mass,
  kept_tokens,
  logprobs_from_logits,
  support,
)
from tis_jax.logprobs.reference import materialized_logits
from tis_jax.models import QUANTIZED, cast, decoder_graph, quantize, unflatten
from tis_jax.models.cache import init_cache
from tis_jax.models.params import config_of
from tis_jax.rollouts import LENGTH, STOP
from tis_jax.store import digest

PRECISIONS = ("bfloat16", "float32", *QUANTIZED)
_GREEDY = {
  "temperature": 0.0,
  "top_k": 0,
  "top_p": 1.0,
  "min_p": 0.0,
  "kept_width": 0,
  "top_logprobs": 0,
}


class Responses(NamedTuple):
  """Responses on the device, right-padded.

  Attributes:
    tokens_BT: int32; the stop token is part of the response.
    mask_BT: bool, the tokens that were sampled.
    logp_BT: fp32 log-probs of the sampled tokens, in nats: softmax of all logits at the
      temperature (at 1 for greedy decoding), whatever top-k, top-p and min-p removed.
      0 elsewhere.
    finish_B: int8, `STOP` or `LENGTH`.
    kept_mass_BT: fp32 probability of the tokens that were kept, 1 elsewhere; None when
      all of them always were. The log-prob under the truncated distribution is
      `logp - log(kept_mass)`.
    kept_tokens_BTK: int32 ids of the tokens that were kept, most probable first, padded
      with -1 and all -1 where they are more than K; None when not asked for.
    top_tokens_BTK: int32 ids of the K most probable tokens, -1 where nothing was
      sampled; None when not asked for.
    top_logp_BTK: fp32 their log-probs, made as `logp_BT` is; -inf elsewhere.
  """

  tokens_BT: jax.Array
  mask_BT: jax.Array
  logp_BT: jax.Array
  finish_B: jax.Array
  kept_mass_BT: jax.Array | None = None
  kept_tokens_BTK: jax.Array | None = None
  top_tokens_BTK: jax.Array | None = None
  top_logp_BTK: jax.Array | None = None


class _Drawn(NamedTuple):
  token_B: jax.Array
  logp_B: jax.Array
  kept_mass_B: jax.Array | None
  kept_tokens_BK: jax.Array | None
  top_tokens_BK: jax.Array | None
  top_logp_BK: jax.Array | None


@functools.partial(
  jax.jit,
  static_argnames=(
    "graph",
    "max_new_tokens",
    "samples_per_prompt",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "kept_width",
    "top_logprobs",
    "eos_ids",
    "pad_id",
  ),
)
def generate(
  graph: nnx.GraphDef,
  params: nnx.State,
  prompts_NP: jax.Array,
  prompt_mask_NP: jax.Array,
  key: jax.Array,
  *,
  max_new_tokens: int,
  eos_ids: tuple[int, ...],
  pad_id: int,
  samples_per_prompt: int = 1,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  kept_width: int = 0,
  top_logprobs: int = 0,
) -> Responses:
  """Samples responses from a decoder; ends early when every row has stopped.

  Shapes are static: one compilation for all batches of a run. The rows are the prompts
  in order, each `samples_per_prompt` times in a row; a prompt is prefilled once. A row
  without a prompt is padding, and gets no response. Params and activations are as
  narrow as `params` and `graph` say; logits and log-probs are fp32, by the definition
  that the learner uses (`tis_jax.logprobs`).

  Args:
    graph: from `decoder_graph`; its dtype is that of activations and cache.
    params: of any precision that the decoder takes.
    prompts_NP: int32, left-padded.
    prompt_mask_NP: bool.
    key: PRNG key; token t is drawn with `fold_in(key, t)`.
    max_new_tokens: T.
    eos_ids: a row stops after any of these.
    pad_id: fills tokens_BT after the end.
    samples_per_prompt: B = N * samples_per_prompt.
    temperature: divides the logits in fp32; 0 decodes greedily (for evaluation: its
      own law is a point, and gives no ratio).
    top_k: tokens that may be drawn, see `tis_jax.logprobs.support`.
    top_p: probability mass that may be drawn.
    min_p: least probability that may be drawn, relative to the most probable token.
    kept_width: K, room for the ids of the tokens kept; 0 does not record them.
    top_logprobs: how many of the most probable tokens are recorded with their
      log-probs; 0 for none, at most the vocabulary.

  Returns:
    Responses.

  Raises:
    ValueError: a sampling number outside its range.

  Example:
    >>> from tis_jax.models import DecoderConfig, decoder_graph, init_params
    >>> config = DecoderConfig(vocab_size=5, hidden_size=8, intermediate_size=8,
    ...                        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    >>> params = init_params(config, jax.random.key(0))
    >>> out = generate(decoder_graph(config), params, jnp.array([[0, 3, 4]]),
    ...                jnp.array([[False, True, True]]), jax.random.key(1),
    ...                max_new_tokens=4, samples_per_prompt=2, eos_ids=(1,), pad_id=0)
    >>> out.tokens_BT.shape, bool((out.logp_BT <= 0).all())
    ((2, 4), True)
  """
  if temperature < 0:
    raise ValueError(f"temperature={temperature} is negative; 0 is greedy")
  model = nnx.merge(graph, params)
  head_DV = model.head()
  rows = prompts_NP.shape[0] * samples_per_prompt
  capacity = prompts_NP.shape[1] + max_new_tokens

  def draw(hidden_BD, step) -> _Drawn:
    logits_BV = materialized_logits(hidden_BD, head_DV)
    scaled_BV = logits_BV / (temperature or 1.0)
    kept_BV = support(scaled_BV, top_k=top_k, top_p=top_p, min_p=min_p)
    allowed_BV = scaled_BV
    mass_B = tokens_BK = None
    if kept_BV is None and top_k:
      # As many as there are: the record holds all of them, as of any other top-k.
      kept_BV = jnp.ones(scaled_BV.shape, bool)
    if kept_BV is not None:
      allowed_BV = jnp.where(kept_BV, scaled_BV, -jnp.inf)
      mass_B = kept_mass(scaled_BV, kept_BV)
      if kept_width:
        tokens_BK = kept_tokens(scaled_BV, kept_BV, kept_width)
    if temperature:
      token_B = jax.random.categorical(jax.random.fold_in(key, step), allowed_BV)
    else:
      token_B = jnp.argmax(allowed_BV, axis=-1)
    out = logprobs_from_logits(
      logits_BV,
      token_B,
      temperature=temperature or 1.0,
      entropy=False,
      top_k=top_logprobs,
    )
    top = (None, None) if out.top_k is None else (out.top_k.tokens, out.top_k.logp)
    return _Drawn(token_B.astype(jnp.int32), out.logp, mass_B, tokens_BK, *top)

  cache = init_cache(config_of(graph), prompts_NP.shape[0], capacity, model.dtype)
  hidden_NPD, cache = model(
    prompts_NP, segment_ids_BS=prompt_mask_NP.astype(jnp.int32), cache=cache
  )
  cache = cache._replace(
    keys_LBCNK=jnp.repeat(cache.keys_LBCNK, samples_per_prompt, axis=1),
    values_LBCNK=jnp.repeat(cache.values_LBCNK, samples_per_prompt, axis=1),
    segment_ids_BC=jnp.repeat(cache.segment_ids_BC, samples_per_prompt, axis=0),
  )
  hidden_BD = jnp.repeat(hidden_NPD[:, -1], samples_per_prompt, axis=0)
  absent_B = jnp.repeat(~prompt_mask_NP.any(axis=1), samples_per_prompt)

  def filled(fill, like_B):
    shape = (rows, max_new_tokens, *like_B.shape[1:])
    return jnp.full(shape, fill, like_B.dtype)

  drawn = draw(hidden_BD, 0)
  blank = Responses(
    tokens_BT=filled(pad_id, drawn.token_B),
    mask_BT=filled(False, absent_B),
    logp_BT=filled(0, drawn.logp_B),
    finish_B=jnp.full((rows,), LENGTH, jnp.int8),
  )
  if drawn.kept_mass_B is not None:
    blank = blank._replace(kept_mass_BT=filled(1, drawn.kept_mass_B))
  if drawn.kept_tokens_BK is not None:
    blank = blank._replace(kept_tokens_BTK=filled(-1, drawn.kept_tokens_BK))
  if drawn.top_tokens_BK is not None:
    blank = blank._replace(
      top_tokens_BTK=filled(-1, drawn.top_tokens_BK),
      top_logp_BTK=filled(-jnp.inf, drawn.top_logp_BK),
    )
  done_B, out = _record(blank, absent_B, drawn, 0, eos_ids)

  def unfinished(carry):
    step, done_B, *_ = carry
    return (step < max_new_tokens) & ~done_B.all()

  def decode(carry):
    step, done_B, token_B, cache, out = carry
    hidden_B1D, cache = model(
      token_B[:, None],
      segment_ids_BS=(~done_B)[:, None].astype(jnp.int32),
      cache=cache,
    )
    drawn = draw(hidden_B1D[:, 0], step)
    done_B, out = _record(out, done_B, drawn, step, eos_ids)
    return step + 1, done_B, drawn.token_B, cache, out

  start = (jnp.int32(1), done_B, drawn.token_B, cache, out)
  return jax.lax.while_loop(unfinished, decode, start)[-1]


def _record(out: Responses, done_B, drawn: _Drawn, step, eos_ids):
  """Writes column `step` for the rows that go on; returns who is done after it."""

  def column(all_BT, new_B) -> Any:
    if all_BT is None:
      return None
    old_B = jax.lax.dynamic_index_in_dim(all_BT, step, 1, keepdims=False)
    over_B = done_B.reshape(-1, *[1] * (new_B.ndim - 1))
    new_B = jnp.where(over_B, old_B, new_B)
    return jax.lax.dynamic_update_index_in_dim(all_BT, new_B, step, 1)

  stops_B = jnp.isin(drawn.token_B, jnp.array(eos_ids, jnp.int32)) & ~done_B
  out = Responses(
    tokens_BT=column(out.tokens_BT, drawn.token_B),
    mask_BT=column(out.mask_BT, ~done_B),
    logp_BT=column(out.logp_BT, drawn.logp_B),
    finish_B=jnp.where(stops_B, jnp.int8(STOP), out.finish_B),
    kept_mass_BT=column(out.kept_mass_BT, drawn.kept_mass_B),
    kept_tokens_BTK=column(out.kept_tokens_BTK, drawn.kept_tokens_BK),
    top_tokens_BTK=column(out.top_tokens_BTK, drawn.top_tokens_BK),
    top_logp_BTK=column(out.top_logp_BTK, drawn.top_logp_BK),
  )
  return done_B | stops_B, out


class NativeEngine:
  """`generate` as an engine: a decoder, what it is to sample, and the params it holds.

  Attributes:
    sampling: the law of sampling, with the precision in its `dtype`.
    params_digest: of the arrays by name that it was given; "" of a tree.

  Args:
    graph: from `decoder_graph`.
    sampling: temperature, top-k, top-p and min-p.
    max_new_tokens: T.
    eos_ids: a response ends with any of these.
    pad_id: fills the tokens after the end.
    kept_width: K, room for the ids of the tokens kept; 0 does not record them.
    top_logprobs: how many of the most probable tokens are recorded with their
      log-probs.
    precision: "bfloat16" or "float32" for params and activations, "int8" or "int4" for
      params in it under bfloat16 activations. None computes with the params as they
      are, and the graph's activations.

  Raises:
    ValueError: a precision that there is not.

  Example:
    >>> from tis_jax.models import DecoderConfig, flatten, init_params
    >>> config = DecoderConfig(vocab_size=5, hidden_size=8, intermediate_size=8,
    ...                        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    >>> engine = NativeEngine(decoder_graph(config), Sampling(temperature=0.7),
    ...                       max_new_tokens=4, eos_ids=(1,), pad_id=0,
    ...                       precision="bfloat16")
    >>> engine.update(flatten(init_params(config, jax.random.key(0))), version=3)
    >>> out = engine.generate(np.array([[0, 3, 4]]), np.array([[False, True, True]]),
    ...                       samples=2, key=jax.random.key(1))
    >>> out.tokens.shape, int(out.versions.max()), engine.sampling.dtype
    ((2, 4), 3, 'bfloat16')
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    kept_width: int = 0,
    top_logprobs: int = 0,
    precision: str | None = None,
  ):
    if precision is not None:
      if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {PRECISIONS}")
      dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
      graph = decoder_graph(config_of(graph), dtype=dtype)
      narrow = precision in QUANTIZED
      in_words = f"{precision} params, bfloat16 activations" if narrow else precision
      sampling = dataclasses.replace(sampling, dtype=in_words)
    self.sampling = sampling
    self.params_digest = ""
    self._graph, self._precision = graph, precision
    self._params: nnx.State | None = None
    self._version = -1
    self._options: dict[str, Any] = {
      "max_new_tokens": max_new_tokens,
      "eos_ids": eos_ids,
      "pad_id": pad_id,
      "temperature": sampling.temperature,
      "top_k": sampling.top_k,
      "top_p": sampling.top_p,
      "min_p": sampling.min_p,
      "kept_width": kept_width,
      "top_logprobs": top_logprobs,
    }

  def update(self, params: nnx.State | Mapping[str, Any], version: int) -> None:
    """Generates with these params from now on, in the engine's precision.

    Args:
      params: the decoder's tree, or its arrays by name (`tis_jax.models.flatten`).
      version: said of each token they sample.

    Raises:
      ValueError: a name is missing or unknown, or a shape is wrong.
      ImportError: int8 or int4 without qwix.
    """
    told = ""
    if not isinstance(params, nnx.State):
      told = digest(params)
      arrays = {name: jnp.asarray(array) for name, array in params.items()}
      params = unflatten(self._graph, arrays)
    if self._precision in QUANTIZED:
      params = quantize(params, self._precision)
    elif self._precision is not None:
      params = cast(params, self._precision)
    self._params, self._version, self.params_digest = params, version, told

  def generate(
    self,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    samples: int,
    key: jax.Array,
    greedy: bool = False,
  ) -> Generation:
    """Samples responses, see `Engine.generate`.

    Raises:
      RuntimeError: `update` has not been called.
    """
    if self._params is None:
      raise RuntimeError("there are no params to generate with: call `update` first")
    law = _GREEDY if greedy else {}
    out = jax.device_get(
      generate(
        self._graph,
        self._params,
        prompts,
        prompt_mask,
        key,
        samples_per_prompt=samples,
        **self._options | law,
      )
    )
    return Generation(
      tokens=out.tokens_BT,
      mask=out.mask_BT,
      sampler_logp=out.logp_BT,
      versions=np.full(out.tokens_BT.shape, self._version, np.int32),
      finish_reasons=out.finish_B,
      kept_mass=out.kept_mass_BT,
      kept_tokens=out.kept_tokens_BTK,
      top_tokens=out.top_tokens_BTK,
      top_logp=out.top_logp_BTK,
    )
