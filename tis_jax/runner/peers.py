"""A peer's configuration in a run: `config.algorithm.peer`, or `--peer=verl`."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from tis_jax import compat
from tis_jax.numerics.arguments import check_name
from tis_jax.runner.config import ConfigError, refusing


def decided(
  peer: str, options: Mapping[str, Any], response_length: int | None = None
) -> dict[str, Any]:
  """Fields of `learner.Algorithm` that a peer's options decide; none without a peer.

  Raises:
    ValueError: no such peer, options of none, or what the peer's dialect refuses.
  """
  if not peer:
    if options:
      raise ValueError(
        "algorithm.peer_options are given, and algorithm.peer does not say whose they "
        f"are; there are {', '.join(compat.PEERS)}"
      )
    return {}
  check_name("algorithm.peer", peer, compat.PEERS)
  with warnings.catch_warnings():
    # `summary` says it, once.
    warnings.filterwarnings("ignore", message=".*nothing here reads", append=False)
    return compat.update(peer, options, response_length=response_length)


def set_peer(config: ConfigDict, peer: str, path: Path | None) -> None:
  """Has a run use a peer's configuration.

  Args:
    config: of the run; `algorithm.peer` and `peer_options` are set in it.
    peer: its name in `tis_jax.compat`; empty for the one that the config names.
    path: the peer's configuration: YAML, JSON, or any other file as the command line
      that is in it; None for the options that the config has.

  Raises:
    ConfigError: no such peer, or a file that cannot be read.
  """
  algorithm = config.algorithm
  algorithm.peer = peer or algorithm.peer
  if not algorithm.peer:
    raise ConfigError("--peer_config needs --peer, which says whose it is")
  with refusing("--peer"):
    check_name("algorithm.peer", algorithm.peer, compat.PEERS)
  if path is None:
    return
  with refusing(f"--peer_config={path}"):
    options = compat.sections_of(algorithm.peer).parse(_read(path))
  with config.unlocked():
    algorithm.peer_options = ConfigDict(options)


def summary(config: ConfigDict) -> str:
  """What of a run is a peer's: lines that follow its header; none without a peer."""
  peer = config.algorithm.peer
  if not peer:
    return ""
  options = config.algorithm.peer_options.to_dict()
  fields = decided(peer, options, response_length=config.sampler.max_new_tokens)
  module = compat.dialect(peer)
  unread = [key for key, readers in module.used(options).items() if not readers]
  lines = [f"peer     {peer} {module.VERSION}", f"         decides {', '.join(fields)}"]
  if unread:
    lines.append(f"         not read: {', '.join(unread)}")
  return "".join(f"\n{line}" for line in lines)


def _read(path: Path) -> Any:
  try:
    text = path.read_text()
  except OSError as error:
    raise ValueError(error.strerror or str(error)) from error
  if path.suffix == ".json":
    return json.loads(text)
  if path.suffix in (".yaml", ".yml"):
    try:
      return yaml.safe_load(text)
    except yaml.YAMLError as error:
      raise ValueError(f"it is no YAML: {error}") from error
  return text
