"""What a study is, and the runs that it asks for."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from tis_jax.runner.config import ConfigError
from tis_jax.runner.overrides import as_text, override
from tis_jax.runner.recipes import load_file, load_recipe
from tis_jax.runner.settings import read_config


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs of one recipe under several settings: every arm, at every point, every seed.

  Settings are named as `--config.NAME` names them, and values are those of a config: a
  tuple where the setting is one. What is said later has the last word: common
  settings, the arm's, the point's, the seed.

  Attributes:
    base: recipe of every run, as `tis train --config` takes it.
    common: setting -> value, of every run.
    arms: name -> {setting: value}; the first is the one that others are compared with.
    axes: setting -> values. All combinations of them are crossed with the arms.
    seeds: of every arm at every point; none leaves the base's own.

  Raises:
    ConfigError: a setting that two of these say; an axis without values.
  """

  base: str
  common: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  arms: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=lambda: {"": {}}
  )
  axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  seeds: Sequence[int] = ()

  def __post_init__(self):
    if not self.arms:
      raise ConfigError("a study needs an arm")
    for setting, values in self.axes.items():
      texts = [as_text(value) for value in values]
      if not texts or len(set(texts)) < len(texts):
        raise ConfigError(f"the axis {setting} needs values, each once; it has {texts}")
      for arm, settings in self.arms.items():
        if setting in settings:
          raise ConfigError(f"arm {arm!r} sets {setting}, which is an axis")
    if self.seeds and any("seed" in x for x in (*self.arms.values(), self.axes)):
      raise ConfigError("seed is set by an arm or an axis, and by seeds")

  def only(self, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> "Study":
    """Some arms, in the order given, and other seeds; nothing given leaves them.

    Raises:
      ConfigError: an arm that there is not, with those that are.

    >>> study = Study("quickstart", arms={"none": {}, "tis": {}, "is": {}})
    >>> list(study.only(["is", "none"], [3]).arms)
    ['is', 'none']
    """
    for name in arms:
      if name not in self.arms:
        raise ConfigError(f"no arm {name!r}; there are {', '.join(self.arms)}")
    return dataclasses.replace(
      self,
      arms={name: self.arms[name] for name in arms or self.arms},
      seeds=tuple(seeds or self.seeds),
    )


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One run of a study.

  Attributes:
    arm: its name.
    point: setting -> value of every axis, as text.
    seed: None for the base's own.
    base: recipe.
    overrides: `--config.NAME=VALUE`, in order.
    config: what they come to.
    name: of its workdir, inside the study's.
  """

  arm: str
  point: Mapping[str, str]
  seed: int | None
  base: str
  overrides: Sequence[str]
  config: ConfigDict
  name: str


def load_study(name: str) -> Study:
  """The study of `NAME` or `NAME:PART`, where NAME is a recipe or a Python file.

  Raises:
    ConfigError: there is no such file or part, or it is the config of one run.

  >>> list(load_study("compare").arms)
  ['none', 'token_tis', 'sequence_tis']
  """
  study = load_file(name)
  if not isinstance(study, Study):
    raise ConfigError(
      f"{name} is the config of one run: give it with --vary, or to tis train"
    )
  return study


def plan(study: Study) -> list[PlannedRun]:
  """The runs of a study: every arm and point under one seed before the next one.

  An axis at the value that the common settings give is not in a run's name, so parts of
  a study that share a workdir share the run.

  Raises:
    ConfigError: settings that do not exist, are impossible or contradict each other, or
      a learner of several processes.

  >>> study = Study("quickstart", {"store.max_staleness": 8},
  ...               {"none": {"algorithm.correction.stages": ()}},
  ...               {"store.max_staleness": (1, 8)}, seeds=(0,))
  >>> [run.name for run in plan(study)]
  ['none_max_staleness-1_seed-0', 'none_seed-0']
  """
  points = [
    dict(zip(study.axes, values, strict=True))
    for values in itertools.product(*study.axes.values())
  ]
  seeds = study.seeds or (None,)
  runs = [
    _planned(study, arm, point, seed)
    for seed, point, arm in itertools.product(seeds, points, study.arms)
  ]
  names = [run.name for run in runs]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ConfigError(f"several runs would be named {', '.join(twice)}")
  return runs


def _check_alone(config: ConfigDict) -> None:
  """Refuses a learner of several processes: a study starts one for each run."""
  if (count := config.processes.count) != 1:
    raise ConfigError(
      f"processes.count is {count}, and a study makes each of its runs in one process: "
      "set it to 1, or make such runs by tis train, the same command in each process"
    )


def _planned(study: Study, arm: str, point: Mapping[str, Any], seed) -> PlannedRun:
  settings = {**study.common, **study.arms[arm], **point}
  if seed is not None:
    settings["seed"] = seed
  overrides = [f"--config.{name}={as_text(x)}" for name, x in settings.items()]
  config = load_recipe(study.base)
  try:
    override(config, overrides)
    read_config(config)
    _check_alone(config)
  except ConfigError as error:
    raise ConfigError(f"arm {arm}: {error}" if arm else str(error)) from error
  texts = {name: as_text(value) for name, value in point.items()}
  moved = {
    name: text
    for name, text in texts.items()
    if name not in study.common or text != as_text(study.common[name])
  }
  parts = [arm] if arm else []
  parts += [f"{name.rpartition('.')[2]}-{text}" for name, text in moved.items()]
  parts += [] if seed is None else [f"seed-{seed}"]
  name = re.sub(r"[^\w.,+()-]", "-", "_".join(parts)) or "run"
  return PlannedRun(arm, texts, seed, study.base, tuple(overrides), config, name)
