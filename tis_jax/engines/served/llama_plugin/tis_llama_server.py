"""llama.cpp's server, from the Python package xllamacpp, with the options asked for.

python tis_llama_server.py GGUF PORT SLOTS CONTEXT THREADS

Imports nothing of tis_jax, which the engine's environment need not have.
"""

import signal
import sys

import xllamacpp


def main(path: str, port: str, slots: str, context: str, threads: str) -> None:
  params = xllamacpp.CommonParams()
  params.model.path = path
  params.port = int(port)
  params.n_parallel, params.n_ctx = int(slots), int(slots) * int(context)
  params.cont_batching = params.kv_unified = True
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
  # Half precision in the cache would be a gap of its own.
  params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  server = xllamacpp.Server(params)
  print("listening on", server.listening_address, flush=True)
  signal.sigwait({signal.SIGTERM, signal.SIGINT})


main(*sys.argv[1:])
