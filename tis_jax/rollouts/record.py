"""The rollout record, version 2: what one batch of responses leaves behind.

Anyone may write one. It holds ids and never text, numbers and never guesses: which law
the log-probs are of, which of them are missing, which params sampled which token.

| axis | is                                                                       |
|------|--------------------------------------------------------------------------|
| B    | rows, one response each                                                  |
| P    | prompt tokens, padded on the left                                        |
| T    | response tokens, padded on the right                                     |
| U    | turns: uninterrupted runs of sampled tokens, padded on the right         |
| R    | named rewards                                                            |
| K    | room for the tokens that top-k, top-p and min-p kept                     |
| N    | most probable tokens                                                     |
| I    | ids in all kept sets together, O offsets into them: B * T + 1            |
| S    | tokens of a row, P + T                                                   |
| L, E | layers with experts, and experts that a token is sent to                 |
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tis_jax.logprobs.contract import Sampling
from tis_jax.rollouts.errors import RolloutShapeError

STOP = 0
"""A finish reason: the response ended itself."""
LENGTH = 1
"""A finish reason: the response ran into the length limit."""
ABORTED = 2
"""A finish reason: the engine gave it up. Its tokens are kept, and do not train."""

# Field -> (little-endian dtype, axes). The order is that of the bytes.
ARRAYS: Mapping[str, tuple[str, str]] = {
  "prompts": ("<i4", "BP"),
  "prompt_mask": ("|b1", "BP"),
  "tokens": ("<i4", "BT"),
  "mask": ("|b1", "BT"),
  "sampler_logp": ("<f4", "BT"),
  "versions": ("<i4", "BT"),
  "rewards": ("<f4", "B"),
  "group_ids": ("<i4", "B"),
  "prompt_ids": ("<i4", "B"),
  "finish_reasons": ("|i1", "B"),
  "kept_mass": ("<f4", "BT"),
  "kept_tokens": ("<i4", "BTK"),
  "greedy_rewards": ("<f4", "B"),
  "named_rewards": ("<f4", "BR"),
  "top_tokens": ("<i4", "BTN"),
  "top_logp": ("<f4", "BTN"),
  "present": ("|b1", "BT"),
  "turn_rewards": ("<f4", "BU"),
  "kept_offsets": ("<i8", "O"),
  "kept_ids": ("<i4", "I"),
  "routed_experts": ("<i2", "BSLE"),
}
_TOGETHER = (("top_tokens", "top_logp"), ("kept_offsets", "kept_ids"))


@dataclasses.dataclass(frozen=True)
class Header:
  """What a record says of itself; the store fills in run, writer, seq and created.

  Attributes:
    version: the newest policy version that generated a token of it.
    sampling: how it was sampled, by which engine, in which dtype
      (`tis_jax.logprobs.Sampling`).
    run: id of the run it was made for.
    writer: name of the sampler.
    seq: its place in the writer's sequence, from 0.
    created: seconds since 1970, by the writer's clock.
    params_digest: of the params of `version`, as the engine says that it holds them
      (`Manifest.digest`); "" where it cannot say.
  """

  version: int
  sampling: Sampling
  run: str = ""
  writer: str = ""
  seq: int = -1
  created: float = 0.0
  params_digest: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
  """One batch of responses: B rows, prompts padded to P, responses to T tokens.

  Attributes:
    prompts: int32 [B, P], left-padded.
    prompt_mask: bool [B, P].
    tokens: int32 [B, T], right-padded; what a tool said stands between sampled tokens.
    mask: bool [B, T], the tokens that were sampled.
    sampler_logp: float32 [B, T], nats, of the law that `header.sampling` names; NaN
      where it is missing, meaningless where `mask` is False.
    versions: int32 [B, T], policy version that sampled the token.
    rewards: float32 [B].
    group_ids: int32 [B], equal for responses to one prompt; unique in the record only.
    prompt_ids: int32 [B], the example in the task's split.
    finish_reasons: int8 [B], `STOP`, `LENGTH` or `ABORTED`.
    header: see `Header`.
    kept_mass: float32 [B, T], probability of the tokens that top-k, top-p and min-p
      kept; None where everything was.
    kept_tokens: int32 [B, T, K], which those were, padded with -1 and all -1 where they
      did not fit; None where they were not recorded, or are in `kept_ids`.
    greedy_rewards: float32 [B], of the greedy answer to each row's prompt; None where
      nobody asked for one.
    named_rewards: float32 [B, R], the task's further rewards in its order; None where
      nobody asked for them.
    top_tokens: int32 [B, T, N], the most probable tokens at each place, in any order,
      padded with -1; None where nobody asked for them.
    top_logp: float32 [B, T, N], their log-probs, made as `sampler_logp` is; -inf for
      padding.
    present: bool [B, T], whether the token's log-prob is known; None where all are.
      A missing one is NaN: never 0, which is the log-prob of a certain token.
    turn_rewards: float32 [B, U], of each turn in order, NaN behind the last; None where
      rewards are of whole responses.
    kept_offsets: int64 [O], and
    kept_ids: int32 [I]: the kept sets without room to spare. Place b * T + t kept
      `kept_ids[kept_offsets[b * T + t] : kept_offsets[b * T + t + 1]]`, nothing being
      all of the vocabulary. `padded_sets` makes `kept_tokens` of them.
    routed_experts: int16 [B, S, L, E], to which experts each layer sent each token of
      prompt and response, as it was when the token behind it was drawn; -1 where it was
      not fed in. None where nobody asked for it, and for other models.
  """

  prompts: np.ndarray
  prompt_mask: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray
  sampler_logp: np.ndarray
  versions: np.ndarray
  rewards: np.ndarray
  group_ids: np.ndarray
  prompt_ids: np.ndarray
  finish_reasons: np.ndarray
  header: Header
  kept_mass: np.ndarray | None = None
  kept_tokens: np.ndarray | None = None
  greedy_rewards: np.ndarray | None = None
  named_rewards: np.ndarray | None = None
  top_tokens: np.ndarray | None = None
  top_logp: np.ndarray | None = None
  present: np.ndarray | None = None
  turn_rewards: np.ndarray | None = None
  kept_offsets: np.ndarray | None = None
  kept_ids: np.ndarray | None = None
  routed_experts: np.ndarray | None = None

  @property
  def shape(self) -> tuple[int, int, int]:
    """(B, P, T)."""
    return (*self.prompts.shape, self.tokens.shape[1])

  def arrays(self) -> dict[str, np.ndarray]:
    """The arrays that are there, by name."""
    fields = {name: getattr(self, name) for name in ARRAYS}
    return {name: value for name, value in fields.items() if value is not None}


_OPTIONAL = frozenset(
  field.name for field in dataclasses.fields(Rollout) if field.default is None
)


def check_structure(rollout: Rollout) -> None:
  """Refuses arrays whose dtypes or shapes do not fit each other.

  Raises:
    RolloutShapeError: naming the array.
  """
  for name, (dtype, axes) in ARRAYS.items():
    value = getattr(rollout, name)
    if value is None and name in _OPTIONAL:
      continue
    if not isinstance(value, np.ndarray) or value.dtype != np.dtype(dtype):
      found = getattr(value, "dtype", type(value).__name__)
      raise RolloutShapeError(f"{name} is {found}, wants {np.dtype(dtype).name}")
    if value.ndim != len(axes):
      raise RolloutShapeError(f"{name} has shape {value.shape}, wants rank {len(axes)}")
  arrays = rollout.arrays()
  for pair in _TOGETHER:
    if len(arrays.keys() & pair) == 1:
      raise RolloutShapeError(f"{' and '.join(pair)} go together, and one is missing")
  if arrays.keys() >= {"kept_tokens", "kept_ids"}:
    raise RolloutShapeError("the kept sets are there twice: kept_tokens and kept_ids")
  rows, prompt_length, length = rollout.shape
  sizes = {"B": rows, "P": prompt_length, "T": length}
  sizes |= {"S": prompt_length + length, "O": rows * length + 1}
  for name, value in arrays.items():
    axes = ARRAYS[name][1]
    wanted = tuple(map(sizes.setdefault, axes, value.shape))
    if value.shape != wanted:
      raise RolloutShapeError(
        f"{name} [{axes}] has shape {value.shape}, wants {wanted}"
      )
  if rows == 0 or length == 0:
    raise RolloutShapeError(f"no tokens: {rows} rows of {length}")
