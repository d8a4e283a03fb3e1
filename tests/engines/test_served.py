"""Engines behind a server: what is asked, what is believed, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sglang_server import SGLangServer

from tis_jax import learner, models, tasks
from tis_jax.engines import play
from tis_jax.engines.served import (
  Completions,
  EngineAnswerError,
  EngineDownError,
  EngineError,
  Probe,
  Request,
  ServedEngine,
  SGLang,
  WrongParamsError,
)
from tis_jax.engines.served.answer import check
from tis_jax.engines.served.handover import Handover
from tis_jax.logprobs import Sampling, logprobs_from_logits
from tis_jax.logprobs.reference import materialized_logits
from tis_jax.rollouts import ABORTED, turn_ids
from tis_jax.sampler.served import merged
from tis_jax.store import digest

_PROMPTS = ("12+7=", "48/2=", "3*9=", "90-7=")
_LAW = Sampling(temperature=0.7)
_T = 5


@pytest.fixture(scope="module")
def policy():
  return models.load("builtin:arithmetic")


@pytest.fixture(scope="module")
def params(policy):
  return {name: np.asarray(x) for name, x in models.flatten(policy[1]).items()}


@pytest.fixture(scope="module")
def prompts(policy):
  ids = [policy[2].encode(text) for text in _PROMPTS]
  tokens = np.zeros((len(ids), 6), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, prompt in enumerate(ids):
    tokens[row, 6 - len(prompt) :], mask[row, 6 - len(prompt) :] = prompt, True
  return tokens, mask


@pytest.fixture(scope="module")
def _server():
  server = SGLangServer()
  yield server
  server.close()


@pytest.fixture
def server(_server):
  _server.faults, _server.spoiled, _server.hang_ups = set(), -1, 0
  _server._params = None
  return _server


@pytest.fixture
def connect(policy, server, tmp_path):
  """`connect(**changes)`: the engine, and what it said."""
  config, _, tokenizer = policy
  graph = models.decoder_graph(config)
  engines = []

  def connect(probe=True, **changes):
    said = []
    prompts = [tokenizer.encode(text) for text in _PROMPTS]
    found = Probe(
      graph,
      prompts,
      law=_LAW,
      dtype="float32",
      vocab_size=17,
      stop_ids=tokenizer.eos_ids,
    )
    engine = ServedEngine(
      SGLang(graph, url=server.url, dtype="float32", folder=tmp_path / "params"),
      _LAW,
      max_new_tokens=_T,
      eos_ids=tokenizer.eos_ids,
      pad_id=0,
      vocab_size=17,
      probe=found if probe else None,
      say=said.append,
      **changes,
    )
    engines.append(engine)
    return engine, said

  yield connect
  for engine in engines:
    engine.close()


def moved(params, by=0.02):
  """Params after a step or two of training."""
  rng = np.random.default_rng(0)
  move = lambda x: np.float32(x + by * rng.standard_normal(x.shape) * np.std(x))
  return {name: move(x) for name, x in params.items()}


def sample(engine, prompts, samples=3, seed=0):
  return engine.generate(*prompts, samples=samples, key=jax.random.key(seed))


def own_logp(policy, params, prompts, out, samples):
  """Of the answers' tokens, by one forward pass."""
  graph = models.decoder_graph(policy[0])
  model_params = models.unflatten(graph, {n: jnp.asarray(x) for n, x in params.items()})
  model = nnx.merge(graph, model_params)
  tokens = np.concatenate([np.repeat(prompts[0], samples, 0), out.tokens], axis=1)
  held = np.concatenate([np.repeat(prompts[1], samples, 0), out.mask], axis=1)
  hidden = model(jnp.asarray(tokens), segment_ids_BS=jnp.asarray(held, jnp.int32))[0]
  logits = materialized_logits(hidden[:, prompts[0].shape[1] - 1 : -1], model.head())
  return np.asarray(
    logprobs_from_logits(logits, out.tokens, temperature=0.7, entropy=False).logp
  )


