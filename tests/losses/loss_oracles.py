"""Float64 numpy versions of the policy losses, one sequence at a time.

Each takes the log-probs twice: `x`, through which the gradient runs, and `x0`, the
same numbers where the loss stops the gradient. Differences in `x` alone are then the
gradient that the loss promises, whatever its value is.
"""

import numpy as np


def ratio(x, y):
  return np.exp(np.clip(x - y, -20, 20))


def surrogate(r, a, low, high, dual=None):
  loss = np.maximum(-a * r, -a * np.clip(r, 1 - low, 1 + high))
  return loss if dual is None else np.where(a < 0, np.minimum(loss, -a * dual), loss)


def ppo(x, x0, old, mu, a):
  return surrogate(ratio(x, old), a, 0.2, 0.28, 3.0)


def decoupled_ppo(x, x0, old, mu, a):
  return np.minimum(ratio(old, mu), 5.0) * ppo(x, x0, old, mu, a)


def reinforce(x, x0, old, mu, a):
  return -a * x


def importance_sampling(x, x0, old, mu, a):
  return -a * ratio(x, old)


def cispo(x, x0, old, mu, a):
  return -a * np.clip(ratio(x0, old), 0.0, 5.0) * x


def sampler_cispo(x, x0, old, mu, a):
  return cispo(x, x0, mu, mu, a)


def rollout_is(x, x0, old, mu, a):
  r = ratio(x0, mu)
  return -a * np.where((r >= 0.5) & (r <= 5.0), r, 0.0) * x


def topr(x, x0, old, mu, a):
  taper = np.exp(min(np.sum(x0 - mu), 0.0))
  return -a * np.where(a > 0, 1.0, taper) * x


def vespo(x, x0, old, mu, a):
  log_w = np.clip(np.sum(x0 - mu), -20, 20)
  weight = lambda k, rate: np.exp(k * log_w + rate * (1 - np.exp(log_w)))
  return -a * np.where(a >= 0, weight(2.0, 3.0), weight(3.0, 2.0)) * x


def dppo(x, x0, old, mu, a):
  rise = np.exp(x0) - np.exp(mu)
  keep = np.where(a > 0, rise <= 0.2, -rise <= 0.2)
  return -a * np.where(keep, np.minimum(ratio(x0, mu), 20.0), 0.0) * x


def sapo(x, x0, old, mu, a):
  tau = np.where(a > 0, 1.0, 1.05)
  return -a * 4 / tau / (1 + np.exp(-tau * (ratio(x, old) - 1)))


def dro(x, x0, old, mu, a):
  return -(a * x - 0.5 * 0.3 * (x - old) ** 2)


def cross_entropy(x, x0, old, mu, a):
  return -x


def gspo(x, x0, old, mu, a):
  return surrogate(np.exp(np.mean(x - old)) * np.ones_like(x), a, 3e-4, 4e-4)


def gspo_token(x, x0, old, mu, a):
  return surrogate(np.exp(np.mean(x0 - old)) * np.exp(x - x0), a, 3e-4, 4e-4)


def luspo(x, x0, old, mu, a):
  r = np.exp(np.mean(x - old)) * np.ones_like(x)
  return len(x) * surrogate(r, a, 2e-3, 2.5e-3)


def gmpo(x, x0, old, mu, a):
  d = x - old
  d = np.where(a > 0, np.minimum(d, 0.4), np.where(a < 0, np.maximum(d, -0.4), 0.0))
  return -np.mean(a) * np.exp(np.mean(d)) * np.ones_like(x)


SEQUENCE_LOSSES = {
  "cispo": cispo,
  "cross_entropy": cross_entropy,
  "decoupled_ppo": decoupled_ppo,
  "dppo": dppo,
  "dro": dro,
  "gmpo": gmpo,
  "gpg": reinforce,
  "gspo": gspo,
  "gspo_token": gspo_token,
  "importance_sampling": importance_sampling,
  "luspo": luspo,
  "ppo": ppo,
  "reinforce": reinforce,
  "rollout_is": rollout_is,
  "sampler_cispo": sampler_cispo,
  "sapo": sapo,
  "topr": topr,
  "vespo": vespo,
}


def m2po(x, x0, old, mu, a, mask):
  """Selects over the batch: `[B, T]` in and out."""
  d = np.where(mask, x0 - old, 0.0)
  outward = mask & (a * d > 0)
  kept = np.ones_like(mask)
  # Ascending, while the running mean is within the bound.
  order = sorted(np.argwhere(outward).tolist(), key=lambda at: d[tuple(at)] ** 2)
  total = 0.0
  for n, at in enumerate(order, 1):
    total += d[tuple(at)] ** 2
    kept[tuple(at)] = total <= 0.04 * n
  return np.where(kept, -a * ratio(x, old), 0.0)


def covariance(x0, a, mask):
  return (a - a[mask].mean()) * (x0 - x0[mask].mean())


def kl_cov(x, x0, old, mu, a, mask, select=0.2, coefficient=1.0):
  """Selects over the batch: `[B, T]` in and out."""
  count = max(int(select * mask.sum()), 1)
  c = np.where(mask, covariance(x0, a, mask), -np.inf)
  chosen = c >= np.sort(c[mask])[-count]
  penalty = np.where(chosen, coefficient * np.abs(x - old), 0.0)
  return -a * ratio(x, old) + penalty


def clip_cov(x, x0, old, mu, a, mask, cut):
  """PPO less the tokens that were cut, which only the key knows."""
  return np.where(cut, 0.0, surrogate(ratio(x, old), a, 0.2, 0.2))


BATCH_LOSSES = {"m2po": m2po, "kl_cov": kl_cov}


def apply(name, x, x0, old, mu, a, mask):
  """`[B, T]` token losses of a batch of ragged rows, 0 off the mask."""
  out = np.zeros(mask.shape)
  if name in BATCH_LOSSES:
    cleaned = [np.where(mask, y, 0.0) for y in (x, x0, old, mu, a)]
    return np.where(mask, BATCH_LOSSES[name](*cleaned, mask), 0.0)
  for row, m in enumerate(mask):
    if m.any():
      parts = [y[row][m] for y in (x, x0, old, mu, a)]
      out[row][m] = SEQUENCE_LOSSES[name](*parts)
  return out
