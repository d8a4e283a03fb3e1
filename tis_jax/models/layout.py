"""Hugging Face's names and shapes for the parameters, to ours and back.

A published matrix is [outputs, inputs] with heads merged; ours is [inputs, outputs]
with heads apart, and layers and experts stacked in front. Transposing and reshaping is
all there is between them, but for Gemma's norms, which are published less 1.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from flax import nnx

from tis_jax.models.config import DecoderConfig
from tis_jax.models.params import abstract_params, decoder_graph, flatten, unflatten

_OUTSIDE = {
  "embedding": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "output": "lm_head.weight",
}

# Ours to (theirs, how many leading axes of ours are inputs; 0 for a vector).
_LAYER = {
  "attention_norm": ("input_layernorm.weight", 0),
  "attention_post_norm": ("post_attention_layernorm.weight", 0),
  "attention/query": ("self_attn.q_proj.weight", 1),
  "attention/key": ("self_attn.k_proj.weight", 1),
  "attention/value": ("self_attn.v_proj.weight", 1),
  "attention/out": ("self_attn.o_proj.weight", 3),
  "attention/query_bias": ("self_attn.q_proj.bias", 0),
  "attention/key_bias": ("self_attn.k_proj.bias", 0),
  "attention/value_bias": ("self_attn.v_proj.bias", 0),
  "attention/query_norm": ("self_attn.q_norm.weight", 0),
  "attention/key_norm": ("self_attn.k_norm.weight", 0),
  "mlp_norm": ("post_attention_layernorm.weight", 0),
  "mlp/gate": ("mlp.gate_proj.weight", 1),
  "mlp/up": ("mlp.up_proj.weight", 1),
  "mlp/down": ("mlp.down_proj.weight", 1),
  "mlp/router": ("mlp.gate.weight", 1),
  "mlp/expert_gate": ("mlp.experts.{expert}.gate_proj.weight", 1),
  "mlp/expert_up": ("mlp.experts.{expert}.up_proj.weight", 1),
  "mlp/expert_down": ("mlp.experts.{expert}.down_proj.weight", 1),
}

# Where Gemma's names are others: its second norm is that of what attention has added.
_GEMMA = {
  "mlp_norm": ("pre_feedforward_layernorm.weight", 0),
  "mlp_post_norm": ("post_feedforward_layernorm.weight", 0),
}


def from_published(
  config: DecoderConfig,
  names: Iterable[str],
  read: Callable[[str], np.ndarray],
  place: Callable[[str, np.ndarray], object],
) -> nnx.State:
  """Builds the parameters from tensors under Hugging Face's names.

  Args:
    config: what the tensors are to become.
    names: those that there are, to tell which this decoder would leave unused.
    read: a tensor by its name, [outputs, inputs] or a vector.
    place: our name and array to the leaf: its dtype, its device.

  Returns:
    nnx.State.

  Raises:
    ValueError: a tensor is missing, left over (the model has a part that this decoder
      lacks, such as an output bias), or has the wrong shape.
  """
  needed = {}
  for name, leaf in flatten(abstract_params(config)).items():
    needed[name] = published_names(config, name), leaf.shape
  wanted = {theirs for many, _ in needed.values() for theirs in many}
  present = {name for name in names if not name.endswith("rotary_emb.inv_freq")}
  if config.tie_embeddings:
    present.discard("lm_head.weight")
  if wanted != present:
    raise ValueError(
      f"the weights and {config} disagree: missing {_few(wanted - present)}, "
      f"unknown {_few(present - wanted)}"
    )

  def build(name):
    theirs, shape = needed[name]
    if not name.startswith("layers/"):
      array = read(theirs[0])
      return (array.T if name == "output" else array).reshape(shape)
    stacked = (
      len(shape) - 2 if "{expert}" in _theirs(config, name)[0] else len(shape) - 1
    )
    parts = [read(one).T.reshape(shape[-stacked:]) for one in theirs]
    return np.stack(parts).reshape(shape)

  flat = {}
  for name in needed:
    try:
      array = build(name)
      if (offset := _offset(config, name)) is not None:
        array = array.astype(np.float32) + offset
    except ValueError as error:
      raise ValueError(f"{needed[name][0][0]} does not fit {name}: {error}") from error
    flat[name] = place(name, array)
  return unflatten(decoder_graph(config), flat)


def to_published(config: DecoderConfig, params: nnx.State) -> dict[str, np.ndarray]:
  """The inverse of `from_published`: arrays by Hugging Face's names, on the host."""
  tensors = {}
  for name, leaf in flatten(params).items():
    array = np.asarray(leaf)
    if (offset := _offset(config, name)) is not None:
      array = (array.astype(np.float32) - offset).astype(array.dtype)
    names = published_names(config, name)
    if not name.startswith("layers/"):
      tensors[names[0]] = array.T if name == "output" else array
      continue
    theirs, inputs = _theirs(config, name)
    if "{expert}" in theirs:
      array = array.reshape(-1, *array.shape[2:])
    for one, layer in zip(names, array, strict=True):
      if inputs:
        layer = layer.reshape(math.prod(layer.shape[:inputs]), -1).T
      tensors[one] = layer if inputs else layer.reshape(-1)
  return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def published_names(config: DecoderConfig, name: str) -> list[str]:
  """Hugging Face's names of a parameter of ours: of each layer, and of each expert."""
  if name in _OUTSIDE:
    return [_OUTSIDE[name]]
  theirs, _ = _theirs(config, name)
  experts = range(config.num_experts if "{expert}" in theirs else 1)
  return [
    f"model.layers.{layer}.{theirs.format(expert=expert)}"
    for layer in range(config.num_layers)
    for expert in experts
  ]


def _theirs(config, name):
  own = name.removeprefix("layers/")
  return (_GEMMA if config.post_norms else {}).get(own) or _LAYER[own]


def _offset(config, name):
  """What a norm of ours is above theirs: Gemma's files hold scale - 1."""
  return np.float32(1) if config.post_norms and name.endswith("norm") else None


def _few(names):
  names = sorted(names)
  more = f" and {len(names) - 4} more" if len(names) > 4 else ""
  return (", ".join(names[:4]) or "nothing") + more
