"""Policies small enough to enumerate: the exact bias and variance of a correction.

A tabular autoregressive policy has a logit for every token after every prefix. With V
tokens and at most T of them there are at most V^T sequences, so an expectation over the
sampler is a finite sum, and what a correction does to the policy gradient is known to
the last digit of fp64 rather than estimated:

  g = sum_t w_t A_t score_t,   bias = E_mu[g] - grad J,   variance = E_mu |g - E_mu g|^2

with `w_t` the weight on the tokens that the correction accepts, and 0 elsewhere; from
each term a centering takes off the mean of `w_t score_t` under the sampler, times A_t.
"""

import dataclasses
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax.corrections import Chain, TokenLaw, token_law
from tis_jax.losses import score_centering
from tis_jax.numerics.checks import check_choice


class Problem(NamedTuple):
  """A learner, a sampler and a reward, over every sequence there is (N of them).

  Attributes:
    tokens: `[N, T]` int, every sequence; what follows the end token is masked.
    mask: `[N, T]` bool.
    nodes: `[N, T]` int, the row of the tables that each token was drawn from.
    learner: `[S, V]` log-probs of the learner after each of S prefixes.
    sampler: `[S, V]` log-probs of the sampler.
    rewards: `[N]`.
  """

  tokens: np.ndarray
  mask: np.ndarray
  nodes: np.ndarray
  learner: np.ndarray
  sampler: np.ndarray
  rewards: np.ndarray

  def logp(self, table: np.ndarray) -> np.ndarray:
    """`[N, T]` fp64 log-probs of the tokens under a table; 0 where masked."""
    return np.where(self.mask, table[self.nodes, self.tokens], 0.0)

  def probability(self, table: np.ndarray) -> np.ndarray:
    """`[N]` fp64, the probability of each sequence under a table; they sum to 1."""
    return np.exp(self.logp(table).sum(axis=1))

  @property
  def outcome_advantages(self) -> np.ndarray:
    """`[N]`: the reward less the learner's exact expected reward."""
    return self.rewards - self.probability(self.learner) @ self.rewards

  @property
  def token_advantages(self) -> np.ndarray:
    """`[N, T]`: what a perfect critic says of each token, `Q(token) - V(prefix)`.

    Both are the learner's exact expected reward, after the token and before it.
    """
    q = np.zeros_like(self.learner)
    mass = np.zeros_like(self.learner)
    chance = self.probability(self.learner)
    for t in range(self.mask.shape[1]):
      at = self.nodes[:, t][self.mask[:, t]], self.tokens[:, t][self.mask[:, t]]
      np.add.at(q, at, (chance * self.rewards)[self.mask[:, t]])
      np.add.at(mass, at, chance[self.mask[:, t]])
    q = q / np.where(mass > 0, mass, 1.0)
    value = (np.exp(self.learner) * q).sum(axis=1)
    advantage = q[self.nodes, self.tokens] - value[self.nodes]
    return np.where(self.mask, advantage, 0.0)


class Exact(NamedTuple):
  """What a correction does to the policy gradient, exactly.

  Attributes:
    gradient: `[S, V]` the true gradient of the learner's expected reward.
    bias: `[S, V]` the expected estimate less the true gradient.
    variance: the total variance of the estimate from one sequence (or, from
      `exact_batch`, from one batch).
    accepted: the expected share of tokens accepted.
  """

  gradient: np.ndarray
  bias: np.ndarray
  variance: float
  accepted: float

  @property
  def relative_bias(self) -> float:
    """`|bias| / |gradient|`."""
    return float(np.linalg.norm(self.bias) / np.linalg.norm(self.gradient))

  @property
  def relative_variance(self) -> float:
    """`variance / |gradient|^2`."""
    return float(self.variance / np.linalg.norm(self.gradient) ** 2)

  @property
  def cosine(self) -> float:
    """The cosine between the expected estimate and the true gradient."""
    estimate = self.gradient + self.bias
    norms = np.linalg.norm(estimate) * np.linalg.norm(self.gradient)
    return float((estimate * self.gradient).sum() / norms) if norms > 0 else 0.0

  def relative_mse(self, samples: int) -> float:
    """The squared error of a mean over `samples` draws, relative to `|gradient|^2`."""
    return self.relative_bias**2 + self.relative_variance / samples


