"""Samples for a learner that runs elsewhere: `tis sample`, from a checkout.

python experiments/sample.py --store=gs://bucket/run --name=node7
"""

import sys

from tis_jax.cli import main

if __name__ == "__main__":
  main(["sample", *sys.argv[1:]])
