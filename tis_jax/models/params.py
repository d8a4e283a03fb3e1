"""Parameters as a pytree, and as a flat mapping of names to arrays."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tis_jax.models.config import DecoderConfig
from tis_jax.models.decoder import Decoder


def _abstract(config, dtype, param_dtype, remat):
  def build():
    rngs = nnx.Rngs(0)
    return Decoder(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)

  return nnx.split(nnx.eval_shape(build))


def decoder_graph(config: DecoderConfig, *, dtype=jnp.float32, remat=False):
  """The decoder's static part, without allocating a parameter.

  Args:
    config: shapes and arithmetic.
    dtype: of the activations.
    remat: recompute each layer in the backward pass.

  Returns:
    nnx.GraphDef: hashable, and equal for equal arguments. `nnx.merge(graph, params)`
    is the model.
  """
  return _abstract(config, dtype, jnp.float32, remat)[0]


def abstract_params(config: DecoderConfig, *, param_dtype=jnp.float32) -> nnx.State:
  """The parameter tree with `jax.ShapeDtypeStruct` in place of arrays.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> flatten(abstract_params(config))["layers/mlp/down"].shape
    (2, 32, 16)
  """
  return _abstract(config, jnp.float32, param_dtype, False)[1]


def init_params(config: DecoderConfig, key, *, param_dtype=jnp.float32) -> nnx.State:
  """Freshly drawn parameters; a pure function of `key`, for use under jit.

  Args:
    config: shapes and arithmetic.
    key: PRNG key.
    param_dtype: of the parameters.

  Returns:
    nnx.State, the tree that `nnx.merge(decoder_graph(config), ...)` takes.
  """
  model = Decoder(config, rngs=nnx.Rngs(params=key), param_dtype=param_dtype)
  return nnx.state(model)


def flatten(params: nnx.State) -> dict:
  """Parameters by name: `{"layers/attention/query": array, ...}`, sorted by name."""
  flat = {
    "/".join(map(str, path)): variable.get_value()
    for path, variable in nnx.to_flat_state(params)
  }
  return dict(sorted(flat.items()))


def config_of(graph: nnx.GraphDef) -> DecoderConfig:
  """The configuration a decoder's graph was made from."""
  attributes: dict[Any, Any] = dict(graph.attributes)
  return attributes["config"].value


def dtype_of(graph: nnx.GraphDef) -> jnp.dtype:
  """The dtype of a decoder's activations."""
  attributes: dict[Any, Any] = dict(graph.attributes)
  return jnp.dtype(attributes["dtype"].value)


def unflatten(graph: nnx.GraphDef, flat) -> nnx.State:
  """The inverse of `flatten`: a parameter tree from arrays by name.

  Args:
    graph: from `decoder_graph`; says which names and shapes there must be.
    flat: mapping of names to arrays.

  Returns:
    nnx.State whose leaves are the given arrays.

  Raises:
    ValueError: a name is missing or unknown, or a shape is wrong.

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=16, intermediate_size=32,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    >>> import jax
    >>> params = init_params(config, jax.random.key(0))
    >>> again = unflatten(decoder_graph(config), flatten(params))
    >>> jax.tree.structure(again) == jax.tree.structure(params)
    True
  """
  return restore(flatten(abstract_params(config_of(graph))), flat)


def restore(expected: Mapping, flat: Mapping) -> nnx.State:
  """A tree from arrays by name, which must be those of `expected` in name and shape.

  Args:
    expected: {name: array or `jax.ShapeDtypeStruct`}.
    flat: {name: array}.

  Raises:
    ValueError: a name is missing or unknown, or a shape is wrong.
  """
  missing = sorted(expected.keys() - flat.keys())
  unknown = sorted(flat.keys() - expected.keys())
  if missing or unknown:
    raise ValueError(f"parameters missing: {missing}; unknown: {unknown}")
  for name, leaf in expected.items():
    if flat[name].shape != leaf.shape:
      raise ValueError(
        f"{name} has shape {flat[name].shape}, the decoder wants {leaf.shape}"
      )
  return nnx.from_flat_state(
    [(tuple(name.split("/")), nnx.Param(flat[name])) for name in expected]
  )