def random_problem(
  vocab: int = 3,
  length: int = 7,
  *,
  noise: float = 0.3,
  end_token: int | None = None,
  seed: int = 0,
) -> Problem:
  """A learner with normal logits, a sampler that is off by `noise`, random rewards.

  Args:
    vocab: V, at least 2.
    length: T; `V^T` must stay below a million.
    noise: the standard deviation of what is added to each of the learner's logits.
    end_token: a token after which a sequence ends; None for sequences all of length T.
    seed: for all of it.

  Returns:
    A `Problem`.

  Raises:
    ValueError: a size that cannot be enumerated.

  >>> problem = random_problem(vocab=2, length=3, end_token=0)
  >>> problem.tokens[problem.mask].size, problem.mask.sum(axis=1).tolist()
  (9, [1, 2, 3, 3])
  """
  if vocab < 2 or length < 1 or vocab**length > 10**6:
    raise ValueError(f"cannot enumerate {vocab}^{length} sequences")
  tokens, mask, nodes = _sequences(vocab, length, end_token)
  rng = np.random.default_rng(seed)
  tables = sum(vocab**t for t in range(length))
  logits = rng.normal(size=(tables, vocab))
  return Problem(
    tokens,
    mask,
    nodes,
    log_softmax(logits),
    log_softmax(logits + noise * rng.normal(size=logits.shape)),
    rng.normal(size=len(tokens)),
  )


def true_gradient(problem: Problem) -> np.ndarray:
  """`[S, V]`: the gradient of the learner's expected reward in its logits."""
  chance = problem.probability(problem.learner)
  return _expected_gradient(problem, (chance * problem.outcome_advantages)[:, None])


def exact(
  problem: Problem,
  correct: Chain,
  *,
  critic: bool = False,
  baseline: Literal["learner", "sampler"] = "learner",
  centered: int = 0,
) -> Exact:
  """The bias and variance of a correction that takes each sequence by itself.

  Args:
    problem: what to enumerate.
    correct: the corrector. A stage that looks at the batch (`pools`) needs
      `exact_batch`.
    critic: advantages by token from a perfect critic instead of one for the outcome.
    centered: how many of the sampler's most probable tokens the estimate is centred
      with (`losses.score_centering`): V for its whole law, 0 for no centering.
    baseline: whose expected reward is taken off an outcome: the "learner"'s, or the
      "sampler"'s, as the mean of a group does.

  Returns:
    `Exact`, for an estimate from one sequence.

  Raises:
    ValueError: a corrector that pools over the batch, or, to be centred, one without a
      law of single tokens.

  >>> from tis_jax.corrections import presets
  >>> problem = random_problem(vocab=2, length=3)
  >>> exact(problem, presets.seq_is()).relative_bias < 1e-10
  True
  >>> exact(problem, presets.tis()).relative_bias > 0.01
  True
  """
  if critic:
    advantages = problem.token_advantages
  else:
    check_choice("baseline", baseline, ("learner", "sampler"))
    judge = problem.learner if baseline == "learner" else problem.sampler
    advantages = problem.rewards - problem.probability(judge) @ problem.rewards
    advantages = advantages[:, None]
  found = updates(problem, correct, advantages, centered=centered)
  chance = problem.probability(problem.sampler)
  mean = found.mean(problem, chance)
  second = chance @ found.squares(problem)
  gradient = true_gradient(problem)
  tokens = problem.mask.sum(axis=1)
  return Exact(
    gradient,
    mean - gradient,
    float(second - (mean**2).sum()),
    float(chance @ found.mask.sum(axis=1) / (chance @ tokens)),
  )


