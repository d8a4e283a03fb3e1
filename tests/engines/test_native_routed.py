"""Where a mixture sent its tokens: what is recorded is one pass in float64."""

import dataclasses

import jax
import numpy as np
import pytest
from test_converse import CHARACTERS, asked_again
from test_decoder import MIXTURE, random_params, reference
from test_native import engine_of
from test_native_live import Publisher, flat
from test_native_schedule import ragged

from tis_jax import models, tasks
from tis_jax.engines import NativeEngine, NativeSettings
from tis_jax.engines.native import INTERRUPTED, prefixes, steps
from tis_jax.engines.native.cache import empty
from tis_jax.engines.native.layout import layout
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import Limits, turn_ids, validate
from tis_jax.sampler import Assignment, SamplerSettings
from tis_jax.sampler.worker import Worker
from tis_jax.tasks import Environment

CONFIG = dataclasses.replace(MIXTURE, vocab_size=17)
LAYERS, EXPERTS = CONFIG.num_layers, CONFIG.experts_per_token
LENGTHS, SAMPLES, T = [5, 1, 9, 3, 17, 2, 8], 2, 20
# Of more than one call of the decoding loop.
LONG = {"max_new_tokens": 70, "eos_ids": ()}


@pytest.fixture(scope="module")
def policy():
  return models.decoder_graph(CONFIG), random_params(CONFIG)


def engine_that_records(policy, **options):
  options = {"max_new_tokens": T, "slots": 3, "routed_experts": True} | options
  engine = engine_of(policy, **options)
  engine.update(flat(policy[1]), version=0)
  return engine


def scaled(params, factor):
  return jax.tree.map(lambda x: factor * x, params)


def passed(params, ids):
  """int [n, L, E] of a row of tokens, and bool [n, L] where no rounding decides."""
  sent = []
  reference(CONFIG, params, ids, sent)
  experts, gaps = zip(*sent, strict=True)
  shape = (LAYERS, len(ids))
  experts = np.array(experts).reshape(*shape, EXPERTS).swapaxes(0, 1)
  return experts, np.array(gaps).reshape(shape).T > 1e-5


def check(record, laws):
  """Holds the experts of every token to the params that drew the one behind it.

  Args:
    record: with prompts; or anything with its attributes.
    laws: {version: params}.

  Returns:
    How many tokens were compared, by version.
  """
  (rows, width), length = record.prompts.shape, record.tokens.shape[1]
  found = record.routed_experts
  assert found.dtype == np.int16
  assert found.shape == (rows, width + length, LAYERS, EXPERTS)
  compared = dict.fromkeys(laws, 0)
  for row in range(rows):
    prompt = record.prompts[row][record.prompt_mask[row]]
    last = int(np.flatnonzero(record.mask[row]).max(initial=-1))
    fed = np.zeros(width + length, bool)
    if last >= 0:
      fed[width - len(prompt) : width + last] = True
    assert (found[row][~fed] == -1).all()
    if last < 0:
      continue
    ids = np.concatenate([prompt, record.tokens[row, :last]])
    # What stands behind each token.
    of = np.full(len(ids), record.versions[row, 0])
    of[len(prompt) - 1 :] = record.versions[row, : last + 1]
    for version in np.unique(of):
      experts, sure = passed(laws[version], ids)
      sure &= (of == version)[:, None]
      np.testing.assert_array_equal(found[row][fed][sure], experts[sure])
      assert sure[of == version].mean() > 0.9
      compared[version] += int(sure.any(axis=1).sum())
  return compared


@dataclasses.dataclass
class Answered:
  """A `Generation` beside the prompts of its rows."""

  prompts: np.ndarray
  prompt_mask: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray
  versions: np.ndarray
  routed_experts: np.ndarray

  @classmethod
  def of(cls, prompts, out):
    samples = len(out.tokens) // len(prompts[0])
    given = (np.repeat(x, samples, axis=0) for x in prompts)
    return cls(*given, out.tokens, out.mask, out.versions, out.routed_experts)


def generate(policy, prompts, **options):
  engine = engine_that_records(policy, **options)
  return engine.generate(*prompts, samples=SAMPLES, key=jax.random.key(1))


def test_what_is_recorded_is_one_full_pass_after_refills(policy):
  prompts = ragged(LENGTHS)
  out = generate(policy, prompts)
  # Answers of many lengths, so that slots are filled again at any time.
  assert len(set(out.mask.sum(axis=1))) > 4
  assert check(Answered.of(prompts, out), {0: policy[1]})[0] > 150
  other = generate(policy, prompts, slots=14)
  np.testing.assert_array_equal(other.routed_experts, out.routed_experts)


def test_a_long_prompt_is_recorded_chunk_by_chunk(policy, monkeypatch):
  prompts = ragged([40, 3, 20, 33])
  whole = generate(policy, prompts, slots=2)
  check(Answered.of(prompts, whole), {0: policy[1]})
  monkeypatch.setattr(prefixes, "CHUNK", 16)
  out = generate(policy, prompts, slots=2)
  np.testing.assert_array_equal(out.tokens, whole.tokens)
  np.testing.assert_array_equal(out.routed_experts, whole.routed_experts)


def test_newer_params_in_the_middle_record_for_what_they_drew(policy):
  laws = {0: policy[1], 4: scaled(policy[1], 1.5), 5: scaled(policy[1], 0.8)}
  options = LONG | {"new_params": "switch_recompute"}
  engine = engine_that_records(policy, **options)
  engine.newer = Publisher(_3=(flat(laws[4]), 4), _6=(flat(laws[5]), 5))
  prompts = ragged(LENGTHS)
  out = engine.generate(*prompts, samples=1, key=jax.random.key(1))
  mixed = (np.diff(out.versions, axis=1) != 0).any(axis=1)
  assert 3 <= mixed.sum() < len(mixed)
  assert min(check(Answered.of(prompts, out), laws).values()) > 50


