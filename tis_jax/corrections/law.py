"""What a chain would make of the tokens that were not taken."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tis_jax.corrections.corrector import Chain
from tis_jax.corrections.stage import Stage
from tis_jax.corrections.state import TOKEN_LEVELS
from tis_jax.numerics.arrays import Array, as_float
from tis_jax.numerics.checks import check_rank, check_shape

_GIVEN = ("advantages", "versions", "learner_version")


class TokenLaw(NamedTuple):
  """A chain in two: what it does to places, and its weight as a function of a token.

  The corrected estimate of a token is `f(token) grad log p(token)`, at the places that
  are left in. `f` is needed of every token that the sampler could have drawn where an
  expectation over them is taken (`losses.score_centering`).

  Attributes:
    places: the stages that reject whole sequences or turns, with all that happens at
      their places; they come first.
    tokens: the stages that treat a token by its own two log-probs.
  """

  places: Chain
  tokens: Chain

  def __call__(self, logp: Array, sampler_logp: Array, **given: Array) -> jax.Array:
    """The weight of other tokens, 0 where they would be rejected.

    Args:
      logp: `[B, T, K]` the learner's log-probs of K tokens at each place, in nats.
      sampler_logp: `[B, T, K]` the sampler's; -inf and NaN are no tokens, and get 0.
      **given: what the chain was called with of advantages, versions and
        learner_version.

    Returns:
      `[B, T, K]` fp32, without gradient.

    Raises:
      ValueError: shapes that differ, or a stage that lacks an argument it needs.
    """
    check_rank("logp", logp, "BTK")
    check_shape("sampler_logp", sampler_logp, jnp.shape(logp))
    rows, length, width = jnp.shape(logp)
    told = {name: given[name] for name in _GIVEN if given.get(name) is not None}
    for name, x in told.items():
      if jnp.ndim(x) == 2:
        x = jnp.broadcast_to(jnp.asarray(x)[..., None], (rows, length, width))
        told[name] = x.reshape(rows, -1)
    sampler = as_float(sampler_logp).reshape(rows, -1)
    known = sampler > -jnp.inf
    out = self.tokens(
      as_float(logp).reshape(rows, -1), jnp.where(known, sampler, 0.0), known, **told
    )
    return jnp.where(out.mask, out.weight, 0.0).reshape(rows, length, width)


def token_law(correct: Chain) -> TokenLaw:
  """The weight that a chain gives a token, as a function that takes any token.

  A token that was not taken has a ratio of its own, and no continuation: stages at
  level "token" have a law, and those that reject whole sequences or turns are a matter
  of the place, not of its token. What is only watched is left out. A stage of your own
  that treats tokens one by one says so by an option `level="token"`.

  Args:
    correct: the chain; stages that reject sequences or turns before those that look at
      tokens.

  Returns:
    `TokenLaw`.

  Raises:
    ValueError: a stage that has no law, with why and what to do.

  >>> from tis_jax.corrections import chain, reject, truncate
  >>> law = token_law(chain(reject(1.01, level="geometric"), truncate(2.0)))
  >>> logp, sampler_logp = jnp.log(jnp.array([[[0.6, 0.3]], [[0.2, 0.5]]]))[:, None]
  >>> law(logp, sampler_logp)
  Array([[[2. , 0.6]]], dtype=float32)
  >>> law.places
  chain(reject(high=1.01, low=0.99009..., level='geometric'), metrics='none')
  """
  places, tokens = [], []
  for stage in correct.stages:
    if stage.watched:
      continue
    why = _lawless(stage, after_tokens=any(s.makes == "mask" for s in tokens))
    if why:
      raise ValueError(f"{stage.name} has no law of single tokens: {why}")
    (tokens if _by_token(stage) else places).append(stage)
  return TokenLaw(Chain(tuple(places), "none"), Chain(tuple(tokens), "none"))


def positions(correct: Chain, *arrays, **given) -> jax.Array:
  """`[B, T]` bool: the places that are left in by what rejects sequences or turns.

  Args:
    correct: a chain that `token_law` takes.
    *arrays: old_logp, sampler_logp and mask, as the chain takes them.
    **given: what else the chain is called with.

  >>> from tis_jax.corrections import chain, reject, veto
  >>> correct = chain(veto(0.5), reject(1.5, level="token"))
  >>> old = jnp.log(jnp.array([[0.9, 0.5], [0.1, 0.5]]))
  >>> positions(correct, old, jnp.log(jnp.full((2, 2), 0.5)), jnp.ones((2, 2)))
  Array([[ True,  True],
         [False, False]], dtype=bool)
  """
  return token_law(correct).places(*arrays, **given).mask


def _by_token(stage: Stage) -> bool:
  return "token" in (_option(stage, "level"), _option(stage, "reduce"))


def _option(stage: Stage, name: str):
  return dict(stage.options).get(name)


def _lawless(stage: Stage, *, after_tokens: bool) -> str:
  """Why not; empty where a stage has a law, or is a matter of places."""
  if stage.pools:
    return "what it does to one token depends on the others of the batch; leave it out"
  missing = [name for name in stage.needs if name not in (*_GIVEN, "present")]
  if missing:
    return f"it needs {missing[0]}, which nobody has of a token that was not taken"
  if _by_token(stage):
    return ""
  level = _option(stage, "level")
  if stage.makes == "mask" and level not in TOKEN_LEVELS:
    if after_tokens:
      return "it counts what a stage before it left of a sequence; put it in front"
    return ""
  if level in TOKEN_LEVELS:
    return f"level {level!r} is not offered for it; take level='token'"
  return (
    "what would have followed another token is not known"
    if level
    else "it does not say what it would make of a token by itself"
  ) + "; take truncate, clip, importance or zero_outside at level='token'"
