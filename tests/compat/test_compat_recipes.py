"""The named configs are the peers' own configurations, in the native settings."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("ml_collections")
sys.path.insert(0, str(Path(__file__).parents[2]))

from configs import rollout_correction
from tis_jax import compat
from tis_jax.runner import algorithm_of, default_config

_NAMES = sorted(rollout_correction.RECIPES)


@pytest.mark.parametrize("name", _NAMES)
def test_the_chain_is_the_one_that_the_peers_options_stand_for(name):
  recipe = rollout_correction.RECIPES[name]
  algorithm = algorithm_of(rollout_correction.get_config(name).algorithm)
  native = getattr(compat, recipe.peer).native(recipe.options)
  assert algorithm.correct.stages == native.stages


@pytest.mark.parametrize("name", _NAMES)
def test_bypass_and_denominator_are_the_peers(name):
  recipe = rollout_correction.RECIPES[name]
  algorithm = algorithm_of(rollout_correction.get_config(name).algorithm)
  bypass = recipe.options.get("bypass_mode", False)
  assert algorithm.old_logp == ("sampler" if bypass else "recompute")
  reinforce = recipe.options.get("loss_type") == "reinforce"
  assert (algorithm.loss.func.__name__ == "reinforce") == reinforce
  rejects = any(stage.makes == "mask" for stage in algorithm.correct.stages)
  leaves = recipe.peer == "verl" and rejects
  assert algorithm.aggregation.denominator == ("accepted" if leaves else "sampled")


@pytest.mark.parametrize("name", _NAMES)
def test_skyrls_recipes_train_its_regular_loss_without_dual_clip(name):
  recipe = rollout_correction.RECIPES[name]
  loss = algorithm_of(rollout_correction.get_config(name).algorithm).loss
  if recipe.peer == "skyrl":
    assert loss.func.__name__ == "ppo"
    assert loss.keywords["dual_clip"] is None
    assert loss.keywords["clip_low"] == loss.keywords["clip_high"] == 0.2


def test_nothing_else_differs_from_the_default():
  config = rollout_correction.get_config("outlier_tokens").to_dict()
  plain = default_config().to_dict()
  assert config.pop("algorithm") != plain.pop("algorithm")
  assert config == plain


def test_the_page_at_its_head_names_them_all():
  missing = [name for name in _NAMES if name not in rollout_correction.__doc__]
  assert not missing


def test_an_unknown_name_is_refused():
  with pytest.raises(ValueError, match="no correction 'tis'; there are"):
    rollout_correction.get_config("tis")
