"""Held-out pass@1: what share of single samples a policy gets right."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from tis_jax.data import Example, Task
from tis_jax.models.tokenizers import Tokenizer, encode_prompts
from tis_jax.sampler import generate


class Accuracy(NamedTuple):
  """Rewards of sampled answers, averaged.

  Attributes:
    pass_at_1: mean over prompts of the mean reward over samples.
    stderr: of that mean, over prompts.
    pass_at_n: share of prompts that at least one sample gets right.
  """

  pass_at_1: float
  stderr: float
  pass_at_n: float


class Evaluation:
  """A fixed set of held-out prompts, sampled the same way at every call.

  The same noise is used each time, so the difference of two calls is the policies'.

  Args:
    task: whose test split is used.
    tokenizer: of the model.
    prompts: how many of the test prompts, evenly spread; 0 for all.
    samples: answers a prompt.
    temperature: of sampling; 0 is greedy.
    max_prompt_tokens: longer prompts are left out.
    max_new_tokens: length limit of an answer.
    seed: of the noise.
    rows: prompts times samples that are generated at once.
  """

  def __init__(
    self,
    task: Task,
    tokenizer: Tokenizer,
    *,
    prompts: int,
    samples: int,
    temperature: float = 1.0,
    max_prompt_tokens: int,
    max_new_tokens: int,
    seed: int = 0,
    rows: int = 1024,
  ):
    self._task = task
    self._tokenizer = tokenizer
    self._samples = samples
    self._temperature = temperature
    self._max_new_tokens = max_new_tokens
    self._seed = seed
    tokens, mask, kept = encode_prompts(
      tokenizer, task.test, max_prompt_tokens, chat=task.chat
    )
    chosen = _evenly(len(kept), prompts)
    self._examples: Sequence[Example] = [task.test[kept[i]] for i in chosen]
    self._prompts, self._mask = tokens[chosen], mask[chosen]
    self._prompts_at_once = max(1, min(rows // samples, len(chosen)))

  def __call__(self, graph: nnx.GraphDef, params: nnx.State) -> Accuracy:
    """Samples answers of the policy and scores them."""
    rewards = np.concatenate(
      [
        self._rewards(graph, params, start)
        for start in range(0, len(self._examples), self._prompts_at_once)
      ]
    )
    means = rewards.mean(axis=1)
    return Accuracy(
      pass_at_1=float(means.mean()),
      stderr=float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0,
      pass_at_n=float((rewards > 0).any(axis=1).mean()),
    )

  def _rewards(self, graph, params, start):
    """`[prompts, samples]` rewards of one batch of prompts."""
    # The last batch wraps around, so that all of them have one shape.
    index = (start + np.arange(self._prompts_at_once)) % len(self._examples)
    rows = np.repeat(index, self._samples)
    generated = generate(
      graph,
      params,
      self._prompts[rows],
      self._mask[rows],
      jax.random.fold_in(jax.random.key(self._seed), start),
      max_new_tokens=self._max_new_tokens,
      temperature=self._temperature,
      eos_ids=self._tokenizer.eos_ids,
      pad_id=self._tokenizer.pad_id,
    )
    rewards = [
      self._task.reward(self._tokenizer.decode(tokens[mask]), self._examples[row])
      for row, tokens, mask in zip(
        rows, np.asarray(generated.tokens), np.asarray(generated.mask), strict=True
      )
    ]
    real = min(self._prompts_at_once, len(self._examples) - start)
    return np.reshape(rewards, (-1, self._samples))[:real]


def _evenly(size: int, wanted: int) -> np.ndarray:
  """At most `wanted` places, evenly spread over `size`; 0 wants all."""
  wanted = min(wanted or size, size)
  return np.linspace(0, size - 1, wanted).round().astype(int)
