"""What is refused before anything is sampled: settings that make a wrong ratio."""

from typing import Any

from tis_jax.corrections import Chain

GIVEN = frozenset({"advantages", "group_ids"})
"""What a correction is given inside Tunix beside the log-probs and the mask."""


def check_correction(correction: Any) -> None:
  """Refuses what is no chain, and a chain that needs what Tunix does not have.

  >>> from tis_jax.corrections import chain, reject_stale
  >>> check_correction(chain(reject_stale(2)))
  Traceback (most recent call last):
  ...
  ValueError: reject_stale needs learner_version, versions, which ...
  """
  if not isinstance(correction, Chain):
    raise ValueError(f"correction must be a chain, tis.chain(...), got {correction!r}")
  for stage in correction.stages:
    lacking = sorted(set(stage.needs) - GIVEN)
    if lacking:
      raise ValueError(
        f"{stage.name} needs {', '.join(lacking)}, which Tunix's rollouts do not "
        "carry: take another stage"
      )


def check_sampling(rollout: Any, *, vanilla: bool, inexact: str) -> None:
  """Refuses a sampler whose log-probs are not of the law that the learner trains.

  Args:
    rollout: Tunix's `RolloutConfig` for training.
    vanilla: whether Tunix's own sampler generates, and not a server or an engine.
    inexact: see `TISConfig`.

  Raises:
    ValueError: greedy sampling; a truncated support, unless `inexact` is "train"; an
      engine that reports no log-probs, those of before the temperature, or that would
      draw the same noise in every call.
  """
  if rollout.temperature <= 0 or (vanilla and rollout.top_p is None):
    raise ValueError(
      "the sampler is greedy: its answers have no importance ratio. Set a temperature "
      "above 0, and top_p=1.0 (Tunix's sampler takes None for greedy)"
    )
  top_p, top_k = rollout.top_p, rollout.top_k
  truncated = (top_p is not None and 0 < top_p < 1) or (top_k or 0) > 0
  if truncated and inexact == "refuse":
    raise ValueError(
      f"top_p={top_p}, top_k={top_k}: the sampler draws from a part of the vocabulary "
      "that Tunix does not record, so every ratio would be off by the mass of that "
      'part. Set top_p=1.0 and top_k=None, or accept it with inexact="train"'
    )
  if not vanilla:
    _check_engine(rollout)


def _check_engine(rollout: Any) -> None:
  if not rollout.return_logprobs:
    raise ValueError(
      "the engine is not asked for log-probs: set return_logprobs=True in RolloutConfig"
    )
  if rollout.seed is not None:
    raise ValueError(
      f"seed={rollout.seed} would draw the same noise in every call of the engine: "
      "leave seed=None, and seed the engine itself where it can be"
    )
  mode = rollout.rollout_vllm_kwargs.get(
    "logprobs_mode", rollout.rollout_vllm_logprobs_mode
  )
  if mode != "processed_logprobs" and rollout.temperature != 1:
    raise ValueError(
      f"logprobs_mode={mode!r} reports log-probs of before the temperature, which is "
      f'{rollout.temperature}: set rollout_vllm_logprobs_mode="processed_logprobs"'
    )


def check_training(training: Any) -> None:
  """Refuses sequence packing, which would leave the correction behind.

  Args:
    training: Tunix's `RLTrainingConfig`.
  """
  if training.max_seq_token_per_tpu is not None:
    raise ValueError(
      f"max_seq_token_per_tpu={training.max_seq_token_per_tpu}: Tunix's packing copies "
      "the fields of an example that it knows, and sampler_is_weights is not among "
      "them, so packed rows would train without their correction. Leave it None"
    )
