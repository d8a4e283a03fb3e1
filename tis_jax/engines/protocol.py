"""What the rest of the library asks of an engine, whoever wrote it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from tis_jax.logprobs import Sampling

FILL = {"kept_mass": 1, "kept_tokens": -1, "top_tokens": -1, "top_logp": -np.inf}
"""What stands in a `Generation` where nothing was sampled."""


class Generation(NamedTuple):
  """Responses on the host, B rows right-padded to T tokens.

  The fields of a rollout record (`tis_jax.store.Rollout`) that an engine knows.

  Attributes:
    tokens: int32 [B, T]; the stop token is part of the response.
    mask: bool [B, T], the tokens that were sampled.
    sampler_logp: float32 [B, T], nats, made as the engine's `sampling` says;
      meaningless where `mask` is False.
    versions: int32 [B, T], the version of the params that sampled the token.
    finish_reasons: int8 [B], `STOP`, `LENGTH` or `ABORTED` of `tis_jax.rollouts`.
    kept_mass: float32 [B, T], probability of the tokens that top-k, top-p and min-p
      kept; None where everything was.
    kept_tokens: int32 [B, T, K], which those were, padded with -1 and all -1 where they
      did not fit; None where they were not recorded.
    top_tokens: int32 [B, T, K], the most probable tokens, in any order, padded with -1;
      None where they were not recorded.
    top_logp: float32 [B, T, K], their log-probs, made as `sampler_logp` is; -inf for
      padding.
    present: bool [B, T], False where the log-prob of a sampled token is not known and
      `sampler_logp` NaN; None where all are known.
    kept_offsets, kept_ids: the kept sets without room to spare, as in a record; instead
      of `kept_tokens`.
    routed_experts: int16 [B, P + T, L, E], to which E experts each of L layers sent
      each token of prompt and response, as it was when the token behind it was drawn;
      -1 where it was not fed in. None where it was not recorded.
  """

  tokens: np.ndarray
  mask: np.ndarray
  sampler_logp: np.ndarray
  versions: np.ndarray
  finish_reasons: np.ndarray
  kept_mass: np.ndarray | None = None
  kept_tokens: np.ndarray | None = None
  top_tokens: np.ndarray | None = None
  top_logp: np.ndarray | None = None
  present: np.ndarray | None = None
  kept_offsets: np.ndarray | None = None
  kept_ids: np.ndarray | None = None
  routed_experts: np.ndarray | None = None


class Engine(Protocol):
  """Takes params, and samples responses to prompts: ids in, ids out, never text.

  Any object with these three is one; nothing needs to be inherited. A sampler and an
  evaluation know no more of what generates for them (`tis_jax.engines.play`). What is
  the same for a whole run (lengths, stop tokens, the law of sampling) is said when an
  engine is made.

  Example:
    >>> from tis_jax.rollouts import STOP
    >>> class Dice:  # one throw a response, whatever the prompt and the params
    ...   sampling = Sampling(engine="dice", dtype="none")
    ...   version = -1
    ...   def update(self, params, version):
    ...     self.version = version
    ...   def generate(self, prompts, prompt_mask, *, samples, key, greedy=False):
    ...     rng = np.random.default_rng(int(jax.random.bits(key)))
    ...     shape = (samples * len(prompts), 1)
    ...     return Generation(
    ...       tokens=rng.integers(1, 7, shape, dtype=np.int32),
    ...       mask=np.ones(shape, bool),
    ...       sampler_logp=np.full(shape, -np.log(6), np.float32),
    ...       versions=np.full(shape, self.version, np.int32),
    ...       finish_reasons=np.full(shape[0], STOP, np.int8),
    ...     )
    >>> engine: Engine = Dice()
    >>> engine.update({}, version=3)
    >>> thrown = engine.generate(np.ones((2, 4), np.int32), np.ones((2, 4), bool),
    ...                          samples=2, key=jax.random.key(0))
    >>> thrown.tokens.shape, thrown.versions[:, 0].tolist()
    ((4, 1), [3, 3, 3, 3])
  """

  @property
  def sampling(self) -> Sampling:
    """How tokens are drawn and what is called their log-prob; goes into every record.

    The learner decides by it whether a ratio with these log-probs is one. An engine
    that can say which params it holds also has `params_digest`, as
    `tis_jax.store.digest` makes it of the arrays; a record carries it, and the learner
    refuses one that was made by other params than it published.
    """
    ...

  def update(self, params: Mapping[str, Any], version: int) -> None:
    """Generates with these params from now on.

    Args:
      params: arrays by name, as published: those of `tis_jax.models.flatten`. An engine
        that works in another precision converts them.
      version: number of their publication; said of each token they sample.
    """
    ...

  def generate(
    self,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    samples: int,
    key: jax.Array,
    greedy: bool = False,
  ) -> Generation:
    """Samples responses with the params taken last.

    Args:
      prompts: int32 [N, P], left-padded.
      prompt_mask: bool [N, P]. A row without a prompt is padding, of conversations that
        are over: whatever it is given, nobody reads.
      samples: responses a prompt.
      key: PRNG key, all the randomness there is: the same key and params give the same
        tokens. `int(jax.random.bits(key))` is a seed for engines that take one.
      greedy: take the most probable token each time instead. Named only in runs whose
        advantages need a greedy answer (ReMax); an engine for other runs need not have
        it.

    Returns:
      `N * samples` rows: the prompts in order, each `samples` times in a row.
    """
    ...
