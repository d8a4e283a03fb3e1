"""Conversations: turns of an engine, and what an environment says between them.

Rounds. In each the engine samples one turn of every conversation that is not over, with
all that was said so far as its prompt, and the environment answers all of them at once.
The conversation is a row of ids that only grows: what was sampled stays as it was
sampled, and what the environment says is encoded once, under a mask that is False.
"""

import functools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np

from tis_jax.engines.protocol import Engine, Generation
from tis_jax.engines.shapes import check_shapes
from tis_jax.engines.transcript import Transcript
from tis_jax.rollouts import ABORTED, LENGTH, STOP
from tis_jax.tasks import Environment
from tis_jax.tasks.calls import call_all
from tis_jax.tasks.conversation import ConversationsFailedError, Turns

WIDTHS = 4
"""Into how many widths the prompts of later turns are padded."""


def widths(prompt_length: int, tokens: int) -> list[int]:
  """The widths that prompts of a conversation are padded to: so many shapes compile.

  Args:
    prompt_length: P, of the first turn.
    tokens: T, of a response.

  >>> widths(16, 40)
  [16, 26, 36, 46, 56]
  """
  step = math.ceil(tokens / WIDTHS)
  return [prompt_length + min(i * step, tokens) for i in range(WIDTHS + 1)]


def converse(
  engine: Engine,
  environment: Environment,
  index: np.ndarray,
  *,
  samples: int,
  key: jax.Array,
  greedy: bool = False,
) -> tuple[Transcript, Counter[str]]:
  """Lets an engine hold conversations about some of an environment's prompts.

  A conversation is over when its environment says so (`STOP`), or when it has had as
  many turns or tokens as it may (`LENGTH`). What raises, hangs, opens with more tokens
  than fit, or says what cannot be encoded, is `ABORTED` and counted.

  Args:
    engine: that holds params, and samples at most a turn's tokens at once.
    environment: of a task with conversations.
    index: int `[N]`, the prompts.
    samples: conversations about each.
    key: PRNG key; each round has one of its own.
    greedy: have the most probable tokens.

  Returns:
    The transcript of `N * samples` rows, the prompts in order and each `samples` times
    in a row, and how many were aborted, by reason.

  Raises:
    ValueError: the task has no conversations.
    ConversationsFailedError: half of them or more were aborted.
  """
  turns = environment.turns
  if turns is None:
    raise ValueError("the environment's task has no conversations")
  rows = np.repeat(index, samples)
  aborted: Counter[str] = Counter()
  width = environment.prompts.tokens.shape[1]
  conversations = [_begun(environment, int(i)) for i in rows]
  transcript = _opened(environment, conversations, turns, width, aborted)
  # An engine that nobody asks for greedy answers need not know of them.
  how: dict[str, Any] = {"greedy": True} if greedy else {}
  for turn, turn_key in enumerate(jax.random.split(key, turns.most)):
    if not transcript.open:
      break
    generation = _turn(engine, transcript, width, turns, turn, samples, turn_key, how)
    check_shapes(generation, len(rows))
    _answer(environment, conversations, transcript, generation, turns, turn, aborted)
  closing = [c.close for c in conversations if hasattr(c, "close")]
  call_all(closing, turns.seconds)
  if aborted and 2 * aborted.total() >= len(rows):
    raise ConversationsFailedError(
      f"{aborted.total()} of {len(rows)} conversations came to nothing; most often: "
      f"{aborted.most_common(1)[0][0]}"
    )
  return transcript, aborted


def _begun(environment: Environment, index: int) -> Any:
  """A conversation, or one that cannot be opened."""
  try:
    return environment.conversation(index)
  except Exception as error:
    return _Failed(error)


class _Failed:
  def __init__(self, error: Exception):
    self._error = error

  def reset(self):
    raise self._error


def _opened(environment, conversations, turns, width, aborted) -> Transcript:
  """The transcript with every conversation opened, or set aside."""
  found = call_all([c.reset for c in conversations], turns.seconds)
  openings, failures = [], {}
  for row, messages in enumerate(found):
    ids: list[int] = []
    try:
      ids = environment.opening(_raised(messages))
      if not ids:
        raise ValueError("it opens with no token")
      if len(ids) > width:
        raise ValueError(
          f"it opens with {len(ids)} tokens, and data.max_prompt_tokens is {width}"
        )
    except Exception as error:
      ids, failures[row] = [], error
    openings.append(ids)
  transcript = Transcript(openings, turns.tokens)
  for row, error in failures.items():
    _abort(transcript, row, error, aborted)
  return transcript


def _turn(
  engine: Engine, transcript: Transcript, width, turns, turn, samples, key, how
) -> Generation:
  """One turn of every row; what it gives to a row that is over nobody reads."""
  if turn == 0:
    tokens, mask = transcript.prompts(width)
    first = slice(None, None, samples)
    alike = (
      np.repeat(tokens[first], samples, axis=0),
      np.repeat(mask[first], samples, 0),
    )
    if np.array_equal(alike[0], tokens) and np.array_equal(alike[1], mask):
      # The prompts of a group are one, which an engine reads once.
      return engine.generate(
        tokens[first], mask[first], samples=samples, key=key, **how
      )
  else:
    longest = max(len(transcript.rows[i].response) for i in transcript.open)
    fitting = [w for w in widths(width, turns.tokens) if w >= width + longest]
    tokens, mask = transcript.prompts(fitting[0])
  return engine.generate(tokens, mask, samples=1, key=key, **how)


def _answer(
  environment, conversations, transcript, generation, turns: Turns, turn, aborted
) -> None:
  """Writes the turns down, has them answered, and says which conversations are over."""
  spoken = []
  for row in transcript.open:
    ids = transcript.sampled(row, generation)
    if generation.finish_reasons[row] == ABORTED or not ids:
      _abort(transcript, row, RuntimeError("the engine gave it up"), aborted)
    else:
      spoken.append((row, *environment.turn(ids)))
  calls = [functools.partial(conversations[row].step, text) for row, text, _ in spoken]
  answers = call_all(calls, turns.seconds)
  for (row, _, ended), answer in zip(spoken, answers, strict=True):
    try:
      messages, reward, done = _raised(answer)
      if not math.isfinite(reward):
        raise ValueError(f"the reward of a turn is {reward}")
      reply = []
      if not done and turn + 1 < turns.most:
        reply = environment.reply(messages, ended=ended)
    except Exception as error:
      _abort(transcript, row, error, aborted)
      continue
    transcript.rows[row].reward(float(reward))
    # Another turn has at least one token.
    if done:
      transcript.rows[row].finish = STOP
    elif turn + 1 == turns.most or len(reply) + 1 > transcript.room(row):
      transcript.rows[row].finish = LENGTH
    else:
      transcript.said(row, reply)


def _raised(found):
  if isinstance(found, Exception):
    raise found
  return found


def _abort(transcript: Transcript, row: int, error: Exception, aborted) -> None:
  transcript.rows[row].finish = ABORTED
  aborted[f"{type(error).__name__}: {error}"] += 1
