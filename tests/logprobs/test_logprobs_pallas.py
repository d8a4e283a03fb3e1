"""The TPU kernel: its arithmetic in the interpreter, and that a TPU would take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logprobs_oracle import expected, make_case, relative_error, run

from tis_jax.logprobs import token_logprobs

# Neither 300 columns nor 140 tokens fill whole blocks of 128.
_CASE = make_case((2, 70), 16, 300, seed=9)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr("tis_jax.logprobs.pallas._BLOCK_BYTES", 0)


@pytest.mark.parametrize("options", [{}, {"soft_cap": 5.0}, {"tied": True}])
def test_equals_float64(options):
  case = _CASE
  if options.get("tied"):
    case = case._replace(head=np.ascontiguousarray(case.head.T))
  out, grads = jax.jit(
    lambda: run(token_logprobs, case, implementation="pallas", **options)
  )()
  want = expected(_CASE, options.get("soft_cap"))
  for name in ("logp", "entropy", "log_normalizer"):
    np.testing.assert_allclose(getattr(out, name), getattr(want, name), atol=1e-5)
  d_head = want.d_head.T if options.get("tied") else want.d_head
  wanted = (want.d_hidden, d_head, want.d_bias, want.d_temperature)
  for got, right in zip(grads, wanted, strict=True):
    assert relative_error(got, right) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_a_tpu(dtype):
  def loss(hidden, head):
    targets = jnp.zeros(hidden.shape[:1], jnp.int32)
    out = token_logprobs(
      hidden, head, targets, temperature=0.8, implementation="pallas"
    )
    return jnp.sum(out.logp) + jnp.sum(out.entropy)

  shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((1000, 1024), (1024, 32_000))]
  gradient = jax.jit(jax.grad(loss, (0, 1)))
  exported = jax.export.export(gradient, platforms=["tpu"])(*shapes)
  assert exported.mlir_module().count("tpu_custom_call") == 3


def test_what_it_lacks_is_refused():
  ids = np.zeros((2, 70, 1), np.int32)
  for options in ({"top_k": 2}, {"kept_tokens": ids}, {"candidates": ids}):
    with pytest.raises(ValueError, match="need implementation='xla'"):
      token_logprobs(
        _CASE.hidden, _CASE.head, _CASE.targets, implementation="pallas", **options
      )
