"""Your own loop with Flax NNX, in seconds on a CPU: `python examples/flax_nnx.py`.

A policy learns to count down (4: 3 2 1 0) from rollouts of a sampler that is not the
learner: its params in bf16, four versions old. `update` holds what tis_jax adds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tis_jax as tis

TOKENS, LENGTH, WIDTH = 8, 7, 64  # a prompt is one of 1 to 7; 0 ends a response
PROMPTS, ANSWERS, STEPS, BEHIND = 32, 8, 41, 4  # the sampler is BEHIND versions old
correct = tis.chain(tis.veto(low=1e-4), tis.truncate(2.0, level="token"))
logprobs = tis.logprobs.logprobs_from_logits  # fp32, whatever the dtype of the logits


class Policy(nnx.Module):  # a decoder of one layer, computed in `dtype`
  def __init__(self, dtype, rngs):
    self.embed = nnx.Embed(TOKENS, WIDTH, dtype=dtype, rngs=rngs)
    self.mix = nnx.MultiHeadAttention(4, WIDTH, dtype=dtype, decode=False, rngs=rngs)
    self.up = nnx.Linear(WIDTH, WIDTH, dtype=dtype, rngs=rngs)
    self.head = nnx.Linear(WIDTH, TOKENS, dtype=dtype, rngs=rngs)

  def __call__(self, rows):  # [B, T] -> [B, T, TOKENS]
    x = self.embed(rows)
    x = x + self.mix(x, mask=nnx.make_causal_mask(rows))
    return self.head(nnx.gelu(self.up(x)))


@nnx.jit
def sample(sampler, prompts, key):  # rows of prompt and response, sampler_logp, mask
  def draw(rows, place):
    logits = sampler(rows[:, :-1])[:, place].astype(jnp.float32)
    tokens = jax.random.categorical(jax.random.fold_in(key, place), logits)
    return rows.at[:, place + 1].set(tokens), logprobs(logits, tokens).logp

  rows = jnp.pad(prompts, ((0, 0), (0, LENGTH)))
  rows, logp = jax.lax.scan(draw, rows, jnp.arange(LENGTH))
  return rows, logp.T, jnp.cumprod(rows[:, :-1] != 0, axis=1)


@nnx.jit
def update(learner, optimizer, rows, sampler_logp, mask, rewards):
  score = lambda policy: logprobs(policy(rows[:, :-1]), rows[:, 1:]).logp
  old_logp = score(learner)
  out = correct(old_logp, sampler_logp, mask)
  advantages = tis.advantages.grpo(rewards, jnp.arange(len(rewards)) // ANSWERS)

  def loss_fn(learner):
    token_loss, metrics = tis.losses.ppo(score(learner), old_logp, advantages, mask)
    loss = tis.aggregate(token_loss * out.weight, out.mask, denominator_mask=mask)
    return loss, metrics

  for _ in range(2):  # passes over one batch
    gradients, metrics = nnx.grad(loss_fn, has_aux=True)(learner)
    optimizer.update(learner, gradients)
  return tis.finalize(out.metrics | metrics)


rng, versions, means = np.random.default_rng(0), [], []
learner, sampler = (Policy(d, nnx.Rngs(0)) for d in (jnp.float32, jnp.bfloat16))
optimizer = nnx.Optimizer(learner, optax.adam(2e-3), wrt=nnx.Param)
for step in range(STEPS):
  versions = [*versions, jax.tree.map(jnp.bfloat16, nnx.state(learner))][-BEHIND - 1 :]
  nnx.update(sampler, versions[0])
  prompts = rng.integers(1, TOKENS, (PROMPTS, 1)).repeat(ANSWERS, axis=0)
  rows, logp, mask = sample(sampler, prompts, jax.random.key(step))
  right = np.cumprod(rows[:, 1:] == rows[:, :-1] - 1, axis=1)  # up to the first slip
  rewards = right.sum(axis=1) / prompts[:, 0]
  seen = update(learner, optimizer, rows, logp, mask, rewards)
  means.append(rewards.mean())
  if step % 4 == 0:
    print(f"{step:2d}  reward {means[-1]:.2f}  ESS {seen['weight/ess']:.3f}", end="  ")
    print(f"k3 {seen['mismatch/k3']:.1e}  clipped {seen['truncate/high']:.1%}")
print(f"reward {means[0]:.2f} -> {means[-1]:.2f}")
