"""Whatever satisfies the protocol generates for samplers and for evaluations alike."""

import dataclasses

import jax
import numpy as np
import pytest

from tis_jax import models, tasks
from tis_jax.engines import Generation, play
from tis_jax.learner import from_rollouts
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import ABORTED, LENGTH, STOP, validate
from tis_jax.runner import Evaluation
from tis_jax.sampler import Assignment, SamplerSettings
from tis_jax.sampler.worker import Worker
from tis_jax.store import decode, encode

ALPHABET = "0123456789+-*/="
EOS, PAD, ROOM = 1, 0, 5


class Calculator:
  """Answers arithmetic: a prompt's first `params["skill"]` samples right, others "0".

  The first token of an answer is by the params before these. Off the mask it leaves
  what no one may read.
  """

  sampling = Sampling(engine="calculator", dtype="exact", logprobs="processed")

  def __init__(self):
    self.version, self.skill = -1, 0
    self.keys = []

  def update(self, params, version):
    self.version, self.skill = version, int(params["skill"])

  def generate(self, prompts, prompt_mask, *, samples, key):
    assert isinstance(prompts, np.ndarray) and isinstance(prompt_mask, np.ndarray)
    self.keys.append(tuple(jax.random.key_data(key).tolist()))
    rows = len(prompts) * samples
    tokens = np.full((rows, ROOM), PAD, np.int32)
    mask = np.zeros((rows, ROOM), bool)
    for row in range(rows):
      prompt, sample = divmod(row, samples)
      ids = prompts[prompt][prompt_mask[prompt]]
      text = "".join(ALPHABET[i - 2] for i in ids).rstrip("=")
      answer = str(eval(text.replace("/", "//"))) if sample < self.skill else "0"
      tokens[row, : len(answer) + 1] = [*(ALPHABET.index(c) + 2 for c in answer), EOS]
      mask[row, : len(answer) + 1] = True
    versions = np.where(mask, self.version, 99).astype(np.int32)
    versions[:, 0] = self.version - 1
    return Generation(
      tokens,
      mask,
      sampler_logp=np.where(mask, -0.5, -7).astype(np.float32),
      versions=versions,
      finish_reasons=np.full(rows, STOP, np.int8),
    )


@pytest.fixture(scope="module")
def environments():
  task = tasks.load("gsm8k_steps")
  tokenizer = models.CharacterTokenizer(ALPHABET)
  return [
    tasks.Environment(task, tokenizer, split, 8) for split in (task.train, task.test)
  ]


@pytest.fixture
def assignment():
  return Assignment(
    model="none",
    task="gsm8k_steps",
    task_options={},
    max_prompt_tokens=8,
    seed=0,
    capacity=1,
    sampler=SamplerSettings(prompts_per_record=4, group_size=3, max_new_tokens=ROOM),
  )


def test_any_engine_makes_records(environments, assignment):
  engine = Calculator()
  worker = Worker(assignment, "a", 1, engine, environments[0])
  engine.update({"skill": np.int32(2)}, version=7)
  first, second = worker.rollout(0), worker.rollout(1)
  # The bytes of a record are refused where its arrays do not fit each other.
  record = decode(encode(first))
  assert record.rewards.tolist() == [1, 1, 0] * 4
  assert record.group_ids.tolist() == np.repeat(range(4), 3).tolist()
  assert record.header.version == 7
  assert (record.versions[:, 0] == 6).all()
  assert record.header.sampling == Calculator.sampling
  assert (record.sampler_logp[record.mask] == -0.5).all()
  assert record.kept_mass is None and record.kept_tokens is None
  task = tasks.load("gsm8k_steps")
  tokenizer = models.CharacterTokenizer(ALPHABET)
  for row, example in enumerate(record.prompt_ids):
    prompt = tokenizer.decode(record.prompts[row][record.prompt_mask[row]])
    assert prompt == task.train[example].prompt
  assert not set(first.prompt_ids) & set(second.prompt_ids)
  # Every record has noise of its own, and every incarnation.
  Worker(assignment, "a", 2, engine, environments[0]).rollout(0)
  assert len(set(engine.keys)) == 3


