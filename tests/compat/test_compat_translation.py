"""Every row of the translation table is true."""

import ast
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import advantages, compat, corrections, losses
from tis_jax.numerics.metrics import finalize

# The noise of the batch takes some log-probs above 0.
pytestmark = pytest.mark.filterwarnings("ignore:.* and no log-prob is above 0")

_PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text()
_PEERS = {
  "verl": "verl",
  "verl of 2025-10": "verl",
  "SkyRL": "skyrl",
  "slime": "slime",
  "TRL": "trl",
  "OpenRLHF": "openrlhf",
  "NeMo-RL": "nemo_rl",
  "AReaL": "areal",
  "prime-rl": "prime_rl",
  "ROLL": "roll",
  "ms-swift": "ms_swift",
  "Tunix": "tunix",
}


def _table():
  """(peer, config, chain, denominator) of each row."""
  peer = None
  for line in _PAGE.splitlines():
    if line.startswith("#"):
      peer = _PEERS.get(line.lstrip("# "))
    row = re.fullmatch(r"\| `(\{.*\})` \| `(chain\(.*\))` \| (\w+) \|", line)
    if row:
      yield peer, ast.literal_eval(row[1]), row[2], row[3]


_ROWS = list(_table())
_NAMESPACE = {name: getattr(corrections, name) for name in dir(corrections)}


def _batch():
  """Six rows of small mismatch: padding, holes, an empty row, and advantages."""
  rng = np.random.default_rng(3)
  sampler = -rng.exponential(1.0, (6, 12))
  old = sampler + rng.normal(0, 0.35, (6, 12))
  mask = np.arange(12) < np.array([[12], [9], [5], [0], [12], [1]])
  mask[0, 3:5] = mask[4, 7] = False
  garbage = np.where(mask, 0.0, np.nan)
  advantages = jnp.array([-1.0, 1.0, -0.5, 1.0, -1.0, -2.0])
  as_fp32 = lambda x: jnp.asarray(x + garbage, jnp.float32)
  return as_fp32(old), as_fp32(sampler), jnp.asarray(mask), advantages


def _call(fn, needs_advantages):
  old, sampler, mask, advantage_B = _batch()
  more = {"advantages": advantage_B} if needs_advantages else {}
  return fn(old, sampler, mask, **more)


@functools.cache
def _chain(text):
  """The chain that a cell of the page spells, and what it does to the batch."""
  correct = eval(text, _NAMESPACE | {"exp": math.exp})  # the page is ours
  with jax.disable_jit():  # or every row of the table would compile
    weight, mask, _ = _call(correct, _needs(correct))
  return correct, np.asarray(weight), np.asarray(mask)


def _needs(correct):
  return any(stage.needs for stage in correct.stages)


@pytest.mark.parametrize("index", range(len(_ROWS)))
def test_the_chain_is_what_the_peer_does(index):
  peer, config, text, denominator = _ROWS[index]
  correct, chain_weight, chain_mask = _chain(text)
  module = getattr(compat, peer)
  with jax.disable_jit():
    weight, mask, _ = _call(module.correction(config), _needs(correct))
    native_weight, native_mask, _ = _call(module.native(config), _needs(correct))
  weight = 1.0 if weight is None else weight
  applied = np.asarray(weight * mask)
  np.testing.assert_allclose(
    applied, np.where(chain_mask, chain_weight, 0.0), rtol=2e-5, atol=1e-6
  )
  np.testing.assert_array_equal(native_mask, chain_mask)
  np.testing.assert_allclose(native_weight, chain_weight, rtol=2e-5, atol=1e-6)
  staged = corrections.chain(compat.stage(peer, config), metrics="none")
  with jax.disable_jit():
    stage_weight, stage_mask, _ = _call(staged, _needs(staged))
  np.testing.assert_allclose(
    np.where(stage_mask, stage_weight, 0.0), applied, rtol=2e-5, atol=1e-6
  )
  if denominator == "incoming" and peer not in _MASK_THEMSELVES:
    np.testing.assert_array_equal(mask, _batch()[2])


# These hand back the mask of what trains and count the incoming one on their own.
_MASK_THEMSELVES = ("skyrl", "slime", "areal", "prime_rl")


