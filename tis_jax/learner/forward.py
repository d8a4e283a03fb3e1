"""Log-probs and values of the sampled tokens: one pass over prompts and responses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.batch import Batch
from tis_jax.learner.mesh import row_sharding
from tis_jax.logprobs import TokenLogprobs, token_logprobs


def score(
  graph: nnx.GraphDef,
  params: nnx.State,
  batch: Batch,
  *,
  temperature: float = 1.0,
  sum_squared_probs: bool = False,
  candidates: bool = False,
) -> TokenLogprobs:
  """Log-probs and entropy of each response token given all before it.

  The hidden state at slot P + t - 1 predicts response token t, so the last token is
  never fed in and logits exist for the response alone. A token attends to every prompt
  and response token before it, holes in the mask (a tool's answer) included.

  Args:
    graph: of a `Decoder`.
    params: its parameters.
    batch: only prompts, tokens, their masks, `kept_tokens` and `top_tokens` are read.
    temperature: divides the logits.
    sum_squared_probs: whether to read it, see `token_logprobs`.
    candidates: whether to read the log-probs of `top_tokens` too.

  Returns:
    `TokenLogprobs` of `[B, T]`; what lies under a False mask is of no meaning.
  """
  model = nnx.merge(graph, params)
  head_DV = model.head()
  tokens_BS, segment_ids_BS = _sequences(batch)
  hidden_BSD, _ = model(tokens_BS, segment_ids_BS=segment_ids_BS)
  return token_logprobs(
    hidden_BSD[:, batch.prompts.shape[1] - 1 :],
    # Back to the table it is, where tied: the kernel reads its rows in place, and a
    # transposed head and gradient would each be a copy.
    head_DV.T if model.config.tie_embeddings else head_DV,
    batch.tokens,
    temperature=temperature,
    tied=model.config.tie_embeddings,
    mask=batch.mask,
    kept_tokens=batch.kept_tokens,
    candidates=batch.top_tokens if candidates else None,
    sum_squared_probs=sum_squared_probs,
    vocab_axis=_vocab_axis(head_DV.shape[1]),
  )


def values(graph: nnx.GraphDef, params: nnx.State, batch: Batch) -> jax.Array:
  """What a critic expects where each response token is about to be sampled.

  Args:
    graph: of a `Critic`, from `critic_graph`.
    params: its parameters.
    batch: only prompts, tokens and their masks are read.

  Returns:
    `[B, T]` fp32; what lies under a False mask is of no meaning.
  """
  tokens_BS, segment_ids_BS = _sequences(batch)
  values_BS = nnx.merge(graph, params)(tokens_BS, segment_ids_BS=segment_ids_BS)
  return values_BS[:, batch.prompts.shape[1] - 1 :]


def make_score(
  graph: nnx.GraphDef, mesh: Mesh, *, temperature: float = 1.0
) -> Callable[[nnx.State, Batch], TokenLogprobs]:
  """A jitted `score(params, batch)` on the mesh; rows must divide over it."""
  rows = row_sharding(mesh)

  def run(params, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return score(graph, params, batch, temperature=temperature)

  return jax.jit(run, in_shardings=(None, rows), out_shardings=rows)


def _sequences(batch: Batch):
  """Prompts and responses but the last token, `[B, S]`, and their segment ids."""
  tokens_BS = jnp.concatenate([batch.prompts, batch.tokens], axis=1)[:, :-1]
  valid_BS = jnp.concatenate([batch.prompt_mask, _up_to_last(batch.mask)], axis=1)
  return tokens_BS, valid_BS[:, :-1].astype(jnp.int32)


def _up_to_last(mask_BT):
  """True from the first slot to the last that `mask_BT` marks."""
  return jax.lax.cummax(mask_BT.astype(jnp.int32), axis=1, reverse=True) != 0


def _vocab_axis(vocab_size):
  """The mesh axis that the head's vocabulary lies over, as `params_sharding` has it."""
  devices = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return "tensor" if devices > 1 and vocab_size % devices == 0 else None
