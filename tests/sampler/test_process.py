"""The sampler's side of a run, in this process: records that a learner can take."""

import dataclasses
import json
import secrets
import threading
import time

import jax
import numpy as np
import pytest

from tis_jax import models, tasks
from tis_jax.engines import NativeEngine, NativeSettings, play
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import Limits, validate
from tis_jax.sampler import Assignment, SamplerSettings, run_sampler
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import RolloutReader, Store, WrongRunError, digest


def wait_until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "nothing happened"
    time.sleep(0.01)


def test_records_are_groups_of_scored_answers(open_run, serving):
  store = open_run()
  with serving(store):
    first, second = RolloutReader(store, limits=Limits(shape=(8, 8, 5))).take(
      2, 0, timeout=120
    )
  tokenizer = models.load("builtin:arithmetic")[2]
  task = tasks.load("gsm8k_steps")
  for record in (first, second):
    assert record.header.sampling.dtype == "bfloat16"
    assert (record.header.run, record.header.writer) == ("r", "a")
    assert (record.versions[record.mask] == 0).all()
    assert record.group_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert record.kept_mass is None
    for row in range(8):
      example = task.train[record.prompt_ids[row]]
      prompt = tokenizer.decode(record.prompts[row][record.prompt_mask[row]])
      answer = tokenizer.decode(record.tokens[row][record.mask[row]])
      assert prompt == example.prompt
      assert record.rewards[row] == task.reward(answer, example)
  assert not set(first.prompt_ids) & set(second.prompt_ids)


@pytest.mark.slow
def test_a_run_that_needs_it_records_a_greedy_answers_reward(assignment, params):
  settings = dataclasses.replace(assignment.sampler, top_p=0.5, temperature=0.7)
  told = dataclasses.replace(assignment, sampler=settings, greedy=True)
  told = Assignment.from_json(json.loads(json.dumps(told.to_json())))
  engine, environment = build(told)
  engine.update(params, 0)
  record = Worker(told, "a", 0, engine, environment).rollout(0)
  prompts = np.flatnonzero(np.isin(environment.ids, record.prompt_ids))
  greedy = NativeEngine(
    models.decoder_graph(models.load(told.model)[0]),
    Sampling(temperature=0.0),
    max_new_tokens=5,
    eos_ids=(1,),
    pad_id=0,
    precision="bfloat16",
  )
  greedy.update(params, 0)
  answers = play(greedy, environment, prompts, samples=1, key=jax.random.key(9))
  by_id = dict(zip(environment.ids[prompts].tolist(), answers.rewards, strict=True))
  want = [by_id[i] for i in record.prompt_ids.tolist()]
  np.testing.assert_array_equal(record.greedy_rewards, want)
  plain = Worker(assignment, "a", 0, engine, environment).rollout(0)
  assert plain.greedy_rewards is None
  np.testing.assert_array_equal(plain.tokens, record.tokens)


def test_the_writer_waits_for_the_learner_and_uses_its_newest_params(
  open_run, serving, params
):
  store = open_run()
  reader = RolloutReader(store)
  with serving(store):
    reader.take(2, 0, timeout=120)
    wait_until(lambda: store.heartbeats()["a"]["state"] == "waiting for the learner")
    assert store.next_seq("a") == 2
    store.publish(1, params, {"cursor": reader.cursor})
    store.delete_params(keep=1)
    newer = reader.take(2, 1, timeout=60)
    assert [record.header.version for record in newer] == [1, 1]
    store.release(reader.cursor)
    (more,) = reader.take(1, 1, timeout=60)
    assert (more.header.seq, more.header.version) == (4, 1)


def test_strict_capacity_keeps_every_record_on_policy(open_run, serving, params):
  store = open_run(capacity=1)
  reader = RolloutReader(store)
  with serving(store):
    for version in range(8):
      (record,) = reader.take(1, version, timeout=120)
      assert record.header.version == version
      store.publish(version + 1, params, {"cursor": reader.cursor})


def test_a_record_set_aside_gives_its_place_back(open_run, serving):
  store = open_run(capacity=1)
  reader = RolloutReader(store, limits=Limits(shape=(8, 8, 5)))
  # A leftover of another writer's making, at the first place of the sequence.
  store.kv.put("rollouts/a/0000000000", b"damaged")
  with serving(store):
    # seq 1 needs the place that record 0 holds until the reader sets it aside.
    (record,) = reader.take(1, 0, timeout=120)
  assert record.header.seq == 1
  assert reader.quarantined == {"truncated": 1}


