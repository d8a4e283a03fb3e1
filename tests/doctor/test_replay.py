"""A batch through corrections: the weights of each, and the gradient of a model."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tis_jax import doctor, learner, models
from tis_jax.cli import main
from tis_jax.corrections import from_text

BATCH = Path(__file__).parents[2] / "notebooks" / "quickstart_batch.npz"


@pytest.fixture(scope="module")
def dump():
  return doctor.read(str(BATCH)).take(slice(0, 64))


@pytest.mark.slow
def test_each_correction_weighs_as_its_chain_does(dump):
  rng = np.random.default_rng(0)
  noisy = doctor.from_arrays(
    dump.old_logp,
    np.minimum(dump.sampler_logp + rng.normal(0, 0.3, dump.shape), 0),
    dump.mask,
    group_ids=dump.group_ids, rewards=dump.rewards,
  )  # fmt: skip
  lines = ["none", "truncate(1.2)", "reject(1.5, 0.5) | truncate(1.2)", "tv_mask(0.05)"]
  found = {x.effect.name: x.effect for x in doctor.replay(noisy, lines)}
  assert list(found) == lines
  sampler = noisy.sampler_logp.astype(np.float32)
  for line in lines[:3]:
    out = from_text(line)(noisy.old_logp.astype(np.float32), sampler, noisy.mask)
    weight = np.asarray(out.weight * out.mask)[noisy.mask]
    np.testing.assert_allclose(found[line].gradient_scale, weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[line].dropped_tokens, (weight == 0).mean())
  assert found["tv_mask(0.05)"].dropped_tokens > 0  # it was given the advantages


@pytest.mark.slow
def test_the_gradient_is_the_models(dump):
  none, half, cut = doctor.replay(
    dump, {"none": from_text("none"), "clip": from_text("clip(0.5, 0.5)"),
           "cut": from_text("token_mask(0.999, 0.0)")}, "builtin:arithmetic",
  )  # fmt: skip
  assert none.gradient.norm == 1 and none.gradient.cosine == pytest.approx(1, abs=1e-5)
  # Every weight is a half: the same direction, half the length.
  assert half.gradient.norm == pytest.approx(0.5, rel=1e-4)
  assert half.gradient.cosine == pytest.approx(1, abs=1e-4)
  assert cut.gradient.norm == pytest.approx(_norm_by_hand(dump, cut.effect), rel=1e-3)
  assert cut.gradient.cosine < 0.999


def _norm_by_hand(dump, effect):
  """The norm of the accepted tokens' gradient over that of all, by one loss each."""
  config, params, _ = models.load("builtin:arithmetic")
  graph = models.decoder_graph(config)
  batch, _ = learner.load_batch(BATCH)
  batch = learner.take_rows(batch, np.arange(len(batch.rewards)) < 64)
  ratio = np.exp(dump.old_logp - dump.sampler_logp)
  group = np.unique(dump.group_ids, return_inverse=True)[1]
  mean = np.bincount(group, dump.rewards) / np.bincount(group)
  advantages = (dump.rewards - mean[group])[:, None]

  def norm(where):
    each = np.where(dump.mask & where, advantages, 0).astype(np.float32)
    loss = lambda p: (each * learner.score(graph, p, batch).logp).sum()
    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    return np.sqrt(sum(float((x**2).sum()) for x in leaves))

  return norm(ratio <= np.float32(0.999)) / norm(np.isfinite(ratio))


def test_a_shell_sees_a_table_or_json_or_what_is_wrong(capsys, tmp_path):
  main(["replay", str(BATCH), "--correct", "veto(1e-4) | truncate(2.0)", "icepop"])
  head, *rows = capsys.readouterr().out.splitlines()
  assert head.split()[0] == "ess" and len(rows) == 3
  assert rows[1].startswith("veto(1e-4) | truncate(2.0)")
  main(["replay", str(BATCH), "--correct", "tis", "--json"])
  none, tis = json.loads(capsys.readouterr().out)
  assert (none["name"], tis["name"]) == ("none", "tis") and tis["largest"] <= 2
  for line, message in (("trunkate(2)", "truncate"), ("opsm(0.5)", "needs advantages")):
    dump = tmp_path / "dump.npz"
    logp = np.log(np.full((2, 3), 0.5))
    np.savez(dump, old_logp=logp, sampler_logp=logp)
    with pytest.raises(SystemExit) as end:
      main(["replay", str(dump), "--correct", line])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_gradient_without_ids_is_refused():
  bare = doctor.from_arrays([[-0.5, -1.0]], [[-0.6, -1.0]])
  with pytest.raises(doctor.DumpError, match="needs ids of prompts and responses"):
    doctor.replay(bare, ["none"], "builtin:arithmetic")