class Updates(NamedTuple):
  """What each sequence adds to the estimate: `coefficient score`, summed over t and v.

  Attributes:
    coefficient: `[N, T, V]`, of the score of each token v at place t: weight times
      advantage for the one that was taken, less what a centering takes off.
    mask: `[N, T]` bool, the tokens accepted.
  """

  coefficient: np.ndarray
  mask: np.ndarray

  def mean(self, problem: Problem, share: np.ndarray) -> np.ndarray:
    """`[S, V]`: the estimate, where `share` `[N]` says how often each sequence is."""
    taken = np.zeros_like(problem.learner)
    held = problem.mask
    weighed = share[:, None, None] * self.coefficient
    np.add.at(taken, problem.nodes[held], weighed[held])
    return taken - taken.sum(axis=1, keepdims=True) * np.exp(problem.learner)

  def squares(self, problem: Problem) -> np.ndarray:
    """`[N]`: the squared norm of what each sequence adds.

    The tokens of one sequence are drawn from different rows of the table: orthogonal.
    """
    added = self.coefficient - (
      self.coefficient.sum(axis=2, keepdims=True)
      * np.exp(problem.learner)[problem.nodes]
    )
    return (added**2).sum(axis=(1, 2))


def updates(
  problem: Problem, correct: Chain, advantages: np.ndarray, *, centered: int = 0
) -> Updates:
  """What a correction makes of every sequence, each by itself.

  Args:
    problem: what to enumerate.
    correct: the corrector.
    advantages: `[N, T]`, or `[N, 1]` where they are by sequence.
    centered: see `exact`.

  Returns:
    `Updates`.

  Raises:
    ValueError: see `exact`.

  >>> from tis_jax.corrections import presets
  >>> problem = random_problem(vocab=2, length=2)
  >>> found = updates(problem, presets.tis(1.0), np.ones((4, 1)))
  >>> found.coefficient.shape, found.coefficient.max().item()
  ((4, 2, 2), 1.0)
  """
  if correct.pools:
    raise ValueError("this corrector pools over the batch: use exact_batch")
  weight, mask = _corrected(
    correct,
    problem.logp(problem.learner),
    problem.logp(problem.sampler),
    problem.mask,
    advantages if advantages.shape[1] > 1 else advantages[:, 0],
  )
  coefficient = np.zeros((*mask.shape, problem.learner.shape[1]))
  taken = np.where(mask, weight, 0.0) * advantages
  np.put_along_axis(coefficient, problem.tokens[..., None], taken[..., None], 2)
  if centered:
    coefficient -= _centre(problem, correct, advantages, centered)
  return Updates(coefficient, mask)


def _centre(problem: Problem, correct: Chain, advantages, size: int) -> np.ndarray:
  """`[N, T, V]`: what `score_centering` takes off the score of each token."""
  vocab = problem.learner.shape[1]
  if not 1 <= size <= vocab:
    raise ValueError(f"centered={size} is not between 1 and the vocabulary, {vocab}")
  law = token_law(correct)
  head = np.argsort(-problem.sampler, axis=1, kind="stable")[:, :size]
  logp, sampler_logp = (
    np.take_along_axis(table, head, 1)[problem.nodes]
    for table in (problem.learner, problem.sampler)
  )
  by_place = np.broadcast_to(advantages, problem.mask.shape)
  with jax.enable_x64(True):
    mask = law.places(
      problem.logp(problem.learner),
      problem.logp(problem.sampler),
      problem.mask,
      advantages=by_place,
    ).mask
    of_head = _centering_gradient(logp, sampler_logp, by_place, mask, law)
  taken_off = np.zeros((*problem.mask.shape, vocab))
  np.put_along_axis(taken_off, head[problem.nodes], np.asarray(of_head), 2)
  return taken_off


