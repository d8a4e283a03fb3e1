"""Several runs, and what they come to: `tis study`, from a checkout.

python experiments/study.py --config=quickstart --workdir=runs/seeds --vary seed 0 1 2
"""

import sys

try:
  from tis_jax.cli import main
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

if __name__ == "__main__":
  main(["study", *sys.argv[1:]])