@pytest.mark.slow
def test_a_server_is_given_an_adapter_merged(connect, policy, prompts):
  config, params, _ = policy
  lora = models.LoRA(rank=2)
  draw = np.random.default_rng(4)
  adapter = jax.tree.map(
    lambda x: np.float32(0.05 * draw.standard_normal(x.shape)),
    models.abstract_adapter(config, lora),
  )
  whole = functools.partial(merged, config, models.Base(params, lora))
  engine, said = connect(whole=whole)
  arrays = jax.device_get(models.flatten(adapter))
  engine.update(arrays, 4)
  out = sample(engine, prompts)
  beside = models.merge(params, adapter, lora)
  logp = own_logp(policy, models.flatten(beside), prompts, out, 3)
  np.testing.assert_allclose(out.sampler_logp[out.mask], logp[out.mask], atol=1e-4)
  # The learner knows the params by what it has published.
  assert engine.params_digest == digest(arrays) and not said


@pytest.mark.slow
def test_a_server_samples_what_a_forward_pass_says(
  connect, policy, params, prompts, server
):
  engine, said = connect(top_logprobs=3)
  for version, held in enumerate((params, moved(params))):
    engine.update(held, version)
    out = sample(engine, prompts)
    logp = own_logp(policy, held, prompts, out, 3)
    np.testing.assert_allclose(out.sampler_logp[out.mask], logp[out.mask], atol=2e-5)
    assert (out.versions[out.mask] == version).all()
    assert engine.params_digest == digest(held)
    assert out.present is None and out.finish_reasons.max() < ABORTED
    assert (out.top_logp[out.mask][:, 0] >= out.sampler_logp[out.mask] - 1e-6).all()
  assert engine.sampling == Sampling(
    temperature=0.7, logprobs="raw", engine="sglang 0.5.23", dtype="float32"
  )
  again = sample(engine, prompts)
  np.testing.assert_array_equal(again.tokens, out.tokens)
  assert (sample(engine, prompts, seed=1).tokens != out.tokens).any()
  assert not said and not engine.refused
  assert server.calls["/pause_generation"] == server.calls["/continue_generation"]


class Again:
  """Asks for another sum after the first of the prompts."""

  def __init__(self, example):
    self.prompt, self.turns = example.prompt, 0

  def reset(self):
    return self.prompt

  def step(self, text):
    self.turns += 1
    return "=7*7=", float(len(text)), self.turns == 2 or self.prompt != _PROMPTS[0]


@pytest.mark.slow
def test_a_server_holds_conversations_in_ids(connect, policy, params, server):
  engine, said = connect(probe=False)
  engine.update(params, 4)
  examples = [tasks.Example(i, text, "") for i, text in enumerate(_PROMPTS)]
  task = tasks.Task("again", examples, [], lambda *_: 0.0, conversation=Again)
  turns = tasks.Turns(2, 16)
  environment = tasks.Environment(task, policy[2], examples, 6, turns=turns)
  before = server.calls["/generate"]
  played = play(engine, environment, np.arange(4), samples=3, key=jax.random.key(0))
  out = played.generation
  second = turn_ids(out.mask) == 1
  assert second.any(axis=1).tolist() == [True] * 3 + [False] * 9
  # Those that are over are not asked for again.
  assert server.calls["/generate"] - before == 4 + 3
  assert not said and not engine.refused and not played.aborted
  batch = learner.Batch(
    *(played.prompts, played.prompt_mask, out.tokens, out.mask, out.sampler_logp),
    *(out.versions, played.rewards, played.rows, out.finish_reasons),
  )
  graph = models.decoder_graph(policy[0])
  logp = learner.score(graph, policy[1], batch, temperature=0.7).logp
  np.testing.assert_allclose(
    out.sampler_logp[out.mask], np.asarray(logp)[out.mask], atol=1e-4
  )


def test_params_that_were_handed_over_before_are_deleted(
  connect, params, tmp_path, prompts
):
  engine, _ = connect()
  for version in range(3):
    engine.update(params, version)
  assert [path.name[0] for path in (tmp_path / "params").iterdir()] == ["2"]
  engine.close()
  assert not list((tmp_path / "params").iterdir())


