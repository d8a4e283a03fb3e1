"""`tis inspect`: a run, and a record of it as arrays and as a transcript."""

import json
import re

import numpy as np
import pytest
from tiny_run import small

from tis_jax import doctor, models
from tis_jax.runner import read_config
from tis_jax.runner.commands.inspect import main
from tis_jax.runner.setup import assignment
from tis_jax.runner.transcript import score_record, transcript
from tis_jax.sampler.worker import Worker, build
from tis_jax.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """A store with two records of version 0 and, as version 1, another policy."""
  folder = tmp_path_factory.mktemp("inspected")
  told = assignment(read_config(small(folder, 1, **{"sampler.precision": "float32"})))
  url = (folder / "store").as_uri()
  store = Store.open(url, "run", create=True, config=told.to_json())
  params = models.flatten(models.load(told.model)[1])
  store.publish(0, params, {"cursor": {}})
  engine, environment = build(told)
  engine.update(store.read_params(store.latest()), 0)
  worker = Worker(told, "a", 1, engine, environment)
  for seq in range(2):
    store.put_rollout("a", seq, worker.rollout(seq))
  return store


def test_a_run_is_shown_and_followed_to_its_end(store, capsys):
  main([store.url])
  assert "backlog  2 records wait for the learner" in capsys.readouterr().out
  store.stop("the end")
  main([store.url, "--follow", "0.01"])
  assert "stopped: the end" in capsys.readouterr().out
  store.kv.delete("stop")


def test_the_doctor_scores_a_store_by_its_own_params(store):
  dump = doctor.read(store.url)
  rows = [store.get_rollout("a", seq) for seq in range(2)]
  mask = np.concatenate([row.mask for row in rows])
  assert (dump.learner_version, dump.sampler_dtype) == (0, "float32")
  np.testing.assert_array_equal(dump.mask, mask)
  assert np.abs(dump.old_logp - dump.sampler_logp)[mask].max() < 1e-4
  assert "2 records, the newest of 2" in dump.notes[0]


def test_a_record_is_written_as_arrays(store, tmp_path, capsys):
  main([store.url, "--record", "a/1", "--npz", str(tmp_path / "record.npz")])
  found = np.load(tmp_path / "record.npz")
  record = store.get_rollout("a", 1)
  for name, value in record.arrays().items():
    np.testing.assert_array_equal(found[name], value)
  assert json.loads(str(found["header"]))["seq"] == 1
  assert "sampler_logp" in capsys.readouterr().out


def test_a_transcript_marks_the_tokens_whose_ratio_is_off(store, capsys):
  record = store.get_rollout("a", 0)
  same = score_record(store, record)
  assert np.nanmax(np.abs(same.log_ratio)) < 1e-4
  assert np.isnan(same.log_ratio[~record.mask]).all()
  assert not re.search(r"\[\d", transcript(same, colour=False))
  main([store.url, "--record", "a/0", "--rows", "1"])
  text = capsys.readouterr().out
  answer = same.tokenizer.decode(record.tokens[1][record.mask[1]])
  assert "row 1, reward" in text and f"\n  {answer}\n" in text and "row 0" not in text

  other = {name: 1.3 * x for name, x in store.read_params(store.latest()).items()}
  store.publish(1, other, {"cursor": {}})
  moved = score_record(store, record)
  marked = transcript(moved, colour=False)
  ratios = np.exp(moved.log_ratio[record.mask])
  off = np.maximum(ratios, 1 / ratios) > 1.1
  assert 0 < off.sum() == len(re.findall(r"\[\d+\.\d\d\]", marked))
  assert f"[{ratios[off][0]:.2f}]" in marked
  assert transcript(moved).count("\033[0m") == off.sum()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--record", "a/7"], "has no record a/7"),
    (["--record", "a"], "is no WRITER/SEQ"),
    (["--record", "../run/0"], "cannot name a writer"),
    (["--record", "a/0", "--rows", "99"], "the record has 0 to 7"),
  ],
)
def test_what_is_not_there_is_said(store, argv, message):
  with pytest.raises(SystemExit, match=message):
    main([store.url, *argv])
