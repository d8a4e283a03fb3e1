import json

import pytest

from tis_jax.runner import logs


def test_metrics_are_one_json_object_a_step_and_nan_is_null(tmp_path):
  log = logs.MetricsLog(tmp_path)
  log.write(1, {"loss": 0.5, "gap": float("nan")})
  log.close()
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
  assert rows == [{"step": 1, "loss": 0.5, "gap": None}]


def test_a_resumed_log_has_each_step_once(tmp_path):
  first = logs.MetricsLog(tmp_path)
  for step in (1, 2, 3):
    first.write(step, {"loss": float(step)})
  first.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')  # killed while writing
  second = logs.MetricsLog(tmp_path, after_step=2)
  second.write(3, {"loss": 30.0})
  second.close()
  rows = logs.read_metrics(tmp_path / "metrics.jsonl")
  assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_tensorboard_events_are_written_when_asked_for(tmp_path):
  log = logs.MetricsLog(tmp_path, tensorboard=True)
  log.write(1, {"loss": 0.5})
  log.close()
  assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_weights_and_biases_gets_every_metric_when_asked_for(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  log = logs.MetricsLog(tmp_path, wandb_project="demo", run="abc", config={"seed": 3})
  log.write(1, {"loss/total": 0.5})
  log.close()
  wandb.teardown()  # Its own process writes what it holds.
  (record,) = tmp_path.glob("wandb/offline-run-*/run-abc.wandb")
  assert b"loss/total" in record.read_bytes()


def test_a_missing_writer_says_how_to_install_it(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "wandb", None)
  with pytest.raises(SystemExit, match=r"pip install 'tis_jax\[log\]'"):
    logs.MetricsLog(tmp_path, wandb_project="demo")


def test_progress_gives_rate_and_time_left(monkeypatch):
  clock = iter((100.0, 110.0))
  monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
  progress = logs.Progress(first_step=0, last_step=100)
  line = progress.line(20, {"reward": 0.25}, tokens=4000.0)
  assert line == "step  20/100  reward 0.25  2.00 step/s  400 tok/s  left 40s"


def test_an_evaluation_that_is_made_again_stands_once(tmp_path):
  def rows():
    return [
      (row["step"], "eval/pass_at_1" in row)
      for row in logs.read_metrics(tmp_path / "metrics.jsonl")
    ]

  with logs.MetricsLog(tmp_path) as log:
    log.write(0, {"eval/pass_at_1": 0.5})
    log.write(1, {"loss/total": 1.0})
    log.write(1, {"eval/pass_at_1": 0.5})
  logs.MetricsLog(tmp_path, after_step=1, evaluates=3).close()
  assert rows() == [(0, True), (1, False), (1, True)]
  logs.MetricsLog(tmp_path, after_step=1, evaluates=1).close()
  assert rows() == [(0, True), (1, False)]
  logs.MetricsLog(tmp_path).close()  # Nothing is restored: it all begins anew.
  assert rows() == []
