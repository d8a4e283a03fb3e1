"""Batch and vocabulary sharded over eight devices, on Auto and Explicit meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from logprobs_oracle import expected, make_case, relative_error, run

from tis_jax.logprobs import token_logprobs

# 650 columns a shard make two blocks, 5 positions two token chunks.
_CASE = make_case((4, 5), 16, 1300, seed=7)
_ELEMENTS = 12 * 256
_MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def place(case, mesh, hidden=("data",), head=(None, "tensor"), tied=False):
  put = lambda x, *names: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names)))
  rows = hidden[:1]
  return case._replace(
    hidden=put(case.hidden, *hidden),
    head=put(case.head.T if tied else case.head, *(head[::-1] if tied else head)),
    bias=put(case.bias, head[1]),
    targets=put(case.targets, *rows),
    temperature=put(case.temperature, *rows),
    cotangents=put(case.cotangents, None, *rows),
  )


def check(out, grads, want, tied=False):
  np.testing.assert_allclose(out.logp, want.logp, atol=1e-5)
  np.testing.assert_allclose(out.entropy, want.entropy, atol=1e-5)
  d_head = want.d_head.T if tied else want.d_head
  wanted = (want.d_hidden, d_head, want.d_bias, want.d_temperature)
  for got, right in zip(grads, wanted, strict=True):
    assert relative_error(got, right) < 1e-4


def jitted(case, **options):
  """Inputs are arguments, so that the compiler sees how they lie."""
  fn = jax.jit(lambda case: run(token_logprobs, case, **options))
  return fn(case)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_and_batch_sharded(mode, tied):
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(_MODES[mode],) * 2)
  options = {"soft_cap": 5.0, "top_k": 3, "block_elements": _ELEMENTS, "tied": tied}
  options["sum_squared_probs"] = True
  with jax.set_mesh(mesh):
    case = place(_CASE, mesh, tied=tied)
    axis = "tensor" if mode == "auto" else None
    out, grads = jitted(case, vocab_axis=axis, **options)
  want = expected(_CASE, soft_cap=5.0)
  check(out, grads, want, tied)
  order = np.argsort(-want.log_p, axis=-1)[..., :3]
  np.testing.assert_array_equal(out.top_k.tokens, order)
  squared = np.exp(2 * want.log_p).sum(-1)
  np.testing.assert_allclose(out.sum_squared_probs, squared, rtol=1e-5)
  spec = PartitionSpec("tensor", None) if tied else PartitionSpec(None, "tensor")
  assert grads[1].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


@pytest.mark.parametrize("mode", _MODES)
def test_fsdp_head_and_sharded_tokens(mode):
  """The head's features lie over the axis that the tokens lie over."""
  mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(_MODES[mode],) * 2)
  with jax.set_mesh(mesh):
    case = place(_CASE, mesh, head=("data", "tensor"))
    out, grads = jitted(case, vocab_axis="tensor", block_elements=_ELEMENTS)
  check(out, grads, expected(_CASE))
  if mode == "explicit":  # on an Auto mesh the compiler's choice, and its user's
    assert grads[1].sharding.spec == PartitionSpec("data", "tensor")


def test_auto_mesh_without_the_axis_named_is_still_right():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  out, grads = jitted(place(_CASE, mesh), block_elements=_ELEMENTS)
  check(out, grads, expected(_CASE))


def test_explicit_mesh_with_every_token_axis_sharded():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
  flat = _CASE._replace(
    hidden=_CASE.hidden.reshape(20, -1),
    targets=_CASE.targets.reshape(20),
    temperature=_CASE.temperature.reshape(20),
    cotangents=_CASE.cotangents.reshape(3, 20),
  )
  with jax.set_mesh(mesh):
    # Fewer elements than tokens times the narrowest block: no axis is free to be cut.
    out, grads = jitted(place(flat, mesh), block_elements=4 * 256)
  check(out, grads, expected(flat))


@pytest.mark.usefixtures("optimized")
def test_the_vocabulary_axis_stays_where_it_is():
  """No device ever holds more than its part of the head, or its gradient."""
  mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
  width, vocab = 64, 16_384
  with jax.set_mesh(mesh):
    split = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    head = jax.ShapeDtypeStruct((width, vocab), jnp.float32, sharding=split)
    hidden = jax.ShapeDtypeStruct((64, width), jnp.float32)

    def loss(hidden, head):
      targets = jnp.zeros(64, jnp.int32)
      out = token_logprobs(hidden, head, targets, vocab_axis="tensor")
      return jnp.sum(out.logp)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    text = gradient.lower(hidden, head).compile().as_text()
  assert f"f32[{width},{vocab // 8}]" in text
  assert f"f32[{width},{vocab}]" not in text


def test_inside_a_shard_map_of_the_caller():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

  def local(case):
    out, grads = run(token_logprobs, case, block_elements=_ELEMENTS)
    summed = [jax.lax.psum(x, "data") for x in grads[1:3]]
    return out, (grads[0], *summed, grads[3])

  rows, whole = PartitionSpec("data"), PartitionSpec()
  specs = make_case((1,), 1, 1)._replace(
    hidden=rows, head=whole, bias=whole, targets=rows, temperature=rows,
    cotangents=PartitionSpec(None, "data"),
  )  # fmt: skip
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=(specs,),
    out_specs=(rows, (rows, whole, whole, rows)), check_vma=False,
  )  # fmt: skip
  check(*jax.jit(sharded)(_CASE), expected(_CASE))
