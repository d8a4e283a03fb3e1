"""What runs inside vLLM: a worker extension that takes new params, head included.

Served with `--worker-extension-cls tis_vllm_extension.Extension` and this folder on
PYTHONPATH, called by `POST /collective_rpc {"method": "tis_load", "kwargs": {...}}`.
Imports nothing of tis_jax, which the engine's environment need not have.
"""


class Extension:
  """Mixed into vLLM's worker."""

  def tis_load(self, path: str) -> int:
    """Loads a Hugging Face directory into the running model; returns heads packed.

    On the CPU, vLLM packs the output matrix for its matrix products once, when the
    model is first loaded, and `reload_weights` does not do it again (seen in 0.32.0).
    """
    self.reload_weights(weights_path=path)
    if self.model_runner.device.type != "cpu":
      return 0
    from vllm.model_executor.layers import utils, vocab_parallel_embedding

    heads = (
      vocab_parallel_embedding.ParallelLMHead,
      vocab_parallel_embedding.VocabParallelEmbedding,
    )
    packed = 0
    for module in self.model_runner.get_model().modules():
      if isinstance(module, heads):
        utils.dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        packed += 1
    return packed