def exact_batch(
  problem: Problem, correct: Chain, *, size: int = 3, groups: bool = False
) -> Exact:
  """The bias and variance of any correction, over every batch of `size` sequences.

  For corrections that look at the batch: normalisation, adaptive caps, M2PO. There are
  `N^size` batches, so it is for problems with a handful of sequences.

  Args:
    problem: what to enumerate.
    correct: the corrector.
    size: sequences in a batch.
    groups: make the whole batch one prompt group.

  Returns:
    `Exact`, for an estimate from one batch: its variance is that of the batch's mean.

  Raises:
    ValueError: more than a million batches.

  >>> from tis_jax.corrections import presets
  >>> problem = random_problem(vocab=2, length=2)
  >>> one = exact(problem, presets.tis())
  >>> pair = exact_batch(problem, presets.tis(), size=2)
  >>> round(one.variance / pair.variance, 6)
  2.0
  """
  number = len(problem.tokens)
  if number**size > 10**6:
    raise ValueError(f"cannot enumerate {number}^{size} batches")
  rows = np.array(list(itertools.product(range(number), repeat=size)))
  advantages = problem.outcome_advantages
  group_ids = np.zeros(size, np.int32) if groups else np.arange(size, dtype=np.int32)
  correct = dataclasses.replace(correct, metrics="none")
  with jax.enable_x64(True):
    weight, mask = jax.vmap(
      lambda old, sampler, mask, advantages: correct(
        old, sampler, mask, advantages=advantages, group_ids=jnp.asarray(group_ids)
      )[:2]
    )(
      problem.logp(problem.learner)[rows],
      problem.logp(problem.sampler)[rows],
      problem.mask[rows],
      advantages[rows],
    )
  coefficient = np.where(mask, weight, 0.0) * advantages[rows][..., None]
  estimates = np.einsum("nbt,nbtp->np", coefficient, _scores(problem)[rows]) / size
  chance = problem.probability(problem.sampler)[rows].prod(axis=1)
  mean = chance @ estimates
  variance = chance @ ((estimates - mean) ** 2).sum(axis=1)
  gradient = true_gradient(problem)
  accepted = chance @ np.asarray(mask).sum(axis=(1, 2))
  tokens = chance @ problem.mask[rows].sum(axis=(1, 2))
  return Exact(
    gradient,
    mean.reshape(gradient.shape) - gradient,
    float(variance),
    float(accepted / tokens),
  )


@jax.jit
def _centering_gradient(logp, sampler_logp, advantages, mask, law: TokenLaw):
  return jax.grad(
    lambda logp: score_centering(
      logp,
      sampler_logp,
      advantages,
      mask,
      law=lambda *pair: law(*pair, advantages=advantages),
    )[0].sum()
  )(logp)


def _sequences(vocab: int, length: int, end_token: int | None):
  """Every sequence once, its mask, and the table row that each token is drawn from."""
  sequences = np.array(list(itertools.product(range(vocab), repeat=length)))
  ended = np.zeros(sequences.shape, bool)
  if end_token is not None:
    is_end = sequences == end_token
    ended = np.cumsum(is_end, axis=1) - is_end > 0
    # Of the sequences that differ after their end only, keep one.
    keep = ~(ended & (sequences != 0)).any(axis=1)
    sequences, ended = sequences[keep], ended[keep]
  nodes = np.zeros_like(sequences)
  prefix = np.zeros(len(sequences), sequences.dtype)
  for t in range(length):
    nodes[:, t] = sum(vocab**s for s in range(t)) + prefix
    prefix = prefix * vocab + sequences[:, t]
  return sequences, ~ended, nodes


def _corrected(correct: Chain, old_logp, sampler_logp, mask, advantages):
  correct = dataclasses.replace(correct, metrics="none")
  with jax.enable_x64(True):
    out = correct(
      jnp.asarray(old_logp, jnp.float64),
      jnp.asarray(sampler_logp, jnp.float64),
      jnp.asarray(mask),
      advantages=jnp.asarray(advantages, jnp.float64),
    )
    return np.asarray(out.weight), np.asarray(out.mask)


def _expected_gradient(problem: Problem, coefficient: np.ndarray) -> np.ndarray:
  """`sum_nt coefficient_nt score_nt`, with `score = onehot(token) - pi(. | prefix)`."""
  taken = np.zeros_like(problem.learner)
  coefficient = np.where(problem.mask, coefficient, 0.0)
  np.add.at(taken, (problem.nodes, problem.tokens), coefficient)
  return taken - taken.sum(axis=1, keepdims=True) * np.exp(problem.learner)


def _scores(problem: Problem) -> np.ndarray:
  """`[N, T, S V]`: each token's score, written out."""
  number, length = problem.tokens.shape
  tables, vocab = problem.learner.shape
  scores = np.zeros((number, length, tables, vocab))
  n, t = np.nonzero(problem.mask)
  nodes, tokens = problem.nodes[n, t], problem.tokens[n, t]
  scores[n, t, nodes] = -np.exp(problem.learner[nodes])
  scores[n, t, nodes, tokens] += 1.0
  return scores.reshape(number, length, -1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """`[..., V]` log-probs of a table of logits."""
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
