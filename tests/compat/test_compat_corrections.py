"""Every measured correction of verl, SkyRL and slime: weights, masks, metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_arrays, assert_metrics, cases, log_probs

from tis_jax.compat import skyrl, slime, verl

# The peers' cases are numbers of every size, and some exceed a log-prob's bound.
pytestmark = pytest.mark.filterwarnings("ignore:.* and no log-prob is above 0")


def _applied(build):
  """The numbers of 2025-10 are of verl's helper, which returns weights whether or not
  the trainer applies them: read as `rollout_is: true`."""
  return lambda config: build({"rollout_is": True, **config})


_BUILDERS = {
  "verl_correction": verl.correction,
  "verl_2025_10_correction": _applied(verl.correction),
  "skyrl_correction": skyrl.correction,
  "slime_correction": slime.correction,
}
_ALL = [(kind, i) for kind in _BUILDERS for i in range(len(cases(kind)))]


def _compare(outcome, case):
  weight, mask, metrics = outcome
  assert (weight is not None) == ("out_weights" in case)
  if weight is not None:
    assert_arrays(weight, case["out_weights"])
  np.testing.assert_array_equal(np.asarray(mask), case["out_mask"])
  assert_metrics(metrics, case["metrics"])


@pytest.mark.parametrize(("kind", "index"), _ALL)
def test_equals_the_measured_numbers(kind, index):
  case = cases(kind)[index]
  fn = _BUILDERS[kind](case["config"])
  with jax.disable_jit():  # or every structure of a chain would compile
    outcome = fn(*log_probs(case))
  _compare(outcome, case)
  assert outcome[1].dtype == case["mask"].dtype
  if kind != "slime_correction":
    assert set(outcome[2]) == set(case["metrics"])


_NATIVE = {
  "verl_correction": verl.native,
  "verl_2025_10_correction": _applied(verl.native),
  "skyrl_correction": skyrl.native,
  "slime_correction": slime.native,
}


@pytest.mark.parametrize("kind", list(_BUILDERS))
def test_the_native_chain_equals_the_measured_weight_and_mask(kind):
  """On every case, padded to one shape, which the native algebra does not notice."""
  for case in cases(kind):
    correct = dataclasses.replace(_NATIVE[kind](case["config"]), metrics="none")
    rows, columns = case["mask"].shape
    padding = (0, 16 - rows), (0, 64 - columns)
    with jax.disable_jit():
      weight, mask, _ = correct(*(np.pad(x, padding) for x in log_probs(case)))
    mask, weight = (np.asarray(x)[:rows, :columns] for x in (mask, weight))
    np.testing.assert_array_equal(mask, case["out_mask"])
    wanted = np.broadcast_to(case.get("out_weights", 1.0), mask.shape)
    np.testing.assert_allclose(weight[mask], wanted[mask], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", list(_BUILDERS))
def test_is_the_same_under_jit(kind):
  case = _rich_case(kind)
  fn = jax.jit(_BUILDERS[kind](case["config"]))
  _compare(fn(*log_probs(case)), case)


def _rich_case(kind):
  """One that both weighs and rejects, and has padding."""
  return next(
    case
    for case in cases(kind)
    if case["mask"].shape == (16, 33)
    and "out_weights" in case
    and (case["out_mask"] != case["mask"]).any()
  )


@pytest.mark.parametrize("garbage", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("kind", list(_BUILDERS))
def test_garbage_under_the_mask_stays_there(kind, garbage):
  case = _rich_case(kind)
  fn = _BUILDERS[kind](case["config"])
  padding = case["mask"] == 0
  dirty = [
    np.where(padding, value, case[name])
    for name, value in (("old_logprobs", garbage), ("rollout_logprobs", -garbage))
  ]
  with jax.disable_jit():
    weight, mask, metrics = fn(*dirty, case["mask"])
  wanted = case["out_weights"]
  kept = np.broadcast_to(~padding, wanted.shape) if wanted.shape[1] > 1 else slice(None)
  np.testing.assert_allclose(
    np.asarray(weight)[kept], wanted[kept], rtol=2e-5, atol=1e-6
  )
  assert np.isfinite(np.asarray(weight)).all()
  np.testing.assert_array_equal(np.asarray(mask), case["out_mask"])
  assert_metrics(metrics, case["metrics"])


@pytest.mark.parametrize("kind", list(_BUILDERS))
def test_no_gradient_flows_through_a_weight(kind):
  case = _rich_case(kind)
  fn = _BUILDERS[kind](case["config"])
  total = lambda old: fn(old, case["rollout_logprobs"], case["mask"])[0].sum()
  with jax.disable_jit():
    assert not jax.grad(total)(jnp.asarray(case["old_logprobs"])).any()


@pytest.mark.parametrize("kind", list(_BUILDERS))
def test_an_empty_batch_is_finite(kind):
  case = _rich_case(kind)
  fn = _BUILDERS[kind](case["config"])
  old, sampler, mask = log_probs(case)
  with jax.disable_jit():
    weight, mask, metrics = fn(old, sampler, np.zeros_like(mask))
  assert np.isfinite(np.asarray(weight)).all() and not mask.any()
  assert all(np.isfinite(value) for value in metrics.values())