def test_any_engine_can_be_evaluated(environments):
  engine = Calculator()
  # 7 prompts in batches of 3: the last batch wraps around.
  evaluate = Evaluation(environments[1], prompts=7, samples=2, rows=6)
  for skill, pass_at_1, pass_at_n in ((0, 0, 0), (1, 0.5, 1), (2, 1, 1)):
    engine.update({"skill": skill}, version=skill)
    accuracy = evaluate(engine)
    assert (accuracy.pass_at_1, accuracy.pass_at_n) == (pass_at_1, pass_at_n)
    assert accuracy.pass_at_1_stderr == 0
  assert engine.keys[:3] == engine.keys[3:6] == engine.keys[6:]
  assert len(set(engine.keys)) == 3


class Timid(Calculator):
  """Its most probable answer is always 0."""

  def generate(self, *args, greedy=False, **kwargs):
    self.skill, skill = 0 if greedy else self.skill, self.skill
    out = super().generate(*args, **kwargs)
    self.skill = skill
    return out


def _no_zeros(completion, example):
  return 1.0 / int(completion)


def test_an_answer_without_a_reward_is_an_aborted_row(environments, assignment):
  examples = [tasks.Example(i, f"{i}+1=", "") for i in range(1, 9)]
  further = {"same": _no_zeros, "small": lambda c, e: None if int(c) > 5 else 0.5}
  task = tasks.Task("inverse", examples, [], _no_zeros, rewards=further)
  environment = tasks.Environment(
    task, models.CharacterTokenizer(ALPHABET), examples, 8
  )

  def rollout(**changes):
    engine = Timid()
    engine.update({"skill": np.int32(2)}, version=1)
    told = dataclasses.replace(assignment, **changes)
    record = Worker(told, "a", 1, engine, environment).rollout(0)
    validate(record)
    batch = from_rollouts([decode(encode(record))])
    for name in ("rewards", "greedy_rewards", "named_rewards"):
      values = getattr(batch, name)
      assert values is None or np.isfinite(values).all()
    return record, batch

  record, batch = rollout()
  assert record.finish_reasons.tolist() == [STOP, STOP, ABORTED] * 4
  assert batch.mask.any(axis=1).tolist() == [True, True, False] * 4
  assert environment.set_aside == {"raised": 4}
  assert environment.said["raised"].startswith("ZeroDivisionError: ")
  right = 1.0 / (record.prompt_ids + 1)
  np.testing.assert_allclose(record.rewards[::3], right[::3], rtol=1e-6)
  # A named reward sets aside what it cannot say, and nobody is counted twice.
  record, _ = rollout(named_rewards=True)
  large = np.isfinite(record.rewards) & (record.rewards < 1 / 5.5)
  aborted = record.finish_reasons == ABORTED
  np.testing.assert_array_equal(aborted, large | ~np.isfinite(record.rewards))
  assert environment.set_aside == {"raised": 8, "no_number": large.sum()}
  # Without a greedy answer's reward, nothing of its group has a baseline.
  record, _ = rollout(greedy=True)
  assert (record.finish_reasons == ABORTED).all()


def test_answers_are_rewarded_in_the_order_of_the_index(environments):
  engine = Calculator()
  engine.update({"skill": 1}, version=0)
  index = np.array([500, 3, 3, 0])
  played = play(engine, environments[1], index, samples=2, key=jax.random.key(0))
  assert played.rows.tolist() == [500, 500, 3, 3, 3, 3, 0, 0]
  assert played.rewards.tolist() == [1, 0] * 4


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("tokens", lambda tokens: tokens[:-1]),
    ("tokens", lambda tokens: tokens[:, 0]),
    ("mask", lambda mask: mask[:, 1:]),
    ("sampler_logp", lambda logp: None),
    ("sampler_logp", lambda logp: logp[:, :, None]),
    ("finish_reasons", lambda finish: np.append(finish, np.int8(LENGTH))),
    ("kept_mass", lambda mass: np.ones((4, 1), np.float32)),
    ("kept_tokens", lambda kept: np.ones((4, ROOM), np.int32)),
    ("top_logp", lambda top: np.ones((4, ROOM), np.float32)),
  ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(environments, field, change):
  class Sloppy(Calculator):
    def generate(self, *args, **kwargs):
      out = super().generate(*args, **kwargs)
      return out._replace(**{field: change(getattr(out, field))})

  with pytest.raises(ValueError, match=f"the engine's {field} has shape"):
    play(Sloppy(), environments[1], np.arange(2), samples=2, key=jax.random.key(0))
