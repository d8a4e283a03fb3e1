"""Other people's files: read by their names, refused in a sentence, never executed."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tis_jax import doctor
from tis_jax.doctor.readers.torch_file import read_torch

HERE = Path(__file__).parent


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1.0, (6, 9))
  mask = np.arange(9) < rng.integers(4, 10, 6)[:, None]
  return {"old": sampler + 1e-3, "sampler": sampler, "mask": mask}


def write_lines(path, rows):
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")
  return path


def test_npz_under_the_librarys_names(tmp_path, batch):
  np.savez(
    tmp_path / "a.npz",
    old_logp=batch["old"],
    sampler_logp=batch["sampler"],
    mask=batch["mask"],
    versions=np.full((6, 9), 3),
    learner_version=5,
    prompts=np.ones((6, 2), int),
    prompt_mask=np.array([[False, True]] * 6),
  )
  dump = doctor.read(tmp_path / "a.npz")
  np.testing.assert_array_equal(dump.mask, batch["mask"])
  np.testing.assert_allclose(dump.sampler_logp, batch["sampler"])
  assert (dump.staleness == 2).all()
  assert dump.prompts[0].tolist() == [-1, 1]


def test_npz_under_verls_names_says_what_it_took(tmp_path, batch):
  np.savez(
    tmp_path / "a.npz",
    old_log_probs=batch["old"],
    rollout_log_probs=batch["sampler"],
    response_mask=batch["mask"].astype(int),
    responses=np.ones((6, 9), int),
    unheard_of=np.ones(3),
  )
  dump = doctor.read(tmp_path / "a.npz")
  assert dump.columns == {
    "sampler_logp": "rollout_log_probs",
    "old_logp": "old_log_probs",
    "mask": "response_mask",
    "tokens": "responses",
  }


def test_a_column_that_does_not_fit_is_left_out_in_a_note(tmp_path, batch):
  np.savez(
    tmp_path / "a.npz",
    old_logp=batch["old"],
    sampler_logp=batch["sampler"],
    mask=batch["mask"],
    rewards=np.ones(5),
  )
  dump = doctor.read(tmp_path / "a.npz")
  assert dump.rewards is None
  assert any("rewards" in note for note in dump.notes)


def test_nemo_rl(tmp_path, batch):
  """Prompt and answer in one row, the log-prob of token t at place t."""
  rows = []
  for i in range(6):
    front = [0.0, 0.0, 0.0]
    rows.append(
      {
        "content": "text",
        "rewards": 1.0,
        "input_lengths": 12,
        "token_ids": list(range(12)),
        "token_loss_mask": [0, 0, 0, *map(int, batch["mask"][i])],
        "sample_loss_mask": 0.0 if i == 2 else 1.0,
        "generation_logprobs": [*front, *batch["sampler"][i]],
        "prev_logprobs": [*front, *batch["old"][i]],
        "idx": i,
      }
    )
  dump = doctor.read(write_lines(tmp_path / "train_data_step3.jsonl", rows))
  assert dump.columns["old_logp"] == "prev_logprobs"
  assert not dump.mask[2].any() and not dump.mask[:, :3].any()
  np.testing.assert_array_equal(dump.mask[3, 3:], batch["mask"][3])
  np.testing.assert_allclose(dump.sampler_logp[1, 3:], batch["sampler"][1])


def test_nemo_rl_of_before_the_mask_was_logged(tmp_path, batch):
  rows = [
    {
      "content": "text",
      "input_lengths": 11,
      "generation_logprobs": [0.0, 0.0, *batch["sampler"][i]],
      "prev_logprobs": [0.0, -3.0, *batch["old"][i]],
    }
    for i in range(6)
  ]
  dump = doctor.read(write_lines(tmp_path / "train_data_step3.jsonl", rows))
  assert dump.mask.sum(axis=1).tolist() == [9] * 6
  assert "there is no mask" in dump.notes[0]


def test_prime_rl(tmp_path, batch):
  rows = []
  for i in range(6):
    n = int(batch["mask"][i].sum())
    rows.append(
      {
        "schema_version": 1,
        "step": 4,
        "token_ids": [1, *range(n)],
        "loss_mask": [False] + [True] * n,
        "inference_logprobs": [None, *batch["sampler"][i, :n]],
        "trainer_logprobs": [0.0, *batch["old"][i, :n]],
        "entropy": [0.0] + [0.5] * n,
        "advantages": [0.0] + [0.1] * n,
      }
    )
  dump = doctor.read(write_lines(tmp_path / "rank_0.jsonl", rows))
  assert dump.mask.sum() == batch["mask"].sum()
  assert np.isnan(dump.sampler_logp[:, 0]).all()
  assert dump.entropy[0, 1] == 0.5


def test_verls_text_dump_is_told_what_to_save(tmp_path):
  row = {"input": "a", "output": "b", "gts": "c", "score": 1.0, "step": 3}
  path = write_lines(tmp_path / "3.jsonl", [row])
  with pytest.raises(doctor.DumpError, match="save the batch's rollout_log_probs"):
    doctor.read(path)


def test_verls_dump_with_log_probs(tmp_path, batch):
  rows = [
    {
      "input": "a",
      "score": 1.0,
      "rollout_log_probs": list(batch["sampler"][i]),
      "old_log_probs": list(batch["old"][i]),
    }
    for i in range(6)
  ]
  dump = doctor.read(write_lines(tmp_path / "3.jsonl", rows))
  assert dump.shape == (6, 9) and dump.rewards.tolist() == [1.0] * 6


def test_slimes_train_dump_as_torch_wrote_it():
  """Written by torch 2.13's own torch.save; no torch is needed to read it."""
  dump = doctor.read(HERE / "slime_train.pt")
  assert dump.shape == (6, 10)
  assert dump.mask.sum(axis=1).tolist() == [5, 6, 7, 8, 9, 10]
  assert np.abs(dump.old_logp - dump.sampler_logp)[dump.mask].max() < 0.05
  assert dump.rewards.tolist() == [0, 1, 0, 1, 0, 1]


