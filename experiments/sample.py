"""Samples for a learner that runs elsewhere: `tis sample`, from a checkout.

python experiments/sample.py --store=gs://bucket/run --name=node7
"""

import sys

try:
  from tis_jax.cli import main
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

if __name__ == "__main__":
  main(["sample", *sys.argv[1:]])
