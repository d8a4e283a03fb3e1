"""Held-out accuracy of a run's newest checkpoint, or of what it started from.

python experiments/evaluate.py --workdir=runs/quickstart --samples=16
python experiments/evaluate.py --workdir=runs/quickstart --temperature=0
"""

from pathlib import Path

from absl import app, flags

from tis_jax.runner import evaluate_run, logs

_WORKDIR = flags.DEFINE_string("workdir", None, "of the run")
_BASE = flags.DEFINE_bool("base", False, "evaluate what the run started from")
_PROMPTS = flags.DEFINE_integer("prompts", 0, "held-out prompts; 0 for all")
_SAMPLES = flags.DEFINE_integer("samples", 8, "answers a prompt")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of sampling; 0 is greedy")


def main(_):
  accuracy = evaluate_run(
    Path(_WORKDIR.value),
    base=_BASE.value,
    prompts=_PROMPTS.value,
    samples=_SAMPLES.value,
    temperature=_TEMPERATURE.value,
  )
  logs.say(logs.table(accuracy._asdict()))


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
