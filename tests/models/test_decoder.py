"""The decoder against a plain float64 one, and against itself in every other way."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import models

PLAIN = models.DecoderConfig(
  vocab_size=24,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
)
EVERYTHING = dataclasses.replace(
  PLAIN,
  tie_embeddings=False,
  attention_bias=True,
  qk_norm=True,
  rope_theta=500.0,
  rope_scaling=models.RopeScaling(4.0, 1.0, 4.0, 64),
)

MIXTURE = dataclasses.replace(
  PLAIN, intermediate_size=24, num_experts=5, experts_per_token=2, qk_norm=True
)

GEMMA = dataclasses.replace(
  PLAIN,
  num_layers=4,
  qk_norm=True,
  rope_theta=5000.0,
  window=models.SlidingWindow(size=3, full_every=2, rope_theta=50.0),
  post_norms=True,
  gelu=True,
  scaled_embedding=True,
)


def random_params(config, seed=0):
  """Parameters with nothing left at one or zero, where a slip would not show."""
  params = jax.jit(lambda key: models.init_params(config, key))(jax.random.key(seed))
  noise = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), params
  )


def make(config, **options):
  graph = models.decoder_graph(config, **options)

  @jax.jit
  def logp(params, tokens, segment_ids, cache=None, positions=None):
    model = nnx.merge(graph, params)
    hidden, cache = model(
      tokens, segment_ids_BS=segment_ids, cache=cache, positions_BS=positions
    )
    logits = jnp.matmul(hidden, model.head(), preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits), cache

  return logp


@pytest.fixture(scope="module")
def plain():
  return make(PLAIN), random_params(PLAIN)


TOKENS = np.random.default_rng(7).integers(0, PLAIN.vocab_size, (3, 10))
LEFT_PADDED = (np.arange(10)[None, :] >= np.array([[0], [3], [7]])).astype(np.int32)


def reference(config, params, tokens, sent=None, routed=None):
  """Log-probs of one row, token by token, head by head, in float64.

  `sent` is a list that is given, layer by layer and token by token, the experts and by
  how much their shares differ from each other and from the next one's.
  `routed` gives, in the same order, experts to take instead; None for the router's own.
  """
  w = {name: np.asarray(x, np.float64) for name, x in models.flatten(params).items()}
  half = config.head_dim // 2

  def norm(x, scale):
    return x / np.sqrt(np.mean(x * x) + config.rms_norm_eps) * scale

  def turn(x, position, windowed):
    out = np.empty_like(x)
    theta = config.window.rope_theta if windowed else config.rope_theta
    for k in range(half):
      frequency = theta ** (-k / half)
      if (scaling := config.rope_scaling) is not None:
        turns = scaling.original_positions * frequency / (2 * np.pi)
        if turns < scaling.low_frequency_factor:
          frequency /= scaling.factor
        elif turns < scaling.high_frequency_factor:
          span = scaling.high_frequency_factor - scaling.low_frequency_factor
          kept = (turns - scaling.low_frequency_factor) / span
          frequency *= kept + (1 - kept) / scaling.factor
      c, s = np.cos(position * frequency), np.sin(position * frequency)
      out[k] = x[k] * c - x[k + half] * s
      out[k + half] = x[k + half] * c + x[k] * s
    return out

  def gated(h, gate, up, down):
    gate = h @ gate
    slope = 1 / (1 + np.exp(-gate))
    if config.gelu:
      cubed = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
      slope = (1 + np.tanh(cubed)) / 2
    return (gate * slope * (h @ up)) @ down

  def mlp(p, h):
    if not config.num_experts:
      return gated(h, *(p[f"mlp/{name}"] for name in ("gate", "up", "down")))
    share = np.exp(h @ p["mlp/router"])
    share /= share.sum()
    order = np.argsort(-share)
    chosen = order[: config.experts_per_token]
    if routed is not None and (given := next(routed)) is not None:
      chosen = given
    if sent is not None:
      gaps = -np.diff(share[order])[: config.experts_per_token]
      sent.append((chosen, gaps.min()))
    whole = share[chosen].sum() if config.normalize_experts else 1.0
    names = ("expert_gate", "expert_up", "expert_down")
    return sum(
      share[e] / whole * gated(h, *(p[f"mlp/{name}"][e] for name in names))
      for e in chosen
    )

  scale = np.sqrt(config.hidden_size) if config.scaled_embedding else 1.0
  xs = [scale * w["embedding"][token] for token in tokens]
  for layer in range(config.num_layers):
    p = {
      name.removeprefix("layers/"): x[layer]
      for name, x in w.items()
      if name.startswith("layers/")
    }
    keys, values, ys = [], [], []
    windowed = config.window is not None and (layer + 1) % config.window.full_every
    for position, x in enumerate(xs):
      h = norm(x, p["attention_norm"])
      key_heads, value_heads, out = [], [], np.zeros_like(x)
      for n in range(config.num_kv_heads):
        key = h @ p["attention/key"][:, n]
        value = h @ p["attention/value"][:, n]
        if config.attention_bias:
          key = key + p["attention/key_bias"][n]
          value = value + p["attention/value_bias"][n]
        if config.qk_norm:
          key = norm(key, p["attention/key_norm"])
        key_heads.append(turn(key, position, windowed))
        value_heads.append(value)
      keys.append(key_heads)
      values.append(value_heads)
      for n in range(config.num_kv_heads):
        for g in range(config.group_size):
          query = h @ p["attention/query"][:, n, g]
          if config.attention_bias:
            query = query + p["attention/query_bias"][n, g]
          if config.qk_norm:
            query = norm(query, p["attention/query_norm"])
          query = turn(query, position, windowed)
          first = max(0, position + 1 - config.window.size) if windowed else 0
          near, its = keys[first:], values[first:]
          logits = np.array([query @ k[n] for k in near]) / np.sqrt(config.head_dim)
          weights = np.exp(logits - logits.max())
          weights /= weights.sum()
          mixed = sum(a * v[n] for a, v in zip(weights, its, strict=True))
          out = out + mixed @ p["attention/out"][n, g]
      if config.post_norms:
        out = norm(out, p["attention_post_norm"])
      y = x + out
      out = mlp(p, norm(y, p["mlp_norm"]))
      ys.append(y + (norm(out, p["mlp_post_norm"]) if config.post_norms else out))
    xs = ys
  head = w["embedding"].T if config.tie_embeddings else w["output"]
  logits = np.stack([norm(x, w["final_norm"]) for x in xs]) @ head
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(
  "config",
  [
    PLAIN,
    EVERYTHING,
    MIXTURE,
    GEMMA,
    dataclasses.replace(MIXTURE, normalize_experts=False, experts_per_token=3),
  ],
  ids=["plain", "everything", "mixture", "gemma", "mixture, unnormalised"],
)
def test_agrees_with_a_float64_decoder(config):
  params = random_params(config)
  logp, _ = make(config)(params, TOKENS[:1], None)
  np.testing.assert_allclose(
    logp[0], reference(config, params, TOKENS[0]), atol=2e-5, rtol=0
  )


def test_padding_on_the_left_changes_nothing(plain):
  logp_of, params = plain
  padded, _ = logp_of(params, TOKENS, LEFT_PADDED)
  assert np.isfinite(padded).all()
  for row, segments in enumerate(LEFT_PADDED):
    real = segments > 0
    alone = reference(PLAIN, params, TOKENS[row][real])
    np.testing.assert_allclose(padded[row][real], alone, atol=2e-5)


def test_packed_segments_do_not_see_each_other(plain):
  logp_of, params = plain
  segments = np.array([[1] * 4 + [2] * 3 + [0] + [3] * 2], np.int32).repeat(3, 0)
  packed, _ = logp_of(params, TOKENS, segments)
  for row, tokens in enumerate(TOKENS):
    for segment in (1, 2, 3):
      inside = segments[row] == segment
      alone = reference(PLAIN, params, tokens[inside])
      np.testing.assert_allclose(packed[row][inside], alone, atol=2e-5)


def test_a_window_moves_with_the_cache_and_stops_at_padding():
  logp_of, params = make(GEMMA), random_params(GEMMA)
  padded, _ = logp_of(params, TOKENS, LEFT_PADDED)
  for row, segments in enumerate(LEFT_PADDED):
    alone = reference(GEMMA, params, TOKENS[row][segments > 0])
    np.testing.assert_allclose(padded[row][segments > 0], alone, atol=3e-5)
  cache = models.init_cache(GEMMA, batch=3, capacity=12)
  first, cache = logp_of(params, TOKENS[:, :5], LEFT_PADDED[:, :5], cache)
  then, _ = logp_of(params, TOKENS[:, 5:], LEFT_PADDED[:, 5:], cache)
  found = np.concatenate([first, then], axis=1)
  real = LEFT_PADDED > 0
  np.testing.assert_allclose(found[real], padded[real], atol=1e-4)


@pytest.mark.parametrize("chunks", [[10], [6, 1, 1, 1, 1], [3, 4, 3]], ids=str)
def test_decoding_with_the_cache_is_the_full_forward_pass(plain, chunks):
  logp_of, params = plain
  full, _ = logp_of(params, TOKENS, LEFT_PADDED)
  cache = models.init_cache(PLAIN, batch=3, capacity=12)
  pieces, start = [], 0
  for size in chunks:
    part = slice(start, start + size)
    piece, cache = logp_of(params, TOKENS[:, part], LEFT_PADDED[:, part], cache)
    pieces.append(piece)
    start += size
  assert int(cache.length) == 10
  real = LEFT_PADDED > 0
  incremental = np.concatenate(pieces, axis=1)
  np.testing.assert_allclose(incremental[real], full[real], atol=1e-4, rtol=0)


def test_a_token_does_not_change_what_came_before(plain):
  logp_of, params = plain
  changed = TOKENS.copy()
  changed[:, 6] = (changed[:, 6] + 1) % PLAIN.vocab_size
  before, _ = logp_of(params, TOKENS, None)
  after, _ = logp_of(params, changed, None)
  np.testing.assert_array_equal(before[:, :6], after[:, :6])
  assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3


def test_given_positions_are_used(plain):
  logp_of, params = plain
  logp, _ = logp_of(params, TOKENS, None)
  shifted = np.arange(10)[None, :].repeat(3, 0) + 5
  # Rotary positions are relative: a common shift changes nothing, a stretch does.
  moved, _ = logp_of(params, TOKENS, None, None, shifted)
  np.testing.assert_allclose(moved, logp, atol=1e-4)
  stretched, _ = logp_of(params, TOKENS, None, None, 2 * shifted)
  assert np.abs(stretched - logp).max() > 1e-2


def test_remat_changes_memory_and_not_gradients(plain):
  _, params = plain

  def gradient(remat):
    logp_of = make(PLAIN, remat=remat)
    loss = lambda p: logp_of(p, TOKENS, LEFT_PADDED)[0][..., 1].mean()
    return jax.jit(jax.grad(loss))(params)

  kept, recomputed = gradient(False), gradient(True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4),
    kept,
    recomputed,
  )
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(kept))


def test_bf16_activations_stay_close_and_keep_their_dtype(plain):
  logp_of, params = plain
  exact, _ = logp_of(params, TOKENS, LEFT_PADDED)
  rounded, _ = make(PLAIN, dtype=jnp.bfloat16)(params, TOKENS, LEFT_PADDED)
  gap = np.abs(rounded - exact)[LEFT_PADDED > 0]
  assert 1e-4 < gap.mean() < 0.05

  def run(params):
    model = nnx.merge(models.decoder_graph(PLAIN, dtype=jnp.bfloat16), params)
    return model(TOKENS)[0], model.head()

  assert {x.dtype for x in jax.eval_shape(run, params)} == {jnp.dtype(jnp.bfloat16)}


def test_impossible_shapes_are_refused():
  with pytest.raises(ValueError, match="multiple of"):
    dataclasses.replace(PLAIN, num_kv_heads=3)
  with pytest.raises(ValueError, match="odd"):
    dataclasses.replace(PLAIN, head_dim=7)
  with pytest.raises(ValueError, match=r"experts_per_token=6 is not in 1\.\.5"):
    dataclasses.replace(MIXTURE, experts_per_token=6)
  with pytest.raises(ValueError, match="experts have SiLU gates"):
    dataclasses.replace(MIXTURE, gelu=True)


def test_a_config_survives_json():
  for config in (EVERYTHING, GEMMA):
    text = json.dumps(dataclasses.asdict(config))
    assert models.DecoderConfig(**json.loads(text)) == config
