"""A chain in a framework's own words: the inverse of `tis_jax.compat`.

A framework is asked for the same weight and the same mask, and for nothing more: its
denominator and its loss are its own (`docs/translation.md`). What it has no option for
is not expressible there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tis_jax.corrections import Chain, Stage

NEVER = 1e-9
"""A lower bound that no ratio reaches: they are held above exp(-20) = 2e-9."""


class Parts(NamedTuple):
  """A chain, taken apart by what frameworks have options for.

  Attributes:
    weight: the stage that weighs, or None.
    before: the stages that reject, in order, that stand before it.
    after: those that stand behind it.
  """

  weight: Stage | None
  before: tuple[Stage, ...]
  after: tuple[Stage, ...]

  @property
  def rejects(self) -> tuple[Stage, ...]:
    return (*self.before, *self.after)


def config_of(framework: str, correct: Chain) -> dict[str, Any] | None:
  """The framework's options that make the weight and the mask of a chain.

  Args:
    framework: one of `FRAMEWORKS`.
    correct: from `tis.chain`, thresholds not traced.

  Returns:
    Its own section, as `tis.compat.FRAMEWORK.correction` takes it; None where the
    framework cannot do the same.

  >>> import tis_jax as tis
  >>> config_of("verl", tis.chain(tis.truncate(2.0)))
  {'rollout_is': 'token', 'rollout_is_threshold': 2.0}
  >>> config_of("prime_rl", tis.chain(tis.truncate(2.0))) is None
  True
  """
  parts = _parts(correct)
  return None if parts is None else FRAMEWORKS[framework](parts)


def _parts(correct: Chain) -> Parts | None:
  weight, before, after = None, [], []
  for stage in correct.stages:
    if stage.watched:
      continue
    if stage.makes == "weight":
      weight = stage
    elif stage.makes == "mask":
      (before if weight is None else after).append(stage)
    else:
      return None
  return Parts(weight, tuple(before), tuple(after))


def _is(stage: Stage | None, *names: str, level: str | None = None) -> bool:
  return (
    stage is not None
    and stage.name in names
    and level in (None, stage.settings.get("level"))
  )


def _bounds(stage: Stage) -> tuple[float, float]:
  """(low, high) of a stage that has them; a missing one never acts."""
  low, high = stage.settings.get("low"), stage.settings.get("high")
  return (0.0 if low is None else float(low)), (1e9 if high is None else float(high))


def _verl(parts: Parts) -> dict[str, Any] | None:
  config: dict[str, Any] = {}
  weight = parts.weight
  if weight is not None:
    # Every statistic of verl sees the incoming mask.
    if weight.settings["level"] not in ("token", "sequence") or any(
      x.settings.get("level") == "token" for x in parts.before
    ):
      return None
    low, high = _bounds(weight)
    config["rollout_is"] = weight.settings["level"]
    if _is(weight, "truncate"):
      config["rollout_is_threshold"] = high
    elif _is(weight, "zero_outside"):
      config["rollout_is_threshold"] = f"{max(low, NEVER)!r}_{high!r}"
    else:
      return None
  names, thresholds = [], []
  levels = {"token": "token", "sequence": "seq_sum", "geometric": "seq_mean"}
  reductions = {
    "token": "token",
    "sum": "seq_sum",
    "mean": "seq_mean",
    "max": "seq_max",
  }
  for stage in parts.rejects:
    low, high = _bounds(stage)
    if _is(stage, "reject") and stage.settings["level"] in levels:
      names.append(f"{levels[stage.settings['level']]}_k1")
      # Its k1 is -log rho: the bounds are those of 1 / rho.
      thresholds.append(f"{1 / high!r}_{1 / max(low, NEVER)!r}")
    elif _is(stage, "reject_divergence") and stage.settings["kind"] in ("k2", "k3"):
      names.append(f"{reductions[stage.settings['reduce']]}_{stage.settings['kind']}")
      thresholds.append(repr(high))
    else:
      return None
  if len(set(names)) < len(names):
    return None
  if not names and not config:
    return {"rollout_is": None, "rollout_rs": None}
  if names:
    config["rollout_rs"] = ",".join(names)
    config["rollout_rs_threshold"] = ",".join(thresholds)
  return config


def _skyrl(parts: Parts) -> dict[str, Any] | None:
  config: dict[str, Any] = {}
  if parts.weight is not None:
    level = parts.weight.settings["level"]
    if not _is(parts.weight, "truncate") or level not in ("token", "sequence"):
      return None
    config["tis_ratio_type"] = level
    config[f"{level}_tis_ratio_clip_high"] = _bounds(parts.weight)[1]
  order = []
  for stage in parts.rejects:
    low, high = _bounds(stage)
    level = stage.settings.get("level")
    if _is(stage, "veto"):
      order.append(0)
      config["outlier_token_is_threshold_low"] = low or None
      config["outlier_token_is_threshold_high"] = None if high == 1e9 else high
    elif _is(stage, "reject", level="token"):
      order.append(1)
      config["token_mask_is_threshold_low"] = max(low, NEVER)
      config["token_mask_is_threshold_high"] = high
    elif _is(stage, "reject") and level in ("geometric", "sequence"):
      order.append(2)
      name = "geo" if level == "geometric" else "product"
      config["sequence_mask_metric"] = "geometric" if name == "geo" else "product"
      config[f"{name}_mask_low"], config[f"{name}_mask_high"] = max(low, NEVER), high
    else:
      return None
  # In its own order; a sequence goes whole, so that before and after a weight are one.
  if order != sorted(set(order)):
    return None
  if 1 in order and (parts.after and 1 in order[len(parts.before) :]) and parts.weight:
    return None
  return config or {"tis_ratio_type": None, "sequence_mask_metric": None}


def _slime(parts: Parts) -> dict[str, Any] | None:
  weight = parts.weight
  if weight is None:
    return None if parts.rejects else {"use_tis": False}
  level = weight.settings["level"]
  if level not in ("token", "sequence", "geometric"):
    return None
  low, high = _bounds(weight)
  config = {
    "use_tis": True,
    "tis_level": level,
    "tis_upper_bound": high,
    "tis_batch_normalize": False,
  }
  if _is(weight, "truncate"):
    config["tis_mode"] = "truncate"
  elif _is(weight, "clip"):
    config |= {"tis_mode": "clip", "tis_lower_bound": max(low, NEVER)}
  else:
    return None
  rules = list(parts.rejects)
  if any(x.settings.get("level") == "token" for x in parts.before):
    return None
  if rules:
    config |= {"use_rs": True, "rs_veto_threshold": None}
    vetoes = [x for x in rules if _is(x, "veto")]
    others = [x for x in rules if not _is(x, "veto")]
    if len(vetoes) > 1 or len(others) > 1:
      return None
    if vetoes:
      low, high = _bounds(vetoes[0])
      if high != 1e9:
        return None
      config["rs_veto_threshold"] = low
    low, high = NEVER, 1e9
    config["rs_level"] = "token"
    if others:
      if not _is(others[0], "reject") or others[0].settings["level"] not in (
        "token",
        "sequence",
        "geometric",
      ):
        return None
      config["rs_level"] = others[0].settings["level"]
      low, high = _bounds(others[0])
    config |= {"rs_lower_bound": max(low, NEVER), "rs_upper_bound": high}
  return config


def _trl(parts: Parts) -> dict[str, Any] | None:
  if parts.rejects:
    return None
  prefix = "vllm_importance_sampling"
  if parts.weight is None:
    return {f"{prefix}_correction": False}
  level = parts.weight.settings["level"]
  modes = {"truncate": "truncate", "clip": "truncate", "zero_outside": "mask"}
  if parts.weight.name not in modes or level not in ("token", "sequence"):
    return None
  low, high = _bounds(parts.weight)
  return {
    f"{prefix}_correction": True,
    f"{prefix}_mode": f"{level}_{modes[parts.weight.name]}",
    f"{prefix}_clip_max": high,
    **({f"{prefix}_clip_min": low} if low else {}),
  }


def _geometric_then_token(parts: Parts) -> tuple[float, float] | None:
  """The bounds of a geometric mask with plain token weights on what it accepts."""
  if (
    _is(parts.weight, "importance", level="token")
    and len(parts.rejects) == 1
    and _is(parts.rejects[0], "reject", level="geometric")
  ):
    return _bounds(parts.rejects[0])
  return None


def _openrlhf(parts: Parts) -> dict[str, Any] | None:
  if not parts.rejects and parts.weight is None:
    return {"is_correction_enable": False}
  kind, bounds = "seq-mask-tis", _geometric_then_token(parts)
  kinds = {"truncate": "tis", "clip": "tis", "zero_outside": "icepop"}
  weight = parts.weight
  if weight is not None and weight.name in kinds and not parts.rejects:
    if weight.settings["level"] != "token":
      return None
    kind, bounds = kinds[weight.name], _bounds(weight)
  if bounds is None:
    return None
  return {
    "is_correction_enable": True,
    "is_correction_type": kind,
    "is_correction_threshold": [max(bounds[0], NEVER), bounds[1]],
  }


def _nemo_rl(parts: Parts) -> dict[str, Any] | None:
  config: dict[str, Any] = {"use_importance_sampling_correction": False}
  gates = [x for x in parts.before if _is(x, "reject_divergence")]
  rest = parts._replace(before=tuple(x for x in parts.before if x not in gates))
  for stage in gates:
    if (stage.settings["kind"], stage.settings["reduce"]) != ("exp_abs", "mean"):
      return None
    config["seq_logprob_error_threshold"] = _bounds(stage)[1]
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
  low, high = _bounds(parts.weight)
  if _is(parts.weight, "importance"):
    return config
  config |= {ratio: high, f"{ratio}_min": low}
  return config | {kind: "icepop" if _is(parts.weight, "zero_outside") else "tis"}


def _areal(parts: Parts) -> dict[str, Any] | None:
  if parts.weight is None:
    return None if parts.rejects else {"use_decoupled_loss": True}
  low, high = _bounds(parts.weight)
  bound = {"upper": high, **({"lower": low} if low else {})}
  if not parts.rejects and _is(parts.weight, "truncate", "clip"):
    levels = {"token": {}, "geometric": {"level": "sequence"}}
    where = levels.get(parts.weight.settings["level"])
    if where is None:
      return None
    return {"rejection_sampling": {**where, "action": "clamp", **bound}}
  if not _is(parts.weight, "importance", level="token") or len(parts.rejects) != 1:
    return None
  (stage,) = parts.rejects
  low, high = _bounds(stage)
  bound = {"upper": high, **({"lower": low} if low else {})}
  if _is(stage, "reject", level="token"):
    return {"rejection_sampling": bound}
  if _is(stage, "reject_binary_kl"):
    return {"rejection_sampling": {"metric": "binary_kl", "upper": high}}
  if _is(stage, "reject_divergence"):
    said = (stage.settings["kind"], stage.settings["reduce"])
    if said == ("k2", "mean"):
      return {
        "rejection_sampling": {"level": "sequence", "metric": "kl_k2", "upper": high}
      }
  return None


def _prime_rl(parts: Parts) -> dict[str, Any] | None:
  if parts.weight is not None or len(parts.rejects) > 1:
    return None
  if not parts.rejects:
    return {"type": "ppo"}
  (stage,) = parts.rejects
  low, high = _bounds(stage)
  if _is(stage, "reject", level="token"):
    return {"type": "icepop", "ratio_low": max(low, NEVER), "ratio_high": high}
  return None


def _roll(parts: Parts) -> dict[str, Any] | None:
  levels = {
    "token": "token",
    "sequence": "sequence",
    "geometric": "geometric",
    "turn_geometric": "segment",
  }
  config: dict[str, Any] = {}
  if parts.weight is not None:
    level = levels.get(parts.weight.settings["level"])
    # Every filter of ROLL, and its weight, see the incoming mask.
    if (
      not _is(parts.weight, "truncate", "importance")
      or level is None
      or any(x.settings.get("level") == "token" for x in parts.before)
    ):
      return None
    high = _bounds(parts.weight)[1] if _is(parts.weight, "truncate") else None
    config["is_weight"] = {"enabled": True, "weight_type": level, "upper_bound": high}
  filters = []
  for stage in parts.rejects:
    level = levels.get(stage.settings.get("level", ""))
    if not _is(stage, "reject") or level is None:
      return None
    low, high = _bounds(stage)
    filters.append(
      {"enabled": True, "agg_type": level, "ratio_low": low, "ratio_high": high}
    )
  config |= {"filters": filters} if filters else {}
  return config or {"is_weight": {"enabled": False}}


def _ms_swift(parts: Parts) -> dict[str, Any] | None:
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
  low, high = _bounds(parts.weight)
  level = {"token": "token", "geometric": "sequence"}.get(
    parts.weight.settings["level"]
  )
  if level and _is(parts.weight, "truncate"):
    return {name: f"{level}_truncate", limit: high}
  if level == "token" and _is(parts.weight, "zero_outside") and low <= NEVER:
    return {name: "token_mask", limit: high}
  return None


def _tunix(parts: Parts) -> dict[str, Any] | None:
  config: dict[str, Any] = {}
  if parts.weight is not None:
    if not _is(parts.weight, "truncate", "importance", level="token"):
      return None
    capped = _is(parts.weight, "truncate")
    config["sampler_is"] = "token"
    config["sampler_is_threshold"] = _bounds(parts.weight)[1] if capped else None
  if len(parts.rejects) > 1:
    return None
  for stage in parts.rejects:
    if not _is(stage, "reject") or stage.settings["level"] not in (
      "token",
      "geometric",
    ):
      return None
    low, high = _bounds(stage)
    config |= {
      "sampler_rs": stage.settings["level"],
      "sampler_rs_min": max(low, NEVER),
      "sampler_rs_max": high,
    }
  return config


FRAMEWORKS: Mapping[str, Callable[[Parts], dict[str, Any] | None]] = {
  "verl": _verl,
  "skyrl": _skyrl,
  "slime": _slime,
  "trl": _trl,
  "nemo_rl": _nemo_rl,
  "areal": _areal,
  "prime_rl": _prime_rl,
  "openrlhf": _openrlhf,
  "roll": _roll,
  "ms_swift": _ms_swift,
  "tunix": _tunix,
}
"""Those that a chain can be written for, by the names of `tis_jax.compat`."""
