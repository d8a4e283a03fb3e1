"""Generate, decode, reward: an engine's answers to an environment's prompts."""

from typing import Any, NamedTuple

import jax
import numpy as np

from tis_jax.engines.protocol import Engine, Generation
from tis_jax.rollouts.record import ARRAYS
from tis_jax.tasks import Environment


class Played(NamedTuple):
  """Answers and what they are worth.

  Attributes:
    rows: int [B], the prompt in the environment that each row answers.
    generation: the answers, B rows.
    rewards: float32 [B].
  """

  rows: np.ndarray
  generation: Generation
  rewards: np.ndarray


def play(
  engine: Engine,
  environment: Environment,
  index: np.ndarray,
  *,
  samples: int,
  key: jax.Array,
  greedy: bool = False,
) -> Played:
  """Lets an engine answer some of an environment's prompts, and rewards the answers.

  Args:
    engine: that holds params.
    environment: whose prompts and rewards they are.
    index: int [N], the prompts.
    samples: answers a prompt.
    key: PRNG key of the engine's noise.
    greedy: have the most probable answers instead of samples.

  Returns:
    Played, with `B = N * samples`: the prompts in order, each `samples` times in a row.

  Raises:
    ValueError: what the engine gave is not of the shapes that `Generation` says.
  """
  prompts = environment.prompts
  # An engine that nobody asks for greedy answers need not know of them.
  how: dict[str, Any] = {"greedy": True} if greedy else {}
  generation = engine.generate(
    prompts.tokens[index], prompts.mask[index], samples=samples, key=key, **how
  )
  rows = np.repeat(index, samples)
  _check(generation, len(rows))
  rewards = environment.rewards(rows, generation.tokens, generation.mask)
  return Played(rows, generation, rewards)


def _check(generation: Generation, rows: int) -> None:
  # Anyone may write an engine, and rows that are out of step would be rewarded for each
  # other's answers.
  length = np.shape(generation.tokens)[-1]
  for name, value in generation._asdict().items():
    if value is None and name in Generation._field_defaults:
      continue
    axes, found = ARRAYS[name][1], np.shape(value)
    known = {"B": rows, "T": length, "O": rows * length + 1}
    if len(found) != len(axes) or found != tuple(map(known.get, axes, found)):
      wanted = ", ".join(str(known.get(axis, axis)) for axis in axes)
      raise ValueError(f"the engine's {name} has shape {found}, wants ({wanted})")