@pytest.mark.parametrize(
  ("fault", "words"),
  [
    ("stale_head", "a stale head, the output matrix of the version before"),
    ("stale_body", "a new head on a body of the version before"),
    ("stale", "stale params, those of the version before"),
    ("ignores_temperature", r"at temperature 1.0, not 0.7"),
    ("another_model", "another model, a half-made update, or a law of its own"),
    ("forgets_the_version", "its update did not take, or somebody else updates it"),
  ],
)
def test_a_server_that_holds_something_else_is_told_by_its_log_probs(
  connect, params, server, fault, words
):
  engine, _ = connect()
  engine.update(params, 0)
  server.faults = {fault}
  with pytest.raises(WrongParamsError, match=words):
    engine.update(moved(params), 1)


def test_a_head_that_stayed_as_it_began_is_told_from_one_a_version_late(
  connect, params, server
):
  engine, _ = connect()
  engine.update(params, 0)
  engine.update(moved(params, 0.01), 1)
  server.faults = {"stale_head"}
  server._params = {**server._params, "output": jnp.asarray(params["embedding"].T)}
  with pytest.raises(WrongParamsError, match="of the version it began with"):
    engine.update(moved(params, 0.02), 2)


def test_params_that_hardly_move_are_not_called_stale(connect, params):
  engine, _ = connect()
  for version in range(4):
    engine.update(moved(params, 1e-7 * version), version)


@pytest.mark.parametrize(
  ("fault", "words"),
  [
    ("drops_a_log_prob", "some were dropped"),
    ("log_probs_of_other_ids", "the log-probs are of other ids than the answer's"),
    ("log_prob_above_0", "is 0.5, and none is above 0"),
    ("log_prob_nan", "is nan"),
    ("an_id_beyond_the_vocabulary", "token 99 is not an id below 17"),
    ("strips_the_end", "the one that ended it was stripped"),
    ("goes_on_after_the_end", "goes on after the stop token at place 0"),
    ("too_long", "asked for 5 at most"),
    ("aborts", "the server aborted it"),
    ("an_answer_too_few", "2 answers, asked for 3"),
    ("a_field_too_few", "lacks what its documentation says"),
    ("not_json", "which is not JSON"),
    ("an_http_error", "HTTP 400: .*longer than the context"),
  ],
)
def test_what_is_no_answer_is_aborted_named_and_the_rest_handed_out(
  connect, params, prompts, server, fault, words
):
  engine, said = connect(probe=False)
  engine.update(params, 0)
  server.faults, server.spoiled = {fault}, int(prompts[0][0][prompts[1][0]][0])
  out = sample(engine, prompts)
  bad = out.finish_reasons == ABORTED
  assert bad[:3].any() and not bad[3:].any()
  assert not out.mask[bad].any() and out.mask[~bad].any(axis=1).all()
  assert len(said) == 1 and f"{bad.sum()} of 12 answers are set aside" in said[0]
  (reason,) = engine.refused
  assert re.search(words, reason), reason


def test_a_probe_goes_by_the_answers_that_can_be_used(connect, params, policy, server):
  engine, _ = connect()
  server.faults = {"drops_a_log_prob"}
  server.spoiled = policy[2].encode(_PROMPTS[0])[0]
  engine.update(params, 0)
  server.faults |= {"stale_head"}
  with pytest.raises(WrongParamsError, match="a stale head"):
    engine.update(moved(params), 1)
  server.faults = {"drops_a_log_prob", "of_all"}
  with pytest.raises(EngineAnswerError, match="some were dropped"):
    engine.update(params, 2)


def test_a_log_prob_that_the_server_lacks_is_missing_and_not_zero(
  connect, params, prompts, server
):
  engine, _ = connect(probe=False)
  engine.update(params, 0)
  server.faults, server.spoiled = {"no_log_prob"}, int(prompts[0][0][prompts[1][0]][0])
  out = sample(engine, prompts)
  assert not out.present[:3, 0].any() and np.isnan(out.sampler_logp[:3, 0]).all()
  assert (out.present[3:] == out.mask[3:]).all()


