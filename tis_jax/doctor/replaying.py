"""A saved batch through any corrections, side by side: weights, drops, the gradient."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tis_jax.corrections import Chain, from_text
from tis_jax.doctor.dump import Dump
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.prescription import Effect, advantages_of, effect_of, weights_of
from tis_jax.doctor.report import plain


@dataclasses.dataclass(frozen=True)
class Gradient:
  """The policy gradient under a correction, beside that without one.

  Attributes:
    norm: over the norm without a correction.
    cosine: with the gradient without a correction; NaN where either is 0.
  """

  norm: float
  cosine: float


@dataclasses.dataclass(frozen=True)
class Replayed:
  """What a correction makes of a dump.

  Attributes:
    effect: its weights and drops, as in `prescribe`.
    gradient: of a model's params; None without one.
  """

  effect: Effect
  gradient: Gradient | None = None

  def to_json(self) -> dict[str, Any]:
    """Numbers and text, without the configurations of other frameworks."""
    found = dataclasses.asdict(self.effect)
    del found["configs"], found["texts"]
    if self.gradient is not None:
      found |= {f"gradient_{k}": x for k, x in vars(self.gradient).items()}
    return plain(found)


def replay(
  dump: Dump, corrections: Sequence[str] | Mapping[str, Chain], model: str = ""
) -> tuple[Replayed, ...]:
  """Hands one batch to each correction. Nothing is trained.

  With a model, the gradient is that of `-sum(w A logp) / tokens` with respect to all of
  its params, at temperature 1 or the dump's, for the dump's ids and advantages (or its
  rewards less the mean of their group).

  Args:
    dump: from `read` or `from_arrays`.
    corrections: lines for `tis_jax.corrections.from_text`, or chains by name.
    model: what `tis_jax.models.load` takes, such as a directory of safetensors; "" for
      no gradients.

  Returns:
    `Replayed`, one a correction.

  Raises:
    ValueError: a line that is no chain.
    DumpError: a model, and a dump without ids or rewards.

  >>> from tis_jax.doctor import from_arrays
  >>> dump = from_arrays(np.log([[0.9, 0.1]]), np.log([[0.3, 0.2]]))
  >>> [x.effect.largest for x in replay(dump, ["none", "truncate(2.0)"])]
  [1.0, 2.0]
  """
  if not isinstance(corrections, Mapping):
    corrections = {line: from_text(line) for line in corrections}
  effects = [effect_of(name, correct, dump) for name, correct in corrections.items()]
  gradients = _gradients(dump, list(corrections.values()), model) if model else None
  return tuple(
    Replayed(effect, None if gradients is None else gradients[i])
    for i, effect in enumerate(effects)
  )


def _gradients(dump: Dump, corrections: list[Chain], model: str) -> list[Gradient]:
  # What needs Flax is imported where a model is asked for.
  import jax
  import jax.numpy as jnp
  import optax

  from tis_jax import learner, models

  advantages = advantages_of(dump)
  if dump.tokens is None or dump.prompts is None or advantages is None:
    raise DumpError(
      "a gradient needs ids of prompts and responses, and rewards or advantages; the "
      f"dump has {', '.join(sorted(dump.columns)) or 'log-probs alone'}"
    )
  config, params, _ = models.load(model)
  graph = models.decoder_graph(config)
  batch = _batch(dump)
  score = lambda params: (
    learner.score(graph, params, batch, temperature=dump.temperature or 1.0).logp
  )
  _, pull = jax.vjp(jax.jit(score), params)
  pull = jax.jit(pull)
  tokens = dump.mask.sum()

  def of(weight):
    each = np.where(dump.mask, weight * advantages, 0.0) / -tokens
    return pull(jnp.asarray(each, jnp.float32))[0]

  without = of(np.ones(dump.shape))
  length = optax.global_norm(without)

  def beside(found) -> Gradient:
    norm = optax.global_norm(found)
    cosine = optax.tree.vdot(found, without) / (norm * length)
    return Gradient(float(norm / length), float(cosine))

  return [beside(of(weights_of(correct, dump))) for correct in corrections]


def _batch(dump: Dump):
  """The rows as a learner takes them: prompts padded on the left."""
  from tis_jax import learner

  assert dump.prompts is not None and dump.tokens is not None
  prompts = [row[row >= 0] for row in dump.prompts]
  width = max(1, *(len(row) for row in prompts))
  ids = np.zeros((len(prompts), width), np.int32)
  there = np.zeros(ids.shape, bool)
  for i, row in enumerate(prompts):
    ids[i, width - len(row) :] = row
    there[i, width - len(row) :] = True
  rows = np.zeros(len(prompts), np.float32)
  return learner.Batch(
    prompts=ids,
    prompt_mask=there,
    tokens=np.maximum(dump.tokens, 0).astype(np.int32),
    mask=dump.mask,
    sampler_logp=dump.sampler_logp.astype(np.float32),
    versions=np.zeros(dump.shape, np.int32),
    rewards=rows,
    group_ids=np.arange(len(rows), dtype=np.int32),
    finish_reasons=rows.astype(np.int8),
  )