def test_without_recomputing_what_began_after_a_switch_is_the_new_ones_alone(policy):
  new = scaled(policy[1], 1.5)
  engine = engine_that_records(policy, **LONG, new_params="switch")
  engine.newer = Publisher(_3=(flat(new), 4))
  prompts = ragged(LENGTHS)
  out = engine.generate(*prompts, samples=1, key=jax.random.key(1))
  of_one = (out.versions == out.versions[:, :1]).all(axis=1)
  whole = Answered.of(prompts, out)
  rows = {x.name: getattr(whole, x.name)[of_one] for x in dataclasses.fields(whole)}
  compared = check(Answered(**rows), {0: policy[1], 4: new})
  assert compared[4] > 50 and not of_one.all()
  # All that was fed in is there, by whichever params.
  fed = np.concatenate([whole.prompt_mask, whole.mask], axis=1)[:, :-1]
  np.testing.assert_array_equal((out.routed_experts >= 0)[:, :-1].all((2, 3)), fed)


def test_a_response_that_goes_on_keeps_what_it_was_drawn_by(policy):
  engine = engine_that_records(policy, eos_ids=())
  laws = dict(enumerate(scaled(policy[1], factor) for factor in (1.0, 1.5, 0.8)))
  prompts = ragged(LENGTHS)
  rows = [np.repeat(x, SAMPLES, axis=0) for x in prompts]
  keys = jax.random.split(jax.random.key(2), len(rows[0]))
  out = engine.begin(len(rows[0]), rows[0].shape[1])
  assert (out.routed_experts == -1).all()
  for version, more in enumerate((1, 7, T)):
    engine.update(flat(laws[version]), version)
    before = out.routed_experts
    out = engine.go_on(*rows, out, more=np.full(len(rows[0]), more), keys=keys)
    assert (out.routed_experts == before)[before >= 0].all()
    assert ((out.finish_reasons == INTERRUPTED) == (version < 2)).all()
  assert min(check(Answered.of(prompts, out), laws).values()) > 50


def test_what_nobody_asked_for_costs_nothing(policy):
  out = generate(policy, ragged(LENGTHS), routed_experts=False)
  assert out.routed_experts is None
  for asked in (False, True):
    engine = engine_of(policy, routed_experts=asked)
    plan, made = engine._plan, layout(*policy)
    keys = jax.random.split(jax.random.key(0), 3)
    slots = steps.no_slots(empty(CONFIG, 3, 16, plan.dtype), keys)
    step = steps.decode.lower(plan, made, slots, np.int32(4), np.int32(1)).as_text()
    assert ("xi16>" in step) == asked


def test_a_greedy_answer_has_none(policy):
  engine = engine_that_records(policy)
  given = {"samples": 1, "key": jax.random.key(0), "greedy": True}
  assert engine.generate(*ragged(LENGTHS), **given).routed_experts is None


def test_a_model_without_experts_is_refused():
  graph = models.decoder_graph(dataclasses.replace(CONFIG, num_experts=0))
  with pytest.raises(ValueError, match="routed_experts: the model is no mixture"):
    engine_of((graph, None), routed_experts=True)


def worker_of(policy, **options):
  """One whose responses are conversations, or with interrupted answers."""
  native = NativeSettings(slots=3, interrupt_after=options.pop("interrupt_after", 0))
  settings = SamplerSettings(
    precision="float32",
    prompts_per_record=4,
    group_size=SAMPLES,
    max_new_tokens=T,
    routed_experts=True,
    native=native,
    **options,
  )
  assignment = Assignment("", "again", {}, 8, 0, 1, settings)
  environment = asked_again(settings.turns)
  if native.interrupt_after:
    task = tasks.load("gsm8k_steps")
    environment = Environment(task, CHARACTERS, task.train, 8)
  engine = NativeEngine(
    policy[0],
    Sampling(),
    max_new_tokens=settings.tokens_at_once(environment),
    eos_ids=CHARACTERS.eos_ids,
    pad_id=0,
    precision="float32",
    routed_experts=True,
    settings=native,
  )
  engine.update(flat(policy[1]), version=0)
  return engine, Worker(assignment, "a", 1, engine, environment)


def test_a_record_of_conversations_holds_every_turn(policy):
  _, worker = worker_of(policy, max_turns=3, max_turn_tokens=3)
  record = worker.rollout(0)
  validate(record, Limits(experts=CONFIG.num_experts))
  assert (turn_ids(record.mask).max(axis=1) == 1).sum() >= 4
  check(record, {0: policy[1]})


def test_a_record_of_answers_handed_over_is_by_the_params_of_each_part(policy):
  engine, worker = worker_of(policy, interrupt_after=3)
  laws, compared, mixed = {}, 0, 0
  for seq in range(4):
    laws[seq] = scaled(policy[1], 1 + 0.2 * seq)
    engine.update(flat(laws[seq]), seq)
    record = worker.rollout(seq, last=seq + 3)
    validate(record, Limits(experts=CONFIG.num_experts))
    compared += sum(check(record, laws).values())
    last = record.mask.sum(axis=1, keepdims=True) - 1
    newest = np.take_along_axis(record.versions, last, axis=1)[:, 0]
    mixed += int((newest > record.versions[:, 0]).sum())
  assert compared > 150 and mixed >= 3
