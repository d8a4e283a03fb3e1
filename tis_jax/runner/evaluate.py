"""Held-out pass@1: what share of single samples a policy gets right."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from tis_jax.engines import generate
from tis_jax.sampler import encode_prompts
from tis_jax.tasks import Task


class Accuracy(NamedTuple):
  """Rewards of sampled answers, averaged.

  Attributes:
    pass_at_1: mean over prompts of the mean reward over samples.
    pass_at_1_stderr: of that mean, over prompts.
    pass_at_n: share of prompts that at least one of the samples gets right.
    length: mean tokens an answer.
  """

  pass_at_1: float
  pass_at_1_stderr: float
  pass_at_n: float
  length: float


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
    tokenizer,
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
    found = encode_prompts(tokenizer, task.test, max_prompt_tokens, chat=task.chat)
    chosen = _evenly(len(found.examples), prompts)
    self._examples = [found.examples[i] for i in chosen]
    self._prompts, self._mask = found.tokens[chosen], found.mask[chosen]
    self._prompts_at_once = max(1, min(rows // samples, len(chosen)))

  @property
  def size(self) -> int:
    """How many prompts there are."""
    return len(self._examples)

  def __call__(self, graph: nnx.GraphDef, params: nnx.State) -> Accuracy:
    """Samples answers of the policy and scores them."""
    starts = range(0, self.size, self._prompts_at_once)
    found = [self._sample(graph, params, start) for start in starts]
    rewards = np.concatenate([rewards for rewards, _ in found])[: self.size]
    lengths = np.concatenate([lengths for _, lengths in found])[: self.size]
    means = rewards.mean(axis=1)
    spread = means.std(ddof=1) if self.size > 1 else 0.0
    return Accuracy(
      pass_at_1=float(means.mean()),
      pass_at_1_stderr=float(spread / np.sqrt(self.size)),
      pass_at_n=float((rewards > 0).any(axis=1).mean()),
      length=float(lengths.mean()),
    )

  def _sample(self, graph, params, start):
    """Rewards and lengths, `[prompts, samples]`, from the prompt `start` on."""
    # The last batch wraps around, so that all of them have one shape.
    index = (start + np.arange(self._prompts_at_once)) % self.size
    generated = generate(
      graph,
      params,
      self._prompts[index],
      self._mask[index],
      jax.random.fold_in(jax.random.key(self._seed), start),
      max_new_tokens=self._max_new_tokens,
      samples_per_prompt=self._samples,
      temperature=self._temperature,
      eos_ids=self._tokenizer.eos_ids,
      pad_id=self._tokenizer.pad_id,
    )
    tokens, mask = np.asarray(generated.tokens_BT), np.asarray(generated.mask_BT)
    rewards = [
      self._task.reward(self._tokenizer.decode(row[there]), self._examples[prompt])
      for prompt, row, there in zip(
        np.repeat(index, self._samples), tokens, mask, strict=True
      )
    ]
    shape = (-1, self._samples)
    return np.reshape(rewards, shape), mask.sum(axis=1).reshape(shape)


def _evenly(size: int, wanted: int) -> np.ndarray:
  """At most `wanted` places, evenly spread over `size`; 0 wants all."""
  wanted = min(wanted or size, size)
  return np.linspace(0, size - 1, wanted).round().astype(int)
