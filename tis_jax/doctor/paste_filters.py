"""Frameworks with filters beside the weight: verl, SkyRL, slime, ROLL."""

from typing import Any

from tis_jax.doctor.parts import NEVER, Parts, bounds_of, is_stage


def verl(parts: Parts) -> dict[str, Any] | None:
  """`algorithm.rollout_correction`."""
  config: dict[str, Any] = {}
  weight = parts.weight
  if weight is not None:
    # Every statistic of verl sees the incoming mask.
    if weight.settings["level"] not in ("token", "sequence") or any(
      x.settings.get("level") == "token" for x in parts.before
    ):
      return None
    low, high = bounds_of(weight)
    config["rollout_is"] = weight.settings["level"]
    if is_stage(weight, "truncate"):
      config["rollout_is_threshold"] = high
    elif is_stage(weight, "zero_outside"):
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
    low, high = bounds_of(stage)
    if is_stage(stage, "reject") and stage.settings["level"] in levels:
      names.append(f"{levels[stage.settings['level']]}_k1")
      # Its k1 is -log rho: the bounds are those of 1 / rho.
      thresholds.append(f"{1 / high!r}_{1 / max(low, NEVER)!r}")
    elif is_stage(stage, "reject_divergence") and stage.settings["kind"] in (
      "k2",
      "k3",
    ):
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


def skyrl(parts: Parts) -> dict[str, Any] | None:
  """`trainer.algorithm.off_policy_correction`."""
  config: dict[str, Any] = {}
  if parts.weight is not None:
    level = parts.weight.settings["level"]
    if not is_stage(parts.weight, "truncate") or level not in ("token", "sequence"):
      return None
    config["tis_ratio_type"] = level
    config[f"{level}_tis_ratio_clip_high"] = bounds_of(parts.weight)[1]
  order = []
  for stage in parts.rejects:
    low, high = bounds_of(stage)
    level = stage.settings.get("level")
    if is_stage(stage, "veto"):
      order.append(0)
      config["outlier_token_is_threshold_low"] = low or None
      config["outlier_token_is_threshold_high"] = None if high == 1e9 else high
    elif is_stage(stage, "reject", level="token"):
      order.append(1)
      config["token_mask_is_threshold_low"] = max(low, NEVER)
      config["token_mask_is_threshold_high"] = high
    elif is_stage(stage, "reject") and level in ("geometric", "sequence"):
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


def slime(parts: Parts) -> dict[str, Any] | None:
  """The YAML of its mismatch helper."""
  weight = parts.weight
  if weight is None:
    return None if parts.rejects else {"use_tis": False}
  level = weight.settings["level"]
  if level not in ("token", "sequence", "geometric"):
    return None
  low, high = bounds_of(weight)
  config = {
    "use_tis": True,
    "tis_level": level,
    "tis_upper_bound": high,
    "tis_batch_normalize": False,
  }
  if is_stage(weight, "truncate"):
    config["tis_mode"] = "truncate"
  elif is_stage(weight, "clip"):
    config |= {"tis_mode": "clip", "tis_lower_bound": max(low, NEVER)}
  else:
    return None
  rules = list(parts.rejects)
  if any(x.settings.get("level") == "token" for x in parts.before):
    return None
  if rules:
    config |= {"use_rs": True, "rs_veto_threshold": None}
    vetoes = [x for x in rules if is_stage(x, "veto")]
    others = [x for x in rules if not is_stage(x, "veto")]
    if len(vetoes) > 1 or len(others) > 1:
      return None
    if vetoes:
      low, high = bounds_of(vetoes[0])
      if high != 1e9:
        return None
      config["rs_veto_threshold"] = low
    low, high = NEVER, 1e9
    config["rs_level"] = "token"
    if others:
      if not is_stage(others[0], "reject") or others[0].settings["level"] not in (
        "token",
        "sequence",
        "geometric",
      ):
        return None
      config["rs_level"] = others[0].settings["level"]
      low, high = bounds_of(others[0])
    config |= {"rs_lower_bound": max(low, NEVER), "rs_upper_bound": high}
  return config


def roll(parts: Parts) -> dict[str, Any] | None:
  """`train_infer_correction`."""
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
      not is_stage(parts.weight, "truncate", "importance")
      or level is None
      or any(x.settings.get("level") == "token" for x in parts.before)
    ):
      return None
    high = bounds_of(parts.weight)[1] if is_stage(parts.weight, "truncate") else None
    config["is_weight"] = {"enabled": True, "weight_type": level, "upper_bound": high}
  filters = []
  for stage in parts.rejects:
    level = levels.get(stage.settings.get("level", ""))
    if not is_stage(stage, "reject") or level is None:
      return None
    low, high = bounds_of(stage)
    filters.append(
      {"enabled": True, "agg_type": level, "ratio_low": low, "ratio_high": high}
    )
  config |= {"filters": filters} if filters else {}
  return config or {"is_weight": {"enabled": False}}
