"""Your own loop with Flax Linen, in seconds on a CPU: `python examples/flax_linen.py`.

A policy learns to count down (4: 3 2 1 0) from rollouts of a sampler that is not the
learner: its params in bf16, four versions old. `update` holds what tis_jax adds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import tis_jax as tis

TOKENS, LENGTH, WIDTH = 8, 7, 64  # a prompt is one of 1 to 7; 0 ends a response
PROMPTS, ANSWERS, STEPS, BEHIND = 32, 8, 41, 4  # the sampler is BEHIND versions old
correct = tis.chain(tis.veto(low=1e-4), tis.truncate(2.0, level="token"))
logprobs = tis.logprobs.logprobs_from_logits  # fp32, whatever the dtype of the logits


class Policy(nn.Module):  # a decoder of one layer, in the dtype of its params
  @nn.compact
  def __call__(self, rows):  # [B, T] -> [B, T, TOKENS]
    x = nn.Embed(TOKENS, WIDTH)(rows)
    x = x + nn.MultiHeadDotProductAttention(4)(x, mask=nn.make_causal_mask(rows))
    return nn.Dense(TOKENS)(nn.gelu(nn.Dense(WIDTH)(x)))


policy = Policy()


@jax.jit
def sample(params, prompts, key):  # rows of prompt and response, sampler_logp, mask
  def draw(rows, place):
    logits = policy.apply(params, rows[:, :-1])[:, place].astype(jnp.float32)
    tokens = jax.random.categorical(jax.random.fold_in(key, place), logits)
    return rows.at[:, place + 1].set(tokens), logprobs(logits, tokens).logp

  rows = jnp.pad(prompts, ((0, 0), (0, LENGTH)))
  rows, logp = jax.lax.scan(draw, rows, jnp.arange(LENGTH))
  return rows, logp.T, jnp.cumprod(rows[:, :-1] != 0, axis=1)


@jax.jit
def update(state, rows, sampler_logp, mask, rewards):
  score = lambda params: logprobs(policy.apply(params, rows[:, :-1]), rows[:, 1:]).logp
  old_logp = score(state.params)
  out = correct(old_logp, sampler_logp, mask)
  advantages = tis.advantages.grpo(rewards, jnp.arange(len(rewards)) // ANSWERS)

  def loss_fn(params):
    token_loss, metrics = tis.losses.ppo(score(params), old_logp, advantages, mask)
    loss = tis.aggregate(token_loss * out.weight, out.mask, denominator_mask=mask)
    return loss, metrics

  for _ in range(2):  # passes over one batch
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=gradients)
  return state, tis.finalize(out.metrics | metrics)


rng, versions, means = np.random.default_rng(0), [], []
params = policy.init(jax.random.key(0), jnp.zeros((1, LENGTH), int))
state = TrainState.create(apply_fn=policy.apply, params=params, tx=optax.adam(2e-3))
for step in range(STEPS):
  versions = [*versions, jax.tree.map(jnp.bfloat16, state.params)][-BEHIND - 1 :]
  prompts = rng.integers(1, TOKENS, (PROMPTS, 1)).repeat(ANSWERS, axis=0)
  rows, logp, mask = sample(versions[0], prompts, jax.random.key(step))
  right = np.cumprod(rows[:, 1:] == rows[:, :-1] - 1, axis=1)  # up to the first slip
  rewards = right.sum(axis=1) / prompts[:, 0]
  state, seen = update(state, rows, logp, mask, rewards)
  means.append(rewards.mean())
  if step % 4 == 0:
    print(f"{step:2d}  reward {means[-1]:.2f}  ESS {seen['weight/ess']:.3f}", end="  ")
    print(f"k3 {seen['mismatch/k3']:.1e}  clipped {seen['truncate/high']:.1%}")
print(f"reward {means[0]:.2f} -> {means[-1]:.2f}")
