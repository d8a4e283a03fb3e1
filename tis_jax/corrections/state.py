"""What the stages of a chain hand on to each other."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from tis_jax.numerics.metrics import (
  Max,
  Mean,
  Min,
  fraction_of,
  maximum,
  mean_of_sums,
  minimum,
)
from tis_jax.numerics.rows import Rows, by_row

Level = Literal[
  "token",
  "prefix",
  "min_prefix",
  "turn",
  "turn_geometric",
  "sequence",
  "geometric",
  "root",
]
"""What a ratio is taken over, of the token ratios `rho`:

  token           rho_t
  prefix          the product up to t and with it
  min_prefix      rho_t times the smallest before t; 1 stands before the first (MinPRO)
  turn            the product of the turn
  turn_geometric  its n-th root, n its tokens
  sequence        the product
  geometric       its n-th root
  root            its sqrt(n)-th root
"""
LEVELS: tuple[Level, ...] = get_args(Level)
TOKEN_LEVELS = ("token", "prefix", "min_prefix")
TURN_LEVELS = ("turn", "turn_geometric")


class State(NamedTuple):
  """What the stages hand on. Arrays of `[B, 1]` stand for whole rows.

  The mask is held in two factors:

    mask [B, T]      =   tokens [B, T]              &   rows [B, 1]
                         what token and turn levels     what sequence levels
                         rejected is False              rejected is False

  A level multiplies over `tokens`, which a sequence rejected whole does not change: its
  product, and every other row sum, is then taken once for the chain, and no metric
  needs a second pass over the batch. Packed rows hold several sequences, so there
  `rows` has a column for each token: its width tells the two layouts apart.

  Attributes:
    tokens: `[B, T]` bool, the incoming mask less what was rejected inside a sequence.
    number: `[B, 1]` float, how many `tokens` each row has.
    rows: `[B, 1]` bool (`[B, T]` when rows are packed), the sequences still in.
    weight: `[B, T]` or `[B, 1]` float, 1 until a stage makes it.
    raw: the ratio that the weight was made of, before any bound; None for a token's.
  """

  tokens: jax.Array
  number: jax.Array
  rows: jax.Array
  weight: jax.Array
  raw: jax.Array | None = None

  @property
  def mask(self) -> jax.Array:
    """`[B, T]` bool: the tokens that still train."""
    return self.tokens & self.rows

  @property
  def packed(self) -> bool:
    """Whether a row may hold several sequences."""
    return self.rows.shape[1] != 1

  def total(self, x: jax.Array) -> jax.Array:
    """The sum of `x` over the tokens that still train, by row first."""
    if self.packed:
      return _sum(jnp.where(self.mask, x, 0))
    if x.shape[1] == 1:
      return _sum(jnp.where(self.rows, x * self.number, 0))
    rows = by_row(_total_features, x, self.tokens).total["x"]
    return _sum(jnp.where(self.rows, rows, 0))

  def token_count(self) -> jax.Array:
    """How many tokens still train."""
    if self.packed:
      return _sum(self.mask)
    return _sum(jnp.where(self.rows, self.number, 0))

  def fraction(self, hit: jax.Array) -> Mean:
    """The share of the tokens that still train for which `hit` holds."""
    hits = self.total(hit)
    return fraction_of(hits, self.token_count())

  def summary(self, x: jax.Array) -> tuple[Mean, Max, Min]:
    """The mean of `x` over the tokens that still train, about 1, and its extremes."""
    if self.packed:
      number, rows = row_count(self.mask), jnp.ones_like(self.number, bool)
    else:
      number, rows = jnp.where(self.rows, self.number, 0), self.rows
    if x.shape[1] == 1 and not self.packed:
      high = low = x
      excess, squares = (x - 1.0) * number, (x - 1.0) ** 2 * number
    else:
      tokens = self.mask if self.packed else self.tokens
      sums = by_row(_summary_features, jnp.broadcast_to(x, tokens.shape), tokens)
      high, low = sums.largest["x"], sums.smallest["x"]
      excess, squares = (
        jnp.where(rows, sums.total[name], 0) for name in ("excess", "squares")
      )
    held = number > 0
    return (
      mean_of_sums(excess.sum(), squares.sum(), number.sum(), pivot=1.0),
      maximum(high, held),
      minimum(low, held),
    )


def reject_where(state: State, out: jax.Array, level: Level) -> State:
  """Drops what `out` (`[B, T]`, or `[B, 1]` by row) marks."""
  if level in TOKEN_LEVELS + TURN_LEVELS:
    return reject_tokens(state, out)
  return state._replace(rows=state.rows & ~out)


def reject_tokens(state: State, out: jax.Array) -> State:
  """Drops tokens from inside their sequences."""
  tokens = state.tokens & ~out
  return state._replace(tokens=tokens, number=row_count(tokens))


def row_count(condition: jax.Array) -> jax.Array:
  """`[B, 1]` fp32: how many tokens of each row meet the condition."""
  return condition.sum(axis=1, keepdims=True, dtype=jnp.float32)


def _total_features(x, tokens) -> Rows:
  return Rows({"x": jnp.where(tokens, x, 0).astype(_float(x))}, {}, {})


def _summary_features(x, tokens) -> Rows:
  excess = jnp.where(tokens, x - 1.0, 0.0)
  return Rows(
    {"excess": excess, "squares": excess * excess},
    {"x": jnp.where(tokens, x, -jnp.inf)},
    {"x": jnp.where(tokens, x, jnp.inf)},
  )


def _float(x: jax.Array):
  return jnp.promote_types(jnp.float32, x.dtype)


def _sum(x: jax.Array) -> jax.Array:
  return x.sum(dtype=_float(x))
