"""`tis doctor` and `tis check`, as a shell sees them."""

import json
import re

import numpy as np
import pytest

from tis_jax import doctor, lab
from tis_jax.cli import main
from tis_jax.doctor.prescription import CORRECTIONS, prescribe
from tis_jax.lab import faults


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A healthy dump and a shifted one."""
  folder = tmp_path_factory.mktemp("dumps")
  healthy = lab.drawn(0.03, rows=24, length=24)
  batches = {
    "healthy": healthy,
    "shifted": faults.inject("shifted_tokens", healthy, 1.0),
  }
  for name, batch in batches.items():
    np.savez(
      folder / f"{name}.npz",
      old_logp=batch.old_logp,
      sampler_logp=batch.sampler_logp,
      mask=batch.mask,
      tokens=batch.tokens,
      rewards=np.arange(24) % 2,
    )
  return folder


def run(capsys, *words):
  with pytest.raises(SystemExit) as end:
    main(list(map(str, words)))
  out = capsys.readouterr()
  return end.value.code, out.out, out.err


@pytest.mark.slow
def test_a_fault_is_a_page_and_an_exit_code(files, capsys):
  html = files / "page.html"
  code, out, _ = run(
    capsys,
    "doctor",
    files / "shifted.npz",
    "--framework",
    "verl",
    "trl",
    "--html",
    html,
  )
  assert code == 1
  assert out.startswith("SHIFTED TOKENS")
  assert "usually " in out and "do " in out and "https://" in out
  assert out.count("row ") >= 3 and "take      none" in out
  page = html.read_text()
  assert page.count("<svg") == 3 and "<script" not in page
  assert not re.search(r'(src|href)="(?!https://github)', page)


def test_json_is_one_object_with_a_verdict(files, capsys):
  code, out, _ = run(capsys, "doctor", files / "healthy.npz", "--json")
  found = json.loads(out)
  assert code == 0
  assert found["verdict"] == "numerics" in doctor.VERDICTS
  assert {"score", "evidence", "rows"} <= found["findings"][0].keys()
  table = {row["name"]: row for row in found["corrections"]}
  assert table.keys() == CORRECTIONS.keys()
  assert table["token TIS, 2"]["ess"] > 0.99
  assert table["token TIS, 2"]["configs"]["prime_rl"] is None
  assert found["advice"]["take"] == "token TIS, 2"


def test_a_file_that_cannot_be_read_is_a_sentence(files, capsys):
  (files / "empty.npz").write_bytes(b"")
  code, out, err = run(capsys, "doctor", files / "empty.npz")
  assert (code, out) == (2, "") and "is empty" in err
  assert run(capsys, "check", files / "none.npz", "--max-k3", 1)[0] == 2


def test_check_holds_a_dump_to_limits(files, capsys):
  path = files / "healthy.npz"
  code, out, _ = run(
    capsys, "check", path, "--max-k3", 0.01, "--min-ess", 0.9, "--no-fault"
  )
  assert code == 0 and out.count("ok ") == 3
  code, out, _ = run(capsys, "check", path, "--max-k3", 1e-9)
  assert code == 1 and "FAILED --max-k3" in out
  code, out, _ = run(capsys, "check", files / "shifted.npz", "--no-fault", "--json")
  assert code == 1 and json.loads(out)["verdict"] == "shifted_tokens"
  assert run(capsys, "check", path)[0] == 2


def test_the_table_is_what_the_chains_do():
  """Effects against float64 numpy."""
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1.0, (8, 6))
  old = np.minimum(sampler + rng.normal(0, 0.6, sampler.shape), 0)
  mask = np.arange(6) < rng.integers(2, 7, 8)[:, None]
  advantages = np.broadcast_to(rng.normal(size=(8, 1)), mask.shape)
  dump = doctor.from_arrays(old, sampler, mask, advantages=advantages)
  some = {name: CORRECTIONS[name] for name in ("token TIS, 2", "token mask, 0.5 to 2")}
  tis, masked = prescribe(dump, corrections=some).corrections
  ratio = np.exp(old - sampler)
  weight = np.minimum(ratio, 2.0)[mask]
  assert tis.ess == pytest.approx(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
  assert tis.gradient_scale == pytest.approx(weight.mean(), rel=1e-5)
  pull = (advantages * (1 - np.exp(old)))[mask]
  norm = np.sqrt(((weight * pull) ** 2).sum() / (pull**2).sum())
  assert tis.gradient_norm == pytest.approx(norm, rel=1e-5)
  out = (ratio < 0.5) | (ratio > 2)
  assert masked.dropped_tokens == pytest.approx(out[mask].mean())
  rows = (out | ~mask).all(axis=1)
  assert masked.dropped_sequences == pytest.approx(rows.mean())
