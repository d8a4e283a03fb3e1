"""What a policy loss says of itself: a loss of your own is handled like ours."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

Anchor = Literal["none", "old", "sampler"]
Loss = TypeVar("Loss", bound=Callable[..., Any])

ARGUMENTS = (
  "logp",
  "old_logp",
  "sampler_logp",
  "advantages",
  "mask",
  "segment_ids",
  "key",
)
"""The arrays that a training step can hand to a loss; the rest are settings."""


@dataclasses.dataclass(frozen=True)
class Traits:
  """What a loss takes, and what may be done with it.

  Attributes:
    name: what it is called.
    needs: the arguments that it cannot do without.
    ratio_to: the policy that its own importance ratio starts at: the "sampler", the
      "old" policy of the start of the update, or "none".
    selects: whether it ranks a token among the others of its batch, so that splitting
      the batch into micro-batches would change what it selects.
  """

  name: str
  needs: tuple[str, ...]
  ratio_to: Anchor
  selects: bool


def policy_loss(
  *, ratio_to: Anchor | None = None, selects: bool = False
) -> Callable[[Loss], Loss]:
  """Declares what a loss's signature does not show; see `Traits`.

  A loss without this decorator is read off its signature: one that takes `sampler_logp`
  holds the ratio to the sampler, one that takes `old_logp` the ratio to the old policy.

  >>> @policy_loss(ratio_to="none")
  ... def pull(logp, old_logp, advantages, mask=None):
  ...   return (logp - old_logp) ** 2 - advantages * logp, {}
  >>> traits(pull).ratio_to, traits(pull).needs
  ('none', ('logp', 'old_logp', 'advantages'))
  """

  def declare(loss: Loss) -> Loss:
    loss.__policy_loss__ = {"ratio_to": ratio_to, "selects": selects}  # pyrefly: ignore
    return loss

  return declare


def traits(loss: Callable) -> Traits:
  """What a loss, or a `functools.partial` of one, says of itself.

  >>> from tis_jax import losses
  >>> traits(losses.dppo).ratio_to, traits(losses.m2po).selects
  ('sampler', True)
  """
  parameters = inspect.signature(loss).parameters
  needs = tuple(
    name
    for name, parameter in parameters.items()
    if parameter.default is inspect.Parameter.empty
  )
  function = loss
  while isinstance(function, functools.partial):
    function = function.func
  declared = getattr(function, "__policy_loss__", {})
  shown: Anchor = "none"
  if "sampler_logp" in parameters:
    shown = "sampler"
  elif "old_logp" in parameters:
    shown = "old"
  return Traits(
    name=getattr(function, "__name__", repr(function)),
    needs=needs,
    ratio_to=declared.get("ratio_to") or shown,
    selects=declared.get("selects", False),
  )
