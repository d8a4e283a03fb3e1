"""What each correction would do to a dump, which one to take, and how to say it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tis_jax.corrections import (
  Chain,
  chain,
  clip,
  importance,
  reject,
  reject_binary_kl,
  truncate,
  veto,
  zero_outside,
)
from tis_jax.doctor.diagnosis import diagnose
from tis_jax.doctor.dump import Dump
from tis_jax.doctor.evidence import Evidence, Scale
from tis_jax.doctor.paste import FRAMEWORKS, config_of
from tis_jax.doctor.paste_text import text_of
from tis_jax.doctor.report import Report, plain

CORRECTIONS: Mapping[str, Chain] = {
  "none": chain(),
  "token TIS, 2": chain(truncate(2.0)),
  "token clip, 0.5 to 2": chain(clip(2.0, 0.5)),
  "sequence TIS, 2": chain(truncate(2.0, level="sequence")),
  "veto 1e-4 and token TIS, 2": chain(veto(1e-4), truncate(2.0)),
  "IcePop, 0.5 to 5": chain(zero_outside(5.0, 0.5)),
  "token mask, 0.5 to 2": chain(reject(2.0, 0.5, level="token")),
  "sequence MIS, 3": chain(zero_outside(3.0, 0.0, level="sequence")),
  "geometric mask, 1%": chain(reject(1.01, 0.99, level="geometric")),
  "geometric mask, 1%, and token TIS, 2": chain(
    reject(1.01, 0.99, level="geometric"), truncate(2.0)
  ),
  "geometric mask, 2%, and token IS": chain(
    reject(1.02, 0.98, level="geometric"), importance("token")
  ),
  "KPop, 0.1": chain(reject_binary_kl(0.1), importance("token")),
}
"""Those that are tried, by the name that a table shows."""

SHORT = 8.0
"""Tokens an answer, at the mean, up to which a product over it is looked at."""


@dataclasses.dataclass(frozen=True)
class Effect:
  """What a correction does to a dump.

  Attributes:
    name: of the correction.
    chain: the call that makes it, and what else a config would say.
    ess: effective sample size of its weights, as a share of the tokens that train.
    gradient_scale: sum of its weights over the tokens that train, per token.
    gradient_norm: norm of the update at the logits, of tokens alone, over that without
      a correction: sqrt(sum (w A (1 - p))^2 / sum (A (1 - p))^2); None without
      advantages or rewards.
    dropped_tokens: share of the tokens that it weighs by 0 or takes out of the mask.
    dropped_sequences: share of the rows of which that is so of every token.
    largest: its largest weight.
    configs: by framework, its section as a mapping, or None: not expressible there.
    texts: the same as it is pasted.
  """

  name: str
  chain: str
  ess: float
  gradient_scale: float
  gradient_norm: float | None
  dropped_tokens: float
  dropped_sequences: float
  largest: float
  configs: Mapping[str, Mapping[str, Any] | None]
  texts: Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class Prescription:
  """Corrections side by side.

  Attributes:
    take: name of the one to take.
    why: in a sentence.
    corrections: what each does, in the order of `CORRECTIONS`.
  """

  take: str
  why: str
  corrections: tuple[Effect, ...]

  @property
  def taken(self) -> Effect:
    """What the one to take does."""
    return next(effect for effect in self.corrections if effect.name == self.take)

  def to_json(self) -> dict[str, Any]:
    """One object of numbers, text, lists and dicts."""
    return plain(dataclasses.asdict(self))


def prescribe(
  dump: Dump,
  report: Report | None = None,
  corrections: Mapping[str, Chain] = CORRECTIONS,
) -> Prescription:
  """What each correction would do to the dump, and which one to take.

  Tokens without a log-prob of the sampler have weight 1, as in `tis.chain`.

  Args:
    dump: from `read` or `from_arrays`.
    report: of `diagnose(dump)`; made where it is not given.
    corrections: chains by name; `none` and `token TIS, 2` must be among them for the
      advice.

  Returns:
    `Prescription`.

  >>> from tis_jax.doctor import from_arrays
  >>> rng = np.random.default_rng(0)
  >>> sampler = -rng.exponential(1.0, (64, 20))
  >>> old = np.minimum(sampler + rng.normal(-0.045, 0.3, sampler.shape), 0)
  >>> found = prescribe(from_arrays(old, sampler))
  >>> found.take, round(found.taken.ess, 1)
  ('token TIS, 2', 0.9)
  >>> found.taken.configs["skyrl"]
  {'tis_ratio_type': 'token', 'token_tis_ratio_clip_high': 2.0}
  """
  report = diagnose(dump) if report is None else report
  effects = tuple(effect_of(name, c, dump) for name, c in corrections.items())
  take, why = advise(report.verdict, Evidence(dump).scale)
  return Prescription(take, why, effects)


def weights_of(correct: Chain, dump: Dump) -> np.ndarray:
  """float64 `[B, T]`: what a correction weighs each token by; 0 where it is left out.

  The correction is given what it asks for and the dump has: groups, advantages,
  versions.

  Raises:
    ValueError: a stage needs what the dump does not have.
  """
  rows = dump.mask.any(axis=1)
  mask = dump.mask[rows]
  old, sampler = (
    np.where(mask, x[rows], 0).astype(np.float32)
    for x in (dump.old_logp, dump.sampler_logp)
  )
  known = np.isfinite(old)
  advantages = advantages_of(dump)
  more = {
    "group_ids": None if dump.group_ids is None else dump.group_ids[rows],
    "advantages": None
    if advantages is None
    else np.broadcast_to(advantages, dump.shape)[rows].astype(np.float32),
    "versions": None if dump.versions is None else dump.versions[rows],
    "learner_version": dump.learner_version,
  }
  asked = {name for stage in correct.stages for name in stage.needs}
  given = {name: x for name, x in more.items() if name in asked}
  # Used once: compiling a chain, and its metrics more so, costs more than running it.
  bare = dataclasses.replace(correct, metrics="none")
  with jax.disable_jit():
    out = bare(np.where(known, old, 0), np.where(known, sampler, np.nan), mask, **given)
  weight = np.zeros(dump.shape)
  weight[rows] = np.where(np.asarray(out.mask), np.asarray(out.weight, np.float64), 0.0)
  return weight


def effect_of(name: str, correct: Chain, dump: Dump) -> Effect:
  """What one correction does to the dump."""
  weight = weights_of(correct, dump)
  used = weight[dump.mask]
  total = used.sum()
  held = dump.mask.any(axis=1)
  configs = {framework: config_of(framework, correct) for framework in FRAMEWORKS}
  return Effect(
    name=name,
    chain=repr(correct),
    ess=float(total**2 / (len(used) * (used**2).sum())) if total else 0.0,
    gradient_scale=float(used.mean()),
    gradient_norm=_norm(weight, dump),
    dropped_tokens=float((used == 0).mean()),
    dropped_sequences=float((weight[held] == 0).all(axis=1).mean()),
    largest=float(used.max()),
    configs=configs,
    texts={
      framework: None if config is None else text_of(framework, config)
      for framework, config in configs.items()
    },
  )


def _norm(weight: np.ndarray, dump: Dump) -> float | None:
  """The norm at the logits of the tokens drawn, with the weights over without."""
  advantages = advantages_of(dump)
  if advantages is None:
    return None
  old_logp = np.where(dump.mask, dump.old_logp, 0.0)
  moved = -np.expm1(np.minimum(old_logp, 0)) * advantages
  pull = np.where(dump.mask & np.isfinite(moved), moved, 0.0)
  without = (pull**2).sum()
  return float(np.sqrt(((weight * pull) ** 2).sum() / without)) if without else None


def advantages_of(dump: Dump) -> np.ndarray | None:
  """`[B, T]`, or `[B, 1]` from rewards: less the mean of the group, or of the dump."""
  if dump.advantages is not None:
    return np.nan_to_num(dump.advantages)
  if dump.rewards is None:
    return None
  rewards = np.nan_to_num(dump.rewards)
  if dump.group_ids is None:
    return (rewards - rewards.mean())[:, None]
  _, group = np.unique(dump.group_ids, return_inverse=True)
  mean = np.bincount(group, rewards) / np.bincount(group)
  return (rewards - mean[group])[:, None]


def advise(verdict: str, scale: Scale) -> tuple[str, str]:
  """The name in `CORRECTIONS` to take, and why; the evidence is in docs/choosing.md."""
  tis = "token TIS, 2"
  if verdict == "healthy":
    return "none", "there is nothing to correct"
  if verdict == "numerics":
    return tis, (
      f"it leaves {scale.ess:.1%} of the tokens as they are and holds what is rare; "
      "answers of tens of tokens do without, too"
    )
  if verdict in ("few_rows", "missing_end", "retokenised", "zero_filled"):
    return "veto 1e-4 and token TIS, 2", (
      "only until the fault is mended: it takes out the rows with a token that the "
      "sampler cannot have drawn, and does not make the log-probs right"
    )
  if verdict == "staleness":
    length = scale.tokens / max(scale.rows, 1)
    if length <= SHORT and scale.ess_sequence >= 0.5:
      return "sequence TIS, 2", (
        f"answers have {length:.1f} tokens and their products leave "
        f"{scale.ess_sequence:.0%} of the rows: a fifth of the bias of token weights, "
        "where one reward judges the whole answer"
      )
    return tis, (
      f"uncut weights leave {scale.ess:.0%} of the tokens and products "
      f"{scale.ess_sequence:.1%} of the rows; a cap on tokens holds both, and every "
      "framework has it"
    )
  if verdict == "unclear":
    return tis, "it bounds what a single token can do while you look for the reason"
  return "none", (
    "mend the fault first: a correction would hide it, and pay for it with signal"
  )
