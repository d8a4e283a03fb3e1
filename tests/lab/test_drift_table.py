"""The tables of structure and drift say what their runs are."""

import numpy as np

from tis_jax.corrections import chain
from tis_jax.lab import ascend, drift_table, random_problem


def test_every_structure_has_a_bias_but_under_the_whole_ratio():
  rows = dict(drift_table.structured_table(0.3, length=3, seeds=2))
  assert rows.keys() == drift_table.CORRECTIONS.keys()
  assert max(rows["seq_is()"]) < 1e-10
  assert min(rows["no correction"]) > 0.05
  assert len(set(rows["tis(2)"])) == len(drift_table.STRUCTURES)


def test_a_lag_has_its_rows():
  rows = {r.name: r for r in drift_table.lag_table(5, length=3, seeds=2)}
  assert rows.keys() == drift_table.CORRECTIONS.keys()
  assert rows["seq_is()"].bias < 1e-10 < rows["no correction"].bias
  centred = rows["no correction, centred"]
  assert centred.bias != rows["no correction"].bias and centred.accepted == 1


def test_ways_are_shares_of_the_best_reward():
  rows = dict(drift_table.ascent_table(3, length=2, steps=(0, 4, 8), seeds=2))
  assert rows.keys() == drift_table.CORRECTIONS.keys()
  problems = [random_problem(3, 2, noise=0.0, seed=seed) for seed in range(2)]
  found = [ascend(p, chain(), steps=8, lag=3).rewards for p in problems]
  want = [
    (r[[0, 4, 8]] - r[0]) / (p.rewards.max() - r[0])
    for p, r in zip(problems, found, strict=True)
  ]
  np.testing.assert_allclose(rows["no correction"], np.mean(want, axis=0))
  noisy = dict(
    drift_table.ascent_table(3, length=2, steps=(8,), seeds=1, samples=4, runs=2)
  )
  assert noisy["seq_is()"] != rows["seq_is()"][2:]
