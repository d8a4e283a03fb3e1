"""AdamW with warm-up, a schedule and gradient clipping, from plain numbers."""

import dataclasses
from typing import Literal

import jax
import optax

from tis_jax.numerics.checks import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class AdamW:
  """AdamW on gradients clipped by their global norm.

  Attributes:
    learning_rate: the highest.
    warmup_steps: updates over which the rate rises in a line, the first of them with
      `learning_rate / warmup_steps`; Adam's moments are noise in the first ones.
    schedule: afterwards "constant", or "cosine" or "linear" to zero at the last update.
    b1: decay of the first moment.
    b2: decay of the second moment. 0.95 forgets a burst of bad gradients in 20 updates,
      Adam's customary 0.999 in 1,000.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled, on matrices; norms and biases are left alone.
    clip_norm: largest norm of the gradient of all parameters together; None does not
      clip.

  Raises:
    ValueError: a number outside its range, or an unknown schedule.

  Reference: Loshchilov & Hutter 2019, arXiv:1711.05101.
  """

  learning_rate: float = 3e-4
  warmup_steps: int = 10
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float | None = 1.0

  def __post_init__(self):
    check_choice("schedule", self.schedule, ("constant", "cosine", "linear"))
    check_number("warmup_steps", self.warmup_steps, at_least=0)
    if self.clip_norm is not None:
      check_number("clip_norm", self.clip_norm, above=0)


def make_optimizer(settings: AdamW, updates: int) -> optax.GradientTransformation:
  """The optimizer of a run.

  Args:
    settings: see `AdamW`.
    updates: optimizer updates in all: learner steps times epochs times mini-batches.

  Returns:
    optax.GradientTransformation.

  Raises:
    ValueError: a warm-up longer than the run.
  """
  adamw = optax.adamw(
    learning_rate(settings, updates),
    settings.b1,
    settings.b2,
    settings.epsilon,
    weight_decay=settings.weight_decay,
    mask=_decayed,
  )
  if settings.clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def learning_rate(settings: AdamW, updates: int) -> optax.Schedule:
  """The learning rate of each optimizer update: up in a line, then on or down.

  Args:
    settings: see `AdamW`.
    updates: optimizer updates in all.

  Returns:
    A function of the number of updates made so far.

  Raises:
    ValueError: a warm-up longer than the run.

  >>> rate = learning_rate(AdamW(1.0, warmup_steps=2, schedule="linear"), updates=6)
  >>> [float(rate(i)) for i in (0, 1, 2, 4, 6)]
  [0.5, 1.0, 1.0, 0.5, 0.0]
  """
  peak, warmup = settings.learning_rate, settings.warmup_steps
  if warmup > updates:
    raise ValueError(f"warmup_steps {warmup} is not in 0..{updates}, the updates")
  left = max(updates - warmup, 1)
  after = {
    "constant": optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule(peak, left),
    "linear": optax.linear_schedule(peak, 0.0, left),
  }[settings.schedule]
  if not warmup:
    return after
  up = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([up, after], [warmup])


def _decayed(params):
  """True for matrices. Stacked layers' norms are 2-D: names decide, not ranks."""

  def is_matrix(path, _):
    name = jax.tree_util.keystr(path)
    return "norm" not in name and "bias" not in name

  return jax.tree_util.tree_map_with_path(is_matrix, params)
