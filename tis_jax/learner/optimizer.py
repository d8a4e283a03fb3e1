"""AdamW with warm-up, a schedule and gradient clipping, from plain numbers."""

import inspect

import jax
import optax

SCHEDULES = ("constant", "cosine", "linear")


def make_optimizer(
  learning_rate: float | optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW on gradients clipped by their global norm.

  Args:
    learning_rate: a number, or a schedule such as `warmup_schedule`.
    b1: decay of the first moment.
    b2: decay of the second moment. 0.95 forgets a burst of bad gradients in 20 updates,
      Adam's customary 0.999 in 1,000.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled, on matrices; norms and biases are left alone.
    clip_norm: largest norm of the gradient of all parameters together; None does not
      clip.

  Returns:
    optax.GradientTransformation.

  Raises:
    ValueError: clip_norm is not positive.

  Reference: Loshchilov & Hutter 2019, arXiv:1711.05101.
  """
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(f"clip_norm must be positive, or None, got {clip_norm}")
  adamw = optax.adamw(
    learning_rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_decayed
  )
  if clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def warmup_schedule(
  peak: float, *, warmup_steps: int = 0, schedule: str = "constant", steps: int
) -> optax.Schedule:
  """The learning rate of each optimizer update: up in a line, then on or down.

  The first of `warmup_steps` updates takes `peak / warmup_steps`, the last one `peak`.

  Args:
    peak: the highest learning rate.
    warmup_steps: updates of warm-up; Adam's moments are noise in the first ones.
    schedule: "constant", or "cosine" or "linear" to zero at the last update.
    steps: optimizer updates in all: learner steps times epochs times mini-batches.

  Returns:
    A function of the number of updates made so far.

  Raises:
    ValueError: an unknown schedule, or a warm-up longer than the run.

  >>> rate = warmup_schedule(1.0, warmup_steps=2, schedule="linear", steps=6)
  >>> [float(rate(i)) for i in (0, 1, 2, 4, 6)]
  [0.5, 1.0, 1.0, 0.5, 0.0]
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
  if not 0 <= warmup_steps <= steps:
    raise ValueError(f"warmup_steps {warmup_steps} is not in 0..{steps}, the updates")
  left = max(steps - warmup_steps, 1)
  after = {
    "constant": optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule(peak, left),
    "linear": optax.linear_schedule(peak, 0.0, left),
  }[schedule]
  if not warmup_steps:
    return after
  up = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
  return optax.join_schedules([up, after], [warmup_steps])


def optimizer_from_config(config, steps: int) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`.

  Args:
    config: learning_rate, warmup_steps, schedule, b1, b2, weight_decay, clip_norm (0
      does not clip); optionally epsilon.
    steps: optimizer updates in all.

  Raises:
    ValueError: a setting that `make_optimizer` and `warmup_schedule` do not have.
  """
  settings = dict(config)
  schedule = warmup_schedule(
    settings.pop("learning_rate"),
    warmup_steps=settings.pop("warmup_steps", 0),
    schedule=settings.pop("schedule", "constant"),
    steps=steps,
  )
  known = inspect.signature(make_optimizer).parameters
  unknown = sorted(settings.keys() - known.keys())
  if unknown:
    raise ValueError(f"unknown optimizer settings: {unknown}")
  if not settings.get("clip_norm", True):
    settings["clip_norm"] = None
  return make_optimizer(schedule, **settings)


def _decayed(params):
  """True for matrices. Stacked layers' norms are 2-D: names decide, not ranks."""

  def is_matrix(path, _):
    name = jax.tree_util.keystr(path)
    return "norm" not in name and "bias" not in name

  return jax.tree_util.tree_map_with_path(is_matrix, params)
