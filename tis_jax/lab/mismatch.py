"""Samplers that are off in a structured way: along a sequence, by sequence, by place.

Noise that is independent for each token and prefix averages out along a sequence. What
real engines do wrong does not: a quantised head puts the same token too high after
every prefix, an adapter that was not loaded is wrong for a whole answer, and a rounded
cache is worse the longer the answer is. A sampler stays a law whatever is added to its
logits, so that the mean ratio of a token is 1 after every prefix; what structure makes
is ratios that move together.
"""

import numpy as np

from tis_jax.lab.enumerable import Problem, log_softmax
from tis_jax.numerics.checks import check_number


def mismatched(
  problem: Problem,
  noise: float = 0.3,
  *,
  correlation: float = 0.0,
  offset: float = 0.0,
  trend: float = 0.0,
  seed: int = 0,
) -> Problem:
  """The problem with a sampler whose errors have structure.

  To the learner's logits of token v after a prefix of t tokens is added

    noise (1 + trend (2 t / (T - 1) - 1)) (sqrt(offset) a_v + sqrt(1 - offset) b_v)

  where a is drawn once for every first token, and so is one for all that follows it in
  a sequence, and b goes along the sequence: `b = c b' + sqrt(1 - c^2) e`, with b' that
  of the prefix without its last token, c the correlation, and e, as a, standard normal.

  Args:
    problem: whose learner it is; its sampler is not used.
    noise: the standard deviation of what is added, at the middle of the sequence.
    correlation: between the errors of one token at two neighbouring places, in
      [-1, 1]; 0 has nothing in common between prefixes.
    offset: the share of the errors' variance that is one for a whole sequence, in
      [0, 1].
    trend: how much larger than in the middle the errors are at the end, and how much
      smaller at the start, in [-1, 1].
    seed: for all of it.

  Returns:
    `problem` with another sampler.

  Raises:
    ValueError: a number outside its range.

  >>> from tis_jax.lab import random_problem
  >>> problem = mismatched(random_problem(2, 3), 0.3, trend=1.0)
  >>> np.abs(problem.sampler - problem.learner).max(axis=1).round(2).tolist()[0]
  0.0
  """
  check_number("noise", noise, at_least=0)
  check_number("correlation", correlation, at_least=-1, at_most=1)
  check_number("offset", offset, at_least=0, at_most=1)
  check_number("trend", trend, at_least=-1, at_most=1)
  rng = np.random.default_rng(seed)
  size, vocab = problem.learner.shape
  length = problem.mask.shape[1]
  depth, parent, branch = _tree(problem)
  shared = rng.normal(size=(vocab + 1, vocab))[branch]
  fresh = rng.normal(size=(size, vocab))
  along = fresh.copy()
  for node in np.flatnonzero(depth > 0):  # a prefix comes after those it continues
    along[node] = correlation * along[parent[node]]
    along[node] += np.sqrt(1 - correlation**2) * fresh[node]
  scale = noise * (1 + trend * (2 * depth / max(length - 1, 1) - 1))
  error = np.sqrt(offset) * shared + np.sqrt(1 - offset) * along
  return problem._replace(sampler=log_softmax(problem.learner + scale[:, None] * error))


def _tree(problem: Problem):
  """Of each row of the tables: its depth, the row before it, and the first token.

  The first token of the empty prefix counts as one more.
  """
  size, vocab = problem.learner.shape
  depth, parent = np.zeros(size, int), np.zeros(size, int)
  branch = np.full(size, vocab)
  for t in range(1, problem.mask.shape[1]):
    rows = problem.mask[:, t]
    here = problem.nodes[rows, t]
    depth[here], parent[here] = t, problem.nodes[rows, t - 1]
    branch[here] = problem.tokens[rows, 0]
  return depth, parent, branch
