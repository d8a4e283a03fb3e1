"""One process of a learner that runs `tis train`, of four CPU devices or eight.

python train_process.py CONFIG WORKDIR DEVICES

CONFIG is a config in JSON. Ends as `tis train` does.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
  flags = f"--xla_force_host_platform_device_count={sys.argv[3]}"
  os.environ["XLA_FLAGS"] = flags
  from ml_collections import ConfigDict

  from tis_jax.runner import ExpectedError, train

  try:
    summary = train(ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2]))
  except ExpectedError as error:
    sys.exit(f"{type(error).__name__}: {error}")
  sys.exit(0 if summary else os.EX_TEMPFAIL)
