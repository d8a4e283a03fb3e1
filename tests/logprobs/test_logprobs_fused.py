"""The fused path on one device: values, gradients and memory, against float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from logprobs_oracle import expected, make_case, relative_error, run

from tis_jax.logprobs import logprobs_from_logits, token_logprobs

# Three vocabulary blocks of 292, the last one short; two token chunks of 4, the last
# one short.
_SHAPE, _WIDTH, _VOCAB = (2, 7), 24, 1300
_ELEMENTS = 8 * 256


@pytest.fixture(scope="module")
def case():
  return make_case(_SHAPE, _WIDTH, _VOCAB)


@pytest.fixture(scope="module")
def plain(case):
  """One compiled run that several tests read."""
  return jax.jit(lambda: run(token_logprobs, case, block_elements=_ELEMENTS, top_k=6))()


def check(out, grads, want, atol=1e-5, rtol=1e-4):
  for name in ("logp", "entropy", "log_normalizer"):
    np.testing.assert_allclose(getattr(out, name), getattr(want, name), atol=atol)
  names = ("d_hidden", "d_head", "d_bias", "d_temperature")
  for name, got in zip(names, grads, strict=True):
    assert relative_error(got, getattr(want, name)) < rtol, name


def test_equals_float64(plain, case):
  check(*plain, expected(case))
  assert all(x.dtype == jnp.float32 for x in plain[0][:3])


def test_soft_cap_equals_float64(case):
  options = {"soft_cap": 4.0, "block_elements": _ELEMENTS}
  check(*jax.jit(lambda: run(token_logprobs, case, **options))(), expected(case, 4.0))


def test_a_tied_head_is_the_embedding_table(plain, case):
  tied = case._replace(head=np.ascontiguousarray(case.head.T))
  out, grads = jax.jit(
    lambda: run(token_logprobs, tied, tied=True, block_elements=_ELEMENTS)
  )()
  np.testing.assert_allclose(out.logp, plain[0].logp, atol=2e-6)
  np.testing.assert_allclose(grads[1].T, plain[1][1], atol=2e-5)


def test_bf16_operands(case):
  narrow = lambda x: jnp.asarray(x, jnp.bfloat16)
  wide = lambda x: np.asarray(narrow(x), np.float32)
  rounded = case._replace(hidden=wide(case.hidden), head=wide(case.head))
  want = expected(rounded)
  given = case._replace(hidden=narrow(case.hidden), head=narrow(case.head))
  out, grads = jax.jit(lambda: run(token_logprobs, given, block_elements=_ELEMENTS))()
  # The bar is 2e-3 nats; exact products and fp32 sums do far better.
  check(out, grads, want, atol=1e-5, rtol=6e-3)
  assert grads[0].dtype == grads[1].dtype == jnp.bfloat16

  # Half of each pair in bf16: the product is fp32, the gradient of fp32 hidden exact.
  mixed = rounded._replace(head=narrow(case.head))
  out, grads = jax.jit(
    lambda: run(token_logprobs, mixed, precision=jax.lax.Precision.HIGHEST)
  )()
  np.testing.assert_allclose(out.logp, want.logp, atol=1e-5)
  assert relative_error(grads[0], want.d_hidden) < 1e-4


def test_huge_features_cost_no_digits():
  """Final hidden states of real models have them; see the numerics page."""
  case = make_case((64,), 576, 700, seed=1)
  hidden, head = case.hidden.copy(), case.head.copy()
  hidden[:, [3, 300]] += np.float32([25, 17])
  head[[3, 300]] = np.float32([[0.35], [0.26]]) + 0.01 * head[[3, 300]]
  case = case._replace(
    hidden=hidden, head=head, bias=0 * case.bias, temperature=np.ones(64, np.float32)
  )
  want = expected(case).logp

  def error(**options):
    out = token_logprobs(hidden, head, case.targets, entropy=False, **options)
    return np.abs(np.asarray(out.logp, np.float64) - want).max()

  assert error() < 1e-5
  # One sum over the features, which is what DEFAULT asks for, is measurably worse.
  assert error(precision=jax.lax.Precision.DEFAULT) > 1.5 * error()


def test_top_k_spans_blocks_and_breaks_ties_by_id(plain, case):
  log_p = expected(case).log_p
  order = np.argsort(-log_p, axis=-1)[..., :6]
  np.testing.assert_array_equal(plain[0].top_k.tokens, order)
  np.testing.assert_allclose(
    plain[0].top_k.logp, np.take_along_axis(log_p, order, -1), atol=1e-5
  )
  flat = token_logprobs(
    np.zeros((1, 2), np.float32), np.zeros((2, 1300), np.float32), np.array([0]),
    top_k=4, block_elements=256,
  )  # fmt: skip
  np.testing.assert_array_equal(flat.top_k.tokens, [[0, 1, 2, 3]])
  np.testing.assert_allclose(flat.top_k.logp, -np.log(1300), rtol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_the_sum_of_squared_probabilities_equals_float64(case, implementation):
  @jax.jit
  def read(hidden, **options):
    return token_logprobs(
      hidden, case.head, case.targets, bias=case.bias, temperature=case.temperature,
      soft_cap=4.0, sum_squared_probs=True, implementation=implementation,
      block_elements=_ELEMENTS, **options,
    ).sum_squared_probs  # fmt: skip

  want = np.exp(2 * expected(case, 4.0).log_p).sum(-1)
  got = read(case.hidden)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert got.dtype == jnp.float32
  gradient = jax.grad(lambda hidden: read(hidden).sum())(case.hidden)
  np.testing.assert_array_equal(gradient, 0.0)
  kept = np.stack([case.targets, (case.targets + 400) % _VOCAB], -1)
  inside = (kept[..., None, :] == np.arange(_VOCAB)[:, None]).any(-1)
  want = np.exp(2 * expected(case, 4.0, inside).log_p).sum(-1)
  np.testing.assert_allclose(read(case.hidden, kept_tokens=kept), want, rtol=1e-5)
  mask = np.arange(7) % 2 == np.zeros((2, 1))
  masked = read(case.hidden, mask=mask)
  np.testing.assert_array_equal(masked[~mask], 0.0)
  np.testing.assert_allclose(masked[mask], got[mask], rtol=1e-6)


def test_equals_optax(case):
  def ours(hidden, head):
    return -token_logprobs(hidden, head, case.targets, block_elements=_ELEMENTS).logp

  def theirs(hidden, head):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, case.targets)

  weights = case.cotangents[0]
  got, want = (
    jax.jit(jax.value_and_grad(lambda h, w, f=f: jnp.sum(f(h, w) * weights), (0, 1)))(
      case.hidden, case.head
    )
    for f in (ours, theirs)
  )
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for a, b in zip(got[1], want[1], strict=True):
    assert relative_error(a, b) < 1e-5


def test_finite_differences(case):
  small = make_case((3,), 4, 600, seed=3)

  @jax.jit
  def loss(hidden, head, bias, temperature):
    out = token_logprobs(
      hidden, head, small.targets, bias=bias, temperature=temperature, soft_cap=6.0,
      block_elements=3 * 256,
    )  # fmt: skip
    readings = jnp.stack([out.logp, out.entropy, out.log_normalizer])
    return jnp.sum(readings * small.cotangents)

  point = (small.hidden, small.head, small.bias, small.temperature)
  grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*point)
  rng = np.random.default_rng(0)
  for i, gradient in enumerate(grads):
    step = rng.normal(size=point[i].shape).astype(np.float32)
    step *= 1e-2 / np.linalg.norm(step)
    moved = [(*point[:i], point[i] + sign * step, *point[i + 1 :]) for sign in (1, -1)]
    slope = (loss(*moved[0]) - loss(*moved[1])) / 2
    scale = 1e-2 * np.linalg.norm(gradient)
    assert abs(slope - np.sum(gradient * step)) < 5e-3 * scale, i


def test_temperature_towards_zero_and_infinity(case):
  @jax.jit
  def at(temperature):
    out = token_logprobs(
      case.hidden, case.head, best, temperature=temperature, block_elements=_ELEMENTS
    )
    return out, jax.grad(
      lambda h: token_logprobs(
        h, case.head, best, temperature=temperature, block_elements=_ELEMENTS
      ).logp.sum()
    )(case.hidden)

  best = np.argmax(case.hidden @ case.head, axis=-1).astype(np.int32)
  cold, gradient = at(1e-7)
  np.testing.assert_array_equal(cold.logp, 0.0)
  np.testing.assert_array_equal(cold.entropy, 0.0)
  assert np.isfinite(gradient).all()
  hot, gradient = at(1e7)
  np.testing.assert_allclose(hot.logp, -np.log(_VOCAB), rtol=1e-5)
  np.testing.assert_allclose(hot.entropy, np.log(_VOCAB), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_logits_of_ten_thousand():
  # Products of powers of two are exact, so float64 differs by the softmax alone.
  case = make_case((6,), 2, 1300, seed=5)
  case = case._replace(
    hidden=np.tile(np.array([8192.0, 1.0], np.float32), (6, 1)),
    head=np.stack([np.ones(1300), np.arange(1300) % 16]).astype(np.float32),
    bias=np.zeros(1300, np.float32),
    temperature=np.ones(6, np.float32),
  )
  out, grads = run(token_logprobs, case, block_elements=6 * 256)
  want = expected(case)
  np.testing.assert_allclose(out.logp, want.logp, atol=1e-5)
  np.testing.assert_allclose(out.entropy, want.entropy, atol=1e-5)
  assert relative_error(grads[1], want.d_head) < 1e-4


def test_minus_infinity_bias_removes_tokens(case):
  gone = np.zeros(_VOCAB, bool)
  gone[:700] = True  # the whole first block, and a part of the second
  case = case._replace(
    targets=np.maximum(case.targets, 700),
    bias=np.where(gone, -np.inf, case.bias).astype(np.float32),
  )
  out, grads = jax.jit(
    lambda: run(token_logprobs, case, soft_cap=4.0, block_elements=_ELEMENTS)
  )()
  check(out, grads, expected(case, 4.0))
  np.testing.assert_array_equal(grads[1][:, gone], 0.0)


def test_one_token_vocabulary():
  case = make_case((3,), 4, 1)
  out, grads = run(token_logprobs, case, top_k=1)
  np.testing.assert_array_equal(out.logp, 0.0)
  np.testing.assert_array_equal(out.entropy, 0.0)
  check(out, grads, expected(case))


def test_nothing_under_a_false_mask_matters(plain, case):
  mask = np.array([[1, 1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1, 0]], bool)
  spoilt = case._replace(
    hidden=np.where(mask[..., None], case.hidden, np.nan),
    targets=np.where(mask, case.targets, -100),
    temperature=np.where(mask, case.temperature, 0.0).astype(np.float32),
  )
  options = {"mask": mask, "block_elements": _ELEMENTS, "top_k": 2}
  out, grads = jax.jit(lambda: run(token_logprobs, spoilt, **options))()
  want = expected(case._replace(cotangents=case.cotangents * mask))
  np.testing.assert_array_equal(out.logp[~mask], 0.0)
  np.testing.assert_array_equal(out.top_k.logp[~mask], 0.0)
  np.testing.assert_allclose(out.logp[mask], plain[0].logp[mask], atol=2e-6)
  for name, got in zip(("d_hidden", "d_head", "d_bias"), grads, strict=False):
    assert relative_error(got, getattr(want, name)) < 1e-4, name


def test_packed_rows_equal_padded_rows(plain, case):
  """Readings are per token: two rows in one, in any order, read the same."""
  order = np.random.default_rng(0).permutation(14)
  packed = make_case((1, 14), _WIDTH, _VOCAB)._replace(
    hidden=case.hidden.reshape(1, 14, -1)[:, order],
    targets=case.targets.reshape(1, 14)[:, order],
    temperature=case.temperature.reshape(1, 14)[:, order],
    cotangents=case.cotangents.reshape(3, 1, 14)[:, :, order],
    head=case.head,
    bias=case.bias,
  )
  out, grads = jax.jit(lambda: run(token_logprobs, packed, block_elements=_ELEMENTS))()
  padded, want = plain
  np.testing.assert_allclose(out.logp[0], padded.logp.reshape(-1)[order], atol=2e-6)
  assert relative_error(grads[1], want[1]) < 1e-5


def test_a_target_outside_the_vocabulary_is_nan(case):
  out = token_logprobs(case.hidden, case.head, np.full(_SHAPE, -100, np.int32))
  assert np.isnan(out.logp).all() and np.isfinite(out.entropy).all()


def test_vmap_and_remat(plain, case):
  def one(hidden, targets, bias, temperature):
    return token_logprobs(
      hidden, case.head, targets, bias=bias, temperature=temperature,
      block_elements=_ELEMENTS,
    ).logp  # fmt: skip

  def loss(hidden):
    logp = jax.vmap(jax.checkpoint(one), (0, 0, None, 0))(
      hidden, case.targets, case.bias, case.temperature
    )
    return jnp.sum(logp * case.cotangents[0]), logp

  gradient, logp = jax.jit(jax.grad(loss, has_aux=True))(case.hidden)
  only_logp = case._replace(
    cotangents=case.cotangents * np.float32([[[1]], [[0]], [[0]]])
  )
  np.testing.assert_allclose(logp, plain[0].logp, atol=2e-6)
  assert relative_error(gradient, expected(only_logp).d_hidden) < 1e-4


def test_a_traced_temperature_does_not_recompile(case):
  @jax.jit
  @chex.assert_max_traces(n=1)
  def logp(temperature):
    return token_logprobs(
      case.hidden, case.head, case.targets, temperature=temperature
    ).logp

  chex.clear_trace_counter()
  for temperature in (0.7, 1.0, 1.3):
    want = logprobs_from_logits(
      jnp.matmul(case.hidden, case.head), case.targets, temperature=temperature
    )
    np.testing.assert_allclose(logp(temperature), want.logp, atol=1e-5)


def test_an_unused_entropy_costs_the_backward_pass_nothing(case):
  def equations(loss):
    return str(jax.make_jaxpr(jax.grad(loss))(case.hidden)).count("\n")

  read = lambda h, **options: token_logprobs(h, case.head, case.targets, **options)
  metric = lambda h: read(h).logp.sum() + jax.lax.stop_gradient(read(h).entropy.sum())
  bonus = lambda h: read(h).logp.sum() + read(h).entropy.sum()
  without = lambda h: read(h).logp.sum() + jax.lax.stop_gradient(read(h).logp.sum())
  forward_only = equations(metric) - equations(without)
  assert equations(bonus) > equations(metric) + forward_only


def test_only_what_is_differentiated_is_computed(case):
  def products(argument):
    loss = lambda *inputs: token_logprobs(*inputs, case.targets).logp.sum()
    jaxpr = jax.make_jaxpr(jax.grad(loss, argument))(case.hidden, case.head)
    return str(jaxpr).count("dot_general")

  assert products((0, 1)) == 4 and products(0) == products(1) == 3


@pytest.mark.usefixtures("optimized")
def test_memory_is_one_block_of_logits():
  """By the compiler's own account, at a sixteenth of the benchmark's token count."""
  tokens, width, vocab = 128, 256, 32_000
  case = [
    jax.ShapeDtypeStruct(shape, dtype)
    for shape, dtype in (
      ((tokens, width), jnp.float32),
      ((width, vocab), jnp.float32),
      ((tokens,), jnp.int32),
    )
  ]

  def loss(hidden, head, targets):
    out = token_logprobs(hidden, head, targets, block_elements=1 << 17)
    return jnp.sum(out.logp) + jnp.sum(out.entropy)

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*case).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  logits = 4 * tokens * vocab
  assert temporary < logits / 4, temporary
  assert f"f32[{tokens},{vocab}]" not in compiled.as_text()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"head": np.zeros((1300, 24), np.float32)}, r"is not \[D, V\]"),
    ({"tied": True}, r"is not \[V, D\]"),
    ({"targets": np.zeros((2, 6), np.int32)}, "do not match"),
    ({"bias": np.zeros(4, np.float32)}, "one number per token"),
    ({"top_k": 1301}, "between 0 and the vocabulary"),
    ({"implementation": "fast"}, "is not one of"),
    ({"temperature": -1.0}, "not positive"),
    ({"vocab_axis": "tensor"}, "not an axis of the current mesh"),
    ({"kept_tokens": np.zeros((2, 6, 1), np.int32)}, "kept_tokens"),
    ({"candidates": np.zeros((2, 6, 1), np.int32)}, "candidates"),
  ],
)
def test_refusals(case, change, message):
  arguments = {
    "hidden": case.hidden,
    "head": case.head,
    "targets": case.targets,
  } | change
  with pytest.raises(ValueError, match=message):
    token_logprobs(**arguments)
