"""Whether a server samples from the params that it was given.

A server that says "updated" may not be: a head that was packed at start-up stays as it
was, an update stops half-way, a default of its own sets the temperature. All of these
change its log-probs, and none is visible in its answers. So after every update a few
tokens are sampled, and their log-probs held against a forward pass in fp32 by the same
params, and by what else the server might have: the head or the body, or both, of the
version before or of the first one, or another temperature. If one of those explains the
log-probs better, it is what the server has.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax.engines.served.answer import Answer, Request
from tis_jax.engines.served.errors import WrongParamsError
from tis_jax.logprobs import Sampling
from tis_jax.logprobs.reference import materialized_logits
from tis_jax.models import unflatten

LIMITS = {
  **dict.fromkeys(("float32", "F32"), 5e-3),
  **dict.fromkeys(("bfloat16", "BF16"), 0.12),
}
"""Mean |log-prob difference| in nats that numerics explain, by the engine's dtype: at
least three times what the mismatch atlas has of it (docs/atlas.md)."""
_QUANTISED_LIMITS = {"Q4_1": 0.8}
_QUANTISED_LIMIT = 0.25
_TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0)
_RIGHT = "the params that it was given"
# A rival is believed at these odds (e ** 10), if it is better by these nats a token.
_SURE, _MATTERS = 10.0, 1e-5
# Quantised params are off in a direction: four bits flatten the law, as a temperature
# of 1.1 would. There a rival must explain half of the difference as well.
_QUANTISED_SHARE = 0.5


class Found(NamedTuple):
  """What a probe saw.

  Attributes:
    differences: in words -> mean |log-prob difference|, in nats, of each explanation;
      of the right one alone where none could be better.
    tokens: how many were looked at.
  """

  differences: Mapping[str, float]
  tokens: int


class Probe:
  """Asks a server for a few tokens, and says what params they are of.

  Attributes:
    requests: to be answered after every update.

  Args:
    graph: of the decoder, in fp32.
    prompts: ids, a few prompts.
    law: of the run; asked for without top-k, top-p and min-p.
    dtype: of the server.
    vocab_size: ids are below it.
    stop_ids: that end an answer.
    new_tokens: of each answer, at most.
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    prompts: Sequence[Sequence[int]],
    *,
    law: Sampling,
    dtype: str,
    vocab_size: int,
    stop_ids: Sequence[int],
    new_tokens: int = 16,
  ):
    self._graph, self._temperature = graph, law.temperature
    quantised = _QUANTISED_LIMITS.get(dtype, _QUANTISED_LIMIT)
    self._limit: float = LIMITS.get(dtype, quantised)
    self._share = 1.0 if dtype in LIMITS else _QUANTISED_SHARE
    self._earlier: dict[str, Mapping[str, np.ndarray]] = {}
    self._length, self._new_tokens = max(map(len, prompts)) + new_tokens, new_tokens
    self.requests = [
      Request(
        prompt=list(prompt),
        samples=1,
        seed=1 + row,
        law=Sampling(temperature=law.temperature),
        max_new_tokens=new_tokens,
        stop_ids=tuple(stop_ids),
        vocab_size=vocab_size,
      )
      for row, prompt in enumerate(prompts)
    ]

  def judge(self, answers: Sequence[Answer], params: Mapping[str, np.ndarray]) -> Found:
    """Holds the answers against what the server should have, and might.

    Args:
      answers: to `requests`.
      params: that the server was given; those of earlier calls are what it might have
        instead.

    Raises:
      WrongParamsError: says which it is.
    """
    said = np.concatenate([np.asarray(answer.logp, np.float64) for answer in answers])
    errors = {}
    for words, logp in self._explanations(answers, params):
      errors[words] = said - logp
      if words == _RIGHT and np.abs(errors[words]).mean() <= _MATTERS:
        break  # None could be better by what matters.
    differences = {words: float(np.abs(d).mean()) for words, d in errors.items()}
    best, off = min(differences, key=differences.__getitem__), differences[_RIGHT]
    # Log-likelihood that normal errors of unknown variance give the rival over the
    # right one. Params that hardly differ explain as much, and none is wrong.
    squares = {words: float(np.square(d).sum()) for words, d in errors.items()}
    surer = 0.5 * said.size * np.log(squares[_RIGHT] / max(squares[best], 1e-30))
    rest = differences[best]
    matters = off - rest > _MATTERS and rest < min(self._limit, self._share * off)
    if best != _RIGHT and surer > _SURE and matters:
      raise WrongParamsError(
        f"the engine samples from {best}: its log-probs are {differences[best]:.2g}"
        f" nats off that on average, and {off:.2g} off {_RIGHT}"
      )
    if off > self._limit:
      raise WrongParamsError(
        f"the engine's log-probs are {off:.2g} nats off {_RIGHT}, where its numerics"
        f" may make {self._limit:g}: another model, a half-made update, or a law of its"
        " own"
      )
    self._earlier.setdefault("first", params)
    self._earlier["before"] = params
    return Found(differences, said.size)

  def _explanations(
    self, answers: Sequence[Answer], params: Mapping[str, np.ndarray]
  ) -> Iterator[tuple[str, np.ndarray]]:
    """(in words, the log-probs of the answers' tokens that it would give).

    The right one first; what the rivals cost is spent when they are asked for.
    """
    laid = self._laid(answers)
    given = self._read(params, laid)
    logits = _logits(*given)
    own = (self._temperature,)
    yield _RIGHT, _logp(logits, laid, own)[0]
    others = tuple(t for t in _TEMPERATURES if t != self._temperature)
    for temperature, logp in zip(others, _logp(logits, laid, others), strict=True):
      words = f"{_RIGHT} at temperature {temperature}, not {self._temperature:g}"
      yield words, logp
    earlier = dict(self._earlier)
    if earlier.get("first") is earlier.get("before"):
      earlier.pop("first", None)
    read = {name: self._read(state, laid) for name, state in earlier.items()}
    for name, (hidden, head) in read.items():
      for words, pair in (
        (_words(name, "given"), (hidden, given[1])),
        (_words("given", name), (given[0], head)),
        (_words(name, name), (hidden, head)),
      ):
        yield words, _logp(_logits(*pair), laid, own)[0]

  def _laid(self, answers: Sequence[Answer]) -> "_Laid":
    rows = [
      [*request.prompt, *answer.tokens]
      for request, answer in zip(self.requests, answers, strict=True)
    ]
    ids = np.zeros((len(rows), self._length), np.int32)
    held, answered = np.zeros(ids.shape, np.int32), np.zeros(ids.shape, bool)
    for row, (request, tokens) in enumerate(zip(self.requests, rows, strict=True)):
      ids[row, : len(tokens)], held[row, : len(tokens)] = tokens, 1
      answered[row, len(request.prompt) : len(tokens)] = True
    starts = [len(request.prompt) for request in self.requests]
    places = np.add.outer(starts, np.arange(self._new_tokens))
    tokens = np.take_along_axis(ids, places, axis=1)
    return _Laid(ids, held, places, tokens, np.take_along_axis(answered, places, 1))

  def _read(self, params: Mapping[str, np.ndarray], laid: "_Laid"):
    """Hidden states that predict the answers' tokens, `[R, T, D]`, and the head."""
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    params_tree = unflatten(self._graph, arrays)
    return _forward(self._graph, params_tree, laid.ids, laid.held, laid.places)


