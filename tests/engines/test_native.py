"""Generation is held to the definition: log-probs of one full forward pass."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tis_jax import models
from tis_jax.engines import NativeEngine, generate
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


def run(policy, prompts, key=1, **options):
  settings = {
    "max_new_tokens": RESPONSE,
    "samples_per_prompt": SAMPLES,
    "eos_ids": (EOS,),
    "pad_id": PAD,
  }
  return generate(*policy, *prompts, jax.random.key(key), **(settings | options))


def in_precision(policy, precision):
  """The policy as `generate` takes it in a precision, made by hand."""
  graph, params = policy
  dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
  graph = models.decoder_graph(models.params.config_of(graph), dtype=dtype)
  if precision in ("int8", "int4"):
    pytest.importorskip("qwix")
    return graph, models.quantize(params, precision)
  return graph, models.cast(params, dtype)


def full_pass(policy, prompts, generated, **options):
  """Readings of the generated tokens, from one pass over the whole rows."""
  graph, params = policy
  tokens, mask = (np.repeat(x, SAMPLES, axis=0) for x in prompts)
  both = np.concatenate([tokens, generated.tokens_BT], axis=1)
  there = np.concatenate([mask, generated.mask_BT], axis=1).astype(np.int32)
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
  mask = np.asarray(out.mask_BT)
  np.testing.assert_allclose(out.logp_BT[mask], expected[mask], atol=1e-4)


def test_responses_end_with_the_stop_token_or_at_the_limit(policy, prompts):
  out = run(policy, prompts)
  tokens, mask = np.asarray(out.tokens_BT), np.asarray(out.mask_BT)
  for row in range(2 * SAMPLES):
    length = mask[row].sum()
    assert mask[row, :length].all() and (tokens[row, length:] == PAD).all()
    assert EOS not in tokens[row, : length - 1]
    stopped = tokens[row, length - 1] == EOS
    assert out.finish_B[row] == (0 if stopped else 1)
    assert stopped or length == RESPONSE


def test_a_row_without_a_prompt_gets_no_response(policy, prompts):
  out = run(policy, prompts)
  assert not np.asarray(out.mask_BT)[2 * SAMPLES :].any()


def test_greedy_takes_the_most_probable_token_at_every_step(policy, prompts):
  out = run(policy, prompts, temperature=0.0, samples_per_prompt=SAMPLES)
  best = full_pass(policy, prompts, out, top_k=1).top_k.tokens[..., 0]
  mask = np.asarray(out.mask_BT)
  np.testing.assert_array_equal(out.tokens_BT[mask], best[mask])
  expected = full_pass(policy, prompts, out).logp
  np.testing.assert_allclose(out.logp_BT[mask], expected[mask], atol=1e-4)


def test_truncated_sampling_records_raw_logp_and_what_was_kept(policy, prompts):
  out = run(policy, prompts, temperature=0.7, top_k=4, top_p=0.9, kept_width=4)
  mask = np.asarray(out.mask_BT)
  found = full_pass(policy, prompts, out, temperature=0.7, top_k=4)
  np.testing.assert_allclose(out.logp_BT[mask], found.logp[mask], atol=1e-4)
  # An oracle in float64 numpy: the shortest run of the top 4 with 0.9 of their mass.
  top = np.exp(np.asarray(found.top_k.logp, np.float64))[mask]
  before = np.cumsum(top, axis=-1) - top
  kept = before < 0.9 * top.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(
    out.kept_mass_BT[mask], (top * kept).sum(axis=-1), rtol=1e-4
  )
  ids = np.where(kept, np.asarray(found.top_k.tokens)[mask], -1)
  np.testing.assert_array_equal(out.kept_tokens_BTK[mask], ids)
  assert (ids == np.asarray(out.tokens_BT)[mask][:, None]).any(axis=-1).all()
  assert (np.asarray(out.kept_tokens_BTK)[~mask] == -1).all()
  assert (np.asarray(out.kept_mass_BT)[~mask] == 1).all()


def test_the_most_probable_tokens_are_recorded_under_the_same_law(policy, prompts):
  law = {"temperature": 0.7, "top_p": 0.9}
  out = run(policy, prompts, top_logprobs=4, **law)
  mask = np.asarray(out.mask_BT)
  found = full_pass(policy, prompts, out, temperature=0.7, top_k=4).top_k
  np.testing.assert_array_equal(out.top_tokens_BTK[mask], found.tokens[mask])
  # As the log-prob of the token that was drawn: of all tokens, whatever was kept.
  np.testing.assert_allclose(out.top_logp_BTK[mask], found.logp[mask], atol=1e-4)
  first = np.asarray(out.top_tokens_BTK)[..., 0] == out.tokens_BT
  np.testing.assert_array_equal(
    np.asarray(out.top_logp_BTK)[..., 0][mask & first], out.logp_BT[mask & first]
  )
  assert (mask & first).any()
  assert (np.asarray(out.top_tokens_BTK)[~mask] == -1).all()
  assert (np.asarray(out.top_logp_BTK)[~mask] == -np.inf).all()
  plain = run(policy, prompts, **law)
  np.testing.assert_array_equal(plain.tokens_BT, out.tokens_BT)
  assert plain.top_tokens_BTK is None and plain.top_logp_BTK is None


def test_tokens_follow_the_law_that_is_recorded(policy, prompts):
  graph, params = policy
  samples = 20_000
  out = generate(
    graph,
    params,
    prompts[0][:1],
    prompts[1][:1],
    jax.random.key(5),
    max_new_tokens=1,
    samples_per_prompt=samples,
    temperature=1.5,
    eos_ids=(EOS,),
    pad_id=PAD,
  )
  counts = np.bincount(out.tokens_BT[:, 0], minlength=11)
  # One position, all tokens: the law from the same full pass as everywhere.
  every = np.repeat(np.arange(11), SAMPLES)[:, None].astype(np.int32)
  both = np.concatenate([np.repeat(prompts[0][:1], len(every), axis=0), every], axis=1)
  there = np.repeat(np.append(prompts[1][:1], [[True]], axis=1), len(every), axis=0)
  logp = _full_pass(graph, params, both, there.astype(np.int32), temperature=1.5).logp
  law = np.exp(np.asarray(logp, np.float64)[::SAMPLES, 0])
  chi_square = (((counts - samples * law) ** 2) / (samples * law)).sum()
  # 11 tokens: 10 degrees of freedom; 35 has a p-value of 1e-4.
  assert chi_square < 35
  logp = np.asarray(out.logp_BT)[:, 0]
  np.testing.assert_allclose(logp, np.log(law)[out.tokens_BT[:, 0]], atol=1e-5)


def test_noise_is_a_function_of_the_key(policy, prompts):
  first, again, other = (run(policy, prompts, key=key) for key in (1, 1, 2))
  np.testing.assert_array_equal(first.tokens_BT, again.tokens_BT)
  assert (np.asarray(first.tokens_BT) != np.asarray(other.tokens_BT)).any()
  # Samples of one prompt have noise of their own.
  rows = np.asarray(first.tokens_BT)[:SAMPLES]
  assert len({row.tobytes() for row in rows}) > 1


def test_padding_of_prompts_changes_nothing(policy, prompts):
  wide = tuple(np.pad(x, ((0, 0), (3, 0))) for x in prompts)
  narrow, wide = (run(policy, p, temperature=0.0) for p in (prompts, wide))
  np.testing.assert_array_equal(narrow.tokens_BT, wide.tokens_BT)
  np.testing.assert_allclose(narrow.logp_BT, wide.logp_BT, atol=1e-5)


def test_batches_of_a_run_share_one_compilation(policy, prompts):
  run(policy, prompts)
  before = generate._cache_size()
  tokens, mask = prompts
  run(policy, (tokens[::-1], mask[::-1]), key=9)
  same = models.decoder_graph(models.params.config_of(policy[0]))
  run((same, policy[1]), prompts, key=3)
  assert generate._cache_size() == before


def test_decoding_ends_when_every_row_has_stopped(policy, prompts):
  stop_at_once = tuple(range(11))
  start = time.perf_counter()
  out = run(policy, prompts, max_new_tokens=20_000, eos_ids=stop_at_once)
  np.testing.assert_array_equal(out.mask_BT.sum(axis=1), [1, 1, 1, 1, 1, 1, 0, 0, 0])
  # 20,000 steps over a cache of 20,000 slots would take minutes.
  assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
  ("precision", "most"), [("bfloat16", 0.05), ("int8", 0.05), ("int4", 1.0)]
)
def test_low_precision_is_near_and_not_the_same(policy, prompts, precision, most):
  low = in_precision(policy, precision)
  out = run(low, prompts)
  assert out.logp_BT.dtype == jnp.float32
  mask = np.asarray(out.mask_BT)
  gap = np.abs(out.logp_BT - full_pass(policy, prompts, out).logp)[mask]
  assert 1e-4 < gap.mean() < most
  # The gap is one of arithmetic: the same params in a full pass agree more closely.
  own = np.abs(out.logp_BT - full_pass(low, prompts, out).logp)[mask]
  assert own.mean() < 0.5 * gap.mean()


def test_it_lowers_for_accelerators(policy, prompts):
  graph, params = policy

  def sample(params, tokens, mask, key):
    return run((graph, params), (tokens, mask), key=0, top_p=0.9, kept_width=4)

  exported = jax.export.export(jax.jit(sample), platforms=["tpu", "cuda"])(
    params, *prompts, jax.random.key(0)
  )
  assert exported.platforms == ("tpu", "cuda")


def test_rows_may_be_split_over_devices(policy, prompts):
  graph, params = policy
  tokens, mask = (np.tile(x, (4, 1))[:8] for x in prompts)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
  split = jax.device_put((tokens, mask), rows)
  whole = run(policy, (tokens, mask))
  out = run((graph, jax.device_put(params, jax.NamedSharding(mesh, jax.P()))), split)
  np.testing.assert_array_equal(out.tokens_BT, whole.tokens_BT)
  np.testing.assert_allclose(out.logp_BT, whole.logp_BT, atol=1e-5)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_numbers_outside_their_range_are_refused(policy, prompts, bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    run(policy, prompts, **bad)


def engine_of(policy, sampling=None, **options):
  options = {"max_new_tokens": RESPONSE, "eos_ids": (EOS,), "pad_id": PAD} | options
  return NativeEngine(policy[0], sampling or Sampling(), **options)


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16", "int8", "int4"])
def test_the_engine_gives_the_very_responses_of_generate(policy, prompts, precision):
  law = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.01}
  room = {"kept_width": 4, "top_logprobs": 3}
  engine = engine_of(policy, Sampling(**law), precision=precision, **room)
  engine.update(policy[1], version=5)
  out = engine.generate(*prompts, samples=SAMPLES, key=jax.random.key(1))
  same = policy if precision is None else in_precision(policy, precision)
  expected = run(same, prompts, **room, **law)
  names = "tokens mask sampler_logp finish_reasons kept_mass kept_tokens"
  names += " top_tokens top_logp"
  for name, field in zip(names.split(), expected, strict=True):
    found = getattr(out, name)
    assert isinstance(found, np.ndarray) and found.dtype == field.dtype
    np.testing.assert_array_equal(found, field)
  assert (out.versions == 5).all() and out.versions.dtype == np.int32
  assert precision is None or engine.sampling.dtype.startswith(precision)
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
  before = generate._cache_size()
  engine.update(jax.tree.map(lambda x: x * 1.5, policy[1]), version=1)
  new = engine.generate(*prompts, samples=SAMPLES, key=jax.random.key(1))
  assert generate._cache_size() == before
  assert (new.versions == 1).all()
  assert (new.sampler_logp != old.sampler_logp).any()


def test_an_engine_without_params_or_of_no_known_precision_is_refused(policy, prompts):
  with pytest.raises(RuntimeError, match="call `update` first"):
    engine_of(policy).generate(*prompts, samples=1, key=jax.random.key(0))
  with pytest.raises(ValueError, match="precision 'fp7' is not one of"):
    engine_of(policy, precision="fp7")