def test_the_table_has_every_peer_and_its_rows_do_something():
  assert {peer for peer, *_ in _ROWS} == set(compat.PEERS)
  incoming = np.asarray(_batch()[2])
  for text in {text for _, _, text, _ in _ROWS}:
    correct, weight, mask = _chain(text)
    if any(stage.makes == "mask" for stage in correct.stages):
      # Some tokens go and some stay, so that a wrong bound would show.
      assert 0 < mask.sum() < incoming.sum(), text
    elif correct.stages:
      assert (weight[incoming] != 1).any(), text


def test_native_names_on_the_page_exist():
  called = set(re.findall(r"`(\w+)\(\.\.\.", _PAGE))
  assert called
  for name in called:
    assert hasattr(losses, name) or hasattr(advantages, name), name
  chains = [
    corrections.chain(
      corrections.truncate(2.0), corrections.normalize(), corrections.reject(1.2)
    ),
    corrections.chain(
      corrections.zero_outside(2.0),
      corrections.veto(1e-4),
      corrections.reject_divergence(0.1),
    ),
  ]
  old, sampler, mask, _ = _batch()
  found = {
    name for correct in chains for name in finalize(correct(old, sampler, mask).metrics)
  }
  section = _PAGE[_PAGE.index("## Metrics") :]
  for name in re.findall(
    r"`((?:mismatch|weight|\w*reject\w*|truncate|normalize|zero_outside|veto)/\w+)`",
    section,
  ):
    assert name in found, name


_STATISTICS = "token_k1,token_k2,seq_sum_k1,seq_mean_k3,seq_max_k2,seq_max_k3"
_OLD = {"rollout_is": True, "rollout_is_threshold": 2.0}
_SKYRL_ALL = {
  "outlier_token_is_threshold_low": 0.1,
  "token_mask_is_threshold_low": 0.5,
  "token_mask_is_threshold_high": 2.0,
}


@pytest.mark.parametrize(
  ("module", "config"),
  [
    *(
      (
        compat.verl,
        {
          "rollout_is": level,
          "rollout_is_threshold": threshold,
          "rollout_is_batch_normalize": True,
          "rollout_rs": _STATISTICS,
          "rollout_rs_threshold": "2.0",
        },
      )
      for level in ("token", "sequence")
      for threshold in (2.0, "0.5_2.0")
    ),
    *(
      (
        compat.verl,
        _OLD
        | {"rollout_is_level": level, "rollout_is_mode": "mask"}
        | {"rollout_is_veto_threshold": 1e-4},
      )
      for level in ("token", "sequence", "geometric")
    ),
    *(
      (
        compat.skyrl,
        _SKYRL_ALL | {"tis_ratio_type": level, "sequence_mask_metric": metric},
      )
      for level, metric in (("token", "geometric"), ("sequence", "product"))
    ),
  ],
)
def test_every_metric_that_a_correction_reports_stands_in_the_table(module, config):
  with jax.disable_jit():
    _, _, metrics = _call(module.correction(config), False)
  section = _PAGE[_PAGE.index("## Metrics") :]
  start = section.index("| SkyRL |") if module is compat.skyrl else 0
  end = None if module is compat.skyrl else section.index("| SkyRL |")
  listed = set()
  for line in section[start:end].splitlines():
    cells = line.strip("| ").split(" | ")
    listed |= set(re.findall(r"`(\w+)`", " ".join(cells[:-1])))
  option = rf"(?<=rollout_rs_)({_STATISTICS.replace(',', '|')})(?=_)"
  names = {re.sub(option, "OPTION", name.split("/")[-1]) for name in metrics}
  assert names and not names - listed


@pytest.mark.parametrize(
  ("module", "config"),
  [
    (compat.areal, {"rejection_sampling": {"metric": "kl_k3"}}),
    (compat.areal, {"rejection_sampling": {"metric": "kl_k2", "lower": 0.1}}),
    (
      compat.areal,
      {"rejection_sampling": {"level": "sequence", "action": "clamp", "agg": "max"}},
    ),
    (
      compat.areal,
      {"rejection_sampling": {"level": "sequence", "agg": "max", "lower": 0.1}},
    ),
    (
      compat.roll,
      {"filters": [{"enabled": True, "agg_type": "segment", "diff_enabled": True}]},
    ),
  ],
)
def test_what_has_no_native_stage_says_so(module, config):
  module.correction(config)
  with pytest.raises(ValueError, match="no native stage"):
    module.native(config)