def test_slimes_rollout_dump_lacks_the_learner():
  with pytest.raises(doctor.DumpError, match="--save-debug-train-data"):
    doctor.read(HERE / "slime_rollout.pt")


def test_tensors_of_every_kind():
  found = read_torch(HERE / "kinds.pt")
  assert found["a"].tolist() == [[1.0, 1.0]] * 3  # bfloat16, transposed
  assert found["b"].tolist() == [0, 1, 2, 3] and found["c"].tolist() == [True, False]
  assert found["h"].dtype == np.float16


class Hostile:
  """What a pickle runs when it is loaded."""

  def __reduce__(self):
    return os.mkdir, (f"{Hostile.folder}/ran",)


def torch_file(path, program: bytes, storages=()):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", program)
    for key, data in storages:
      archive.writestr(f"archive/data/{key}", data)
  return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, protocol):
  Hostile.folder = tmp_path
  program = pickle.dumps({"samples": [Hostile()]}, protocol)
  with pytest.raises(doctor.DumpError, match=r"names \w+\.mkdir, which is not allowed"):
    doctor.read(torch_file(tmp_path / "a.pt", program))
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "size, stride, offset, said",
  [
    ((4,), (1,), 0, "beyond its storage"),
    ((2,), (1,), 2, "beyond its storage"),
    ((2,), (-1,), 1, "shape"),
    ((1 << 40,), (0,), 0, "more than"),
  ],
)
def test_a_tensor_that_lies_about_itself_is_refused(
  tmp_path, size, stride, offset, said
):
  """Written by hand: torch would not."""
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
  storage += b"X\x03\x00\x00\x00cpuK\x03tQ"
  numbers = lambda x: pickle.dumps(x, 2)[2:-1]
  program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage
  program += numbers(offset) + numbers(size) + numbers(stride)
  program += b"\x89ccollections\nOrderedDict\n)RtR."
  path = torch_file(tmp_path / "a.pt", program, [("0", np.ones(3, "f4").tobytes())])
  with pytest.raises(doctor.DumpError, match=said):
    read_torch(path)


@pytest.mark.parametrize(
  "name, data, said",
  [
    ("a.npz", b"", "is empty"),
    ("a.npz", b"PK\x03\x04nonsense", "no npz file"),
    ("a.pt", b"PK\x03\x04nonsense", "torch.save"),
    ("a.pkl", pickle.dumps([1]), "a pickle, which could run anything"),
    ("a.jsonl", b'{"a": 1\n', "line 1 is no JSON"),
    ("a.jsonl", b"[1, 2]\n", "no JSON object"),
    ("a.jsonl", b"[" * 100_000, "line 1 is no JSON"),
    ("a.jsonl", b'{"a": 1}\n', "the sampler's log-probs are missing"),
    ("a.jsonl", b'{"rollout_log_probs": "x", "old_log_probs": [1]}\n', "no list"),
    ("a.jsonl", b'{"rollout_log_probs": ["x"], "old_log_probs": [1]}\n', "no number"),
    ("a.jsonl", b'{"rollout_log_probs": [1, 2], "old_log_probs": [1]}\n', "2 numbers"),
    ("a.bin", b"\x00\x01\x02", "begins with"),
    ("a.npy", b"\x93NUMPY\x01\x00", "one array"),
  ],
)
def test_what_is_no_dump_is_refused_in_a_sentence(tmp_path, name, data, said):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(doctor.DumpError, match=said):
    doctor.read(tmp_path / name)


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
  Hostile.folder = tmp_path
  rows = np.array([Hostile()], dtype=object)
  np.savez(tmp_path / "a.npz", old_logp=rows, sampler_logp=rows)
  with pytest.raises(doctor.DumpError, match="Python objects, which are not read"):
    doctor.read(tmp_path / "a.npz")
  assert not (tmp_path / "ran").exists()


def test_shapes_that_differ_are_named(tmp_path):
  np.savez(tmp_path / "a.npz", old_logp=np.zeros((2, 3)), sampler_logp=np.zeros((2, 4)))
  with pytest.raises(doctor.DumpError, match=r"old_logp is \[2, 3\]"):
    doctor.read(tmp_path / "a.npz")


def test_whole_numbers_are_no_log_probs(tmp_path):
  ids = np.ones((2, 3), int)
  np.savez(tmp_path / "a.npz", old_logp=ids, sampler_logp=ids * 1.0)
  with pytest.raises(doctor.DumpError, match="whole numbers"):
    doctor.read(tmp_path / "a.npz")


def test_a_record_names_what_to_give_instead(tmp_path):
  (tmp_path / "0000000001").write_bytes(b"TISROLL1" + bytes(99))
  with pytest.raises(doctor.DumpError, match="the URL of its store"):
    doctor.read(tmp_path / "0000000001")


def test_a_workdir_gives_its_batch_and_its_config(tmp_path, batch):
  np.savez(tmp_path / "bad_batch_000003.npz", sampler_logp=batch["sampler"])
  np.savez(
    tmp_path / "batch.npz",
    old_logp=batch["old"],
    sampler_logp=batch["sampler"],
    mask=batch["mask"],
  )
  config = {"sampler": {"temperature": 0.7, "precision": "int8", "engine": "native"}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  dump = doctor.read(tmp_path)
  assert (dump.temperature, dump.sampler_dtype) == (0.7, "int8")
