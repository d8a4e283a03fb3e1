"""A chain, written for a framework, read back by its dialect."""

import functools
import json
import re
import tomllib

import jax
import numpy as np
import pytest
import yaml

import tis_jax as tis
from tis_jax import compat
from tis_jax.doctor.command import FRAMEWORK_NAMES
from tis_jax.doctor.page import TITLES
from tis_jax.doctor.paste import FRAMEWORKS, config_of
from tis_jax.doctor.paste_text import text_of
from tis_jax.doctor.prescription import CORRECTIONS

CHAINS = {
  **CORRECTIONS,
  "product mask": tis.chain(tis.reject(2.0, 0.5, level="sequence")),
  "k3 mask": tis.chain(tis.reject_divergence(0.01, kind="k3", reduce="mean")),
  "geometric TIS": tis.chain(tis.truncate(1.1, level="geometric")),
  "IcePop by mask": tis.chain(
    tis.importance("token"), tis.reject(2.0, 0.5, level="token")
  ),
  "error mask": tis.chain(
    tis.reject_divergence(1.2, kind="exp_abs", reduce="mean"), tis.truncate(2.0)
  ),
}
PAIRS = [
  (framework, name)
  for framework in FRAMEWORKS
  for name, correct in CHAINS.items()
  if config_of(framework, correct) is not None
]


def batch():
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1, (16, 10)).astype(np.float32)
  spread = 0.3 * rng.exponential(1, (16, 1))
  old = np.minimum(sampler + spread * rng.normal(size=sampler.shape), 0)
  old[3, 1], old[4, 2] = sampler[3, 1] - 12, sampler[4, 2] - 0.2
  mask = np.arange(10) < rng.integers(2, 11, 16)[:, None]
  mask[5, 2] = False
  return old.astype(np.float32), sampler, mask


@functools.cache
def corrected(correct):
  """What a chain makes of the batch; without compiling sixty of them."""
  with jax.disable_jit():
    return tis.chain(*correct.stages, metrics="none")(*batch())


@pytest.mark.parametrize("framework, name", PAIRS)
def test_the_dialect_makes_the_same_weight_and_mask_of_it(framework, name):
  dialect = getattr(compat, framework)
  want = corrected(CHAINS[name])
  got = corrected(dialect.native(config_of(framework, CHAINS[name])))
  np.testing.assert_array_equal(got.mask, want.mask)
  np.testing.assert_allclose(
    np.where(got.mask, got.weight, 0), np.where(want.mask, want.weight, 0), rtol=1e-5
  )


def pasted(framework: str, text: str):
  """What a user's framework reads of the text that was pasted."""
  if framework in ("verl", "slime", "nemo_rl", "areal", "roll"):
    return yaml.safe_load(text)
  if framework == "prime_rl":
    return tomllib.loads(text)
  if framework in ("trl", "tunix"):
    inner = re.fullmatch(r"GRPOConfig\((.*)\)", text, re.DOTALL)
    return eval(f"dict({inner.group(1)})", {"__builtins__": {"dict": dict}})
  return text.replace("\n", " ")


@pytest.mark.parametrize("framework, name", PAIRS)
def test_the_text_says_what_the_mapping_says(framework, name):
  config = config_of(framework, CHAINS[name])
  text = text_of(framework, config)
  dialect = getattr(compat, framework)
  if text.startswith("#"):
    assert dialect.native(config) == dialect.native({})
    return
  assert dialect.native(pasted(framework, text)) == dialect.native(config)


def test_every_framework_has_a_title_and_something_to_say():
  assert set(FRAMEWORKS) == set(TITLES) == set(FRAMEWORK_NAMES) == set(compat.PEERS)
  for framework in FRAMEWORKS:
    assert config_of(framework, CORRECTIONS["none"]) is not None
  assert len(PAIRS) >= 65


def test_what_a_framework_lacks_is_not_expressible():
  assert config_of("prime_rl", CORRECTIONS["token TIS, 2"]) is None
  assert config_of("trl", CORRECTIONS["geometric mask, 1%"]) is None
  assert config_of("verl", CORRECTIONS["veto 1e-4 and token TIS, 2"]) is None
  assert all(
    config_of(f, tis.chain(tis.truncate(2.0), tis.normalize())) is None
    for f in FRAMEWORKS
  )


def test_configs_are_plain():
  for framework, name in PAIRS:
    json.dumps(config_of(framework, CHAINS[name]), allow_nan=False)
