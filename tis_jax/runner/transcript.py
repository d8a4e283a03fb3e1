"""A record as text, each token coloured by the ratio of learner to sampler."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from tis_jax import learner, models
from tis_jax.models.tokenizers import Tokenizer
from tis_jax.rollouts import Rollout, up_to_last, with_padded_sets
from tis_jax.sampler import Assignment
from tis_jax.store import ParamsGoneError, Store

# A ratio, or its inverse, from which on a token is marked, and by which colour.
_BOUNDS = (1.1, 1.5, 2.0)
_HIGHER, _LOWER = (224, 217, 203), (195, 117, 69)
_FINISHED = ("stop", "length", "aborted")


@dataclasses.dataclass(frozen=True)
class Scored:
  """A record beside what the learner's params say of it.

  Attributes:
    rollout: the record.
    log_ratio: float32 `[B, T]`, log-prob of the learner less that of the sampler, nats;
      NaN where there is none to compare.
    version: of the params that it was scored by.
    tokenizer: of the run.
  """

  rollout: Rollout
  log_ratio: np.ndarray
  version: int
  tokenizer: Tokenizer


def score_record(store: Store, rollout: Rollout) -> Scored:
  """Scores a record by the newest params in the store, in fp32.

  Args:
    store: of the run.
    rollout: one of its records.

  Raises:
    ParamsGoneError: nothing is published.
    ValueError: the record's law gives no ratio; says why.
  """
  manifest = store.latest()
  if manifest is None:
    raise ParamsGoneError(f"store {store.url} has no params to score a record by")
  told = Assignment.from_json(store.config)
  decoder, _, tokenizer = models.load(told.model)
  graph = models.decoder_graph(decoder)
  sampling = rollout.header.sampling
  width = told.sampler.kept_width(decoder.vocab_size)
  batch = learner.from_rollouts([with_padded_sets(rollout, width)])
  batch, _ = learner.comparable_batch(sampling, batch, "train")
  mesh = learner.make_mesh(data=1, devices=jax.devices()[:1])
  params = models.cast(models.unflatten(graph, store.read_params(manifest)), "float32")
  logp = learner.make_score(graph, mesh, temperature=sampling.temperature)(
    params, batch
  ).logp
  log_ratio = np.where(rollout.mask, np.asarray(logp) - batch.sampler_logp, np.nan)
  return Scored(rollout, log_ratio.astype(np.float32), manifest.version, tokenizer)


def transcript(scored: Scored, rows: Sequence[int] = (), colour: bool = True) -> str:
  """Prompts and responses of a record, with what each token's ratio is.

  A ratio above 1.1, 1.5 or 2 is marked in three reds, one below their inverses in three
  blues; without colours its value follows the token.

  Args:
    scored: from `score_record`.
    rows: which; all if none is given.
    colour: whether to use a terminal's colours.
  """
  rollout = scored.rollout
  header = rollout.header
  law = f"temperature {header.sampling.temperature:g}, {header.sampling.dtype}"
  lines = [
    f"record {header.writer}/{header.seq}, params of version {header.version}, {law}; "
    f"scored by version {scored.version}, ratio = learner / sampler"
  ]
  for row in rows or range(len(rollout.tokens)):
    lines += ["", *_row(scored, row, colour)]
  return "\n".join(lines)


def _row(scored: Scored, row: int, colour: bool) -> list[str]:
  rollout, log_ratio = scored.rollout, scored.log_ratio[row]
  decode = scored.tokenizer.decode
  known = log_ratio[np.isfinite(log_ratio)]
  told = "no ratios"
  if known.size:
    told = (
      f"{known.size} tokens, mean |log ratio| {np.abs(known).mean():.4f}, "
      f"sequence ratio {_exp(float(known.sum())):.3g}"
    )
  finished = _FINISHED[rollout.finish_reasons[row]]
  read = up_to_last(rollout.mask)[row]
  tokens = zip(rollout.tokens[row][read], log_ratio[read], strict=True)
  text = "".join(_token(decode([token]), float(x), colour) for token, x in tokens)
  prompt = decode(rollout.prompts[row][rollout.prompt_mask[row]])
  title = f"row {row}, reward {rollout.rewards[row]:g}, {finished}, {told}"
  return [title, f"  {prompt}", f"  {text}"]


def _token(text: str, log_ratio: float, colour: bool) -> str:
  ratio = _exp(log_ratio)
  level = sum(max(ratio, 1 / ratio) > bound for bound in _BOUNDS) if ratio else 3
  if not math.isfinite(log_ratio) or not level:
    return text
  if not colour:
    return f"{text}[{ratio:.2f}]"
  code = (_HIGHER if ratio > 1 else _LOWER)[level - 1]
  return f"\033[48;5;{code};38;5;16m{text}\033[0m"


def _exp(x: float) -> float:
  return math.exp(min(max(x, -700.0), 700.0)) if math.isfinite(x) else math.nan
