"""Frameworks with one mode of several: TRL, NeMo-RL, AReaL and others."""

from typing import Any

from tis_jax.doctor.parts import NEVER, Parts, bounds_of, is_stage


def trl(parts: Parts) -> dict[str, Any] | None:
  """`GRPOConfig`."""
  if parts.rejects:
    return None
  prefix = "vllm_importance_sampling"
  if parts.weight is None:
    return {f"{prefix}_correction": False}
  level = parts.weight.settings["level"]
  modes = {"truncate": "truncate", "clip": "truncate", "zero_outside": "mask"}
  if parts.weight.name not in modes or level not in ("token", "sequence"):
    return None
  low, high = bounds_of(parts.weight)
  return {
    f"{prefix}_correction": True,
    f"{prefix}_mode": f"{level}_{modes[parts.weight.name]}",
    f"{prefix}_clip_max": high,
    **({f"{prefix}_clip_min": low} if low else {}),
  }


def _geometric_then_token(parts: Parts) -> tuple[float, float] | None:
  """The bounds of a geometric mask with plain token weights on what it accepts."""
  if (
    is_stage(parts.weight, "importance", level="token")
    and len(parts.rejects) == 1
    and is_stage(parts.rejects[0], "reject", level="geometric")
  ):
    return bounds_of(parts.rejects[0])
  return None


def openrlhf(parts: Parts) -> dict[str, Any] | None:
  """`--algo.advantage.is_correction_*`."""
  if not parts.rejects and parts.weight is None:
    return {"is_correction_enable": False}
  kind, bounds = "seq-mask-tis", _geometric_then_token(parts)
  kinds = {"truncate": "tis", "clip": "tis", "zero_outside": "icepop"}
  weight = parts.weight
  if weight is not None and weight.name in kinds and not parts.rejects:
    if weight.settings["level"] != "token":
      return None
    kind, bounds = kinds[weight.name], bounds_of(weight)
  if bounds is None:
    return None
  return {
    "is_correction_enable": True,
    "is_correction_type": kind,
    "is_correction_threshold": [max(bounds[0], NEVER), bounds[1]],
  }


def nemo_rl(parts: Parts) -> dict[str, Any] | None:
  """`loss_fn`, and `grpo` for the error mask."""
  config: dict[str, Any] = {"use_importance_sampling_correction": False}
  gates = [x for x in parts.before if is_stage(x, "reject_divergence")]
  rest = parts._replace(before=tuple(x for x in parts.before if x not in gates))
  for stage in gates:
    if (stage.settings["kind"], stage.settings["reduce"]) != ("exp_abs", "mean"):
      return None
    config["seq_logprob_error_threshold"] = bounds_of(stage)[1]
  if len(gates) > 1 or (parts.weight is None and rest.rejects):
    return None
  if parts.weight is None:
    return config
  config["use_importance_sampling_correction"] = True
  ratio = "truncated_importance_sampling_ratio"
  kind = "truncated_importance_sampling_type"
  if (bounds := _geometric_then_token(rest)) is not None:
    return config | {kind: "seq-mask-tis", ratio: bounds[1], f"{ratio}_min": bounds[0]}
  level = parts.weight.settings["level"]
  if rest.rejects or level not in ("token", "sequence"):
    return None
  if level == "sequence":
    config["sequence_level_importance_ratios"] = True
  low, high = bounds_of(parts.weight)
  if is_stage(parts.weight, "importance"):
    return config
  config |= {ratio: high, f"{ratio}_min": low}
  return config | {kind: "icepop" if is_stage(parts.weight, "zero_outside") else "tis"}


def areal(parts: Parts) -> dict[str, Any] | None:
  """`actor`."""
  if parts.weight is None:
    return None if parts.rejects else {"use_decoupled_loss": True}
  low, high = bounds_of(parts.weight)
  bound = {"upper": high, **({"lower": low} if low else {})}
  if not parts.rejects and is_stage(parts.weight, "truncate", "clip"):
    levels = {"token": {}, "geometric": {"level": "sequence"}}
    where = levels.get(parts.weight.settings["level"])
    if where is None:
      return None
    return {"rejection_sampling": {**where, "action": "clamp", **bound}}
  if not is_stage(parts.weight, "importance", level="token") or len(parts.rejects) != 1:
    return None
  (stage,) = parts.rejects
  low, high = bounds_of(stage)
  bound = {"upper": high, **({"lower": low} if low else {})}
  if is_stage(stage, "reject", level="token"):
    return {"rejection_sampling": bound}
  if is_stage(stage, "reject_binary_kl"):
    return {"rejection_sampling": {"metric": "binary_kl", "upper": high}}
  if is_stage(stage, "reject_divergence"):
    said = (stage.settings["kind"], stage.settings["reduce"])
    if said == ("k2", "mean"):
      return {
        "rejection_sampling": {"level": "sequence", "metric": "kl_k2", "upper": high}
      }
  return None


def prime_rl(parts: Parts) -> dict[str, Any] | None:
  """`trainer.loss`, whose loss holds the ratio: there is no weight."""
  if parts.weight is not None or len(parts.rejects) > 1:
    return None
  if not parts.rejects:
    return {"type": "ppo"}
  (stage,) = parts.rejects
  low, high = bounds_of(stage)
  if is_stage(stage, "reject", level="token"):
    return {"type": "icepop", "ratio_low": max(low, NEVER), "ratio_high": high}
  return None


def ms_swift(parts: Parts) -> dict[str, Any] | None:
  """Its GRPO options."""
  name, limit = (
    "rollout_importance_sampling_mode",
    "rollout_importance_sampling_threshold",
  )
  if parts.weight is None:
    return None if parts.rejects else {}
  if (bounds := _geometric_then_token(parts)) is not None:
    return {name: "sequence_mask", limit: bounds[1]} if bounds[0] <= NEVER else None
  if parts.rejects:
    return None
  low, high = bounds_of(parts.weight)
  level = {"token": "token", "geometric": "sequence"}.get(
    parts.weight.settings["level"]
  )
  if level and is_stage(parts.weight, "truncate"):
    return {name: f"{level}_truncate", limit: high}
  if level == "token" and is_stage(parts.weight, "zero_outside") and low <= NEVER:
    return {name: "token_mask", limit: high}
  return None


def tunix(parts: Parts) -> dict[str, Any] | None:
  """`GRPOConfig`."""
  config: dict[str, Any] = {}
  if parts.weight is not None:
    if not is_stage(parts.weight, "truncate", "importance", level="token"):
      return None
    capped = is_stage(parts.weight, "truncate")
    config["sampler_is"] = "token"
    config["sampler_is_threshold"] = bounds_of(parts.weight)[1] if capped else None
  if len(parts.rejects) > 1:
    return None
  for stage in parts.rejects:
    if not is_stage(stage, "reject") or stage.settings["level"] not in (
      "token",
      "geometric",
    ):
      return None
    low, high = bounds_of(stage)
    config |= {
      "sampler_rs": stage.settings["level"],
      "sampler_rs_min": max(low, NEVER),
      "sampler_rs_max": high,
    }
  return config