def test_a_sampler_started_again_repeats_nothing(open_run, serving):
  store = open_run()
  reader = RolloutReader(store)
  with serving(store):
    before = reader.take(2, 0, timeout=120)
  store.delete_rollouts(reader.cursor)
  store.release(reader.cursor)
  with serving(store):
    after = reader.take(2, 0, timeout=120)
  assert [record.header.seq for record in before + after] == [0, 1, 2, 3]
  prompts = np.concatenate([record.prompt_ids[::2] for record in before + after])
  assert len(set(prompts.tolist())) == 16


def test_the_walk_is_the_writers_and_the_noise_the_incarnations(assignment, params):
  def make(name, incarnation, seq):
    engine, environment = build(assignment)
    engine.update(params, version=0)
    worker = Worker(assignment, name, incarnation, engine, environment)
    return worker.rollout(seq)

  first, again = make("a", 1, 5), make("a", 2, 5)
  np.testing.assert_array_equal(first.prompt_ids, again.prompt_ids)
  np.testing.assert_array_equal(first.tokens, make("a", 1, 5).tokens)
  assert (first.tokens != again.tokens).any()
  assert set(first.prompt_ids) != set(make("b", 1, 5).prompt_ids)
  assert set(first.prompt_ids) != set(make("a", 1, 6).prompt_ids)


def test_the_name_belongs_to_the_last_who_took_it(open_run, serving):
  store = open_run()
  with serving(store) as ended:
    RolloutReader(store).take(2, 0, timeout=120)
    store.claim("a")
    wait_until(lambda: ended)
    assert "another sampler has taken the name a" in ended


@pytest.mark.parametrize("begun", [False, True], ids=["to begin", "to come back"])
def test_a_patient_sampler_waits_for_a_learner(open_run, begun):
  url, ended = f"memory://{secrets.token_hex(4)}", []
  if begun:
    open_run(url=url).stop("not now")
  thread = threading.Thread(
    target=lambda: ended.append(run_sampler(url, "a", patience=120.0)), daemon=True
  )
  thread.start()
  time.sleep(1.0)
  assert not ended
  store = Store.open(url, run="r", create=True) if begun else open_run(url=url)
  RolloutReader(store).take(1, 0, timeout=120)
  store.stop("enough")
  thread.join(60)
  assert ended == ["enough"]


def test_patience_has_an_end(open_run):
  with pytest.raises(WrongRunError, match="holds no run"):
    run_sampler(f"memory://{secrets.token_hex(4)}", "a", patience=0.1)
  store = open_run()
  store.stop("enough")
  assert run_sampler(store.url, "a", patience=0.1) == "enough"


def test_a_changed_config_is_taken_up(open_run, serving, assignment):
  store = open_run()
  with serving(store):
    reader = RolloutReader(store)
    reader.take(2, 0, timeout=120)
    sampler = dataclasses.replace(assignment.sampler, precision="float32")
    other = dataclasses.replace(assignment, sampler=sampler, capacity=9)
    again = Store.open(store.url, run="r", create=True, config=other.to_json())
    again.release(reader.cursor)
    wait_until(lambda: store.next_seq("a") == 11)
    last = reader.take(9, 0, timeout=60)[-1]
    again.stop("enough")
  assert last.header.sampling.dtype == "float32"


def test_truncated_sampling_is_recorded(open_run, serving):
  store = open_run(sampler={"top_k": 3, "kept_tokens": 3})
  with serving(store):
    (record,) = RolloutReader(store, limits=Limits(vocab_size=17)).take(
      1, 0, timeout=120
    )
  assert record.header.sampling.top_k == 3
  assert record.header.sampling.logprobs == "raw"
  assert (record.kept_mass[record.mask] <= 1).all()
  sampled = record.tokens[record.mask][:, None]
  assert (record.kept_tokens[record.mask] == sampled).any(axis=1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  "law", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2}, {"top_k": 99}], ids=str
)
def test_what_truncated_sampling_kept_is_recorded_by_default(assignment, params, law):
  sampler = dataclasses.replace(assignment.sampler, **law)
  told = json.loads(
    json.dumps(dataclasses.replace(assignment, sampler=sampler).to_json())
  )
  told = Assignment.from_json(told)
  engine, environment = build(told)
  engine.update(params, 0)
  record = Worker(told, "a", 0, engine, environment).rollout(0)
  # As many as top-k keeps; else, with a vocabulary this small, all there are.
  assert record.kept_tokens.shape == (8, 5, 2 if law == {"top_k": 2} else 17)
  kept = (record.kept_tokens >= 0).sum(-1)[record.mask]
  assert (kept >= 1).all() and ((kept == 17).all() if law == {"top_k": 99} else True)
  assert (record.kept_mass[record.mask] <= 1).all()
  validate(record, Limits(vocab_size=17))


