"""SkyRL: `loss_reduction`, which divides the advantages before the loss sums."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from tis_jax.compat import options
from tis_jax.compat.arrays import Array
from tis_jax.compat.sections.skyrl import SECTIONS

_PEER = "SkyRL"
_KINDS = (
  *("token_mean", "token_mean_legacy", "sequence_mean", "seq_mean_token_sum_norm"),
  "prompt_mean",
)


def reduction(config: options.Config = None) -> Callable[..., Array]:
  """The scaling of advantages that SkyRL's `loss_reduction` stands for.

  With B rows, `n_b` tokens in row b, and P prompts: A / sum n (`token_mean`),
  A / (B n_b) (`sequence_mean`), A / (B `max_seq_len`) (`seq_mean_token_sum_norm`),
  A / (P n_prompt(b)) (`prompt_mean`). Empty rows count in B. The mask is the one before
  any correction. `token_mean_legacy` is the token mean of each micro-batch of M rows,
  averaged over the B // M whole ones: A / (n_micro B // M). Rows beyond the last whole
  micro-batch get 0, as in SkyRL.

  Args:
    config: `loss_reduction`, and `max_seq_len` (tokens) for seq_mean_token_sum_norm.

  Returns:
    `fn(advantages, mask, prompt_sizes=None, micro_batch_size=None) -> [B, T]` scaled
    advantages, over the whole mini-batch. `prompt_sizes` are the rows of each prompt,
    in order, as ints; `micro_batch_size` is SkyRL's
    `trainer.micro_train_batch_size_per_gpu`, in rows, for token_mean_legacy.

  Raises:
    ValueError: an unknown key or an impossible value; `prompt_sizes` missing for
      prompt_mean, or not adding up to the rows; `micro_batch_size` missing for
      token_mean_legacy, or no whole number above 0.

  >>> fn = reduction({"loss_reduction": "sequence_mean"})
  >>> fn(jnp.ones((2, 2)), jnp.array([[1, 1], [1, 0]]))
  Array([[0.25, 0.25],
         [0.5 , 0.5 ]], dtype=float32)

  Source: SkyRL, `backends/skyrl_train/utils/ppo_utils.py` (2026-08).
  """
  cfg = options.read(
    _PEER,
    SECTIONS.locate(config, "reduction"),
    {"loss_reduction": "token_mean", "max_seq_len": None},
  )
  kind = options.choice(_PEER, "loss_reduction", cfg["loss_reduction"], _KINDS)
  length = cfg["max_seq_len"]
  if kind == "seq_mean_token_sum_norm":
    length = options.number(_PEER, "max_seq_len", length, above=0)

  def fn(
    advantages,
    mask,
    prompt_sizes: Sequence[int] | None = None,
    micro_batch_size: int | None = None,
  ):
    advantages = jnp.asarray(advantages, jnp.float32)
    tokens_B = (jnp.asarray(mask) != 0).sum(1, dtype=jnp.float32)
    rows = advantages.shape[0]
    if kind == "token_mean":
      return advantages / jnp.maximum(tokens_B.sum(), 1.0)
    if kind == "token_mean_legacy":
      return advantages * _legacy(tokens_B, micro_batch_size)[:, None]
    if kind == "sequence_mean":
      return advantages / (rows * jnp.maximum(tokens_B, 1.0))[:, None]
    if kind == "seq_mean_token_sum_norm":
      return advantages / (rows * length)
    same_BP = _membership(prompt_sizes, rows)
    prompt_tokens_P = jnp.maximum(tokens_B @ same_BP, 1.0)
    return advantages / (same_BP.shape[1] * (same_BP @ prompt_tokens_P))[:, None]

  return fn


def _legacy(tokens_B: Array, size: int | None) -> Array:
  """The factor of each row: 1 over its micro-batch's tokens and their number."""
  if size is None:
    raise ValueError(
      f"{_PEER}: loss_reduction 'token_mean_legacy' needs micro_batch_size"
    )
  if int(size) != size or size < 1:
    raise ValueError(f"{_PEER}: micro_batch_size must be 1 or more rows; got {size!r}")
  rows = len(tokens_B)
  number = rows // size
  if number == 0:
    return jnp.zeros(rows)
  tokens = tokens_B[: number * size].reshape(number, size).sum(1)
  factor_B = jnp.repeat(1 / (jnp.maximum(tokens, 1.0) * number), size)
  return jnp.pad(factor_B, (0, rows - number * size))


def _membership(prompt_sizes: Sequence[int] | None, rows: int) -> np.ndarray:
  """`[B, P]`, 1 where the row answers the prompt."""
  if prompt_sizes is None:
    raise ValueError(f"{_PEER}: loss_reduction 'prompt_mean' needs prompt_sizes")
  sizes = np.asarray(prompt_sizes)
  if sizes.sum() != rows:
    raise ValueError(
      f"{_PEER}: prompt_sizes {sizes.tolist()} do not add up to the {rows} rows"
    )
  return np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, axis=0)
