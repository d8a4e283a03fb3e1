"""What a decoder looks like: the numbers that fix its shapes and its arithmetic."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's stretching of slow rotary frequencies.

  Wavelengths longer than `original_positions / low_frequency_factor` are divided by
  `factor`, those shorter than `original_positions / high_frequency_factor` are kept,
  and those between are interpolated.

  Source: Hugging Face `transformers`, `rope_type="llama3"`.
  """

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shapes and arithmetic of a Llama-like decoder (Llama, Qwen2/2.5, Qwen3).

  Attributes:
    vocab_size: rows of the embedding, V.
    hidden_size: width of the residual stream, D.
    intermediate_size: width of the gated MLP, F.
    num_layers: number of blocks, L.
    num_heads: query heads; a multiple of `num_kv_heads`.
    num_kv_heads: key and value heads, N.
    head_dim: width of a head, K (even).
    rope_theta: base of the rotary wavelengths.
    rope_scaling: Llama 3's stretching, or None; a mapping of its fields (what JSON
      gives back) becomes a `RopeScaling`.
    rms_norm_eps: added to the mean square under the root.
    tie_embeddings: the output head is the transposed embedding.
    attention_bias: biases on query, key and value (Qwen2).
    qk_norm: RMS norm of each query and key head before the rotation (Qwen3).

  Example:
    >>> config = DecoderConfig(vocab_size=19, hidden_size=64, intermediate_size=128,
    ...                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
    >>> config.num_parameters
    75264
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  rms_norm_eps: float = 1e-6
  tie_embeddings: bool = True
  attention_bias: bool = False
  qk_norm: bool = False

  def __post_init__(self):
    if isinstance(self.rope_scaling, dict):
      object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; rotary pairs need it even")

  @property
  def group_size(self) -> int:
    """Query heads that share one key head, G."""
    return self.num_heads // self.num_kv_heads

  @property
  def num_parameters(self) -> int:
    """Trainable scalars; a tied head counts once."""
    width, heads = self.hidden_size, self.head_dim
    attention = 2 * width * heads * (self.num_heads + self.num_kv_heads)
    if self.attention_bias:
      attention += heads * (self.num_heads + 2 * self.num_kv_heads)
    if self.qk_norm:
      attention += 2 * heads
    layer = attention + 3 * width * self.intermediate_size + 2 * width
    embeddings = self.vocab_size * width * (1 if self.tie_embeddings else 2)
    return self.num_layers * layer + embeddings + width
