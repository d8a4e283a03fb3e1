"""Downloads a dataset, once a machine: `python -m tis_jax.tasks gsm8k`."""

import argparse

from tis_jax.tasks import gsm8k

parser = argparse.ArgumentParser(prog="python -m tis_jax.tasks", description=__doc__)
parser.add_argument("name", choices=["gsm8k"], help="the dataset")
parser.add_argument("--data_dir", help="where to put it; by default TFDS decides")
options = parser.parse_args()
gsm8k.download(options.data_dir)
