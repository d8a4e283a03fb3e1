"""A peer's losses and estimators in the signatures that a native learner reads."""

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Literal

import jax.numpy as jnp

from tis_jax.losses import policy_loss
from tis_jax.numerics.metrics import ratio

Anchor = Literal["none", "old", "sampler"]
_SELECTING = ("clip_cov", "kl_cov")
_DRAWING = ("clip_cov",)


def native_loss(
  peer: str, name: str, loss: Callable, takes: tuple[str, ...], *, ratio_to: Anchor
) -> Callable:
  """A peer's token loss as one of `tis_jax.losses`: its metrics can be pooled.

  Args:
    peer: whose it is, in messages.
    name: the peer's own for it; clip_cov and kl_cov select tokens among others, and the
      former draws them, in every dialect.
    loss: `loss(**arrays) -> (token_loss, metrics)`, metrics as scalars.
    takes: the arrays that it needs, of `losses.ARGUMENTS`, `key` apart.
    ratio_to: see `losses.Traits`.

  >>> from tis_jax.losses import traits
  >>> sum_ = lambda logp: (logp, {})
  >>> loss = native_loss("verl", "clip_cov", sum_, ("logp",), ratio_to="none")
  >>> traits(loss)
  Traits(name='verl clip_cov', needs=('logp', 'key'), ratio_to='none', selects=True)
  """

  def native(**arrays):
    token_loss, metrics = loss(**arrays)
    return token_loss, {key: ratio(x, 1.0) for key, x in metrics.items()}

  _declare(native, f"{peer} {name}", takes + ("key",) * (name in _DRAWING))
  return policy_loss(ratio_to=ratio_to, selects=name in _SELECTING)(native)


def native_estimator(
  peer: str, name: str, estimate: Callable, extras: Mapping[str, str]
) -> Callable:
  """A peer's `fn(rewards, mask, group, **extras)` as one of `tis_jax.advantages`.

  An outcome's reward stands on the last token of its response.

  Args:
    peer: whose it is, in messages.
    name: the peer's own for it.
    estimate: the peer's, of `[B, T]` rewards.
    extras: what it needs beside them: the native name of each by the peer's. One that
      takes values gives returns, too, which a critic is trained on.

  >>> fn = lambda rewards, mask, group: (rewards, rewards)
  >>> native = native_estimator("verl", "last", fn, {})
  >>> native(rewards=jnp.ones(1), mask=jnp.array([[True, True, False]]),
  ...        group_ids=jnp.zeros(1, int)).tolist()
  [[0.0, 1.0, 0.0]]
  """

  def native(rewards, group_ids, mask, **given):
    peers = {theirs: given[ours] for theirs, ours in extras.items()}
    found = estimate(_on_the_last_token(rewards, mask), mask, group_ids, **peers)
    return found if "values" in given else found[0]

  _declare(native, f"{peer} {name}", ("rewards", "group_ids", "mask", *extras.values()))
  return native


def _on_the_last_token(rewards, mask):
  """`[B, T]`: each row's reward on its last token; on the first slot of an empty row.

  A peer takes the score of a row as the sum of its rewards, those outside the mask
  included, so that a row without tokens still counts in its group's baseline.
  """
  columns = jnp.arange(mask.shape[1])[None, :]
  last = jnp.where(mask, columns, 0).max(axis=1, keepdims=True)
  return jnp.where(columns == last, rewards[:, None], 0.0)


def _declare(function: Callable, name: str, takes: tuple[str, ...]) -> None:
  """What `inspect` says of the function: it is called by keywords."""
  parameters = [Parameter(x, Parameter.KEYWORD_ONLY) for x in takes]
  function.__name__ = name  # pyrefly: ignore
  function.__signature__ = Signature(parameters)  # pyrefly: ignore
