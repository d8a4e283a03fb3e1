"""No correction, token TIS and sequence TIS on one stale low-precision sampler."""

import dataclasses

from tis_jax.runner.study import Study, load_study


def get_config() -> Study:
  return dataclasses.replace(load_study("study:headline"), seeds=(0,))
