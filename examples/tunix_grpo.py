"""Tunix trains, tis_jax corrects: python examples/tunix_grpo.py [--loss ours]

A two-layer Qwen3 learns to answer in a's, in ten steps of Tunix's GRPO on a CPU (half a
minute). The learner's params are fp32, the sampler's bf16, on a device of its own: that
is the gap. The lines with a mark are what differs from a script that has Tunix alone.
Needs google-tunix 0.1.7; docs/tunix.md has the rest.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.rollout import base_rollout

import tis_jax as tis  # <-
from tis_jax.integrations.tunix import TISConfig, TISGRPOLearner  # <-

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Tokenizer:
  """Ids 0, 1 and 2 are padding, beginning and end, the rest are letters."""

  def encode(self, text, **_):
    return [3 + LETTERS.index(letter) for letter in text]

  def decode(self, ids, **_):
    return "".join(LETTERS[i - 3] if i > 2 else "." for i in ids)

  bos_id, eos_id, pad_id = (lambda _: 1), (lambda _: 2), (lambda _: 0)


def share_of_a(prompts, completions, **_):
  return [text.count("a") / max(len(text), 1) for text in completions]


def make_cluster(steps: int) -> rl_cluster.RLCluster:
  config = qwen3.ModelConfig(
    num_layers=2, vocab_size=29, embed_dim=64, hidden_dim=128, num_heads=4, head_dim=16,
    num_kv_heads=2, rope_theta=10_000, norm_eps=1e-6, use_tied_embedding=True,
  )  # fmt: skip
  mesh_of = lambda device: Mesh(np.array([[device]]), ("fsdp", "tp"))
  learner, sampler = mesh_of(jax.devices()[0]), mesh_of(jax.devices()[-1])
  role = rl_cluster.Role
  meshes = {role.ACTOR: learner, role.REFERENCE: learner, role.ROLLOUT: sampler}
  rollout = base_rollout.RolloutConfig(
    temperature=0.8, data_type=jnp.bfloat16, max_tokens_to_generate=12,
    max_prompt_length=8, kv_cache_size=32,
  )  # fmt: skip
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.adam(3e-3), eval_every_n_steps=1000, max_steps=steps
  )
  return rl_cluster.RLCluster(
    actor=qwen3.Qwen3(config, rngs=nnx.Rngs(0)),
    tokenizer=Tokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=meshes, training_config=training, rollout_config=rollout
    ),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--loss", choices=("tunix", "ours"), default="tunix")
  parser.add_argument("--steps", type=int, default=10)
  asked = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", 2)
  settings = {}
  if asked.loss == "ours":  # else the weights go into Tunix's own loss
    settings = {
      "loss": functools.partial(tis.losses.ppo, clip_low=0.2, clip_high=0.28),
      "estimator": tis.advantages.rloo,
    }
  correction = tis.chain(tis.veto(1e-4), tis.truncate(2.0))  # <-
  config = TISConfig(  # <- GRPOConfig
    num_generations=16, beta=0.0, correction=correction, **settings
  )
  cluster = make_cluster(asked.steps)
  learner = TISGRPOLearner(cluster, config, share_of_a)  # <- GRPOLearner
  learner.train([{"prompts": np.array(["ab", "cde"])}] * asked.steps)
  logger = cluster._rl_metrics_logger
  history = lambda *name: logger.get_metric_history(*name, "train")
  columns = history("rewards", "score/mean"), history("mismatch", "k3")
  for step, (score, k3) in enumerate(zip(*columns, strict=True)):
    print(f"step {step}: reward {score:.3f}, KL(sampler, learner) {k3:.1e} nats")


if __name__ == "__main__":
  main()
