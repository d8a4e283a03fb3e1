"""Packed rows: the plan, and an update on them, which is that on the padded ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_oracle import VERSION, make_algorithm

from tis_jax import learner
from tis_jax.learner import packing
from tis_jax.models import SlidingWindow, decoder_graph
from tis_jax.rollouts import up_to_last

FOUR = {"micro_batches": 4}


@pytest.fixture(scope="module")
def grouped(batch):
  """The batch with a prompt for each group, but for one row that has its own."""
  first = np.arange(32) // 4 * 4
  first[5] = 5
  rng = np.random.default_rng(7)
  mask = batch.mask.copy()
  mask[8:20, 2] = False  # Holes, where a tool has spoken.
  return batch._replace(
    prompts=np.where(batch.prompt_mask.any(1)[:, None], batch.prompts[first], 0),
    prompt_mask=batch.prompt_mask[first] & batch.prompt_mask.any(1)[:, None],
    mask=mask,
    top_tokens=rng.integers(-1, 20, (*mask.shape, 3)).astype(np.int32),
    kept_tokens=np.concatenate(
      [batch.tokens[..., None], rng.integers(-1, 20, (*mask.shape, 4))], -1
    ).astype(np.int32),
  )


@pytest.fixture(scope="module")
def whole(grouped):
  """In eight groups of four."""
  first = np.arange(32) // 4 * 4
  return grouped._replace(
    prompts=grouped.prompts[first],
    prompt_mask=grouped.prompt_mask[first],
    mask=grouped.mask & grouped.prompt_mask[first].any(1)[:, None],
  )


def plain(batch):
  """Without what only some algorithms read."""
  return batch._replace(top_tokens=None, kept_tokens=None)


def by_mini_batch(packing):
  """`[mini, passes * R, L]` arrays, pass after pass."""
  _, _, mini, length = packing.tokens.shape
  return learner.Packing(
    *(np.transpose(x, (2, 1, 0, 3)).reshape(mini, -1, length) for x in packing)
  )


@pytest.mark.parametrize("of", ["grouped", "whole"])
@pytest.mark.parametrize(
  ("mesh", "settings"),
  [("one", FOUR), ("2x2x2", {"mini_batches": 2, "micro_batches": 2}), ("one", {})],
)
def test_every_response_token_is_predicted_once_behind_its_prompt(
  tiny, grouped, whole, mesh, settings, of
):
  grouped = {"grouped": grouped, "whole": whole}[of]
  algorithm, mesh = make_algorithm(**settings), tiny.meshes[mesh]
  plan = by_mini_batch(learner.pack(grouped, algorithm, mesh).packing)
  for m, mini in enumerate(zip(*plan, strict=True)):
    mini = learner.Packing(*mini)
    batch = learner.take_rows(grouped, slice(m, None, algorithm.mini_batches))
    read = np.flatnonzero(up_to_last(batch.mask))
    found = mini.targets[mini.targets >= 0]
    np.testing.assert_array_equal(np.sort(found), read)
    prompts = set()
    for row, slot in np.argwhere(mini.targets >= 0):
      b, t = divmod(mini.targets[row, slot], batch.tokens.shape[1])
      # All that the slot attends to, in the order of the positions.
      seen = np.arange(mini.tokens.shape[1]) <= slot
      own, prompt = mini.segments[row, slot], mini.prompts[row, slot]
      seen &= np.isin(mini.segments[row], [own, prompt or own])
      positions, tokens = mini.positions[row, seen], mini.tokens[row, seen]
      np.testing.assert_array_equal(positions, np.arange(seen.sum()))
      before = batch.prompts[b][batch.prompt_mask[b]], batch.tokens[b, :t]
      np.testing.assert_array_equal(tokens, np.concatenate(before))
      if len(before[0]) > 1:
        prompts.add((row, prompt, before[0].tobytes()))
    # One copy of a prompt in a row, and full passes before empty ones.
    assert len({(row, text) for row, _, text in prompts}) == len(prompts)
    used = (mini.segments != 0).any(axis=1)
    assert not (np.diff(used.astype(int)) > 0).any()


def test_a_prompt_is_computed_once_for_the_responses_of_a_row(tiny, grouped):
  algorithm, mesh = make_algorithm(**FOUR), tiny.meshes["one"]
  group = np.arange(32) // 4 == 2
  one = grouped._replace(mask=grouped.mask & group[:, None])
  slots = (learner.pack(one, algorithm, mesh).packing.segments != 0).sum()
  shared = grouped.prompt_mask[8].sum() - 1
  assert shared > 0
  assert slots == shared + up_to_last(one.mask).sum()
  # Of all groups, half of the padded rows' passes are left.
  segments = learner.pack(grouped, algorithm, mesh).packing.segments
  assert segments.any(axis=-1).sum() == 2


def test_full_responses_take_as_many_passes_as_padded_rows(tiny, grouped):
  """In groups of one: nothing is shared, and nothing is lost."""
  own = np.random.default_rng(1).integers(3, 20, grouped.prompts.shape)
  full = grouped._replace(
    prompts=own.astype(np.int32),
    prompt_mask=np.ones_like(grouped.prompt_mask),
    mask=np.ones_like(grouped.mask),
  )
  for mesh, settings in (("one", FOUR), ("2x2x2", {"micro_batches": 2})):
    algorithm = make_algorithm(**settings)
    packed = learner.pack(full, algorithm, tiny.meshes[mesh]).packing
    assert (packed.segments != 0).all()


@pytest.mark.parametrize("mini", [1, 2])
def test_whole_groups_take_the_slots_of_a_prompt_once(tiny, whole, mini):
  """Full responses, that is, and those of a group in one mini-batch."""
  full = whole._replace(mask=np.ones_like(whole.mask))
  full = full._replace(prompt_mask=np.ones_like(full.prompt_mask))
  algorithm = make_algorithm(mini_batches=mini)
  packed = learner.pack(full, algorithm, tiny.meshes["one"], 1000).packing
  assert packed.tokens.shape == (8, 1, mini, 3 + 6 * (4 // mini))
  assert (packed.segments != 0).all()
  # Where attention is nearly all that a slot costs, long rows do not pay.
  packed = learner.pack(full, algorithm, tiny.meshes["one"], 1).packing
  assert packed.tokens.shape[3] == 72


def test_groups_of_any_lengths_fit_the_rows_of_whole_ones(tiny, whole, monkeypatch):
  """As many rows as their prompts need is all that is counted, so few tries suffice."""
  # Rows this short would be joined, and share their prompts so.
  monkeypatch.setattr(packing, "_SLOTS", 1)
  rng, mesh, shapes = np.random.default_rng(4), tiny.meshes["one"], set()
  algorithm = make_algorithm(micro_batches=2)
  for _ in range(200):
    length = np.where(rng.random(32) < 0.5, rng.choice([1, 6], 32), rng.integers(0, 7))
    short = whole._replace(mask=np.arange(6) < length[:, None])
    short = short._replace(mask=short.mask & short.prompt_mask.any(1)[:, None])
    packed = learner.pack(short, algorithm, mesh, 100).packing
    shapes.add(packed.tokens.shape)
    assert (packed.targets >= 0).sum() == short.mask.sum()
  assert shapes == {(4, 2, 1, 27)}


def test_a_response_without_a_prompt_is_refused(tiny, grouped):
  without = grouped._replace(prompt_mask=np.zeros_like(grouped.prompt_mask))
  with pytest.raises(ValueError, match="a response has no prompt"):
    learner.pack(without, make_algorithm(), tiny.meshes["one"])


def test_readings_are_those_of_the_padded_rows(tiny, grouped):
  """Kept sets, candidates, squared sums: and the gradient through all of them."""
  algorithm, mesh = make_algorithm(), tiny.meshes["one"]
  weight = np.random.default_rng(2).normal(size=grouped.mask.shape)
  weight = np.where(grouped.mask, weight, 0).astype(np.float32)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def read(params, batch, packing=None):
    out = learner.score(
      tiny.graph, params, batch, packing, candidates=True, sum_squared_probs=True
    )
    wide = jnp.where(jnp.isfinite(out.candidates), out.candidates, 0.0).sum(-1)
    return (weight * (out.logp + 0.3 * out.entropy + 0.1 * wide)).sum(), out

  packing = learner.pack(grouped, algorithm, mesh).packing
  packing = learner.Packing(*(x[0] for x in by_mini_batch(packing)))
  (_, want), slope = read(tiny.params, grouped)
  (_, got), found = read(tiny.params, grouped, packing)
  for name in ("logp", "entropy", "candidates", "sum_squared_probs"):
    a, b = (np.asarray(getattr(x, name))[grouped.mask] for x in (got, want))
    np.testing.assert_allclose(a, b, 2e-5, 2e-6, err_msg=name)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slope), strict=True):
    np.testing.assert_allclose(a, b, 2e-4, 2e-6)


def test_a_sliding_window_counts_the_tokens_of_its_own_row(tiny, grouped):
  window = SlidingWindow(size=3, full_every=2, rope_theta=100.0)
  graph = decoder_graph(dataclasses.replace(tiny.config, window=window))
  packing = learner.pack(grouped, make_algorithm(), tiny.meshes["one"]).packing
  packing = learner.Packing(*(x[0] for x in by_mini_batch(packing)))
  score = jax.jit(functools.partial(learner.score, graph))
  want, got = (
    np.asarray(score(tiny.params, grouped, given).logp)[grouped.mask]
    for given in (None, packing)
  )
  np.testing.assert_allclose(got, want, 2e-5, 2e-6)
  unlimited = learner.score(tiny.graph, tiny.params, grouped).logp
  assert np.abs(np.asarray(unlimited)[grouped.mask] - want).max() > 0.01


def same_step(got, want):
  for part in ("params", "critic"):
    got_, want_ = getattr(got[0], part), getattr(want[0], part)
    if want_ is not None:
      pairs = jax.tree.leaves(got_), jax.tree.leaves(want_)
      for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
  assert got[1].keys() == want[1].keys()
  # A standard deviation near 0 is rounding.
  for name in want[1].keys() - {"policy/entropy/std", "policy/entropy/stderr"}:
    jax.tree.map(
      lambda a, b, name=name: np.testing.assert_allclose(a, b, 5e-5, 5e-6, name),
      got[1][name],
      want[1][name],
    )


def test_an_update_of_one_pass_is_the_padded_one(tiny, whole):
  algorithm, mesh = make_algorithm(kl__coefficient=0.0), tiny.meshes["one"]
  update = learner.make_update(tiny.graph, algorithm, tiny.optimizer, mesh)

  def step(given):
    state = learner.init_state(tiny.params, tiny.optimizer, jax.random.key(1), mesh)
    return jax.device_get(update(state, given, np.int32(VERSION)))

  batch = plain(whole)
  packed = learner.pack(batch, algorithm, mesh, 100)
  assert packed.packing.tokens.shape == (8, 1, 1, 27)
  same_step(step(packed), step(batch))


@pytest.mark.slow
def test_an_update_is_the_padded_one_and_compiles_once(tiny, grouped):
  """On a mesh, with all that passes read, over batches of any lengths."""
  settings = {
    "advantage__name": "gae",
    "mini_batches": 2,
    "micro_batches": 2,
    "kl__coefficient": 0.2,
    "entropy_coefficient": 0.05,
    "aggregation__mode": "sequence_mean",
    "aggregation__denominator": "accepted",
    "correction__stages": ("reject", "truncate"),
    "correction__reject__high": 1.5,
  }
  algorithm, mesh = make_algorithm(**settings), tiny.meshes["2x2x2"]
  reference = jax.tree.map(lambda x: 0.9 * x, tiny.params)
  traces = []

  def advantage(rewards, values, mask):
    traces.append(mask.shape)
    return algorithm.advantage(rewards, values, mask)

  update = learner.make_update(
    tiny.graph,
    dataclasses.replace(algorithm, advantage=advantage),
    tiny.optimizer,
    mesh,
    critic_optimizer=tiny.optimizer,
  )

  def step(given):
    state = learner.init_state(
      tiny.params, tiny.optimizer, jax.random.key(1), mesh,
      critic_optimizer=tiny.optimizer,
    )  # fmt: skip
    return jax.device_get(update(state, given, np.int32(VERSION), reference))

  whole = plain(grouped)
  rng = np.random.default_rng(3)
  short = whole.mask & (np.arange(6) < rng.integers(0, 4, (32, 1)))
  one = whole.mask & (np.arange(32) == 9)[:, None]
  batches = [whole._replace(mask=x) for x in (whole.mask, short, one, one & False)]
  # The last is rejected to the last token.
  batches.append(whole._replace(sampler_logp=whole.sampler_logp + 30))
  for batch in batches:
    want = step(batch)
    same_step(step(learner.pack(batch, algorithm, mesh)), want)
  assert want[1]["rejected/tokens"] == 1
  # One of the padded form and one of the packed.
  assert len(traces) == 2


def test_what_does_not_fit_an_update_is_refused(tiny, grouped):
  mesh = tiny.meshes["one"]
  packed = learner.pack(plain(grouped), make_algorithm(**FOUR), mesh)
  state = learner.abstract_state(tiny.graph, tiny.optimizer, mesh)
  for settings, message in (
    (
      {"micro_batches": 2},
      r"packed rows \(1, 4, 1, 72\) are not the \(R, 2, 1, L\) of this update, R x L "
      "at most 144",
    ),
    ({**FOUR, "shuffle": True}, "shuffle=True deals them anew"),
  ):
    update = learner.make_update(
      tiny.graph, make_algorithm(**settings), tiny.optimizer, mesh
    )
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(update, state, packed, np.int32(VERSION))
