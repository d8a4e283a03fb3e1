"""Generation is held to the definition: log-probs of one full forward pass."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import models
from tis_jax.engines import NativeEngine, NativeSettings
from tis_jax.engines.native import PRECISIONS, steps
from tis_jax.engines.native.cache import empty, resize
from tis_jax.engines.native.draw import Law
from tis_jax.engines.native.layout import layout
from tis_jax.logprobs import Sampling, token_logprobs

EOS, PAD, PROMPT, RESPONSE, SAMPLES = 1, 0, 4, 6, 3


@pytest.fixture(scope="module")
def policy():
  config = models.DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
  )
  params = jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(0))
  return models.decoder_graph(config), params


@pytest.fixture(scope="module")
def prompts():
  mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
  tokens = np.where(mask, np.arange(12).reshape(3, 4) % 9 + 2, PAD)
  return tokens.astype(np.int32), mask


def compiled():
  """Compilations of the functions that run on the device, by name."""
  functions = (steps.read, steps.last_logits, steps.fill, steps.decode, resize)
  return {f.__name__: f._cache_size() for f in functions}


def engine_of(policy, sampling=None, **options):
  options = {"max_new_tokens": RESPONSE, "eos_ids": (EOS,), "pad_id": PAD} | options
  names = [field.name for field in dataclasses.fields(NativeSettings)]
  own = {name: options.pop(name) for name in names if name in options}
  settings = NativeSettings(**own)
  return NativeEngine(policy[0], sampling or Sampling(), settings=settings, **options)


def run(policy, prompts, key=1, samples=SAMPLES, **options):
  law = {n: options.pop(n) for n in (*options,) if n in Sampling.__annotations__}
  engine = engine_of(policy, Sampling(**law), **options)
  engine.update(policy[1], version=0)
  return engine.generate(*prompts, samples=samples, key=jax.random.key(key))


def in_precision(policy, precision):
  """The policy in a precision, made by hand."""
  graph, params = policy
  dtype = jnp.bfloat16 if precision in models.QUANTIZED else jnp.dtype(precision)
  graph = models.decoder_graph(models.params.config_of(graph), dtype=dtype)
  if precision in models.QUANTIZED:
    pytest.importorskip("qwix")
    return graph, models.quantize(params, precision)
  return graph, models.cast(params, dtype)


def full_pass(policy, prompts, generated, **options):
  """Readings of the generated tokens, from one pass over the whole rows."""
  graph, params = policy
  tokens, mask = (np.repeat(x, SAMPLES, axis=0) for x in prompts)
  both = np.concatenate([tokens, generated.tokens], axis=1)
  there = np.concatenate([mask, generated.mask], axis=1).astype(np.int32)
  return _full_pass(graph, params, both, there, **options)


@functools.partial(jax.jit, static_argnames=("graph", "temperature", "top_k"))
def _full_pass(graph, params, both, there, **options):
  model = nnx.merge(graph, params)
  hidden, _ = model(both[:, :-1], segment_ids_BS=there[:, :-1])
  return token_logprobs(
    hidden[:, PROMPT - 1 :], model.head(), both[:, PROMPT:], **options
  )


def test_logp_is_that_of_one_full_pass(policy, prompts):
  out = run(policy, prompts)
  expected = full_pass(policy, prompts, out).logp
  mask = np.asarray(out.mask)
  np.testing.assert_allclose(out.sampler_logp[mask], expected[mask], atol=1e-4)


def test_responses_end_with_the_stop_token_or_at_the_limit(policy, prompts):
  out = run(policy, prompts)
  tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
  for row in range(2 * SAMPLES):
    length = mask[row].sum()
    assert mask[row, :length].all() and (tokens[row, length:] == PAD).all()
    assert EOS not in tokens[row, : length - 1]
    stopped = tokens[row, length - 1] == EOS
    assert out.finish_reasons[row] == (0 if stopped else 1)
    assert stopped or length == RESPONSE


def test_a_row_without_a_prompt_gets_no_response(policy, prompts):
  out = run(policy, prompts)
  assert not np.asarray(out.mask)[2 * SAMPLES :].any()


def test_greedy_takes_the_most_probable_token_at_every_step(policy, prompts):
  out = run(policy, prompts, temperature=0.0)
  best = full_pass(policy, prompts, out, top_k=1).top_k.tokens[..., 0]
  mask = np.asarray(out.mask)
  np.testing.assert_array_equal(out.tokens[mask], best[mask])
  expected = full_pass(policy, prompts, out).logp
  np.testing.assert_allclose(out.sampler_logp[mask], expected[mask], atol=1e-4)


def test_truncated_sampling_records_raw_logp_and_what_was_kept(policy, prompts):
  out = run(policy, prompts, temperature=0.7, top_k=4, top_p=0.9, kept_width=4)
  mask = np.asarray(out.mask)
  found = full_pass(policy, prompts, out, temperature=0.7, top_k=4)
  np.testing.assert_allclose(out.sampler_logp[mask], found.logp[mask], atol=1e-4)
  # An oracle in float64 numpy: the shortest run of the top 4 with 0.9 of their mass.
  top = np.exp(np.asarray(found.top_k.logp, np.float64))[mask]
  before = np.cumsum(top, axis=-1) - top
  kept = before < 0.9 * top.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(out.kept_mass[mask], (top * kept).sum(axis=-1), rtol=1e-4)
  ids = np.where(kept, np.asarray(found.top_k.tokens)[mask], -1)
  np.testing.assert_array_equal(out.kept_tokens[mask], ids)
  assert (ids == np.asarray(out.tokens)[mask][:, None]).any(axis=-1).all()
  assert (np.asarray(out.kept_tokens)[~mask] == -1).all()
  assert (np.asarray(out.kept_mass)[~mask] == 1).all()


@pytest.mark.slow
def test_the_most_probable_tokens_are_recorded_under_the_same_law(policy, prompts):
  law = {"temperature": 0.7, "top_p": 0.9}
  out = run(policy, prompts, top_logprobs=4, **law)
  mask = np.asarray(out.mask)
  found = full_pass(policy, prompts, out, temperature=0.7, top_k=4).top_k
  np.testing.assert_array_equal(out.top_tokens[mask], found.tokens[mask])
  # As the log-prob of the token that was drawn: of all tokens, whatever was kept.
  np.testing.assert_allclose(out.top_logp[mask], found.logp[mask], atol=1e-4)
  first = np.asarray(out.top_tokens)[..., 0] == out.tokens
  np.testing.assert_array_equal(
    np.asarray(out.top_logp)[..., 0][mask & first], out.sampler_logp[mask & first]
  )
  assert (mask & first).any()
  assert (np.asarray(out.top_tokens)[~mask] == -1).all()
  assert (np.asarray(out.top_logp)[~mask] == -np.inf).all()
  plain = run(policy, prompts, **law)
  np.testing.assert_array_equal(plain.tokens, out.tokens)
  assert plain.top_tokens is None and plain.top_logp is None


@pytest.mark.parametrize(
  "law",
  [{}, {"temperature": 1.5}, {"top_k": 4}, {"temperature": 0.7, "top_p": 0.9}],
  ids=str,
)
def test_tokens_follow_the_law_that_is_recorded(policy, prompts, law):
  samples = 20_000
  out = run(
    policy, [x[:1] for x in prompts], key=5, samples=samples, max_new_tokens=2,
    slots=samples, eos_ids=(), **law
  )  # fmt: skip
  # All pairs of tokens: their law from the same full pass as everywhere. The first is
  # drawn when the slot is filled, the second by the decoding loop.
  every = np.stack(np.meshgrid(np.arange(11), np.arange(11), indexing="ij"), axis=-1)
  every = every.reshape(-1, 2).astype(np.int32)
  both = np.concatenate([np.repeat(prompts[0][:1], len(every), axis=0), every], axis=1)
  there = np.repeat(np.append(prompts[1][:1], [[True] * 2], axis=1), len(every), axis=0)
  temperature = law.get("temperature", 1.0)
  logp = _full_pass(*policy, both, there.astype(np.int32), temperature=temperature).logp
  raw_ABT = np.exp(np.asarray(logp, np.float64)).reshape(11, 11, 2)
  raw_AB, raw_A = raw_ABT[:, :, 1], raw_ABT[:, 0, 0]
  first, second = out.tokens.T
  np.testing.assert_allclose(out.sampler_logp[:, 0], np.log(raw_A)[first], atol=1e-5)
  np.testing.assert_allclose(
    out.sampler_logp[:, 1], np.log(raw_AB)[first, second], atol=1e-5
  )

  def truncated(raw):
    kept = np.ones(11, bool)
    if "top_k" in law:
      kept = raw >= np.sort(raw)[-law["top_k"]]
    if "top_p" in law:
      down = np.sort(raw)[::-1]
      kept = raw >= down[(np.cumsum(down) - down < law["top_p"]).sum() - 1]
    return raw * kept / raw[kept].sum()

  exact = truncated(raw_A)[:, None] * np.stack([truncated(raw) for raw in raw_AB])
  counts = np.bincount(11 * first + second, minlength=121).reshape(11, 11)
  assert not counts[exact == 0].any()
  # Rare pairs are counted as one, so that a chi-square is what the sum is.
  common = samples * exact >= 5
  found = np.append(counts[common], counts[~common].sum())
  want = samples * np.append(exact[common], max(exact[~common].sum(), 1e-9))
  chi_square = ((found - want) ** 2 / want).sum()
  assert chi_square < common.sum() + 4 * np.sqrt(2 * common.sum())


def test_noise_is_a_function_of_the_key(policy, prompts):
  first, again, other = (run(policy, prompts, key=key) for key in (1, 1, 2))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert (np.asarray(first.tokens) != np.asarray(other.tokens)).any()
  # Samples of one prompt have noise of their own.
  rows = np.asarray(first.tokens)[:SAMPLES]
  assert len({row.tobytes() for row in rows}) > 1


def test_padding_of_prompts_changes_nothing(policy, prompts):
  wide = tuple(np.pad(x, ((0, 0), (3, 0))) for x in prompts)
  narrow, wide = (run(policy, p, temperature=0.0) for p in (prompts, wide))
  np.testing.assert_array_equal(narrow.tokens, wide.tokens)
  np.testing.assert_allclose(narrow.sampler_logp, wide.sampler_logp, atol=1e-5)


def test_decoding_ends_when_every_row_has_stopped(policy, prompts):
  stop_at_once = tuple(range(11))
  start = time.perf_counter()
  out = run(policy, prompts, max_new_tokens=20_000, eos_ids=stop_at_once)
  np.testing.assert_array_equal(out.mask.sum(axis=1), [1, 1, 1, 1, 1, 1, 0, 0, 0])
  # 20,000 steps over a cache of 20,000 slots would take minutes.
  assert time.perf_counter() - start < 60


@pytest.mark.slow
@pytest.mark.parametrize(
  ("precision", "least", "most"),
  [
    # What docs/numerics.md says of a whole model in bf16: 0.030 nats on average.
    ("bfloat16", 1e-4, 0.03),
    # Three bits of mantissa more: an eighth of it.
    ("float16", 1e-5, 0.03 / 8),
    ("int8", 1e-4, 0.05),
    ("float8", 1e-4, 0.2),
    ("int4", 1e-4, 1.0),
  ],
)
def test_low_precision_is_near_and_not_the_same(
  policy, prompts, precision, least, most
):
  low = in_precision(policy, precision)
  out = run(policy, prompts, precision=precision)
  assert out.sampler_logp.dtype == np.float32
  mask = np.asarray(out.mask)

  def distance(a, b):
    return np.abs(a - b)[mask].mean()

  gap = distance(out.sampler_logp, full_pass(policy, prompts, out).logp)
  assert least < gap < most
  # The same params in a full pass of the same dtype, and in fp32 arithmetic: what one
  # pass is off by its roundings. Those of another pass are as large, and where they are
  # independent the two differ by the root of 2 of it.
  own = full_pass(low, prompts, out).logp
  exact = full_pass((policy[0], low[1]), prompts, out).logp
  assert distance(out.sampler_logp, exact) < 1.3 * distance(own, exact)
  assert distance(out.sampler_logp, own) < 2**0.5 * distance(own, exact)


def test_it_lowers_for_accelerators(policy):
  config = models.params.config_of(policy[0])
  laid_out = layout(*policy)
  law = Law(top_p=0.9, kept_width=4)
  plan = steps.Plan(config, jnp.dtype(jnp.float32), law, (EOS,), steps=4)
  keys = jax.random.split(jax.random.key(0), 3)
  slots = steps.no_slots(empty(config, 3, 16, jnp.dtype(jnp.float32)), keys)
  decode = jax.jit(lambda *args: steps.decode(plan, *args))
  exported = jax.export.export(decode, platforms=["tpu", "cuda"])(
    laid_out, slots, np.int32(4), np.int32(1)
  )
  assert exported.platforms == ("tpu", "cuda")


def test_a_long_prompt_is_read_by_a_kernel_of_a_tpu():
  config = models.DecoderConfig(
    vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16,
  )  # fmt: skip
  dtype = jnp.dtype(jnp.bfloat16)
  params = models.init_params(config, jax.random.key(0))
  laid_out = layout(models.decoder_graph(config, dtype=dtype), params)
  plan = steps.Plan(config, dtype, Law(), (EOS,), steps=4)

  def lowered(cache_dtype):
    cache = jax.eval_shape(lambda: empty(config, 2, 16_384, jnp.dtype(cache_dtype)))
    chunk, lengths = jnp.zeros((2, 512), jnp.int32), jnp.zeros(2, jnp.int32)
    hidden = jnp.zeros((2, 32), dtype)
    read = jax.jit(lambda *args: steps.read(plan, *args))
    return jax.export.export(read, platforms=["tpu"])(
      laid_out, chunk, np.int32(512), lengths, cache, hidden
    ).mlir_module()

  # Params may lie on several devices, of which without a mesh nothing is known.
  assert "tpu_custom_call" not in lowered("bfloat16")
  auto = (jax.sharding.AxisType.Auto,)
  one = jax.make_mesh((1,), ("data",), axis_types=auto, devices=jax.devices()[:1])
  with jax.set_mesh(one):
    for cache_dtype in ("bfloat16", "int8"):
      # One a layer.
      assert lowered(cache_dtype).count("tpu_custom_call") == 2


def test_params_may_be_split_over_devices(policy, prompts):
  graph, params = policy
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=auto)
  split = jax.device_put(params, models.params_sharding(params, mesh))
  whole, out = run(policy, prompts), run((graph, split), prompts)
  np.testing.assert_array_equal(out.tokens, whole.tokens)
  np.testing.assert_allclose(out.sampler_logp, whole.sampler_logp, atol=1e-5)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_numbers_outside_their_range_are_refused(policy, prompts, bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    run(policy, prompts, **bad)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_header_says_the_precision(policy, precision):
  engine = engine_of(policy, Sampling(temperature=0.7), precision=precision)
  assert engine.sampling.dtype.startswith(precision)
  assert engine.sampling.temperature == 0.7


def test_a_greedy_answer_records_no_law(policy, prompts):
  engine = engine_of(policy, Sampling(top_k=4), kept_width=4, top_logprobs=3)
  engine.update(policy[1], version=0)
  key = jax.random.key(0)
  out = engine.generate(*prompts, samples=1, key=key, greedy=True)
  assert out.top_tokens is None and out.top_logp is None and out.kept_tokens is None
  assert engine.generate(*prompts, samples=1, key=key).top_logp.shape[-1] == 3


def test_published_arrays_and_the_tree_are_the_same_params(policy, prompts):
  engine = engine_of(policy, precision="bfloat16")
  arrays = jax.device_get(models.flatten(policy[1]))
  found = []
  for params in (policy[1], arrays):
    engine.update(params, version=0)
    found.append(engine.generate(*prompts, samples=2, key=jax.random.key(3)))
  for tree, flat in zip(*found, strict=True):
    np.testing.assert_array_equal(tree, flat)
  with pytest.raises(ValueError, match="parameters missing"):
    engine.update({}, version=1)


def test_new_params_are_used_at_once_and_compile_nothing(policy, prompts):
  engine = engine_of(policy)
  engine.update(policy[1], version=0)
  old = engine.generate(*prompts, samples=SAMPLES, key=jax.random.key(1))
  before = compiled()
  engine.update(jax.tree.map(lambda x: x * 1.5, policy[1]), version=1)
  new = engine.generate(*prompts, samples=SAMPLES, key=jax.random.key(1))
  assert compiled() == before
  assert (new.versions == 1).all()
  assert (new.sampler_logp != old.sampler_logp).any()


def test_an_engine_without_params_or_of_no_known_precision_is_refused(policy, prompts):
  with pytest.raises(RuntimeError, match="call `update` first"):
    engine_of(policy).generate(*prompts, samples=1, key=jax.random.key(0))
  with pytest.raises(ValueError, match=r"precision must be one of .*, got 'fp7'"):
    engine_of(policy, precision="fp7")
