"""Runs an experiment: `tis train`, from a checkout.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

import sys

try:
  from tis_jax.cli import main
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

if __name__ == "__main__":
  main(["train", *sys.argv[1:]])
