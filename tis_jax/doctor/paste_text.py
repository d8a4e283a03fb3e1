"""A framework's options as they are pasted: YAML, TOML, flags, or keywords."""

import json
import math
from collections.abc import Mapping
from typing import Any


def text_of(framework: str, config: Mapping[str, Any]) -> str:
  """The options in the form in which the framework takes them.

  Args:
    framework: a name of `tis_jax.doctor.paste.FRAMEWORKS`.
    config: from `config_of`.

  >>> print(text_of("skyrl", {"tis_ratio_type": "token"}))
  trainer.algorithm.off_policy_correction.tis_ratio_type=token
  >>> print(text_of("verl", {"rollout_is": "token", "rollout_is_threshold": 2.0}))
  algorithm:
    rollout_correction:
      rollout_is: token
      rollout_is_threshold: 2.0
  """
  return _WAYS[framework](config)


def _yaml(config: Mapping[str, Any], *path: str) -> str:
  lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path)]
  return "\n".join(lines + _yaml_lines(config, len(path))) or "{}"


def _yaml_lines(config: Mapping[str, Any], depth: int) -> list[str]:
  lines = []
  pad = "  " * depth
  for key, value in config.items():
    if isinstance(value, Mapping):
      lines += [f"{pad}{key}:", *_yaml_lines(value, depth + 1)]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
      lines.append(f"{pad}{key}:")
      for item in value:
        first, *rest = _yaml_lines(item, depth + 2)
        lines += [f"{pad}  - {first.strip()}", *rest]
    else:
      lines.append(f"{pad}{key}: {_scalar(value)}")
  return lines


def _scalar(value: Any) -> str:
  """A value that YAML, TOML and hydra read alike."""
  if value is None:
    return "null"
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, float):
    # YAML 1.1 takes 1e-09 for a word.
    return f"{value:.1e}" if value and abs(math.log10(abs(value))) > 8 else repr(value)
  if isinstance(value, list):
    return "[" + ", ".join(map(_scalar, value)) + "]"
  word = str(value)
  plain = word.replace("_", "").replace("-", "").isalpha()
  return word if plain else json.dumps(word)


def _overrides(config: Mapping[str, Any], prefix: str) -> str:
  return "\n".join(f"{prefix}.{key}={_scalar(value)}" for key, value in config.items())


def _keywords(config: Mapping[str, Any], name: str) -> str:
  lines = [f"  {key}={value!r}," for key, value in config.items()]
  return "\n".join([f"{name}(", *lines, ")"])


def _toml(config: Mapping[str, Any]) -> str:
  quoted = lambda x: json.dumps(x) if isinstance(x, str) else _scalar(x)
  lines = [f"{key} = {quoted(value)}" for key, value in config.items()]
  return "\n".join(["[trainer.loss]", *lines])


def _openrlhf(config: Mapping[str, Any]) -> str:
  flags = []
  for key, value in config.items():
    flag = f"--algo.advantage.{key}"
    if value is True:
      flags.append(flag)
    elif isinstance(value, list):
      flags.append(f"{flag} {' '.join(map(_scalar, value))}")
    elif value is not False:
      flags.append(f"{flag} {value}")
  return "\n".join(flags) or "# leave --algo.advantage.is_correction_enable out"


def _ms_swift(config: Mapping[str, Any]) -> str:
  flags = [f"--{key} {_scalar(value)}" for key, value in config.items()]
  return "\n".join(flags) or "# leave --rollout_importance_sampling_mode out"


def _nemo_rl(config: Mapping[str, Any]) -> str:
  gate = "seq_logprob_error_threshold"
  loss = {key: value for key, value in config.items() if key != gate}
  text = _yaml(loss, "loss_fn")
  return f"{text}\n{_yaml({gate: config[gate]}, 'grpo')}" if gate in config else text


_WAYS = {
  "verl": lambda config: _yaml(config, "algorithm", "rollout_correction"),
  "skyrl": lambda config: _overrides(config, "trainer.algorithm.off_policy_correction"),
  "slime": lambda config: _yaml(config),
  "trl": lambda config: _keywords(config, "GRPOConfig"),
  "nemo_rl": _nemo_rl,
  "areal": lambda config: _yaml(config, "actor"),
  "prime_rl": _toml,
  "openrlhf": _openrlhf,
  "roll": lambda config: _yaml(config, "train_infer_correction"),
  "ms_swift": _ms_swift,
  "tunix": lambda config: _keywords(config, "GRPOConfig"),
}
