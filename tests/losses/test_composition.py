"""Which loss takes which correction, and what is said when it does not."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tis_jax import losses
from tis_jax.losses import (
  POLICY_LOSSES,
  call_loss,
  check_composition,
  uses_sampler_ratio,
)

SAMPLER = {
  "decoupled_ppo",
  "dppo",
  "rollout_is",
  "sampler_cispo",
  "topr",
  "vespo",
}
NO_RATIO = {"cross_entropy", "dro", "gpg", "reinforce"}


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_weights_are_refused_exactly_where_the_ratio_is_there_already(name):
  loss = POLICY_LOSSES[name]
  for bypass in (False, True):
    check_composition(loss, weighted=False, bypass=bypass)
    twice = name in SAMPLER or (bypass and name not in NO_RATIO)
    if not twice:
      check_composition(loss, weighted=True, bypass=bypass)
      continue
    with pytest.raises(ValueError, match=f"{loss.__name__} already multiplies"):
      check_composition(loss, weighted=True, bypass=bypass)


def test_the_refusal_says_what_to_do():
  with pytest.raises(ValueError, match=r"keep the stages that reject.*ppo"):
    check_composition(losses.dppo, weighted=True)
  with pytest.raises(ValueError, match=r"recompute old_logp.*reinforce"):
    check_composition(losses.ppo, weighted=True, bypass=True)


def test_a_loss_of_your_own_and_a_partial_are_understood():
  def mine(logp, sampler_logp, advantages):
    return -advantages * logp, {}

  with pytest.raises(ValueError, match="mine already multiplies"):
    check_composition(functools.partial(mine, advantages=None), weighted=True)
  check_composition(functools.partial(losses.ppo, clip_low=0.1), weighted=True)


def test_a_loss_of_your_own_says_what_its_signature_does_not():
  @losses.policy_loss(ratio_to="none", selects=True)
  def mine(logp, old_logp, advantages, mask=None, *, beta):
    return (logp - old_logp) ** 2 - advantages * logp, {}

  found = losses.traits(functools.partial(mine, beta=1.0))
  assert (found.name, found.ratio_to, found.selects) == ("mine", "none", True)
  assert losses.traits(mine).needs == ("logp", "old_logp", "advantages", "beta")
  check_composition(mine, weighted=True, bypass=True)


def test_call_loss_passes_what_the_loss_names_and_misses_what_it_lacks():
  arrays = {"logp": np.zeros((1, 2), np.float32), "advantages": np.ones(1, np.float32)}
  token_loss, _ = call_loss(losses.reinforce, **arrays, old_logp=None, key=1)
  assert token_loss.shape == (1, 2)
  with pytest.raises(ValueError, match="clip_cov needs old_logp"):
    call_loss(losses.clip_cov, **arrays)
  with pytest.raises(ValueError, match="dro needs beta"):
    call_loss(losses.dro, **arrays, old_logp=arrays["logp"])
  call_loss(functools.partial(losses.dro, beta=1.0), **arrays, old_logp=arrays["logp"])


def test_the_page_on_losses_lists_each_with_the_correction_it_takes():
  page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
  rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
  takes = {
    name.strip(" `"): cells[-2].strip()
    for cells in rows
    if len(cells) == 7
    for name in cells[1].split(",")
  }
  want = {
    name: "reject"
    if uses_sampler_ratio(loss)
    else "weight †"
    if uses_sampler_ratio(loss, bypass=True)
    else "weight"
    for name, loss in POLICY_LOSSES.items()
  }
  assert takes == want
