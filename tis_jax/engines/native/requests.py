"""What a batch asks for: responses that begin, and responses that go on."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Prompts of responses that go on are read so many at a time.
_TOGETHER = 8


class Requests(NamedTuple):
  """What is to be answered.

  Attributes:
    prompts: int32 [length] each; of a response that was interrupted, with what it has
      said.
    prompt_R: int [R], the prompt that each response goes on from.
    order: responses in the order in which they begin; others are left out.
    limits: int32 [R], tokens each may have.
    keys: PRNG keys [R].
    together: prompts that are read by one call, at most.
    longest: tokens that a prompt may have.
  """

  prompts: Sequence[np.ndarray]
  prompt_R: np.ndarray
  order: Sequence[int]
  limits: np.ndarray
  keys: jax.Array
  together: int
  longest: int


def ids_of(prompts: np.ndarray, prompt_mask: np.ndarray) -> list[np.ndarray]:
  """int32 [length] each, without their padding."""
  return [
    np.asarray(ids, np.int32)[np.asarray(mask)]
    for ids, mask in zip(prompts, prompt_mask, strict=True)
  ]


def beginning(
  prompts: Sequence[np.ndarray],
  samples: int,
  *,
  answered: np.ndarray,
  limits: np.ndarray,
  slots: int,
  key: jax.Array,
) -> Requests:
  """`samples` responses to each prompt, each prompt read once.

  Args:
    prompts: N of them.
    samples: responses a prompt.
    answered: int, the responses that are to be made.
    limits: int [N * samples], tokens each may have.
    slots: responses at once.
    key: PRNG key of all.
  """
  return Requests(
    prompts,
    np.repeat(np.arange(len(prompts)), samples),
    order=answered.tolist(),
    limits=limits.astype(np.int32),
    keys=_keys(key, len(prompts), samples),
    together=min(len(prompts), -(-slots // samples)),
    longest=max(map(len, prompts), default=1),
  )


def going_on(
  prompts: Sequence[np.ndarray],
  said: Sequence[np.ndarray],
  *,
  answered: np.ndarray,
  more: np.ndarray,
  room: np.ndarray,
  slots: int,
  longest: int,
  keys: jax.Array,
) -> Requests:
  """R responses that go on, each from its prompt and what it has said.

  Args:
    prompts: of each response; those that say the same so far are read once.
    said: tokens of each so far.
    answered: int, the responses that do go on.
    more: int [R], tokens that each may draw now.
    room: int [R], tokens that each may have.
    slots: responses at once.
    longest: places of a slot.
    keys: PRNG keys [R].
  """
  place: dict[bytes, int] = {}
  seen = (np.concatenate(both).tobytes() for both in zip(prompts, said, strict=True))
  prompt_R = np.array([place.setdefault(ids, len(place)) for ids in seen], int)
  # Those that may take longest come first, else in their order.
  order = answered[np.argsort(-more[answered], kind="stable")]
  return Requests(
    [np.frombuffer(ids, np.int32) for ids in place],
    prompt_R,
    order=order.tolist(),
    limits=np.minimum([len(ids) for ids in said] + more, room).astype(np.int32),
    keys=keys,
    # Neither depends on the batch, so that nothing is compiled for one.
    together=min(slots, _TOGETHER),
    longest=longest,
  )


def checked_limits(limits, rows: int, room: int) -> np.ndarray:
  """int [rows], tokens that each response may have; None is `room` for all.

  Raises:
    ValueError: they are not one a response, or outside their range.
  """
  if limits is None:
    return np.full(rows, room)
  limits = np.asarray(limits)
  if limits.shape != (rows,) or (limits < 1).any() or (limits > room).any():
    raise ValueError(
      f"limits must be {rows} numbers from 1 to {room}, got {limits.tolist()}"
    )
  return limits


@functools.partial(jax.jit, static_argnums=(1, 2))
def _keys(key, prompts: int, samples: int) -> jax.Array:
  of_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompts))
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  return fold(of_prompt, jnp.arange(samples)).reshape(-1)
