"""A server that speaks SGLang's documented native API, around this library's decoder.

Really loads the safetensors it is pointed to and really samples from them, in this
process. `faults` makes it err in the ways that servers err.
"""

import dataclasses
import itertools
import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np

from tis_jax import models
from tis_jax.engines import NativeEngine
from tis_jax.logprobs import Sampling
from tis_jax.models.hugging_face import read_hugging_face


class SGLangServer:
  """Listens on a free port of this machine until it is closed.

  Attributes:
    url: where.
    faults: names of what it does wrong, see `_spoil` and `_load`.
    calls: {path: requests}.
    hang_ups: requests to /generate that it still breaks off.
    troubles: requests to /generate that it still cannot serve.
  """

  def __init__(self):
    self.faults: set[str] = set()
    self.calls: Counter[str] = Counter()
    self.hang_ups = self.troubles = 0
    self._params, self._version, self._lock = None, "default", threading.Lock()
    server = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_GET(self):
        self._reply(None)

      def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self._reply(json.loads(self.rfile.read(length) or b"{}"))

      def _reply(self, body):
        try:
          status, said = server._answer(self.path, body)
        except ConnectionAbortedError:
          self.close_connection = True
          return
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *_):
        pass

    self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
    threading.Thread(target=self._http.serve_forever, daemon=True).start()

  def close(self):
    self._http.shutdown()
    self._http.server_close()

  def _answer(self, path, body):
    self.calls[path] += 1
    if path == "/get_server_info":
      return 200, {"version": "0.5.23"}
    if path in ("/pause_generation", "/continue_generation"):
      return 200, {"message": "ok", "status": "ok"}
    with self._lock:
      if path == "/update_weights_from_disk":
        return 200, self._load(body)
      if path == "/generate":
        return self._generate(body)
    return 404, {"detail": "Not Found"}

  def _load(self, body):
    if "refuses" in self.faults:
      return {"success": False, "message": "Failed to load: shape mismatch"}
    config, params = read_hugging_face(body["model_path"], lambda _, x: jnp.asarray(x))
    # Untied, so that a head and a body can be of two versions.
    new = models.flatten(params)
    new["output"] = new["embedding"].T
    old = self._params or new
    if "stale_head" in self.faults:
      new = {**new, "output": old["output"]}
    if "stale_body" in self.faults:
      new = {**old, "output": new["output"]}
    if "stale" in self.faults:
      new = old
    if "another_model" in self.faults:
      new = {name: x + 0.05 * jnp.cos(7 * x) for name, x in new.items()}
    self._params = new
    if "forgets_the_version" not in self.faults:
      self._version = body["weight_version"]
    untied = dataclasses.replace(config, tie_embeddings=False)
    self._graph = models.decoder_graph(untied)
    return {"success": True, "message": "Succeeded"}

  def _generate(self, body):
    if self.troubles:
      self.troubles -= 1
      return 503, {"error": {"message": "the scheduler has died"}}
    if self.hang_ups:
      self.hang_ups -= 1
      raise ConnectionAbortedError
    asked = body["sampling_params"]
    ids = np.zeros((1, 16), np.int32)
    ids[0, 16 - len(body["input_ids"]) :] = body["input_ids"]
    held = np.arange(16)[None] >= 16 - len(body["input_ids"])
    temperature = asked["temperature"]
    engine = NativeEngine(
      self._graph,
      Sampling(1.0 if "ignores_temperature" in self.faults else temperature),
      max_new_tokens=asked["max_new_tokens"],
      eos_ids=tuple(asked["stop_token_ids"]),
      pad_id=0,
      top_logprobs=body["top_logprobs_num"],
    )
    engine.update(models.unflatten(self._graph, self._params), 0)
    key = jax.random.key(asked["sampling_seed"])
    out = engine.generate(ids, held, samples=asked["n"], key=key)
    said = [self._row(out, row) for row in range(asked["n"])]
    return self._spoil(said if asked["n"] > 1 else said[0], body)

  def _row(self, out, row):
    length = int(out.mask[row].sum())
    ids = out.tokens[row, :length].tolist()
    logp = [float(x) for x in out.sampler_logp[row, :length]]
    places = range(length) if out.top_tokens is not None else ()
    return {
      "text": None,
      "output_ids": ids,
      "meta_info": {
        "finish_reason": {"type": ("stop", "length")[out.finish_reasons[row]]},
        "weight_version": self._version,
        "completion_tokens": length,
        "output_token_logprobs": [[x, i, None] for x, i in zip(logp, ids, strict=True)],
        "output_top_logprobs": [
          [
            [float(x), int(i), None]
            for x, i in zip(
              out.top_logp[row, place],
              out.top_tokens[row, place],
              strict=True,
            )
          ]
          for place in places
        ],
      },
    }

  def _spoil(self, said, body):
    """The answer, with the faults that are on, for prompts that begin with one token.

    A test sees by the others that the rest goes on.
    """
    if "of_all" not in self.faults and body["input_ids"][0] != self.spoiled:
      return 200, said
    rows = said if isinstance(said, list) else [said]
    for row, fault in itertools.product(rows, self.faults):
      told, ids = row["meta_info"], row["output_ids"]
      places = told["output_token_logprobs"]
      if fault == "drops_a_log_prob":
        places.pop()
      elif fault == "log_probs_of_other_ids":
        places[0][1] = (places[0][1] + 1) % 17
      elif fault == "log_prob_above_0":
        places[0][0] = 0.5
      elif fault == "log_prob_nan":
        places[0][0] = math.nan
      elif fault == "no_log_prob":
        places[0][0] = None
      elif fault == "an_id_beyond_the_vocabulary":
        ids[0] = places[0][1] = 99
      elif fault == "strips_the_end":
        told["finish_reason"]["type"] = "stop"
        ids[-1] = places[-1][1] = 5
      elif fault == "goes_on_after_the_end":
        ids[0] = places[0][1] = 1
        ids.append(5)
        places.append([-0.5, 5, None])
      elif fault == "too_long":
        ids += [5] * 20
        places += [[-0.5, 5, None]] * 20
      elif fault == "aborts":
        told["finish_reason"]["type"] = "abort"
    if "an_answer_too_few" in self.faults and isinstance(said, list):
      said.pop()
    if "a_field_too_few" in self.faults:
      del rows[0]["meta_info"]["finish_reason"]
    if "not_json" in self.faults:
      return 200, b"<html>504 Gateway Timeout</html>"
    if "an_http_error" in self.faults:
      return 400, {"error": {"message": "The input is longer than the context"}}
    return 200, said

  spoiled = -1
  """The first token of prompts whose answers are spoiled."""