def test_the_room_for_what_was_kept_follows_the_law_of_sampling():
  def width(**settings):
    return SamplerSettings(**settings).kept_width(49_152)

  assert width() == width(temperature=0.5) == 0
  assert width(top_p=0.9) == width(min_p=0.1, top_p=0.9) == 64
  assert width(top_k=20) == width(top_k=20, top_p=0.9) == 20
  assert width(top_p=0.9, kept_tokens=200) == 200
  assert width(top_p=0.9, kept_tokens=0) == 0
  assert SamplerSettings(top_p=0.9).kept_width(17) == 17


@pytest.mark.parametrize(
  "bad",
  [
    {"precision": "fp7"},
    {"temperature": 0.0},
    {"top_p": 0.0},
    {"count": -1},
    {"group_size": 0},
  ],
)
def test_settings_outside_their_range_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    SamplerSettings(**bad)


def test_a_store_tells_what_its_learner_wrote(assignment):
  with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
    dataclasses.replace(assignment, capacity=0)
  written = json.loads(json.dumps(assignment.to_json()))
  assert Assignment.from_json(written) == assignment


@pytest.mark.parametrize("new_params", ["switch", "switch_recompute"])
def test_a_record_of_two_versions_says_so(assignment, params, new_params):
  native = NativeSettings(slots=2, new_params=new_params)
  sampler = dataclasses.replace(assignment.sampler, native=native)
  told = json.loads(
    json.dumps(dataclasses.replace(assignment, sampler=sampler).to_json())
  )
  told = Assignment.from_json(told)
  engine, environment = build(told)
  newer = {name: 1.01 * x.astype(np.float32) for name, x in params.items()}
  looks = iter([None, None, (newer, 4)])
  engine.newer = lambda: next(looks, None)
  engine.update(params, 3)
  record = Worker(told, "a", 0, engine, environment).rollout(0)
  assert set(record.versions[record.mask].tolist()) == {3, 4}
  assert record.header.version == 4
  assert record.header.params_digest == digest(newer) != digest(params)
  validate(record, learner_version=4, params_digest=digest(newer))


def test_a_version_whose_shapes_do_not_fit_is_named_and_the_old_one_used_on(
  open_run, serving, params, capsys
):
  store = open_run(capacity=1)
  reader = RolloutReader(store)
  with serving(store):
    reader.take(1, 0, timeout=120)
    bad = params | {"final_norm": params["final_norm"][:-1]}
    store.publish(1, bad, {"cursor": reader.cursor})
    (record,) = reader.take(1, 1, timeout=120)
    assert record.header.version == 0
    store.publish(2, params, {"cursor": reader.cursor})
    (record,) = reader.take(1, 2, timeout=120)
    assert record.header.version == 2
  said = capsys.readouterr().out
  assert "version 1 is refused, the old one used on: " in said
  assert "final_norm has shape" in said


@pytest.mark.slow
def test_a_sampler_takes_newer_params_inside_a_record(open_run, serving, params):
  # One response at a time, and a record of as many as take a while.
  store = open_run(
    capacity=1,
    sampler={
      "native": NativeSettings(slots=1, new_params="switch"),
      "prompts_per_record": 16,
      "group_size": 8,
    },
  )
  reader = RolloutReader(store)
  with serving(store):
    wait_until(lambda: store.heartbeats().get("a", {}).get("state") == "generating")
    store.publish(1, params, {"cursor": reader.cursor})
    (record,) = reader.take(1, 1, timeout=120)
  assert record.header.version == 1
  assert (record.versions[record.mask] == 1).any()
