"""Log-probs and values of the sampled tokens: one pass over prompts and responses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tis_jax.learner.batch import Batch
from tis_jax.learner.mesh import row_sharding
from tis_jax.learner.packed_rows import to_packed, to_padded
from tis_jax.learner.packing import Packing
from tis_jax.logprobs import TokenLogprobs, token_logprobs


def score(
  graph: nnx.GraphDef,
  params: nnx.State,
  batch: Batch,
  packing: Packing | None = None,
  *,
  temperature: float = 1.0,
  sum_squared_probs: bool = False,
  candidates: bool = False,
  replay: bool = False,
) -> TokenLogprobs:
  """Log-probs and entropy of each response token given all before it.

  The hidden state at slot P + t - 1 predicts response token t, so the last token is
  never fed in and logits exist for the response alone. A token attends to every prompt
  and response token before it, holes in the mask (a tool's answer) included.

  Args:
    graph: of a `Decoder`.
    params: its parameters.
    batch: only prompts, tokens, their masks, `kept_tokens` and `top_tokens` are read,
      and `routed_experts` to replay.
    packing: one pass of packed rows; what they do not hold reads 0.
    temperature: divides the logits.
    sum_squared_probs: whether to read it, see `token_logprobs`.
    candidates: whether to read the log-probs of `top_tokens` too.
    replay: send tokens to the experts that the sampler sent them to. Only of padded
      rows.

  Returns:
    `TokenLogprobs` of `[B, T]`; what lies under a False mask is of no meaning.
  """
  model = nnx.merge(graph, params)
  head_DV = model.head()
  tokens_BS, fed = _sequences(batch) if packing is None else _packed(packing)
  if replay:
    assert packing is None and batch.routed_experts is not None, "`update` looks"
    fed["routed_BSLE"] = jnp.asarray(batch.routed_experts)[:, :-1]
  hidden_BSD, _ = model(tokens_BS, **fed)
  shape, asked = batch.tokens.shape, batch
  if packing is None:
    hidden_BSD = hidden_BSD[:, batch.prompts.shape[1] - 1 :]
  else:
    asked = _asked(batch, packing)
  out = token_logprobs(
    hidden_BSD,
    # Back to the table it is, where tied: the kernel reads its rows in place, and a
    # transposed head and gradient would each be a copy.
    head_DV.T if model.config.tie_embeddings else head_DV,
    asked.tokens,
    temperature=temperature,
    tied=model.config.tie_embeddings,
    mask=asked.mask,
    kept_tokens=asked.kept_tokens,
    candidates=asked.top_tokens if candidates else None,
    sum_squared_probs=sum_squared_probs,
    vocab_axis=_vocab_axis(head_DV.shape[1]),
  )
  if packing is None:
    return out
  return jax.tree.map(lambda x: to_padded(x, packing, shape), out)


def values(
  graph: nnx.GraphDef,
  params: nnx.State,
  batch: Batch,
  packing: Packing | None = None,
) -> jax.Array:
  """What a critic expects where each response token is about to be sampled.

  Args:
    graph: of a `Critic`, from `critic_graph`.
    params: its parameters.
    batch: only prompts, tokens and their masks are read.
    packing: one pass of packed rows; what they do not hold reads 0.

  Returns:
    `[B, T]` fp32; what lies under a False mask is of no meaning.
  """
  tokens_BS, fed = _sequences(batch) if packing is None else _packed(packing)
  values_BS = nnx.merge(graph, params)(tokens_BS, **fed)
  if packing is None:
    return values_BS[:, batch.prompts.shape[1] - 1 :]
  return to_padded(values_BS, packing, batch.tokens.shape)


def make_score(
  graph: nnx.GraphDef, mesh: Mesh, *, temperature: float = 1.0, replay: bool = False
) -> Callable[[nnx.State, Batch], TokenLogprobs]:
  """A jitted `score(params, batch)` on the mesh; rows must divide over it."""
  rows = row_sharding(mesh)

  def run(params, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return score(graph, params, batch, temperature=temperature, replay=replay)

  return jax.jit(run, in_shardings=(None, rows), out_shardings=rows)


def _sequences(batch: Batch):
  """Prompts and responses but the last token, `[B, S]`, and their segments."""
  tokens_BS = jnp.concatenate([batch.prompts, batch.tokens], axis=1)[:, :-1]
  valid_BS = jnp.concatenate([batch.prompt_mask, _up_to_last(batch.mask)], axis=1)
  return tokens_BS, {"segment_ids_BS": valid_BS[:, :-1].astype(jnp.int32)}


def _packed(packing: Packing):
  """The tokens of packed rows, `[R, L]`, and who attends to whom."""
  return packing.tokens, {
    "segment_ids_BS": packing.segments,
    "positions_BS": packing.positions,
    "prefixes_BS": packing.prompts,
  }


def _asked(batch: Batch, packing: Packing) -> Batch:
  """What is read of each slot; its mask is False where it predicts nothing."""
  at = lambda x: None if x is None else to_packed(x, packing)
  return batch._replace(
    tokens=to_packed(batch.tokens, packing),
    mask=to_packed(batch.mask, packing) & (packing.targets >= 0),
    kept_tokens=at(batch.kept_tokens),
    top_tokens=at(batch.top_tokens),
  )


def _up_to_last(mask_BT):
  """True from the first slot to the last that `mask_BT` marks."""
  return jax.lax.cummax(mask_BT.astype(jnp.int32), axis=1, reverse=True) != 0


def _vocab_axis(vocab_size):
  """The mesh axis that the head's vocabulary lies over, as `params_sharding` has it."""
  devices = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return "tensor" if devices > 1 and vocab_size % devices == 0 else None
