"""The sampling-support contract: what a recorded log-prob can be compared with.

Sampling under top-k, top-p or min-p draws from mu(v) = softmax(l / T)_v / M on a kept
set K of mass M. Its log-prob may be recorded *raw*, log softmax(l / T), or *processed*,
log mu. An importance ratio is that of two laws on one support, so the learner needs its
own mass M' of the sampler's set:

    log pi'(v) = log softmax(l' / T)_v - log M',   M' = sum_{v in K} softmax(l' / T)_v

| support    | recorded        | beside it     | learner   | ratio                     |
|------------|-----------------|---------------|-----------|---------------------------|
| all tokens | raw = processed |               | raw       | exact                     |
| kept set   | processed       | K             | processed | exact                     |
| kept set   | raw             | K and M       | processed | exact                     |
| kept set   | processed       | M             | raw       | too large by M' / M       |
| kept set   | raw             | with or w/o M | raw       | too large by M' / M       |
| kept set   | processed       | neither       |           | refused: off by M always  |

"Too large by M' / M" is 1 for an unchanged policy and drifts from it as the two
policies do: M alone gives back the sampler's raw log-prob (processed + log M), never
the learner's M'.

Plain Python: records and samplers carry a `Sampling` where there is no jax.
"""

import dataclasses
from typing import NamedTuple

_LOGPROBS = ("raw", "processed", "untempered")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens were drawn and their log-probs made.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_k: tokens kept, 0 for all.
    top_p: probability mass kept, 1 for all.
    min_p: least probability kept, relative to the most probable token; 0 for all.
    logprobs: "raw" (softmax of all logits at `temperature`, at 1 when greedy),
      "processed" (renormalised over the tokens kept) or "untempered" (softmax of all
      logits at temperature 1, whatever was sampled at; vLLM's `raw_logprobs`).
    engine: what generated.
    dtype: its params and activations, in words.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  logprobs: str = "raw"
  engine: str = "tis_jax"
  dtype: str = "float32"


class Agreement(NamedTuple):
  """What both sides of a ratio are computed as; see the table of this module.

  Attributes:
    temperature: what the learner divides its logits by.
    processed: whether the learner renormalises over the recorded kept tokens.
    log_mass: what is added to the recorded log-prob: this many times log M.
    exact: whether the ratio is that of two laws on one support.
    why: in words.
  """

  temperature: float
  processed: bool
  log_mass: int
  exact: bool
  why: str


def agree(
  sampling: Sampling,
  *,
  kept_mass: bool = False,
  kept_tokens: bool = False,
  exact: bool = False,
) -> Agreement:
  """How a learner must score tokens drawn under `sampling`, or why it cannot.

  Static: a learner calls it once, before the first batch.

  Args:
    sampling: of the records; any object with these attributes.
    kept_mass: whether the records hold M.
    kept_tokens: whether they hold K.
    exact: refuse what is only approximate, too.

  Returns:
    `Agreement`.

  Raises:
    ValueError: the record is not enough; the message says what is missing.

  >>> agree(Sampling(top_p=0.8), kept_mass=True, kept_tokens=True).why
  'the kept set is recorded: both sides are renormalised over it'
  >>> agree(Sampling(top_p=0.8, logprobs="processed"))
  Traceback (most recent call last):
  ValueError: log-probs are renormalised over the tokens that top_p=0.8 kept, and ...

  Reference: what engines mean by a log-prob differs, see
  https://github.com/vllm-project/vllm/issues/42259.
  """
  check_rules(sampling.top_k, sampling.top_p, sampling.min_p)
  temperature, logprobs = sampling.temperature, sampling.logprobs
  if logprobs not in _LOGPROBS:
    raise ValueError(f"logprobs={logprobs!r} is not one of {_LOGPROBS}")
  if not temperature > 0:
    raise ValueError(
      f"temperature={temperature}: a greedy choice has probability 1 under its own law,"
      " so there is no ratio to take; sample at a positive temperature"
    )
  if logprobs == "untempered":
    if temperature != 1:
      raise ValueError(
        f"log-probs are before the temperature, which is {temperature}: ask the engine"
        " for processed ones (vLLM: --logprobs-mode processed_logprobs). The record"
        " lacks the normaliser that would turn one into the other"
      )
    logprobs = "raw"
  rules = _rules(sampling)
  if not rules:
    why = "nothing was dropped: both sides are over all tokens"
    return Agreement(temperature, False, 0, True, why)
  if kept_tokens and (logprobs == "processed" or kept_mass):
    why = "the kept set is recorded: both sides are renormalised over it"
    return Agreement(temperature, True, 0 if logprobs == "processed" else -1, True, why)
  if logprobs == "processed" and not kept_mass:
    raise ValueError(
      f"log-probs are renormalised over the tokens that {rules} kept, and the record"
      " holds neither kept_mass nor kept_tokens, so that a ratio would be off by the"
      " mass. Have the sampler record kept_tokens (exact) or kept_mass"
    )
  if exact:
    missing = "kept_mass (to go with kept_tokens)" if kept_tokens else "kept_tokens"
    raise ValueError(f"an exact ratio under {rules} also needs {missing} in the record")
  why = (
    f"both sides are over all tokens, though {rules} dropped some: exact for an"
    " unchanged policy, too large by the ratio of the kept masses for another"
  )
  return Agreement(temperature, False, int(logprobs == "processed"), False, why)


def truncates(sampling: Sampling) -> bool:
  """Whether top-k, top-p or min-p leave tokens out of what may be drawn.

  >>> truncates(Sampling(temperature=0.7)), truncates(Sampling(top_p=0.9))
  (False, True)
  """
  return bool(_rules(sampling))


def check_rules(top_k: int, top_p: float, min_p: float) -> None:
  """Raises ValueError for a number outside its range."""
  if top_k < 0:
    raise ValueError(f"top_k={top_k} is negative; 0 keeps all tokens")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p={top_p} is not in (0, 1]; 1 keeps all tokens")
  if not 0 <= min_p < 1:
    raise ValueError(f"min_p={min_p} is not in [0, 1); 0 keeps all tokens")


def _rules(sampling: Sampling) -> str:
  rules = {"top_k": (sampling.top_k, 0), "top_p": (sampling.top_p, 1)}
  rules["min_p"] = (sampling.min_p, 0)
  return ", ".join(f"{name}={x}" for name, (x, off) in rules.items() if x != off)
