"""A configuration as nested dicts: from a mapping, dotted keys or a command line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from tis_jax.compat.options import command_line
from tis_jax.numerics.names import did_you_mean

Config = Mapping[str, Any] | str | Sequence[str] | None
Path = tuple[str, ...]
Has = Callable[[str], bool]


def read(
  peer: str, config: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """The options of `config` over the peer's `defaults`.

  Raises:
    TypeError: `config` is not a mapping.
    ValueError: a key is unknown; the message names it, the peer, and the nearest key.

  >>> read("verl", {"rollout_is": "token"}, {"rollout_is": None, "rollout_rs": None})
  {'rollout_is': 'token', 'rollout_rs': None}
  >>> read("verl", {"rollout_si": "token"}, {"rollout_is": None})
  Traceback (most recent call last):
  ...
  ValueError: verl has no option 'rollout_si'; did you mean 'rollout_is'?
  """
  if config is None:
    return dict(defaults)
  if not hasattr(config, "keys"):
    raise TypeError(f"{peer}: the config must be a mapping, got {config!r}")
  for key in config.keys():  # noqa: SIM118 (ConfigDict iterates otherwise)
    if key not in defaults:
      hint = did_you_mean(key, defaults)
      raise ValueError(f"{peer} has no option {key!r}{hint}")
  return {**defaults, **{key: config[key] for key in config.keys()}}  # noqa: SIM118


def parse(peer: str, config: Config, has: Has | None = None) -> dict[str, Any]:
  """A config as nested dicts, from a mapping, dotted keys or a command line.

  Args:
    peer: its name in messages.
    config: a mapping, or a command line in one string or in words.
    has: where the command line has `--flags` and no `key=value`: whether the peer has
      the option of a dotted name.

  >>> parse("verl", {"algorithm.gamma": 1.0, "algorithm": {"lam": 0.9}})
  {'algorithm': {'gamma': 1.0, 'lam': 0.9}}
  >>> parse("verl", "python3 -m main_ppo algorithm.gamma=1.0 +data.seed=null")
  {'algorithm': {'gamma': 1.0}, 'data': {'seed': None}}
  >>> parse("slime", "train.py --use-tis --lr 1e-6", {"use_tis", "lr"}.__contains__)
  {'use_tis': True, 'lr': 1e-06}
  """
  tree: dict[str, Any] = {}
  if config is None:
    return tree
  if isinstance(config, str) or _is_command_line(config):
    words = command_line.words_of(config)
    if has is None:
      pairs = command_line.overrides(peer, words)
    else:
      pairs = command_line.flags(peer, words, has)
    for key, value in pairs:
      _merge(tree, {key: value})
  elif hasattr(config, "keys"):
    _merge(tree, config)
  else:
    form = "'--flags'" if has else "'key=value' overrides"
    raise TypeError(f"{peer}: the config must be a mapping or {form}, got {config!r}")
  return tree


def leaves(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
  """Every value of nested dicts with its path."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*prefix, key))
    else:
      yield (*prefix, key), value


def _merge(tree: dict[str, Any], config: Any) -> None:
  for key in config.keys():  # noqa: SIM118 (ConfigDict iterates otherwise)
    value = config[key]
    *sections, name = str(key).split(".")
    node = tree
    for section in sections:
      if not isinstance(node.get(section), dict):
        node[section] = {}
      node = node[section]
    if not hasattr(value, "keys"):
      node[name] = value
      continue
    if not isinstance(node.get(name), dict):
      node[name] = {}
    _merge(node[name], value)


def _is_command_line(config: Config) -> TypeGuard[Sequence[str]]:
  return isinstance(config, Sequence) and any(
    "=" in str(word) or str(word).startswith("--") for word in config
  )
