"""verl: `agg_loss` by `loss_agg_mode`, with counts of the global batch if given."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tis_jax import losses
from tis_jax.compat import options
from tis_jax.compat.arrays import Array
from tis_jax.compat.sections.verl import SECTIONS

_PEER = "verl"
MODES = (
  *("token-mean", "token-sum"),
  *("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
)
COUNTS = ("dp_size", "batch_num_tokens", "global_batch_size")
_DEFAULTS = {
  "loss_agg_mode": "token-mean",
  "loss_scale_factor": None,
  "global_batch_info": None,
}


def agg_loss(config: options.Config = None) -> Callable:
  r"""verl's aggregation of a token loss.

  With B filled rows, N tokens in all, n_b and sum_b of a row, all of what is called
  with unless the counts of the global batch are given:

    token-mean               sum / N
    token-sum                sum
    seq-mean-token-sum       mean_b(sum_b)
    seq-mean-token-mean      mean_b(sum_b / n_b)
    seq-mean-token-sum-norm  mean_b(sum_b) / `loss_scale_factor` (None: the row's width)

  times `dp_size`, which undoes that data parallelism averages the gradients.

  Args:
    config: the actor's `loss_agg_mode` and `loss_scale_factor`, and
      `global_batch_info`, with `dp_size`, `batch_num_tokens` (for token-mean) and
      `global_batch_size` (rows, for the others).

  Returns:
    `fn(token_loss, mask, *, dp_size=None, batch_num_tokens=None,
    global_batch_size=None) -> loss`; the counts stand for those of the config. Where
    verl divides 0 by 0 (no token left) the loss is 0.

  Raises:
    ValueError: an unknown key, an impossible value, or a `dp_size` above 1 without the
      count that the mode divides by.

  >>> fn = agg_loss({"loss_agg_mode": "token-mean"})
  >>> token_loss, mask = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[1, 1, 0]])
  >>> fn(token_loss, mask), fn(token_loss, mask, dp_size=2, batch_num_tokens=8)
  (Array(1.5, dtype=float32), Array(0.75, dtype=float32))

  Source: verl, `trainer/ppo/core_algos.py` at 1dda039b9 (2026-08-22).
  """
  found = SECTIONS.locate(config, "agg_loss")
  cfg = check(options.read(_PEER, found, _DEFAULTS))

  def fn(token_loss, mask, **counts):
    return aggregate(cfg, token_loss, mask, **counts)

  return fn


def check(cfg: dict[str, Any]) -> dict[str, Any]:
  """`cfg` with its options of the aggregation checked, the counts among them."""
  options.choice(_PEER, "loss_agg_mode", cfg["loss_agg_mode"], MODES)
  info = options.read(
    f"{_PEER} global_batch_info",
    cfg.pop("global_batch_info"),
    {**dict.fromkeys(COUNTS), "loss_scale_factor": None},
  )
  factor = info.pop("loss_scale_factor")
  factor = cfg["loss_scale_factor"] if factor is None else factor
  for key, value in info.items():
    if value is not None:
      info[key] = options.number(_PEER, key, value, above=0)
  if factor is not None:
    factor = options.number(_PEER, "loss_scale_factor", factor, above=0)
  return cfg | {"loss_scale_factor": factor, "counts": info}


def aggregate(cfg, token_loss, mask, mode=None, *, weight=None, **counts: Any) -> Array:
  """verl's `agg_loss` under options that `check` has seen, for the losses here."""
  unknown = set(counts) - set(COUNTS)
  if unknown:
    raise TypeError(f"{_PEER}: the counts are {', '.join(COUNTS)}; got {unknown}")
  given = {key: value for key, value in counts.items() if value is not None}
  counts = cfg["counts"] | given
  dp_size = 1 if counts["dp_size"] is None else counts["dp_size"]
  mode = cfg["loss_agg_mode"] if mode is None else mode
  valid_BT = jnp.asarray(mask) != 0
  needed = {"token-mean": "batch_num_tokens", "token-sum": None}.get(
    mode, "global_batch_size"
  )
  count = None if needed is None else counts[needed]
  # A traced dp_size cannot be asked.
  if needed and count is None and isinstance(dp_size, (int, float)) and dp_size > 1:
    raise ValueError(
      f"{_PEER}: {mode} with a dp_size of {dp_size:g} divides by a count of the global "
      f"batch; give {needed}"
    )
  tokens_B = valid_BT.sum(1, dtype=jnp.float32)
  if count is None:
    rows = (tokens_B > 0).sum(dtype=jnp.float32)
    count = tokens_B.sum() if mode == "token-mean" else rows
  denominator = {
    "token-mean": lambda: count,
    "token-sum": lambda: 1.0,
    "seq-mean-token-sum": lambda: count,
    "seq-mean-token-mean": lambda: count * tokens_B,
    "seq-mean-token-sum-norm": lambda: (
      count * (cfg["loss_scale_factor"] or valid_BT.shape[1])
    ),
  }[mode]()
  if weight is not None:
    token_loss = token_loss * jnp.where(valid_BT, weight, 0.0)
  return losses.aggregate(token_loss, valid_BT, denominator=denominator) * dp_size
