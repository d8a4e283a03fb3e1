"""verl's metrics of weights and of rejection statistics, with verl's conventions."""

import jax.numpy as jnp

from tis_jax.compat.arrays import (
  Array,
  log,
  masked_max,
  masked_mean,
  masked_min,
  masked_sum,
  row_std,
)
from tis_jax.numerics.ratios import LOG_LIMIT


def weights(
  weight_BT: Array,
  raw_BT: Array,
  valid_BT: Array,
  *,
  low: float,
  high: float,
  total_B: Array | None,
  clip: tuple[float, float],
) -> dict[str, Array]:
  """The `rollout_is_*` metrics.

  Rows without tokens count as weight 0 in the sequence metrics, and as ratio 1 in the
  maximum, the minimum and the fractions of the sequence level, as in verl.

  Args:
    weight_BT: the weights the averages are taken of, 0 outside the mask.
    raw_BT: the ratio before any bound, 0 outside the mask.
    valid_BT: bool, the tokens that count.
    low: the bound under which a ratio counts as low.
    high: the bound over which a ratio counts as high.
    total_B: each row's summed log-ratio at the sequence level, else None.
    clip: the interval that weights are clipped to before their std and effective
      sample size are taken.
  """
  mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
  share = lambda x_B: x_B.mean(dtype=jnp.float32)
  if total_B is None:
    extremes = masked_max(weight_BT, valid_BT), masked_min(weight_BT, valid_BT)
    fractions = mean(raw_BT > high), mean(raw_BT < low)
  else:
    extremes = jnp.exp(jnp.minimum(total_B.max(), LOG_LIMIT)), jnp.exp(total_B.min())
    fractions = share(total_B > log(high)), share(total_B < log(low))
  row_B = masked_mean(weight_BT, valid_BT, 1)
  raw_row_B = masked_mean(raw_BT, valid_BT, 1)
  return {
    "rollout_is_mean": mean(weight_BT),
    "rollout_is_max": extremes[0],
    "rollout_is_min": extremes[1],
    "rollout_is_ratio_fraction_high": fractions[0],
    "rollout_is_ratio_fraction_low": fractions[1],
    **_spread(jnp.clip(weight_BT, *clip), valid_BT),
    **_by_sequence(row_B, raw_row_B, low, high),
  }


def _spread(clipped_BT: Array, valid_BT: Array) -> dict[str, Array]:
  """Standard deviation and effective sample size (a fraction) of clipped weights."""
  mean = masked_mean(clipped_BT, valid_BT)
  square = masked_mean((clipped_BT / (mean + 1e-8)) ** 2, valid_BT)
  return {
    "rollout_is_std": _std(clipped_BT, valid_BT),
    "rollout_is_eff_sample_size": jnp.where(square > 0, 1 / square, 0.0),
  }


def _by_sequence(row_B, raw_row_B, low, high) -> dict[str, Array]:
  """Statistics over rows of their mean weight; the fractions are of the raw ratio."""
  share = lambda x_B: x_B.mean(dtype=jnp.float32)
  return {
    "rollout_is_seq_mean": row_B.mean(),
    "rollout_is_seq_std": row_std(row_B),
    "rollout_is_seq_max": row_B.max(),
    "rollout_is_seq_min": row_B.min(),
    "rollout_is_seq_max_deviation": jnp.abs(row_B - 1).max(),
    "rollout_is_seq_fraction_high": share(raw_row_B > high),
    "rollout_is_seq_fraction_low": share(raw_row_B < low),
  }


def rejection(
  statistic: Array,
  passed_BT: Array,
  valid_BT: Array,
  low: float,
  high: float,
  *,
  by_row: bool,
  two_sided: bool,
) -> dict[str, Array]:
  """The metrics of one rejection option, under their names without its prefix.

  Args:
    statistic: `[B]` where `by_row`, else `[B, T]`.
    passed_BT: what the option alone would accept.
    valid_BT: the tokens that count.
    low: the statistic's lower bound; only two-sided options report falling under it.
    high: the statistic's upper bound.
    by_row: whether the option judges whole rows.
    two_sided: True for k1.
  """
  filled_B = valid_BT.any(1)
  mean_B = lambda x_B: masked_mean(x_B.astype(jnp.float32), filled_B)
  if by_row:
    row_B = statistic
    token_BT = jnp.broadcast_to(statistic[:, None], valid_BT.shape)
    extremes = masked_max(row_B, filled_B), masked_min(row_B, filled_B)
    fractions = mean_B(row_B > high), mean_B(row_B < low)
  else:
    token_BT = statistic
    row_B = masked_mean(token_BT, valid_BT, 1)
    extremes = masked_max(token_BT, valid_BT), masked_min(token_BT, valid_BT)
    mean = lambda x_BT: masked_mean(x_BT.astype(jnp.float32), valid_BT)
    fractions = mean(token_BT > high), mean(token_BT < low)
  dropped_BT = valid_BT & ~passed_BT
  out = {
    "mean": masked_mean(token_BT, valid_BT),
    "max": extremes[0],
    "min": extremes[1],
    "fraction_high": fractions[0],
    "fraction_low": fractions[1] if two_sided else jnp.zeros(()),
    "std": _std(jnp.clip(token_BT, low, high), valid_BT),
    "seq_mean": mean_B(row_B),
    "seq_std": _row_std(row_B, filled_B),
    "seq_max": masked_max(row_B, filled_B),
    "seq_min": masked_min(row_B, filled_B),
    "seq_max_deviation": masked_max(jnp.abs(row_B), filled_B),
    "seq_fraction_high": mean_B(row_B > high),
    "masked_fraction": masked_mean(dropped_BT.astype(jnp.float32), valid_BT),
    "seq_masked_fraction": mean_B(dropped_BT.any(1)),
  }
  if two_sided:
    out["seq_fraction_low"] = mean_B(row_B < low)
  return out


def rejections(kept_BT: Array, valid_BT: Array) -> dict[str, Array]:
  """What all options together dropped; the share of rows is of all rows."""
  dropped_BT = valid_BT & ~kept_BT
  tokens = masked_mean(dropped_BT.astype(jnp.float32), valid_BT)
  return {
    "rollout_rs_masked_fraction": tokens,
    "rollout_rs_seq_masked_fraction": dropped_BT.any(1).mean(dtype=jnp.float32),
  }


def _std(x_BT: Array, valid_BT: Array) -> Array:
  """The standard deviation over tokens; 0 of one token.

  verl takes E x^2 - (E x)^2 in fp32, whose rounding (a few 1e-7 of E x^2) swallows a
  small spread; this is the number it means.
  """
  centred_BT = x_BT - masked_mean(x_BT, valid_BT)
  return jnp.sqrt(masked_mean(centred_BT**2, valid_BT))


def _row_std(row_B: Array, filled_B: Array) -> Array:
  """The unbiased standard deviation over the rows that hold tokens."""
  count = filled_B.sum(dtype=jnp.float32)
  centred_B = row_B - masked_mean(row_B, filled_B)
  variance = masked_sum(centred_B**2, filled_B) / jnp.maximum(count - 1, 1.0)
  return jnp.sqrt(variance)
