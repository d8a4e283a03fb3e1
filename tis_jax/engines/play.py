"""Generate, decode, reward: an engine's answers to an environment's prompts."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

from tis_jax.engines.converse import converse
from tis_jax.engines.protocol import Engine, Generation
from tis_jax.engines.shapes import check_shapes
from tis_jax.tasks import Environment


class Played(NamedTuple):
  """Answers and what they are worth.

  Attributes:
    rows: int [B], the prompt in the environment that each row answers.
    generation: the answers, B rows.
    rewards: float32 [B]; of a conversation the sum over its turns.
    prompts: int32 [B, P], left-padded: what each row answers.
    prompt_mask: bool [B, P].
    turn_rewards: float32 [B, U], of each turn, NaN behind the last; None where the task
      has no conversations.
    aborted: how many conversations were set aside, by reason; None likewise.
  """

  rows: np.ndarray
  generation: Generation
  rewards: np.ndarray
  prompts: np.ndarray
  prompt_mask: np.ndarray
  turn_rewards: np.ndarray | None = None
  aborted: Counter[str] | None = None


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

  Where the task has conversations it holds those (`tis_jax.engines.converse`).

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
    ConversationsFailedError: half of the conversations or more came to nothing.
  """
  rows = np.repeat(index, samples)
  prompts = environment.prompts
  if environment.turns is not None:
    transcript, aborted = converse(
      engine, environment, index, samples=samples, key=key, greedy=greedy
    )
    opened, mask = transcript.openings(prompts.tokens.shape[1])
    return Played(
      rows,
      transcript.generation(),
      transcript.rewards(),
      opened,
      mask,
      transcript.turn_rewards(environment.turns.most),
      aborted,
    )
  # An engine that nobody asks for greedy answers need not know of them.
  how: dict[str, Any] = {"greedy": True} if greedy else {}
  generation = engine.generate(
    prompts.tokens[index], prompts.mask[index], samples=samples, key=key, **how
  )
  check_shapes(generation, len(rows))
  rewards = environment.rewards(rows, generation.tokens, generation.mask)
  return Played(rows, generation, rewards, prompts.tokens[rows], prompts.mask[rows])
