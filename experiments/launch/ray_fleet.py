"""A learner and its samplers as actors on a Ray cluster, joined by a store.

python experiments/launch/ray_fleet.py --config=quickstart --workdir=/shared/run \\
  --store=file:///shared/run/store --samplers=8 \\
  --learner_needs=CPU=8,GPU=1 --sampler_needs=CPU=2 --config.train.steps=500

The learner runs `tis train`, each sampler `tis sample`, in a process of its own below
an actor: what one has for the other goes through the store, and Ray carries no arrays.
Ray makes an actor again whose node or worker is gone, and this script starts a process
again that has died.

With --learners=N the learner is N processes, an actor each, spread over the nodes. When
one is gone the others end by themselves, and all are started again, to meet on the node
where the first then is.
"""

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

try:
  import ray
  from ray_members import INTERRUPTED, Member, say, supervise, wait_for

  from tis_jax.runner import ConfigError, read_config
  from tis_jax.runner.overrides import override
  from tis_jax.runner.recipes import load_recipe
except ModuleNotFoundError as error:
  if error.name is None or error.name.startswith(("tis_jax.", "ray_")):
    raise
  sys.exit(
    f"{sys.executable} has no {error.name}: make ray installs it, or where tis_jax is "
    'installed, on every node, pip install "tis_jax[train,ray]"'
  )

_PATIENCE_SECONDS = 3600.0


def join(address: str) -> None:
  """Makes this process a driver of the cluster."""
  try:
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
      # Ray itself tries for minutes, and then ends the process.
      socket.create_connection((host, int(port)), timeout=10.0).close()
    ray.init(address=address)
  except OSError as error:
    sys.exit(
      f"no Ray cluster at {address} ({error}): start one with ray start --head, or "
      "give --address=local"
    )


def say_what_is_missing(role: str, needs: dict[str, Any], count: int = 1) -> None:
  """Says so where the nodes of now lack what a role needs; one may still join."""
  wanted = {
    "CPU": needs["num_cpus"],
    "GPU": needs["num_gpus"],
    **needs["resources"],
  }
  nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
  wanted = {name: amount for name, amount in wanted.items() if amount}
  text = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
  places = sum(
    min((int(node.get(x, 0) // v) for x, v in wanted.items()), default=count)
    for node in nodes
  )
  if places == 0:
    say(f"no node has {text} for {role}: waiting for one to join")
  elif places < count:
    say(
      f"the nodes have room for {places} of {count} processes of {role}, {text} each: "
      "waiting for one to join"
    )


def needs_of(text: str) -> dict[str, Any]:
  """`CPU=4,TPU=4` as the options of an actor."""
  found = {}
  for part in text.split(","):
    name, equals, count = part.partition("=")
    try:
      found[name] = float(count)
    except ValueError:
      equals = ""
    if not (name and equals):
      raise argparse.ArgumentTypeError(f"{part!r} is not NAME=NUMBER, as CPU=4 is")
  return {
    "num_cpus": found.pop("CPU", 0.0),
    "num_gpus": found.pop("GPU", 0.0),
    "resources": found,
  }


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    epilog="Every --config.NAME=VALUE is the learner's, as of tis train.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", required=True, metavar="RECIPE[:ARG]")
  parser.add_argument(
    "--workdir", required=True, help="that every node sees on which the learner may run"
  )
  parser.add_argument(
    "--store", required=True, metavar="URL", help="of the run, that every node reaches"
  )
  parser.add_argument("--samplers", type=int, default=1)
  parser.add_argument(
    "--learners", type=int, default=1, help="processes of the learner, an actor each"
  )
  for role in ("learner", "sampler"):
    parser.add_argument(
      f"--{role}_needs",
      type=needs_of,
      default="CPU=1",
      metavar="NAME=NUMBER,...",
      help="of a node's resources: CPU, GPU, TPU, or names of your own",
    )
  parser.add_argument(
    "--address",
    default="auto",
    help='of the cluster; "local" for one of this machine alone, made for the run',
  )
  known, settings = parser.parse_known_args(argv)
  if known.learners < 1:
    parser.error(f"--learners={known.learners}: a learner is one process, or several")
  ours = [f"--config.store.url={known.store}", "--config.sampler.count=0"]
  try:
    config = load_recipe(known.config)
    override(config, [*settings, *ours])
    read_config(config)
  except ConfigError as error:
    sys.exit(f"ConfigError: {error}")
  join(known.address)
  say_what_is_missing("the learner", known.learner_needs, known.learners)
  say_what_is_missing("a sampler", known.sampler_needs)
  workdir = os.path.abspath(known.workdir)
  train = ["train", f"--config={known.config}", f"--workdir={workdir}"]
  learner = Member(
    "learner",
    [*train, *settings, *ours],
    known.learner_needs,
    known.learners,
    scheduling_strategy="SPREAD" if known.learners > 1 else "DEFAULT",
  )
  sample = ["sample", f"--store={known.store}", f"--patience={_PATIENCE_SECONDS:g}"]
  samplers = [
    Member(
      name,
      [*sample, f"--name={name}"],
      known.sampler_needs,
      scheduling_strategy="SPREAD",
    )
    for name in (f"ray{number}" for number in range(known.samplers))
  ]
  try:
    code = supervise(learner, samplers)
    if code in (0, INTERRUPTED):
      wait_for(samplers)
    return code
  finally:
    for member in (learner, *samplers):
      with contextlib.suppress(ray.exceptions.RayError):
        member.kill()
    ray.shutdown()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
