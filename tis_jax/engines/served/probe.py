"""Whether a server samples from the params that it was given.

A server that says "updated" may not be: a head that was packed at start-up stays as it
was, an update stops half-way, a default of its own sets the temperature. All of these
change its log-probs, and none is visible in its answers. So after every update a few
tokens are sampled, and their log-probs held against a forward pass in fp32 by the same
params, and by what else the server might have: the head or the body, or both, of the
version before or of the first one, or another temperature. If one of those explains the
log-probs better, it is what the server has.
"""

import itertools
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

LIMITS = {"float32": 5e-3, "bfloat16": 0.12}
"""Mean |log-prob difference| in nats that numerics explain, by the engine's dtype."""
_QUANTISED_LIMIT = 0.25
_TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0)
_RIGHT = "the params that it was given"
# A rival is believed at these odds (e ** 10), if it is better by these nats a token.
_SURE, _MATTERS = 10.0, 1e-5


class Found(NamedTuple):
  """What a probe saw.

  Attributes:
    differences: in words -> mean |log-prob difference|, in nats, of each explanation.
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
    self._limit = LIMITS.get(dtype, _QUANTISED_LIMIT)
    self._earlier: dict[str, Mapping[str, np.ndarray]] = {}
    self._length = max(map(len, prompts)) + new_tokens
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
    errors = {words: said - logp for words, logp in self._explanations(answers, params)}
    differences = {words: float(np.abs(d).mean()) for words, d in errors.items()}
    best, off = min(differences, key=differences.__getitem__), differences[_RIGHT]
    # Log-likelihood that normal errors of unknown variance give the rival over the
    # right one. Params that hardly differ explain as much, and none is wrong.
    squares = {words: float(np.square(d).sum()) for words, d in errors.items()}
    surer = 0.5 * said.size * np.log(squares[_RIGHT] / max(squares[best], 1e-30))
    matters = off - differences[best] > _MATTERS and differences[best] < self._limit
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
    """(in words, the log-probs of the answers' tokens that it would give)."""
    tokens = np.concatenate([np.asarray(answer.tokens) for answer in answers])
    states = {"given": params, **self._earlier}
    if states.get("first") is states.get("before"):
      states.pop("first", None)
    found = {name: self._read(state, answers) for name, state in states.items()}
    for (body, (hidden, _)), (head, (_, matrix)) in itertools.product(
      found.items(), found.items()
    ):
      if body != head and "given" not in (body, head):
        continue
      logits = _logits(hidden, matrix)
      yield _words(body, head), _logp(logits, tokens, self._temperature)
      for temperature in _TEMPERATURES if body == head == "given" else ():
        if temperature != self._temperature:
          words = f"{_RIGHT} at temperature {temperature}, not {self._temperature:g}"
          yield words, _logp(logits, tokens, temperature)

  def _read(self, params: Mapping[str, np.ndarray], answers: Sequence[Answer]):
    """Hidden states that predict the answers' tokens, `[tokens, D]`, and the head."""
    rows = [
      [*request.prompt, *answer.tokens]
      for request, answer in zip(self.requests, answers, strict=True)
    ]
    ids = np.zeros((len(rows), self._length), np.int32)
    held = np.zeros(ids.shape, np.int32)
    for row, tokens in enumerate(rows):
      ids[row, : len(tokens)], held[row, : len(tokens)] = tokens, 1
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    hidden, head = _forward(self._graph, unflatten(self._graph, arrays), ids, held)
    predicting = [
      hidden[row, len(request.prompt) - 1 : len(tokens) - 1]
      for row, (request, tokens) in enumerate(zip(self.requests, rows, strict=True))
    ]
    return jnp.concatenate(predicting), head


def _words(body: str, head: str) -> str:
  if body == head == "given":
    return _RIGHT
  of = {"before": "of the version before", "first": "of the version it began with"}
  if body == head:
    return f"stale params, those {of[head]}"
  if body == "given":
    return f"a stale head, the output matrix {of[head]}"
  return f"a new head on a body {of[body]}"


def _run(graph, params, ids, held):
  model = nnx.merge(graph, params)
  return model(ids, segment_ids_BS=held)[0], model.head()


_forward = jax.jit(_run, static_argnums=0)
_logits = jax.jit(materialized_logits)


def _logp(logits, tokens: np.ndarray, temperature: float) -> np.ndarray:
  law = jax.nn.log_softmax(logits / temperature, axis=-1)
  return np.asarray(law[np.arange(len(tokens)), tokens], np.float64)
