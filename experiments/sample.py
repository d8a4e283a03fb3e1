"""Starts a sampler for a run whose learner is anywhere else.

  python experiments/sample.py --store=gs://bucket/run --name=node7

Model, task and sampling come from the store; any number of samplers may come and go.
"""

from tis_jax.sampler.__main__ import run

if __name__ == "__main__":
  run()
