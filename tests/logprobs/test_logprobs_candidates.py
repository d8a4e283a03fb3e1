"""Log-probs of further tokens, with gradient: against float64, sharded, in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from logprobs_oracle import log_softmax, make_case, relative_error

from tis_jax.logprobs import token_logprobs

_SHAPE, _WIDTH, _VOCAB, _K = (4, 5), 24, 1300, 6
_ELEMENTS = 12 * 256
_CASE = make_case(_SHAPE, _WIDTH, _VOCAB, seed=3)
_RNG = np.random.default_rng(4)
_IDS = _RNG.integers(_VOCAB, size=(*_SHAPE, _K)).astype(np.int32)
_IDS[..., 1] = _CASE.targets  # the target is among them
_IDS[..., 2] = _IDS[..., 0]  # one twice
_IDS[0, 0, 3:] = -1  # padding
_IDS[1, 1, 3] = _VOCAB  # no token
_PULL = _RNG.normal(size=_IDS.shape).astype(np.float32)
_KEPT = np.concatenate([_IDS[..., :3], _IDS[..., 4:5]], -1)
_KEPT[2] = -1  # all tokens
_CAP = 4.0


def wanted(kept):
  """Candidates, and the gradients of hidden, head, bias and temperature."""
  hidden, head, bias, _, temperature, cotangents = (np.float64(x) for x in _CASE)
  capped = _CAP * np.tanh(hidden @ head / _CAP)
  scaled = (capped + bias) / temperature[..., None]
  if kept is not None:
    inside = (kept[..., None, :] == np.arange(_VOCAB)[:, None]).any(-1)
    inside |= (kept < 0).all(-1)[..., None]
    scaled = np.where(inside, scaled, -np.inf)
  log_p = log_softmax(scaled)
  is_token = (_IDS >= 0) & (_IDS < _VOCAB)
  ids = np.where(is_token, _IDS, 0)
  found = np.where(is_token, np.take_along_axis(log_p, ids, -1), -np.inf)
  pull = np.where(found > -np.inf, _PULL, 0.0)
  d_scaled = np.zeros_like(log_p)
  for k in range(_K):
    one = np.arange(_VOCAB) == ids[..., k, None]
    d_scaled += pull[..., k, None] * (one - np.exp(log_p))
  one = np.arange(_VOCAB) == _CASE.targets[..., None]
  d_scaled += cotangents[0][..., None] * (one - np.exp(log_p))
  d_biased = d_scaled / temperature[..., None]
  d_logits = d_biased * (1 - (capped / _CAP) ** 2)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  moved = np.where(d_scaled != 0, d_scaled * np.where(d_scaled != 0, scaled, 0), 0)
  return found, (
    d_logits @ head.T,
    flat(hidden).T @ flat(d_logits),
    flat(d_biased).sum(0),
    -moved.sum(-1) / temperature,
  )


def read(case, ids, pull, **options):
  def loss(hidden, head, bias, temperature):
    out = token_logprobs(
      hidden, head, case.targets, bias=bias, temperature=temperature, candidates=ids,
      soft_cap=_CAP, **options,
    )  # fmt: skip
    pulled = jnp.where(ids >= 0, out.candidates * pull, 0.0)
    pulled = jnp.where(out.candidates > -jnp.inf, pulled, 0.0).sum()
    return pulled + (out.logp * case.cotangents[0]).sum(), out

  grads, out = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(
    case.hidden, case.head, case.bias, case.temperature
  )
  return out.candidates, grads


def check(found, grads, kept=None):
  want, right = wanted(kept)
  np.testing.assert_allclose(found, want, atol=1e-5)
  for got, expected in zip(grads, right, strict=True):
    assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("kept", [None, _KEPT], ids=["all", "kept"])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_candidates_equal_float64(implementation, kept):
  options = {"implementation": implementation, "kept_tokens": kept}
  run = jax.jit(lambda: read(_CASE, _IDS, _PULL, block_elements=_ELEMENTS, **options))
  check(*run(), kept)


def test_they_change_no_other_reading():
  plain = token_logprobs(_CASE.hidden, _CASE.head, _CASE.targets)
  out = token_logprobs(_CASE.hidden, _CASE.head, _CASE.targets, candidates=_IDS)
  np.testing.assert_array_equal(out.logp, plain.logp)
  np.testing.assert_array_equal(out.candidates[..., 1], out.logp)
  assert plain.candidates is None and out.candidates.dtype == jnp.float32


def test_nothing_under_the_mask_is_read():
  mask = _RNG.random(_SHAPE) < 0.6
  hidden = np.where(mask[..., None], _CASE.hidden, np.nan)
  ids = np.where(mask[..., None], _IDS, -(10**6))

  def loss(hidden):
    out = token_logprobs(hidden, _CASE.head, _CASE.targets, candidates=ids, mask=mask)
    return jnp.where(out.candidates > -jnp.inf, out.candidates, 0.0).sum(), out

  (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(hidden)
  assert not out.candidates[~mask].any() and not gradient[~mask].any()
  assert np.isfinite(gradient).all() and gradient[mask].any()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_and_batch_sharded(kind, tied):
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)
  put = lambda x, *names: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names)))
  order = ("tensor", None) if tied else (None, "tensor")
  case = _CASE._replace(
    hidden=put(_CASE.hidden, "data"),
    head=put(_CASE.head.T if tied else _CASE.head, *order),
    bias=put(_CASE.bias, "tensor"),
    targets=put(_CASE.targets, "data"),
    temperature=put(_CASE.temperature, "data"),
    cotangents=put(_CASE.cotangents, None, "data"),
  )
  axis = "tensor" if kind == AxisType.Auto else None
  with jax.set_mesh(mesh):
    found, grads = jax.jit(
      lambda case, ids, pull: read(
        case, ids, pull, tied=tied, vocab_axis=axis, block_elements=_ELEMENTS
      )
    )(case, put(_IDS), put(_PULL, "data"))  # the ids lie elsewhere
  d_hidden, d_head, *rest = grads
  check(found, (d_hidden, d_head.T if tied else d_head, *rest))


@pytest.mark.usefixtures("optimized")
def test_memory_is_one_block_of_logits():
  """Neither the logits nor a block beside each candidate are held."""
  tokens, width, vocab, k = 128, 256, 32_000, 32
  shapes = (
    jax.ShapeDtypeStruct((tokens, width), jnp.float32),
    jax.ShapeDtypeStruct((width, vocab), jnp.float32),
    jax.ShapeDtypeStruct((tokens,), jnp.int32),
    jax.ShapeDtypeStruct((tokens, k), jnp.int32),
  )

  def loss(hidden, head, targets, ids):
    out = token_logprobs(hidden, head, targets, candidates=ids, block_elements=1 << 17)
    return jnp.sum(out.logp) + jnp.sum(out.candidates)

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 4 * tokens * vocab / 4, temporary
  assert f"f32[{tokens},{vocab}]" not in compiled.as_text()
