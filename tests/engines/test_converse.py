"""Conversations: ids that only grow, and a record that a learner can train on."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest
from small_tokenizer import make

from tis_jax import learner, models, tasks
from tis_jax.engines import Generation, NativeEngine, play
from tis_jax.engines.converse import widths
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import ABORTED, LENGTH, STOP, Limits, turn_ids, validate
from tis_jax.sampler import Assignment, SamplerSettings
from tis_jax.sampler.worker import Worker
from tis_jax.tasks import ConversationsFailedError, Environment, Example, Task, Turns

CHARACTERS = models.CharacterTokenizer("0123456789+-*/=")
EOS = CHARACTERS.eos_id


class Script:
  """An engine that says what is written: `lines[turn][row]`, ids or text."""

  sampling = Sampling(engine="script", dtype="none")

  def __init__(self, *lines, room=6, tokenizer=CHARACTERS):
    self.lines, self.room, self.tokenizer = lines, room, tokenizer
    self.prompts = []
    self.greedy = []

  def update(self, params, version):
    pass

  def generate(self, prompts, prompt_mask, *, samples, key, greedy=False):
    turn = len(self.prompts)
    self.prompts.append((prompts, prompt_mask, samples))
    self.greedy.append(greedy)
    rows = len(prompts) * samples
    tokens = np.zeros((rows, self.room), np.int32)
    mask = np.zeros(tokens.shape, bool)
    logp = np.zeros(tokens.shape, np.float32)
    finish = np.full(rows, LENGTH, np.int8)
    for row, said in enumerate(self.lines[turn]):
      if said is None:
        continue
      ids = [*self.tokenizer.encode(said), EOS] if isinstance(said, str) else said
      ids = ids[: self.room]
      tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
      logp[row, : len(ids)] = -(turn + 1 + row / 10)
      finish[row] = STOP if ids[-1] == EOS else LENGTH
    return Generation(
      tokens=tokens,
      mask=mask,
      sampler_logp=logp,
      versions=np.full(tokens.shape, 5 + turn, np.int32),
      finish_reasons=finish,
    )


class Talk:
  """A conversation that answers by a function of turn and text."""

  def __init__(self, example, answer):
    self.example, self.answer, self.heard = example, answer, []

  def reset(self):
    return self.example.prompt

  def step(self, text):
    self.heard.append(text)
    return self.answer(len(self.heard), text)


def sums(answer, prompts=("1+2=", "3+4="), conversation=None, turns=None, chat=False):
  """An environment whose conversations `answer`, and a list of those that began."""
  examples = [Example(i, prompt, "") for i, prompt in enumerate(prompts)]
  begun = []

  def begin(example):
    begun.append((conversation or Talk)(example, answer))
    return begun[-1]

  task = Task("sums", examples, [], lambda *_: 9.0, chat=chat, conversation=begin)
  turns = turns or Turns(3, 16)
  return Environment(task, CHARACTERS, examples, 6, turns=turns), begun


def talked(engine, environment, samples=2, rows=(0, 1), **options):
  return play(
    engine,
    environment,
    np.array(rows),
    samples=samples,
    key=jax.random.key(0),
    **options,
  )


def text(row, where):
  return [CHARACTERS.decode([i]) or "." for i in row[where]]


def test_a_conversation_grows_by_what_is_sampled_and_what_is_said():
  def answer(turn, text):
    return ("=" * turn, float(turn), text == "9")

  environment, begun = sums(answer)
  script = Script(["9", "12", "9", "3"], [None, "9", None, "45"], [None] * 3 + ["6"])
  played = talked(script, environment)
  out = played.generation
  assert [talk.heard for talk in begun] == [["9"], ["12", "9"], ["9"], ["3", "45", "6"]]
  said = ["".join(text(row, slice(None))).rstrip(".") for row in out.tokens]
  assert said == ["9", "12.=9", "9", "3.=45.==6"]
  assert [text(row, mask) for row, mask in zip(out.tokens, out.mask, strict=True)] == [
    ["9", "."],
    ["1", "2", ".", "9", "."],
    ["9", "."],
    ["3", ".", "4", "5", ".", "6", "."],
  ]
  assert out.finish_reasons.tolist() == [STOP, STOP, STOP, LENGTH]
  np.testing.assert_array_equal(played.rewards, np.float32([1, 3, 1, 6]))
  nan = np.nan
  want = [[1, nan, nan], [1, 2, nan], [1, nan, nan], [1, 2, 3]]
  np.testing.assert_array_equal(played.turn_rewards, np.float32(want))
  # Log-probs and versions are of the turn that sampled the token.
  turns = turn_ids(out.mask)
  rows = np.arange(4)[:, None] / 10
  np.testing.assert_allclose(
    out.sampler_logp[out.mask], -(turns + 1 + rows)[out.mask], 1e-6
  )
  np.testing.assert_array_equal(out.versions[out.mask], (5 + turns)[out.mask])


def test_each_turn_is_prompted_with_all_that_was_said_in_ids():
  environment, _ = sums(lambda turn, text: ("7", 0.0, text == "1"))
  script = Script(["1", "2", "3", "4"], [None, "5", "6", "1"], [None, "8", "9", None])
  talked(script, environment)
  (first, _, samples), (second, held, once), (third, _, _) = script.prompts
  assert (first.shape, samples, once) == ((2, 6), 2, 1)
  assert [CHARACTERS.decode(row) for row in second] == [
    "",
    "1+2=27",
    "3+4=37",
    "3+4=47",
  ]
  assert held.sum(axis=1).tolist() == [0, 7, 7, 7]  # the end of the turn among them
  assert [CHARACTERS.decode(row) for row in third] == ["", "1+2=2757", "3+4=3767", ""]
  allowed = widths(6, 16)
  assert [x.shape[1] for x, _, _ in script.prompts] == [6, allowed[1], allowed[2]]


def test_the_ids_that_were_sampled_stay_though_text_would_come_back_otherwise():
  """The drift: "1" and "2" were sampled, and the tokenizer writes "12" as one token."""
  tokenizer = make("gpt-2", eos_ids=(1,))
  one, two = tokenizer.encode("1") + tokenizer.encode("2")
  drawn = [one, two, 1]
  assert tokenizer.encode(tokenizer.decode(drawn)) != drawn[:2]

  heard = []

  def begin(example):
    talk = Talk(example, lambda turn, text: (" the", 0.0, turn == 2))
    heard.append(talk.heard)
    return talk

  examples = [Example(0, "h", "")]
  task = Task("drift", examples, [], lambda *_: 0.0, conversation=begin)
  environment = Environment(task, tokenizer, examples, 4, turns=Turns(2, 12))
  script = Script([drawn, drawn], [drawn, drawn], tokenizer=tokenizer)
  played = talked(script, environment, rows=(0,))
  said = tokenizer.encode(" the")
  for row, mask in zip(played.generation.tokens, played.generation.mask, strict=True):
    assert row[: 6 + len(said)].tolist() == drawn + said + drawn
    assert row[mask].tolist() == drawn * 2
  prompt, held, _ = script.prompts[1]
  assert prompt[0][held[0]].tolist() == tokenizer.encode("h") + drawn + said
  assert heard == [["12", "12"]] * 2


def test_no_response_is_longer_than_it_may_be():
  environment, begun = sums(lambda turn, text: ("77", 1.0, False), turns=Turns(9, 11))
  lines = [["123456789"] * 4] * 3
  played = talked(Script(*lines, room=5), environment)
  # 5, 2 between, 4 of the next turn: cut where the response ends.
  assert played.generation.mask.sum(axis=1).tolist() == [9] * 4
  assert [talk.heard for talk in begun] == [["12345", "1234"]] * 4
  assert played.generation.finish_reasons.tolist() == [LENGTH] * 4
  # A reply that leaves no room for a turn is not said.
  environment, _ = sums(lambda turn, text: ("7" * 9, 1.0, False), turns=Turns(9, 11))
  played = talked(Script(["1"] * 4), environment)
  assert played.generation.tokens[0].tolist() == [3, EOS] + [0] * 9
  assert played.turn_rewards.shape == (4, 9)


def test_turns_with_nothing_said_between_them_are_one():
  environment, _ = sums(lambda turn, text: ([], float(turn), turn == 2))
  played = talked(Script(["1"] * 4, ["2"] * 4), environment)
  assert turn_ids(played.generation.mask).max() == 0
  np.testing.assert_array_equal(played.turn_rewards[:, 0], [3, 3, 3, 3])
  assert np.isnan(played.turn_rewards[:, 1:]).all()


def failing(how):
  class Fails(Talk):
    def step(self, text):
      if self.example.id == 0 and text == "1":
        return how()
      return "7", 1.0, True

  return Fails


def hang():
  threading.Event().wait(5)


@pytest.mark.parametrize(
  ("how", "reason"),
  [
    (lambda: 1 / 0, "ZeroDivisionError"),
    (hang, "TimeoutError: more than 0.3 seconds"),
    (lambda: asyncio.sleep(5), "TimeoutError: more than 0.3 seconds"),
    (lambda: ("7", float("nan"), True), "the reward of a turn is nan"),
    (lambda: ("words", 1.0, False), "not in"),
    (lambda: (7, 1.0, False), "TypeError"),
    (lambda: "done", "ValueError"),
  ],
)
def test_one_that_fails_is_set_aside_and_the_others_go_on(how, reason):
  environment, _ = sums(None, conversation=failing(how), turns=Turns(3, 16, 0.3))
  played = talked(Script(["1", "2", "1", "1"], ["2"] * 4), environment)
  assert played.generation.finish_reasons.tolist() == [ABORTED, STOP, STOP, STOP]
  assert played.rewards.tolist() == [0, 1, 1, 1]
  ((found, count),) = played.aborted.items()
  assert reason in found and count == 1


def test_one_that_opens_with_too_much_has_no_prompt_and_no_response():
  class Long(Talk):
    def reset(self):
      return "1" * 9 if self.example.id == 1 and begun[2:3] != [self] else "1="

  environment, begun = sums(lambda *_: ("", 1.0, True), conversation=Long)
  script = Script(["1"] * 4)
  played = talked(script, environment)
  assert played.generation.finish_reasons.tolist() == [STOP, STOP, STOP, ABORTED]
  assert "opens with 9 tokens" in next(iter(played.aborted))
  assert played.prompt_mask.sum(axis=1).tolist() == [2, 2, 2, 0]
  # A group whose prompts differ is asked for row by row.
  assert script.prompts[0][2] == 1


def test_one_that_cannot_even_begin_is_set_aside():
  def begin(example, answer):
    if example.id == 1 and len(begun) == 2:
      begun.append(None)
      raise OSError("no sandbox")
    return Talk(example, answer)

  environment, begun = sums(lambda *_: ("", 1.0, True), conversation=begin)
  played = talked(Script(["1"] * 4), environment)
  assert played.generation.finish_reasons.tolist() == [STOP, STOP, ABORTED, STOP]
  assert played.aborted == {"OSError: no sandbox": 1}


def test_half_that_fail_are_an_error():
  environment, _ = sums(lambda *_: 1 / 0)
  with pytest.raises(ConversationsFailedError, match=r"4 of 4.*ZeroDivisionError"):
    talked(Script(["1"] * 4), environment)


def test_conversations_may_be_coroutines_and_are_closed():
  closed = []

  class Session(Talk):
    async def reset(self):
      self.loop = asyncio.get_running_loop()
      return self.example.prompt

    async def step(self, text):
      await asyncio.sleep(0)
      assert self.loop is asyncio.get_running_loop()
      return "7", 1.0, text == "2"

    async def close(self):
      closed.append(self.example.id)

  environment, _ = sums(None, conversation=Session)
  played = talked(Script(["1"] * 4, ["2"] * 4), environment, greedy=True)
  assert played.rewards.tolist() == [2] * 4
  assert sorted(closed) == [0, 0, 1, 1]


def test_a_task_with_conversations_says_how_long_they_may_become():
  environment, _ = sums(None)
  task = environment._task
  with pytest.raises(ValueError, match="say how long they may become"):
    Environment(task, CHARACTERS, task.train, 6)


@pytest.fixture(scope="module")
def policy():
  return models.load("builtin:arithmetic")


def asked_again(turns):
  """Steps that are asked a second time, unless the first answer is long."""
  source = tasks.load("gsm8k_steps")

  def answer(turn, text):
    return "=7*7=", float(len(text)), turn == 2 or len(text) > 3

  conversation = lambda example: Talk(example, answer)
  task = dataclasses.replace(source, conversation=conversation)
  return Environment(task, CHARACTERS, task.train, 8, turns=turns)


@pytest.fixture(scope="module")
def recorded(policy):
  """A record of conversations of the fp32 policy."""
  config, params, tokenizer = policy
  settings = SamplerSettings(
    precision="float32",
    prompts_per_record=4,
    group_size=3,
    max_turns=2,
    max_turn_tokens=5,
    max_new_tokens=24,
    top_k=9,
    top_logprobs=3,
  )
  assignment = Assignment("", "again", {}, 8, 0, 1, settings)
  environment = asked_again(settings.turns)
  engine = NativeEngine(
    models.decoder_graph(config),
    settings.sampling,
    max_new_tokens=settings.tokens_at_once(environment),
    eos_ids=tokenizer.eos_ids,
    pad_id=0,
    kept_width=settings.kept_width(config.vocab_size),
    top_logprobs=3,
    precision="float32",
  )
  engine.update(params, version=2)
  worker = Worker(assignment, "a", 1, engine, environment)
  return worker.rollout(0)


def test_a_record_of_conversations_is_valid(recorded, policy):
  validate(recorded, Limits(shape=(12, 8, 24), group_size=3, vocab_size=17))
  turns = turn_ids(recorded.mask).max(axis=1) + 1
  assert turns.max() == 2
  held = np.nansum(recorded.turn_rewards, axis=1)
  np.testing.assert_array_equal(held, recorded.rewards)
  # What the environment said stands between the turns, and is no turn.
  tokenizer = policy[2]
  for row in np.flatnonzero(turns == 2):
    between = np.flatnonzero(recorded.mask[row])
    hole = np.setdiff1d(np.arange(between[0], between[-1]), between)
    assert tokenizer.decode(recorded.tokens[row][hole]) == "=7*7="


@pytest.mark.slow
def test_the_learner_finds_the_samplers_log_probs(recorded, policy):
  """Raw ones, of every turn: what it reads is what the policy read."""
  config, params, _ = policy
  batch = learner.from_rollouts([recorded])._replace(kept_tokens=None)
  out = learner.score(models.decoder_graph(config), params, batch)
  gap = np.abs(np.asarray(out.logp) - recorded.sampler_logp)
  second = turn_ids(recorded.mask) == 1
  assert second.any()
  assert gap[recorded.mask].max() < 1e-4
  # And not by chance: had something else been said, the second turn would be another.
  silent = np.where(recorded.mask, batch.tokens, 2)
  out = learner.score(
    models.decoder_graph(config), params, batch._replace(tokens=silent)
  )
  assert np.abs(np.asarray(out.logp) - recorded.sampler_logp)[second].max() > 0.1


def test_what_sampling_kept_is_written_at_its_turn(recorded):
  mask = recorded.mask
  kept, top = recorded.kept_tokens, recorded.top_tokens
  assert (kept[mask] >= 0).sum(axis=1).max() == 9
  assert (kept[mask] == recorded.tokens[mask][:, None]).any(axis=1).all()
  assert (kept[~mask] == -1).all() and (top[~mask] == -1).all()
  assert (recorded.top_logp[~mask] == -np.inf).all()
  assert (recorded.kept_mass[mask] < 1).any()


@pytest.mark.slow
def test_rounds_of_a_run_compile_a_known_number_of_shapes(policy):
  config, params, tokenizer = policy
  environment = asked_again(Turns(2, 24))
  engine = NativeEngine(
    models.decoder_graph(config),
    Sampling(),
    max_new_tokens=5,
    eos_ids=tokenizer.eos_ids,
    pad_id=0,
  )
  engine.update(params, version=0)
  shapes = set()

  class Watched:
    sampling = engine.sampling

    def generate(self, prompts, mask, *, samples, key):
      shapes.add((prompts.shape, samples))
      return engine.generate(prompts, mask, samples=samples, key=key)

  for i in range(6):
    index = np.arange(4) + 4 * i
    play(Watched(), environment, index, samples=2, key=jax.random.key(i))
  later = {((8, width), 1) for width in widths(8, 24)[1:]}
  assert ((4, 8), 2) in shapes and later & shapes
  assert shapes <= {((4, 8), 2)} | later


def test_tight_kept_sets_are_written_at_their_turn():
  class Tight(Script):
    def generate(self, *args, **options):
      out = super().generate(*args, **options)
      sizes = out.mask.ravel().astype(np.int64) * 2
      ids = np.stack([out.tokens[out.mask], np.full(out.mask.sum(), 16)], 1)
      return out._replace(
        kept_offsets=np.concatenate([[0], np.cumsum(sizes)]),
        kept_ids=ids.ravel().astype(np.int32),
        present=out.mask & (out.tokens != EOS),
        sampler_logp=np.where(out.tokens == EOS, np.nan, out.sampler_logp).astype("f4"),
      )

  environment, _ = sums(lambda turn, text: ("7", 0.0, turn == 2))
  out = talked(Tight(["1", "22", "3", "4"], ["5"] * 4), environment).generation
  sizes = np.diff(out.kept_offsets).reshape(out.tokens.shape)
  np.testing.assert_array_equal(sizes, 2 * out.mask)
  np.testing.assert_array_equal(out.kept_ids[::2], out.tokens[out.mask])
  np.testing.assert_array_equal(out.present, out.mask & (out.tokens != EOS))


def test_settings_of_turns_are_checked():
  assert SamplerSettings(max_new_tokens=30).turns == Turns(8, 30, 60.0)
  settings = SamplerSettings(max_new_tokens=30, max_turn_tokens=5)
  environment, _ = sums(None)
  assert settings.tokens_at_once(environment) == 5
  assert (
    dataclasses.replace(settings, max_turn_tokens=None).tokens_at_once(environment)
    == 30
  )
  with pytest.raises(ValueError, match="max_turn_tokens must be"):
    SamplerSettings(max_new_tokens=4, max_turn_tokens=5)
  with pytest.raises(ValueError, match="turn_seconds"):
    SamplerSettings(turn_seconds=0)
