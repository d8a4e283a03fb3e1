"""Which runs a study asks for, under which names, and what it refuses."""

import pytest

from tis_jax.runner import ConfigError, default_config
from tis_jax.runner.commands.study import main
from tis_jax.runner.overrides import as_text, override
from tis_jax.runner.recipes import load_recipe
from tis_jax.runner.study import Study, load_study, plan, varied

STAGES = "algorithm.correction.stages"
ARMS = {"none": {STAGES: ()}, "both": {STAGES: ("veto", "truncate")}}


def test_arms_are_crossed_with_axes_and_seeds_one_seed_after_the_other():
  axes = {"store.max_staleness": (1, 8), "sampler.precision": ("int8",)}
  common = {"store.max_staleness": 8, "optimizer.learning_rate": 2e-4}
  runs = plan(Study("quickstart", common, ARMS, axes, seeds=(3, 4)))
  assert [run.name for run in runs[:5]] == [
    "none_max_staleness-1_precision-int8_seed-3",
    "both_max_staleness-1_precision-int8_seed-3",
    # What the common settings say already is not said again.
    "none_precision-int8_seed-3",
    "both_precision-int8_seed-3",
    "none_max_staleness-1_precision-int8_seed-4",
  ]
  assert len({run.name for run in runs}) == len(runs) == 8
  config = runs[1].config
  assert config.algorithm.correction.stages == ("veto", "truncate")
  assert (config.store.max_staleness, config.seed) == (1, 3)
  assert config.optimizer.learning_rate == 2e-4
  # What a child is told is what was planned.
  told = load_recipe("quickstart")
  override(told, runs[1].overrides)
  assert told == config


def test_what_is_said_later_has_the_last_word():
  arms = {"wide": {"optimizer.learning_rate": 1e-3, "train.steps": 7}}
  common = {"optimizer.learning_rate": 2e-4, "seed": 5, "store.keep": 4}
  study = Study("quickstart", common, arms, {"store.keep": (9,)}, seeds=(6,))
  (run,) = plan(study)
  assert run.config.optimizer.learning_rate == 1e-3
  assert (run.config.train.steps, run.config.store.keep, run.config.seed) == (7, 9, 6)


@pytest.mark.parametrize(
  ("setting", "value"),
  [
    (STAGES, ()),
    (STAGES, ("truncate",)),
    (STAGES, ("veto", "truncate")),
    ("algorithm.loss.ppo.dual_clip", None),
    ("model.remat", True),
    ("optimizer.learning_rate", 3e-5),
    ("sampler.precision", "float32"),
    ("store.max_staleness", 0),
  ],
)
def test_a_value_is_read_back_from_its_text(setting, value):
  config = default_config()
  override(config, [f"--config.{setting}={as_text(value)}"])
  for name in setting.split("."):
    config = config[name]
  assert config == value and type(config) is type(value)


def test_a_study_refuses_what_contradicts_itself():
  with pytest.raises(ConfigError, match=r"arm 'none' sets algorithm.*an axis"):
    Study("quickstart", arms=ARMS, axes={STAGES: (("truncate",),)})
  with pytest.raises(ConfigError, match="needs values, each once"):
    Study("quickstart", axes={"train.steps": (5, "5")})
  with pytest.raises(ConfigError, match="seed is set by"):
    Study("quickstart", axes={"seed": (1, 2)}, seeds=(0,))
  with pytest.raises(ConfigError, match="no arm 'tis'; there are none, both"):
    Study("quickstart", arms=ARMS).only(["tis"])


def test_what_is_impossible_is_said_before_anything_runs():
  with pytest.raises(ConfigError, match="did you mean 'steps'"):
    plan(Study("quickstart", {"train.step": 5}))
  with pytest.raises(ConfigError, match=r"arm cold.*temperature"):
    plan(Study("quickstart", arms={"cold": {"sampler.temperature": 0.0}}))
  several = {"processes.count": 2, "processes.coordinator": "host:1234"}
  with pytest.raises(ConfigError, match=r"arm two: processes.count is 2, and a study"):
    plan(Study("quickstart", arms={"one": {}, "two": several}))
  with pytest.raises(ConfigError, match=r"processes.count is 0, and a study"):
    plan(Study("quickstart", {"processes.count": 0}))
  twice = {"data.options.a/b": (1,), "seed": (0,)}
  assert plan(Study("quickstart", axes=twice))[0].name == "a-b-1_seed-0"
  same = {"data.options.x": ("a/b", "a-b")}
  with pytest.raises(ConfigError, match="several runs would be named x-a-b"):
    plan(Study("quickstart", axes=same))


def test_runs_and_studies_are_told_apart():
  with pytest.raises(ConfigError, match=r"compare is a study.*tis study"):
    load_recipe("compare")
  with pytest.raises(ConfigError, match="quickstart is the config of one run"):
    load_study("quickstart")


def test_what_is_varied_may_have_commas():
  study = varied("quickstart", [[STAGES, "veto,truncate", "veto"], ["seed", "0", "1"]])
  assert [tuple(run.point.values()) for run in plan(study)] == [
    ("veto,truncate", "0"),
    ("veto,truncate", "1"),
    ("veto", "0"),
    ("veto", "1"),
  ]
  stages = [run.config.algorithm.correction.stages for run in plan(study)]
  assert stages[1:3] == [("veto", "truncate"), ("veto",)]


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--vary=seed=0,1,2"], "separated by spaces: --vary seed 0 1 2"),
    (["--vary", "seed=0", "1"], "separated by spaces: --vary seed 0 1"),
    (["--vary", "seed", "0,1,2"], "--vary seed 0,1,2: values are separated by spaces"),
    (["--vary", "seed"], "--vary seed: values are separated by spaces"),
    (["--vary", "seed", "0", "--vary", "seed", "1"], "--vary seed is given twice"),
    (["--vary", "seed", "0", "--jobs", "0"], "--jobs 0: at least 1"),
    (["--vary", "seed", "0", "--seeds", "1"], "--arms and --seeds are of a study"),
  ],
)
def test_values_that_are_separated_otherwise_are_refused(argv, says, capsys):
  with pytest.raises(SystemExit) as ended:
    main(["--config=c", "--workdir=w", *argv])
  assert ended.value.code == 2
  assert says in capsys.readouterr().err