class _Laid(NamedTuple):
  """Prompts and answers as arrays of one shape, however long the answers are.

  Attributes:
    ids: int32 [R, S].
    held: int32 [R, S], 1 where there is a token.
    places: int [R, T], of the answers' tokens in a row.
    tokens: int32 [R, T], these.
    mask: bool [R, T], where an answer has one.
  """

  ids: np.ndarray
  held: np.ndarray
  places: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray


def _words(body: str, head: str) -> str:
  if body == head == "given":
    return _RIGHT
  of = {"before": "of the version before", "first": "of the version it began with"}
  if body == head:
    return f"stale params, those {of[head]}"
  if body == "given":
    return f"a stale head, the output matrix {of[head]}"
  return f"a new head on a body {of[body]}"


def _run(graph, params, ids, held, places):
  model = nnx.merge(graph, params)
  hidden = model(ids, segment_ids_BS=held)[0]
  return jnp.take_along_axis(hidden, places[..., None] - 1, axis=1), model.head()


_forward = jax.jit(_run, static_argnums=0)
_logits = jax.jit(materialized_logits)


@functools.partial(jax.jit, static_argnums=2)
def _laws(logits, tokens, temperatures):
  at = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  laws = [at / t - jax.nn.logsumexp(logits / t, axis=-1) for t in temperatures]
  return jnp.stack(laws)


def _logp(logits, laid: _Laid, temperatures: tuple[float, ...]) -> np.ndarray:
  """Of the answers' tokens, one after the other: `[temperatures, tokens]`."""
  laws = np.asarray(_laws(logits, laid.tokens, temperatures), np.float64)
  return laws[:, laid.mask]