def test_too_many_refused_answers_are_an_error(connect, params, prompts, server):
  engine, _ = connect(probe=False)
  engine.update(params, 0)
  server.faults = {"log_prob_nan", "of_all"}
  with pytest.raises(EngineAnswerError, match=r"12 of 12 answers .* cannot be used"):
    sample(engine, prompts)


def test_a_server_that_dies_in_a_batch_is_asked_again(
  connect, params, prompts, server, monkeypatch
):
  monkeypatch.setattr("tis_jax.engines.served.engine.time.sleep", lambda _: None)
  engine, said = connect()
  engine.update(params, 0)
  want = sample(engine, prompts)
  server.troubles = 1
  np.testing.assert_array_equal(sample(engine, prompts).tokens, want.tokens)
  assert "HTTP 503: " in said.pop() and not said
  server.hang_ups = 6  # A request on a connection that was kept is sent twice.
  again = sample(engine, prompts)
  np.testing.assert_array_equal(again.tokens, want.tokens)
  assert "does not answer" in said[0] and "its batch is sampled again" in said[0]
  server.hang_ups = 10**6
  with pytest.raises(EngineDownError, match="does not answer"):
    sample(engine, prompts)


def test_a_server_that_refuses_new_params_is_said_to(connect, params, server):
  engine, _ = connect()
  server.faults = {"refuses"}
  with pytest.raises(EngineError, match="refuses new params: Failed to load: shape"):
    engine.update(params, 0)


def test_a_digest_that_the_store_has_made_is_not_made_again(connect, params):
  engine, _ = connect()
  engine.update(params, 0, "5ca1ab1e5ca1ab1e")
  assert engine.params_digest == "5ca1ab1e5ca1ab1e"


def test_what_a_killed_holder_left_is_deleted(policy, params, tmp_path):
  graph = models.decoder_graph(policy[0])
  left = Handover(graph, tmp_path).write(params, "3-x")
  (tmp_path / "vllm.log").write_text("words")
  Handover(graph, tmp_path)
  assert not left.exists() and (tmp_path / "vllm.log").exists()


def test_nobody_at_the_url_is_said_so(policy, params, tmp_path):
  graph = models.decoder_graph(policy[0])
  nobody = SGLang(
    graph, url="http://127.0.0.1:9", dtype="float32", folder=tmp_path / "params"
  )
  with pytest.raises(EngineDownError, match=r"127.0.0.1:9/pause_generation does not"):
    nobody.load(params, "0-x")
  with pytest.raises(ValueError, match="is not http://HOST:PORT"):
    SGLang(graph, url="localhost:30000", dtype="float32", folder=tmp_path)


def test_text_is_not_taken_for_ids(server):
  """OpenAI's protocol, from a server that does not know `return_token_ids`."""
  answers = {
    "choices": [
      {
        "index": 0,
        "text": " 19",
        "finish_reason": "stop",
        "logprobs": {"token_logprobs": [-0.1], "tokens": [" 19"]},
      }
    ]
  }
  server._answer, before = lambda path, body: (200, answers), server._answer
  try:
    asked = Completions(server.url, model="m", engine="any", dtype="bfloat16")
    law = Sampling()
    with pytest.raises(EngineAnswerError, match="text and no token_ids"):
      asked.ask(Request([3], 1, 7, law, 4, (1,), 17))
    answers["choices"][0] |= {"token_ids": [5, 1], "prompt_token_ids": [0, 3]}
    answers["choices"][0]["logprobs"] = {"token_logprobs": [-0.1, -0.2]}
    (answer,) = asked.ask(Request([3], 1, 7, law, 4, (1,), 17))
  finally:
    server._answer = before
  assert list(answer.tokens) == [5, 1] and list(answer.logp) == [-0.1, -0.2]
  with pytest.raises(EngineAnswerError, match="does it put a token in front"):
    check(answer, Request([3], 1, 7, law, 4, (1,), 17))
