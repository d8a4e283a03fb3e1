"""Batches out of records: nothing lost, nothing twice, also across a restart."""

import dataclasses
import json
import secrets

import numpy as np
import pytest

from tis_jax.learner import concatenate
from tis_jax.runner.lineage import Lineage
from tis_jax.runner.stream import BatchStream, late_rows, needed_from, reread
from tis_jax.store import Header, Rollout, RolloutReader, Sampling, Store

GROUPS, SIZE, PROMPT, RESPONSE = 3, 2, 2, 2


def record(seq, rewards):
  """A record whose tokens say which record and row they are of."""
  rows = GROUPS * SIZE
  tokens = np.stack([np.full(rows, seq), np.arange(rows)], axis=1).astype(np.int32)
  return Rollout(
    prompts=np.ones((rows, PROMPT), np.int32),
    prompt_mask=np.ones((rows, PROMPT), bool),
    tokens=tokens,
    mask=np.ones((rows, RESPONSE), bool),
    sampler_logp=np.full((rows, RESPONSE), -1.0, np.float32),
    versions=np.zeros((rows, RESPONSE), np.int32),
    rewards=np.asarray(rewards, np.float32),
    group_ids=np.repeat(np.arange(GROUPS, dtype=np.int32), SIZE),
    prompt_ids=np.repeat(np.arange(GROUPS, dtype=np.int32), SIZE),
    finish_reasons=np.zeros(rows, np.int8),
    header=Header(0, Sampling()),
  )


@pytest.fixture
def store():
  store = Store.open(f"memory://{secrets.token_hex(4)}", run="r", create=True)
  mixed, alike = [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]
  for seq in range(8):
    store.put_rollout("a", seq, record(seq, alike if seq % 2 else mixed))
  return store


def stream(store, groups, *, filter_groups=False, position=None, **more):
  reader = RolloutReader(store, position and position["cursor"])
  return BatchStream(
    reader, groups=groups, filter_groups=filter_groups, position=position, **more
  )


def rows(batch):
  return [tuple(row) for row in batch.tokens.tolist()]


def take(stream, count):
  return [rows(stream.next(0, lambda: None)) for _ in range(count)]


def test_batches_are_whole_groups_in_the_order_of_the_records(store):
  batches = take(stream(store, groups=2), 3)
  expected = [(seq, row) for seq in range(2) for row in range(GROUPS * SIZE)]
  assert [row for batch in batches for row in batch] == expected
  assert all(len(batch) == 2 * SIZE for batch in batches)


def test_groups_of_different_records_stay_apart(store):
  first = stream(store, groups=4).next(0, lambda: None)
  assert len(np.unique(first.group_ids)) == 4


def test_groups_without_signal_are_left_out_and_counted(store):
  found = stream(store, groups=3, filter_groups=True)
  (batch,) = take(found, 1)
  # Record 0 keeps its groups 0 and 2, record 1 only its group 2.
  assert batch == [(0, 0), (0, 1), (0, 4), (0, 5), (1, 4), (1, 5)]
  assert found.rows["filtered"] == 6
  assert found.rows["taken"] == found.rows["trained"] + found.rows["filtered"]


@pytest.mark.parametrize("filter_groups", [False, True])
def test_a_restart_goes_on_with_the_very_next_group(store, filter_groups):
  whole = stream(store, 2, filter_groups=filter_groups)
  expected = take(whole, 5)
  first = stream(store, 2, filter_groups=filter_groups)
  begun = take(first, 2)
  position = json.loads(json.dumps(first.position))
  store.delete_rollouts(needed_from(position))
  again = stream(store, 2, filter_groups=filter_groups, position=position)
  assert begun + take(again, 3) == expected
  assert again.rows == whole.rows


def test_another_process_makes_the_same_batches_of_what_was_chosen(store):
  told, lineage = [], Lineage()
  lineage.begins(version=3, step=1)
  first = stream(
    store,
    groups=2,
    filter_groups=True,
    lineage=lineage,
    on_choice=lambda *said: told.append(json.loads(json.dumps(said))),
  )
  batches = [first.next(3, lambda: None, step=step) for step in range(1, 4)]
  assert [step for step, _ in told] == [1, 2, 3]
  for batch, (_, choice) in zip(batches, told, strict=True):
    its = Lineage.of(choice["attempts"])
    made = concatenate([reread(store, x, its, 0).rows for x in choice["records"]])
    assert its.version(1) == 3
    for one, other in zip(batch, made, strict=True):
      np.testing.assert_array_equal(one, other)


