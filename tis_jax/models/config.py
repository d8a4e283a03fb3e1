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
class SlidingWindow:
  """Layers that see the last few tokens alone, and every so many one that sees all.

  Attributes:
    size: tokens that a windowed layer sees, the token itself included.
    full_every: layers i with (i + 1) % full_every == 0 see all.
    rope_theta: base of the windowed layers' rotary wavelengths, which are not scaled.
  """

  size: int
  full_every: int
  rope_theta: float

  def is_full(self, layer):
    """Whether a layer sees all; an int, or a traced one."""
    return (layer + 1) % self.full_every == 0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shapes and arithmetic of a Llama-like decoder (Llama, Qwen2/2.5, Qwen3, Qwen3-MoE,
  Gemma 3).

  Attributes:
    vocab_size: rows of the embedding, V.
    hidden_size: width of the residual stream, D.
    intermediate_size: width of the gated MLP, or of that of each expert, F.
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
    num_experts: gated MLPs a layer, of which each token has a few (Qwen3-MoE); 0 for
      one that all have.
    experts_per_token: how many each token is sent to.
    normalize_experts: their shares add up to 1; else they are those among all experts.
    window: of layers that see the last tokens alone (Gemma 3), or None; a mapping of
      its fields becomes a `SlidingWindow`.
    post_norms: RMS norms of what attention and MLP add to the stream (Gemma 3).
    gelu: the MLP's gate is GELU in its tanh form (Gemma 3), else SiLU.
    scaled_embedding: embeddings are multiplied by sqrt(D) (Gemma 3).

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
  num_experts: int = 0
  experts_per_token: int = 0
  normalize_experts: bool = True
  window: SlidingWindow | None = None
  post_norms: bool = False
  gelu: bool = False
  scaled_embedding: bool = False

  def __post_init__(self):
    if isinstance(self.rope_scaling, dict):
      object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
    if isinstance(self.window, dict):
      object.__setattr__(self, "window", SlidingWindow(**self.window))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; rotary pairs need it even")
    if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
      raise ValueError(
        f"experts_per_token={self.experts_per_token} is not in 1..{self.num_experts}, "
        "the experts"
      )
    if self.num_experts and self.gelu:
      raise ValueError("experts have SiLU gates; gelu goes with one MLP for all tokens")

  @property
  def routing(self) -> tuple[int, int] | None:
    """Layers, and experts that each sends a token to; None of no mixture."""
    if not self.num_experts:
      return None
    return self.num_layers, self.experts_per_token

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
    mlp = 3 * width * self.intermediate_size
    if self.num_experts:
      mlp = self.num_experts * (mlp + width)
    layer = attention + mlp + (4 if self.post_norms else 2) * width
    embeddings = self.vocab_size * width * (1 if self.tie_embeddings else 2)
    return self.num_layers * layer + embeddings + width
