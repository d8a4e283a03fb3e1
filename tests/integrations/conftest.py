"""A cluster of Tunix that trains a two-layer Qwen3 on a device or two."""

import jax
import numpy as np
import pytest

PAD, EOS = 0, 2


class Letters:
  """A tokenizer: a letter an id, from 3 on."""

  def encode(self, text, **_):
    return [3 + ord(letter) % 20 for letter in text]

  def decode(self, ids, **_):
    return " ".join(map(str, ids))

  def bos_id(self):
    return 1

  def eos_id(self):
    return EOS

  def pad_id(self):
    return PAD


@pytest.fixture(autouse=True)
def _ranks_promote():
  """Tunix adds arrays of several ranks."""
  before = jax.config.values["jax_numpy_rank_promotion"]
  jax.config.update("jax_numpy_rank_promotion", "allow")
  yield
  jax.config.update("jax_numpy_rank_promotion", before)


@pytest.fixture
def make_cluster():
  """`make_cluster(split=False, reference=False, training={}, **rollout)`."""
  return build_cluster


def build_cluster(split=False, reference=False, training=None, **rollout):
  import optax
  from flax import nnx
  from jax.sharding import Mesh
  from tunix.models.qwen3 import model as qwen3
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  config = qwen3.ModelConfig(
    num_layers=2, vocab_size=32, embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16,
    num_kv_heads=1, rope_theta=10_000, norm_eps=1e-6, use_tied_embedding=True,
  )  # fmt: skip
  model = lambda seed: qwen3.Qwen3(config, rngs=nnx.Rngs(seed))
  mesh = lambda i: Mesh(
    np.array(jax.devices()[i : i + 1]).reshape(1, 1), ("fsdp", "tp")
  )
  Role = rl_cluster.Role
  steps = {
    "actor_optimizer": optax.sgd(0.1),
    "eval_every_n_steps": 100,
    "max_steps": 2,
    "rollout_micro_batch_size": 2,
    "compute_logps_micro_batch_size": 2,
  }
  sampling = {
    "temperature": 0.6,
    "max_tokens_to_generate": 8,
    "max_prompt_length": 8,
    "kv_cache_size": 32,
  }
  return rl_cluster.RLCluster(
    actor=model(0),
    reference=model(1) if reference else None,
    tokenizer=Letters(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh={
        Role.ACTOR: mesh(0),
        Role.REFERENCE: mesh(0),
        Role.ROLLOUT: mesh(1 if split else 0),
      },
      training_config=rl_cluster.RLTrainingConfig(**steps | (training or {})),
      rollout_config=base_rollout.RolloutConfig(**sampling | rollout),
    ),
  )
