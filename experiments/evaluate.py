"""Held-out accuracy of a run: `tis evaluate`, from a checkout.

python experiments/evaluate.py --workdir=runs/quickstart --samples=16
"""

import sys

try:
  from tis_jax.cli import main
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

if __name__ == "__main__":
  main(["evaluate", *sys.argv[1:]])
