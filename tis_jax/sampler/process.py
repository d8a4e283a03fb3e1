"""The sampler process: newest weights in, rollout records out."""

import os
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax import data, models
from tis_jax.data import prompt_order
from tis_jax.sampler.engine import Generation, generate
from tis_jax.sampler.prompts import encode_prompts
from tis_jax.sampler.settings import Settings
from tis_jax.store import Header, Manifest, Rollout, Sampling, Store, WeightsGoneError

_POLL_SECONDS = 0.01
_HEARTBEAT_SECONDS = 1.0


def run_sampler(url: str, name: str, parent: int | None = None) -> str:
  """Generates rollouts for the run in a store until it stops; returns why.

  Everything but the name comes from the store. A sampler that is started again under
  its name goes on where the last one ended: with the next record and the next prompts,
  and with noise of its own.

  Args:
    url: of the store.
    name: of this writer; one process at a time may have it.
    parent: process id; end when it is no longer the parent's.

  Raises:
    StoreError: the store cannot be reached, or holds no run.
  """
  store = Store.open(url)
  settings = Settings(**store.config)
  incarnation = store.claim(name)
  worker = _Worker(settings, name, incarnation)
  seq = store.next_seq(name)
  _say(f"{name} begins at record {seq}, {settings.precision}, {jax.devices()[0]}")
  version, params, beat = None, None, 0.0
  while True:
    if (reason := store.stopped()) is not None:
      return reason
    if parent is not None and os.getppid() != parent:
      return f"the process {parent} that started this one is gone"
    if not store.holds(name, incarnation):
      return f"another sampler has taken the name {name}"
    if (manifest := store.latest(if_newer_than=version)) is not None:
      params = _read_params(store, manifest, worker)
      version = version if params is None else manifest.version
    ahead = seq - store.taken().get(name, 0)
    ready = params is not None and ahead < settings.capacity
    if time.monotonic() - beat > _HEARTBEAT_SECONDS:
      state = "generating" if ready else "waiting for the learner"
      store.heartbeat(name, seq=seq, version=version, state=state)
      beat = time.monotonic()
    if not ready:
      time.sleep(_POLL_SECONDS)
      continue
    store.put_rollout(name, seq, worker.rollout(params, version, seq))
    seq += 1


class _Worker:
  """The model, the prompts and the noise of one sampler."""

  def __init__(self, settings: Settings, name: str, incarnation: int):
    self._settings = settings
    config, _, self._tokenizer = models.load(settings.model)
    narrow = settings.precision != "float32"
    dtype = jnp.bfloat16 if narrow else jnp.float32
    self.graph = models.decoder_graph(config, dtype=dtype)
    self._task = data.load(settings.task, **settings.task_options)
    self._prompts = encode_prompts(
      self._tokenizer,
      self._task.train,
      settings.max_prompt_tokens,
      chat=self._task.chat,
    )
    # Writers walk over the prompts in orders of their own.
    self._order_seed = zlib.crc32(f"{settings.seed}/{name}".encode())
    self._key = jax.random.fold_in(jax.random.key(self._order_seed), incarnation)
    dtype_in_words = {
      "int8": "int8 weights, bfloat16 activations",
    }.get(settings.precision, settings.precision)
    self._sampling = Sampling(
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      min_p=settings.min_p,
      dtype=dtype_in_words,
    )

  def params(self, flat) -> nnx.State:
    """Published weights as this sampler holds them."""
    params = models.unflatten(self.graph, jax.tree.map(jnp.asarray, flat))
    if self._settings.precision == "int8":
      return models.quantize_int8(params)
    return models.cast(params, self._settings.precision)

  def rollout(self, params: nnx.State, version: int, seq: int) -> Rollout:
    """The record number `seq`."""
    settings, size = self._settings, self._settings.prompts_per_record
    index = prompt_order(
      len(self._prompts.examples), self._order_seed, seq * size, size
    )
    generated = generate(
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
      eos_ids=self._tokenizer.eos_ids,
      pad_id=self._tokenizer.pad_id,
    )
    generated = jax.device_get(generated)
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
      prompt_ids=np.array(
        [self._prompts.examples[row].id for row in rows], dtype=np.int32
      ),
      finish_reasons=generated.finish_B,
      kept_mass=generated.kept_mass_BT,
      header=Header(version, self._sampling),
    )

  def _rewards(self, rows, generated: Generation) -> np.ndarray:
    rewards = [
      self._task.reward(self._tokenizer.decode(tokens[mask]), self._prompts.examples[i])
      for i, tokens, mask in zip(
        rows, generated.tokens_BT, generated.mask_BT, strict=True
      )
    ]
    return np.array(rewards, np.float32)


def _read_params(store: Store, manifest: Manifest, worker: _Worker):
  """The published weights; None if they were deleted, because newer ones exist."""
  try:
    return worker.params(store.read_weights(manifest))
  except WeightsGoneError:
    return None


def _say(text: str) -> None:
  print(text, flush=True)
