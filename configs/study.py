"""Corrections against each other, on the quickstart's policy under a stale sampler.

tis study --config=study:headline --workdir=runs/study --seeds 0 1 2 3 4

"""

from tis_jax.runner.study import Study

BASE = {
  "train.steps": 300,
  "store.max_staleness": 8,
  "optimizer.learning_rate": 2e-4,
  "optimizer.schedule": "constant",
  "eval.every": 50,
  "log.tensorboard": False,
}


def _stages(*names, **settings):
  group = "algorithm.correction"
  return {f"{group}.stages": names} | {
    f"{group}.{name.replace('__', '.')}": value for name, value in settings.items()
  }


ARMS = {
  "none": _stages(),
  "token_tis": _stages("truncate", truncate__high=2.0, truncate__level="token"),
  "sequence_tis": _stages("truncate", truncate__high=2.0, truncate__level="sequence"),
}


def get_config(part: str = "headline") -> Study:
  return Study("quickstart", BASE, {name: ARMS[name] for name in ARMS}, seeds=range(5))
