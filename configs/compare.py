"""No correction, token TIS and sequence TIS, fed by one stale low-precision sampler.

  tis study --config=compare --workdir=runs/compare

The study's `headline` with seed 0: 150 steps each on rollouts of a bfloat16 sampler
that are 8 versions old, one run after the other. `make compare` is this.

Expected: under four minutes on two quiet CPU cores. runs/compare has the table
(summary.md), the figure (summary.png: held-out pass@1, reward as sampled and as the
learner would earn it, mismatch, effective sample size, gradient norm, staleness) and
summary.json.
"""

import dataclasses

from tis_jax.runner.study import Study, load_study


def get_config() -> Study:
  return dataclasses.replace(load_study("study:headline"), seeds=(0,))
