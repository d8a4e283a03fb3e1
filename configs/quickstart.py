"""A policy of 0.66M parameters learns arithmetic from rollouts of a bf16 sampler.

  python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

The task is GSM8K's own calculator steps (`48/2=24`), the base policy the one in the
package, the algorithm GRPO with token-level truncated importance sampling at 2.0. One
sampler process in bfloat16, one fp32 learner, weights at most one step old.

Expected on two CPU cores: under 8 minutes, held-out pass@1 up by more than 0.10 (the
measured table is in docs/quickstart.md).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  return config
