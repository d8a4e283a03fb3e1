"""Held-out accuracy of a run: `tis evaluate`, from a checkout.

python experiments/evaluate.py --workdir=runs/quickstart --samples=16
"""

import sys

from tis_jax.cli import main

if __name__ == "__main__":
  main(["evaluate", *sys.argv[1:]])
