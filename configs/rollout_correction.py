"""Every correction of verl's and SkyRL's guides, by name, on the quickstart's run.

  tis train --config=rollout_correction:token_truncate \
    --workdir=runs/token_truncate

Names: metrics_only, token_truncate, geometric_mask_veto, sequence_truncate_veto,
asymmetric_mask (verl's guide of 2025-10); decoupled_token_is, decoupled_seq_is,
decoupled_seq_is_rs, decoupled_geo_rs, decoupled_geo_rs_seq_tis,
decoupled_geo_rs_token_tis, decoupled_k3_rs, decoupled_k3_rs_seq_tis,
decoupled_k3_rs_token_tis, decoupled_token_icepop, bypass_ppo_clip,
bypass_ppo_clip_geo_rs, bypass_ppo_clip_k3_rs, bypass_pg_is, bypass_pg_geo_rs,
bypass_pg_geo_rs_seq_tis, bypass_pg_geo_rs_token_tis, bypass_pg_token_icepop, disabled
(verl's presets); rloo_self_normalized, multi_rejection, async_mis (verl's examples);
geometric_sequence_mask, product_sequence_mask, token_tis, sequence_tis, token_mask,
outlier_tokens (SkyRL's guide).

Expected: a chain that is, stage for stage and bound for bound, the one that
`tis_jax.compat` makes of the peer's own options, which stand beside it below; the
tests check that. What a correction does to a run is for the run to show: all of them
share the task, the policy and the seed of the quickstart.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tis_jax.runner import default_config


class Recipe(NamedTuple):
  """A correction in a peer's words and in the native ones.

  Attributes:
    peer: whose, as `tis_jax.compat` names it.
    options: the peer's own configuration.
    stages: name and settings of each native stage, in order.
    algorithm: what else of `config.algorithm` belongs to it.
  """

  peer: str
  options: dict[str, Any]
  stages: list[tuple[str, dict[str, Any]]]
  algorithm: dict[str, Any] = {}  # noqa: RUF012 (read only)


# What verl rejects leaves the denominator, what SkyRL masks stays in it.
_ACCEPTED = {"aggregation": {"denominator": "accepted"}}
_BYPASS = {"old_logp": "sampler"}
# SkyRL's default loss, `regular`: 0.2 both ways, and no dual clip.
_SKYRL_LOSS = {"loss": {"ppo": {"clip_high": 0.2, "dual_clip": None}}}
_REINFORCE = {"old_logp": "sampler", "loss": {"name": "reinforce"}}

_TOKEN_TIS = ("truncate", {"high": 2.0, "level": "token"})
_SEQ_TIS = ("truncate", {"high": 2.0, "level": "sequence"})
_TOKEN_ICEPOP = ("zero_outside", {"high": 5.0, "low": 0.5, "level": "token"})
# verl's bounds on k1 are bounds on the inverse ratio.
_GEO_MASK = ("reject", {"high": 1 / 0.999, "low": 1 / 1.001, "level": "geometric"})
_K3_MASK = ("reject_divergence", {"high": 0.01, "kind": "k3", "reduce": "mean"})

_GEO_RS = {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.999_1.001"}
_K3_RS = {"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 0.01}
_PG = {"bypass_mode": True, "loss_type": "reinforce"}


def _verl(options, *stages, **algorithm) -> Recipe:
  return Recipe("verl", options, list(stages), algorithm)


def _skyrl(options, *stages) -> Recipe:
  return Recipe("skyrl", options, list(stages), _SKYRL_LOSS)


RECIPES = {
  # verl's guide of 2025-10.
  "metrics_only": _verl({"rollout_is": False, "rollout_is_threshold": 2.0}),
  "token_truncate": _verl(
    {"rollout_is": True, "rollout_is_level": "token"}
    | {"rollout_is_mode": "truncate", "rollout_is_threshold": 2.0},
    _TOKEN_TIS,
  ),
  "geometric_mask_veto": _verl(
    {
      "rollout_is": True,
      "rollout_is_level": "geometric",
      "rollout_is_mode": "mask",
      "rollout_is_threshold": 1.0002,
      "rollout_is_threshold_lower": 0.9998,
      "rollout_is_veto_threshold": 1e-4,
    },
    ("importance", {"level": "geometric"}),
    ("veto", {"low": 1e-4}),
    ("reject", {"high": 1.0002, "low": 0.9998, "level": "geometric"}),
    **_ACCEPTED,
  ),
  "sequence_truncate_veto": _verl(
    {
      "rollout_is": True,
      "rollout_is_level": "sequence",
      "rollout_is_mode": "truncate",
      "rollout_is_threshold": 5.0,
      "rollout_is_veto_threshold": 1e-4,
    },
    ("truncate", {"high": 5.0, "level": "sequence"}),
    ("veto", {"low": 1e-4}),
    **_ACCEPTED,
  ),
  "asymmetric_mask": _verl(
    {
      "rollout_is": True,
      "rollout_is_level": "token",
      "rollout_is_mode": "mask",
      "rollout_is_threshold": 5.0,
      "rollout_is_threshold_lower": 0.8,
    },
    ("importance", {"level": "token"}),
    ("reject", {"high": 5.0, "low": 0.8, "level": "token"}),
    **_ACCEPTED,
  ),
  # verl's presets.
  "decoupled_token_is": _verl({"rollout_is": "token"}, _TOKEN_TIS),
  "decoupled_seq_is": _verl({"rollout_is": "sequence"}, _SEQ_TIS),
  "decoupled_seq_is_rs": _verl(
    {"rollout_is": "sequence"}
    | {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_2.0"},
    _SEQ_TIS,
    ("reject", {"high": 2.0, "low": 0.5, "level": "sequence"}),
    **_ACCEPTED,
  ),
  "decoupled_geo_rs": _verl(_GEO_RS, _GEO_MASK, **_ACCEPTED),
  "decoupled_geo_rs_seq_tis": _verl(
    {"rollout_is": "sequence"} | _GEO_RS, _SEQ_TIS, _GEO_MASK, **_ACCEPTED
  ),
  "decoupled_geo_rs_token_tis": _verl(
    {"rollout_is": "token"} | _GEO_RS, _TOKEN_TIS, _GEO_MASK, **_ACCEPTED
  ),
  "decoupled_k3_rs": _verl(_K3_RS, _K3_MASK, **_ACCEPTED),
  "decoupled_k3_rs_seq_tis": _verl(
    {"rollout_is": "sequence"} | _K3_RS, _SEQ_TIS, _K3_MASK, **_ACCEPTED
  ),
  "decoupled_k3_rs_token_tis": _verl(
    {"rollout_is": "token"} | _K3_RS, _TOKEN_TIS, _K3_MASK, **_ACCEPTED
  ),
  "decoupled_token_icepop": _verl(
    {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}, _TOKEN_ICEPOP
  ),
  "bypass_ppo_clip": _verl({"bypass_mode": True}, **_BYPASS),
  "bypass_ppo_clip_geo_rs": _verl(
    {"bypass_mode": True} | _GEO_RS, _GEO_MASK, **_BYPASS, **_ACCEPTED
  ),
  "bypass_ppo_clip_k3_rs": _verl(
    {"bypass_mode": True} | _K3_RS, _K3_MASK, **_BYPASS, **_ACCEPTED
  ),
  "bypass_pg_is": _verl({"rollout_is": "sequence"} | _PG, _SEQ_TIS, **_REINFORCE),
  "bypass_pg_geo_rs": _verl(_GEO_RS | _PG, _GEO_MASK, **_REINFORCE, **_ACCEPTED),
  "bypass_pg_geo_rs_seq_tis": _verl(
    {"rollout_is": "sequence"} | _GEO_RS | _PG,
    _SEQ_TIS,
    _GEO_MASK,
    **_REINFORCE,
    **_ACCEPTED,
  ),
  "bypass_pg_geo_rs_token_tis": _verl(
    {"rollout_is": "token"} | _GEO_RS | _PG,
    _TOKEN_TIS,
    _GEO_MASK,
    **_REINFORCE,
    **_ACCEPTED,
  ),
  "bypass_pg_token_icepop": _verl(
    {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"} | _PG,
    _TOKEN_ICEPOP,
    **_REINFORCE,
  ),
  "disabled": _verl({}),
  # verl's example scripts.
  "rloo_self_normalized": _verl(
    {"rollout_is": "sequence", "rollout_is_batch_normalize": True} | _PG,
    _SEQ_TIS,
    ("normalize", {"over": "batch", "by": "sequence"}),
    **_REINFORCE,
    advantage={"name": "rloo"},
  ),
  "multi_rejection": _verl(
    {
      "bypass_mode": True,
      "rollout_is": "token",  # logged, as PPO's own ratio is on the sampler
      "rollout_rs": "token_k1,seq_max_k2",
      "rollout_rs_threshold": "0.6_1.6,2.5",
    },
    ("reject_divergence", {"high": 2.5, "kind": "k2", "reduce": "max"}),
    ("reject", {"high": 1 / 0.6, "low": 1 / 1.6, "level": "token"}),
    **_BYPASS,
    **_ACCEPTED,
  ),
  "async_mis": _verl(
    {"rollout_is": "token"}
    | {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.99_1.001"},
    _TOKEN_TIS,
    ("reject", {"high": 1 / 0.99, "low": 1 / 1.001, "level": "geometric"}),
    **_ACCEPTED,
  ),
  # SkyRL's guide.
  "geometric_sequence_mask": _skyrl(
    {"sequence_mask_metric": "geometric"},
    ("reject", {"high": 1.01, "low": 0.99, "level": "geometric"}),
  ),
  "product_sequence_mask": _skyrl(
    {"sequence_mask_metric": "product"},
    ("reject", {"high": 2.0, "low": 0.5, "level": "sequence"}),
  ),
  "token_tis": _skyrl({"tis_ratio_type": "token"}, _TOKEN_TIS),
  "sequence_tis": _skyrl(
    {"tis_ratio_type": "sequence"}, ("truncate", {"high": 5.0, "level": "sequence"})
  ),
  "token_mask": _skyrl(
    {"token_mask_is_threshold_low": 0.5, "token_mask_is_threshold_high": 2.0},
    ("reject", {"high": 2.0, "low": 0.5, "level": "token"}),
  ),
  "outlier_tokens": _skyrl(
    {
      "sequence_mask_metric": "geometric",
      "outlier_token_is_threshold_low": 1e-4,
      "outlier_token_is_threshold_high": 100.0,
    },
    ("veto", {"low": 1e-4, "high": 100.0}),
    ("reject", {"high": 1.01, "low": 0.99, "level": "geometric"}),
  ),
}


def get_config(name: str = "token_truncate") -> ConfigDict:
  if name not in RECIPES:
    raise ValueError(f"no correction {name!r}; there are {', '.join(sorted(RECIPES))}")
  recipe = RECIPES[name]
  config = default_config()
  correction = config.algorithm.correction
  correction.stages = tuple(stage for stage, _ in recipe.stages)
  for stage, settings in recipe.stages:
    correction[stage].update(settings)
  config.algorithm.update(recipe.algorithm)
  return config