def test_what_is_held_is_still_needed(store):
  held = stream(store, groups=2)
  take(held, 2)  # two of three groups of record 1 are left
  assert held.position["cursor"] == {"a": 2}
  assert needed_from(held.position) == {"a": 1}


def test_what_was_held_and_is_gone_is_lost_and_the_next_record_takes_its_place(store):
  held = stream(store, groups=2)
  take(held, 2)
  position = json.loads(json.dumps(held.position))
  store.delete_rollouts({"a": 2})
  again = stream(store, groups=2, position=position)
  assert take(again, 1) == [[(2, row) for row in range(2 * SIZE)]]
  assert again.lost_rows == 2 * SIZE


def test_experts_are_kept_for_a_learner_that_replays_them(store):
  def experts(seq):
    return np.full((GROUPS * SIZE, PROMPT + RESPONSE, 2, 1), seq, np.int16)

  for seq in (8, 9):
    routed = dataclasses.replace(record(seq, [0, 1] * 3), routed_experts=experts(seq))
    store.put_rollout("a", seq, routed)
  store.delete_rollouts({"a": 8})
  position = {"cursor": {"a": 8}, "held": [], "rows": {}}
  first = stream(store, groups=2, position=position, routed=True)
  found = first.next(0, lambda: None).routed_experts
  np.testing.assert_array_equal(found, experts(8)[: 2 * SIZE])
  # What the step has left, and of the next record, after a restart.
  again = stream(store, groups=2, position=first.position, routed=True)
  found = again.next(0, lambda: None).routed_experts
  np.testing.assert_array_equal(found[:SIZE], experts(8)[:SIZE])
  np.testing.assert_array_equal(found[SIZE:], experts(9)[:SIZE])
  # To others it does not matter which records have them.
  position = {"cursor": {"a": 9}, "held": [], "rows": {}}
  other = stream(store, groups=2 * GROUPS, position=position)
  store.put_rollout("a", 10, record(10, [0, 1] * 3))
  assert other.next(0, lambda: None).routed_experts is None


def late_stream(store, policy, position=None):
  reader = RolloutReader(store, position and position["cursor"])
  return BatchStream(
    reader, groups=GROUPS, max_staleness=2, late=policy, position=position
  )


def test_what_is_late_is_counted_by_what_becomes_of_it(store):
  for policy, count in (
    ("keep", "late_kept"),
    ("recompute", "late_recomputed"),
    ("reconstruct", "late_reconstructed"),
  ):
    found = late_stream(store, policy)
    found.next(0, lambda: None, step=2)
    assert found.rows[count] == 0
    found.next(0, lambda: None, step=3)
    assert found.rows[count] == GROUPS * SIZE
    assert late_rows(found.rows) == {f"rollouts/{count}": GROUPS * SIZE}


def test_what_is_late_is_dropped_but_of_no_prompt_twice_in_a_row(store):
  found = late_stream(store, "drop")
  # Of record 0 all groups are dropped; record 1 is of the same prompts.
  (row, *_) = rows(found.next(0, lambda: None, step=3))
  assert row == (1, 0)
  assert found.rows["late_dropped"] == found.rows["late_kept"] == GROUPS * SIZE
  assert found.lost_rows == 0
  # Once it has been trained on, a prompt may be dropped again, also after a restart.
  again = late_stream(store, "drop", json.loads(json.dumps(found.position)))
  assert rows(again.next(0, lambda: None, step=4))[0] == (3, 0)
  assert again.rows["late_dropped"] == 2 * GROUPS * SIZE


def test_a_dropped_group_lets_the_writer_go_on(store):
  store.publish(0, {}, {"cursor": {}})
  last = late_stream(store, "drop", {"cursor": {"a": 7}, "held": [], "rows": {}})

  def released():
    if store.taken() == {"a": 8} and store.next_seq("a") == 8:
      store.put_rollout("a", 8, record(8, [0, 1] * GROUPS))

  assert rows(last.next(0, released, step=3))[0] == (8, 0)
