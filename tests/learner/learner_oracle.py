"""What an update should do, written down once more, plainly and without the library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import runner

VERSION = 7


def make_algorithm(**settings):
  """The default algorithm with some settings changed: `loss__name="gspo"`, ..."""
  config = runner.algorithm_config()
  for path, value in settings.items():
    *groups, name = path.split("__")
    group = functools.reduce(lambda group, key: group[key], groups, config)
    group[name] = value
  return runner.algorithm_of(config)


def compact(batch):
  """Rows without left padding: tokens `[B, P + T]`, and where each response starts."""
  longest = batch.prompts.shape[1] + batch.tokens.shape[1]
  tokens = np.zeros((len(batch.tokens), longest))
  starts = batch.prompt_mask.sum(1)
  for i in range(len(starts)):
    row = np.concatenate([batch.prompts[i, batch.prompt_mask[i]], batch.tokens[i]])
    tokens[i, : len(row)] = row
  return jnp.asarray(tokens, jnp.int32), starts


@functools.partial(jax.jit, static_argnums=0)
def _all_logp(graph, params, tokens):
  model = nnx.merge(graph, params)
  hidden, _ = model(tokens)
  return jax.nn.log_softmax(hidden @ model.head())


def distributions(graph, params, batch):
  """`[B, T, V]` log-probs of the token at each response position."""
  tokens, starts = compact(batch)
  all_logp = _all_logp(graph, params, tokens)
  slot = starts[:, None] - 1 + np.arange(batch.tokens.shape[1])[None]
  return all_logp[np.arange(len(slot))[:, None], np.maximum(slot, 0)]


def scores(graph, params, batch):
  """`(logp_BT, entropy_BT)` of the responses; garbage off the mask. Differentiable."""
  rows = distributions(graph, params, batch)
  logp = jnp.take_along_axis(rows, jnp.asarray(batch.tokens)[..., None], -1)[..., 0]
  return logp, -(jnp.exp(rows) * rows).sum(-1)


def advantages(batch):
  """GRPO, by loops."""
  found, held = np.zeros(len(batch.rewards)), batch.mask.any(1)
  for group in set(batch.group_ids[held]):
    rows = held & (batch.group_ids == group)
    rewards = batch.rewards[rows].astype(np.float64)
    if len(rewards) > 1:
      found[rows] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
  return found


def truncated_weight(old_logp, batch, cap=2.0):
  log_ratio = np.where(batch.mask, np.asarray(old_logp) - batch.sampler_logp, 0.0)
  return np.minimum(np.exp(log_ratio), cap)


def token_baseline_advantages(graph, params, batch, align, cap=2.0):
  """The optimal token baseline under token TIS, by loops."""
  rows = np.float64(distributions(graph, params, batch))
  logp = np.take_along_axis(rows, batch.tokens[..., None], -1)[..., 0]
  energy = 1 - 2 * np.exp(logp) + (np.exp(rows) ** 2).sum(-1)
  energy *= truncated_weight(logp, batch, cap) ** 2
  path = np.cumsum(np.where(batch.mask, energy, 0), 1)
  place = np.broadcast_to(np.arange(batch.mask.shape[1]), batch.mask.shape)
  if align == "ordinal":
    place = np.cumsum(batch.mask, 1) - 1
  found = np.zeros(batch.mask.shape)
  for i, t in np.argwhere(batch.mask):
    same = batch.mask & (place == place[i, t])
    same &= (batch.group_ids == batch.group_ids[i])[:, None]
    baseline = 0.0
    if same.sum() > 1:
      rewards = np.broadcast_to(batch.rewards[:, None], same.shape)[same]
      baseline = (rewards * path[same]).sum() / path[same].sum()
    found[i, t] = batch.rewards[i] - baseline
  return found


def policy_gradient_step(graph, params, optimizer, batch, advantage=None):
  """One update of token TIS: `(params, loss, gradient norm)`; ratio 1, so no clip."""
  old_logp, _ = scores(graph, params, batch)
  advantage = advantages(batch)[:, None] if advantage is None else advantage
  scale = advantage * truncated_weight(old_logp, batch)
  scale = np.where(batch.mask, scale, 0.0) / batch.mask.sum()

  def loss(params):
    logp, _ = scores(graph, params, batch)
    ratio = jnp.exp(jnp.where(batch.mask, logp - old_logp, 0.0))
    return -(scale.astype(np.float32) * ratio).sum()

  @jax.jit
  def step(params):
    value, gradients = jax.value_and_grad(loss)(params)
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return jax.tree.map(jnp.add, params, updates), value, norm

  return step(params)
