"""What one sampler generates with: the model, the prompts, the noise, the rewards."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import models, tasks
from tis_jax.engines.native import Generation, generate
from tis_jax.sampler.prompts import encode_prompts
from tis_jax.sampler.settings import Assignment
from tis_jax.store import Header, Rollout
from tis_jax.tasks import prompt_order


class Worker:
  """Makes rollout records for one writer.

  Record number `seq` holds the prompts `seq * n .. (seq + 1) * n - 1` of the writer's
  own walk over the task, whoever makes it: a restart repeats none. Its noise depends on
  the incarnation too, so that a record made again after a crash is not the same one.

  Args:
    assignment: from the store.
    name: of the writer.
    incarnation: how often the name has been claimed.
  """

  def __init__(self, assignment: Assignment, name: str, incarnation: int):
    self._assignment = assignment
    self._settings = settings = assignment.sampler
    config, _, self._tokenizer = models.load(assignment.model)
    dtype = jnp.float32 if settings.precision == "float32" else jnp.bfloat16
    self.graph = models.decoder_graph(config, dtype=dtype)
    self._task = tasks.load(assignment.task, **assignment.task_options)
    self._prompts = encode_prompts(
      self._tokenizer,
      self._task.train,
      assignment.max_prompt_tokens,
      chat=self._task.chat,
    )
    self._ids = np.array([example.id for example in self._prompts.examples], np.int32)
    self._order_seed = zlib.crc32(f"{assignment.seed}/{name}".encode())
    self._key = jax.random.fold_in(jax.random.key(self._order_seed), incarnation)

  def params(self, flat: dict[str, np.ndarray]) -> nnx.State:
    """Published params in this sampler's precision."""
    params = models.unflatten(self.graph, jax.tree.map(jnp.asarray, flat))
    if self._settings.precision == "int8":
      return models.quantize_int8(params)
    return models.cast(params, self._settings.precision)

  def rollout(self, params: nnx.State, version: int, seq: int) -> Rollout:
    """The record number `seq`, by the params of `version`."""
    settings, size = self._settings, self._settings.prompts_per_record
    count = len(self._prompts.examples)
    index = prompt_order(count, self._order_seed, seq * size, size)
    generated = jax.device_get(
      generate(
        self.graph,
        params,
        self._prompts.tokens[index],
        self._prompts.mask[index],
        jax.random.fold_in(self._key, seq),
        max_new_tokens=settings.max_new_tokens,
        samples_per_prompt=settings.group_size,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        kept_width=settings.kept_tokens,
        eos_ids=self._tokenizer.eos_ids,
        pad_id=self._tokenizer.pad_id,
      )
    )
    rows = np.repeat(index, settings.group_size)
    return Rollout(
      prompts=self._prompts.tokens[rows],
      prompt_mask=self._prompts.mask[rows],
      tokens=generated.tokens_BT,
      mask=generated.mask_BT,
      sampler_logp=generated.logp_BT,
      versions=np.full(generated.tokens_BT.shape, version, np.int32),
      rewards=self._rewards(rows, generated),
      group_ids=np.repeat(np.arange(size, dtype=np.int32), settings.group_size),
      prompt_ids=self._ids[rows],
      finish_reasons=generated.finish_B,
      kept_mass=generated.kept_mass_BT,
      kept_tokens=generated.kept_tokens_BTK,
      header=Header(version, settings.sampling),
    )

  def _rewards(self, rows: np.ndarray, generated: Generation) -> np.ndarray:
    rewards = [
      self._task.reward(self._tokenizer.decode(tokens[mask]), self._prompts.examples[i])
      for i, tokens, mask in zip(
        rows, generated.tokens_BT, generated.mask_BT, strict=True
      )
    ]
    return np.array(rewards, np.float32)
