"""One GRPO step, here and by TRL's GRPOTrainer: seconds a phase, and peak memory.

  make trl
  python benchmarks/step.py --trl .venv-trl/bin/python [--json FILE]

SmolLM2-135M-Instruct in fp32 on the machine's cores. A step is 2 prompts of 40 tokens,
8 answers of 32 new ones to each at temperature 1 (none of which ends an answer), a
reward, the log-probs of all answers, and two AdamW updates with gradients clipped to
norm 1, on half of the answers each: PPO's clip at 0.2, group-normalised advantages, the
mean over tokens, no KL, no checkpointing of activations. Both sides read the same
safetensors and the same prompts, each in a process of its own; the first step compiles
or warms up and is not counted, the median of the others is. TRL computes padded rows;
here they are packed, so that a prompt is computed once for its answers in a half.

Phases: `generate` from the params to the answers, handing over new params included;
`log_probs` the pass before the first update; `update` the rest. Here log-probs and
updates are one compiled call, so the pass is timed once more, beside the step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from atlas import Model
from sampler import prompts

from tis_jax import models

PROMPTS, GROUP, LENGTH, STEPS = 2, 8, 32, 3
SIDES = {"trl": "step_trl.py", "tis_jax": "step_native.py"}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--trl", metavar="PYTHON", required=True, help="that has TRL")
  parser.add_argument("--json", type=Path, help="also write the numbers there")
  known = parser.parse_args()
  pythons = {"trl": known.trl, "tis_jax": sys.executable}
  numbers: dict[str, float] = {}
  with tempfile.TemporaryDirectory() as folder:
    write_task(Path(folder))
    for side, script in SIDES.items():
      command = [pythons[side], str(Path(__file__).parent / script), folder]
      subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
      found = json.loads((Path(folder) / f"{side}.json").read_text())
      for name in ("generate", "log_probs", "update", "step"):
        seconds = statistics.median(found[name][1:])
        numbers[f"{side}/{name}_seconds"] = seconds
      numbers[f"{side}/peak_memory_mib"] = found["peak_memory_kib"] / 1024
  for name in ("generate", "log_probs", "update", "step"):
    trl, own = (numbers[f"{side}/{name}_seconds"] for side in SIDES)
    numbers[f"speedup/{name}"] = trl / own
  for name, value in numbers.items():
    print(f"{name:30} {value:8.3g}")
  if known.json:
    known.json.write_text(json.dumps(numbers, indent=2) + "\n")


def write_task(folder: Path) -> None:
  """The model as a Hugging Face directory, and what is asked of both sides."""
  model = Model()
  models.write_hugging_face(folder / "model", model.config, model.params)
  asked = {
    "prompts": [prompts(model, PROMPTS, seed)[0].tolist() for seed in range(STEPS)],
    "group": GROUP,
    "length": LENGTH,
    "pad": model.tokenizer.pad_id,
    "eos": model.tokenizer.eos_ids[0],
    "learning_rate": 1e-6,
  }
  (folder / "asked.json").write_text(json.dumps(asked))


if __name__ == "__main__":
  main()
