"""Runs an experiment: `tis train`, from a checkout.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

import sys

from tis_jax.cli import main

if __name__ == "__main__":
  main(["train", *sys.argv[1:]])
