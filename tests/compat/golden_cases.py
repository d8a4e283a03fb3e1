"""The peers' measured numbers: cases of `tests/golden/KIND.{npz,json}`."""

import functools
import json
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parents[1] / "golden"


@functools.cache
def cases(kind):
  """Every case of a kind: its config, metrics and arrays."""
  arrays = np.load(_FOLDER / f"{kind}.npz")
  by_case = {}
  for name in arrays.files:
    case, _, field = name.partition("/")
    by_case.setdefault(int(case), {})[field] = arrays[name]
  records = json.loads((_FOLDER / f"{kind}.json").read_text())
  return [
    {"config": r["config"], "metrics": r["metrics"], **by_case[r["case"]]}
    for r in records
  ]


def log_probs(case):
  return case["old_logprobs"], case["rollout_logprobs"], case["mask"]


def assert_arrays(actual, expected):
  actual = np.asarray(actual)
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def assert_metrics(actual, expected):
  """The peer's metrics at 1e-4; NaN equals NaN; all of them must be there.

  verl takes a standard deviation as sqrt(E x^2 - (E x)^2) in fp32, so its own rounding,
  a few 1e-7 of E x^2, stands in the measured variance; ours is the exact one.
  """
  missing = set(expected) - set(actual)
  assert not missing, f"metrics missing: {sorted(missing)}"
  for name, value in expected.items():
    ours, power, atol = float(actual[name]), 1, 1e-6
    if name.endswith("_std") and not name.endswith("_seq_std"):
      power, atol = 2, 2e-6
    np.testing.assert_allclose(
      ours**power, value**power, rtol=1e-4 * power, atol=atol, err_msg=name
    )
