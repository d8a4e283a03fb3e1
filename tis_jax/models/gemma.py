"""What of a Gemma 3 text model's `config.json` other families do not have."""

from typing import Any

from tis_jax.models.config import DecoderConfig, SlidingWindow

_FULL, _WINDOWED = "full_attention", "sliding_attention"


def read_gemma(described: dict) -> dict[str, Any]:
  """Fields of `DecoderConfig` from a `config.json` of model_type "gemma3_text".

  Raises:
    ValueError: an option that this decoder does not compute.
  """
  width = described.get("head_dim", 256)
  computed = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": width,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
  }
  defaults = computed | {"query_pre_attn_scalar": 256}
  for option, value in computed.items():
    asked = described.get(option, defaults[option])
    if asked != value and (asked or value):
      raise ValueError(f"gemma3_text with {option}={asked!r} is not supported")
  theta = described.get("rope_local_base_freq") or 10_000.0
  if (windowed := (described.get("rope_parameters") or {}).get(_WINDOWED)) is not None:
    theta = windowed["rope_theta"]
  return {
    "head_dim": width,
    "window": SlidingWindow(
      size=described.get("sliding_window", 4096),
      full_every=_full_every(described),
      rope_theta=float(theta),
    ),
    "post_norms": True,
    "gelu": True,
    "scaled_embedding": True,
    "qk_norm": True,
    "tie_embeddings": described.get("tie_word_embeddings", True),
  }


def write_gemma(config: DecoderConfig) -> dict[str, Any]:
  """Options of `config.json` that go with the fields that `read_gemma` reads."""
  window = config.window
  assert window is not None
  layers = range(config.num_layers)
  full = {"rope_type": "default", "rope_theta": config.rope_theta}
  return {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": config.head_dim,
    "sliding_window": window.size,
    "sliding_window_pattern": window.full_every,
    "layer_types": [_FULL if window.is_full(layer) else _WINDOWED for layer in layers],
    "rope_local_base_freq": window.rope_theta,
    # As transformers 5 has it.
    "rope_parameters": {
      _FULL: full,
      _WINDOWED: full | {"rope_theta": window.rope_theta},
    },
  }


def is_gemma(config: DecoderConfig) -> bool:
  """Whether the decoder is Gemma 3's.

  Raises:
    ValueError: it has some of what makes Gemma 3, and not all.
  """
  has = {
    "window": config.window is not None,
    "post_norms": config.post_norms,
    "gelu": config.gelu,
    "scaled_embedding": config.scaled_embedding,
  }
  if any(has.values()) and not (all(has.values()) and config.qk_norm):
    raise ValueError(f"no published family has {has} with qk_norm={config.qk_norm}")
  return config.window is not None


def _full_every(described: dict) -> int:
  kinds = described.get("layer_types")
  if kinds is None:
    return described.get("sliding_window_pattern", 6)
  every = kinds.index(_FULL) + 1 if _FULL in kinds else len(kinds) + 1
  for layer, kind in enumerate(kinds):
    if kind != (_WINDOWED if (layer + 1) % every else _FULL):
      raise ValueError(f"gemma3_text with layer_types={kinds} is not supported")
  return every
