"""A corrector: stages in the order they are written, over one batch of log-probs."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tis_jax.corrections.details import detail_metrics
from tis_jax.corrections.incoming import Incoming
from tis_jax.corrections.inputs import Inputs, check_inputs
from tis_jax.corrections.mismatch import core_metrics, reward_metrics
from tis_jax.corrections.stage import Stage
from tis_jax.corrections.types import Correction
from tis_jax.numerics.checks import check_choice


def chain(
  *stages: "Stage | Chain", metrics: Literal["none", "core", "full"] = "core"
) -> "Chain":
  """A corrector that applies `stages` in the order written.

  Every stage sees the mask that the ones before it left: a sequence's product, a batch
  mean or a divergence is taken over the tokens that still train. With no stage at all
  the weight is 1 and the metrics are there, so a run can be watched before it is
  corrected.

  Args:
    *stages: what `truncate`, `reject`, ... return, or other chains (which are spliced
      in).
    metrics: "core" is one pass over the data; "full" adds percentiles and the log-ratio
      by position, probability and staleness; "none" leaves them out.

  Returns:
    A `Chain`: call it with `(old_logp, sampler_logp, mask)`.

  Raises:
    ValueError: two stages that would both weight by the same ratio, or a `normalize`
      before anything made a weight.
    TypeError: something that is not a stage.

  >>> from tis_jax.corrections import reject, truncate
  >>> correct = chain(reject(1.5, level="geometric"), truncate(2.0))
  >>> old, sampler = jnp.log(jnp.array([[0.4, 0.6]])), jnp.log(jnp.array([[0.5, 0.5]]))
  >>> out = correct(old, sampler, jnp.array([[True, True]]))
  >>> out.weight.round(4).tolist(), out.mask.tolist()
  ([[0.8, 1.2]], [[True, True]])
  """
  flat = []
  for stage in stages:
    if isinstance(stage, Chain):
      flat.extend(stage.stages)
    elif isinstance(stage, Stage):
      flat.append(stage)
    elif isinstance(stage, (list, tuple)):
      raise TypeError(
        "chain takes its stages one by one, not in a list: write chain(*stages)"
      )
    else:
      raise TypeError(f"chain: {stage!r} is not a stage; write tis.truncate(2.0), ...")
  weights = [stage.name for stage in flat if stage.makes == "weight"]
  if len(weights) > 1:
    raise ValueError(
      f"chain: {weights} would each multiply the same ratio into the weight. Keep one"
      " of them; to bound the ratio a second time without weighting, use reject(...)."
    )
  scales = [i for i, stage in enumerate(flat) if stage.makes == "scale"]
  made = [i for i, stage in enumerate(flat) if stage.makes == "weight"]
  if scales and (not made or scales[0] < made[0]):
    raise ValueError(
      f"chain: {flat[scales[0]].name} scales a weight, and no stage before it makes"
      " one. Put truncate(...), clip(...) or importance(...) in front of it."
    )
  check_choice("chain: metrics", metrics, ("none", "core", "full"))
  return Chain(tuple(flat), metrics)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Chain:
  """A corrector. Its thresholds are its leaves: passed to jit, it does not recompile.

  A value like its stages: `jax.jit(chain(...))`, a static argument, a dictionary key,
  a pickle and a print are all of the calls that make it.

  Attributes:
    stages: the stages, in order.
    metrics: which metrics it takes.
  """

  stages: tuple[Stage, ...]
  metrics: str = dataclasses.field(default="core", metadata={"static": True})

  def __repr__(self) -> str:
    stages = [repr(stage) for stage in self.stages]
    metrics = [] if self.metrics == "core" else [f"metrics={self.metrics!r}"]
    return f"chain({', '.join(stages + metrics)})"

  @property
  def weighs(self) -> bool:
    """Whether it weights by the sampler-to-old ratio.

    If so it must not meet a loss whose own ratio already starts at the sampler.
    """
    return any(stage.makes == "weight" for stage in self.stages)

  @property
  def pools(self) -> bool:
    """Whether a row's correction depends on the other rows of the call."""
    return any(stage.pools for stage in self.stages)

  def __call__(self, old_logp, sampler_logp, mask, **given: Any) -> Correction:
    """Corrects one batch.

    Args:
      old_logp: `[B, T]` the learner's log-probs at the start of the update, in nats.
      sampler_logp: `[B, T]` the log-probs the sampler reported, in nats.
      mask: `[B, T]` bool or 0/1, the tokens that train.
      **given: what else is known of the batch, by its names in `Inputs`: segment_ids,
        present, group_ids, advantages, versions, learner_version, version_logp,
        rewards.

    Returns:
      A `Correction` of weight, mask and poolable metrics, free of gradients.

    Raises:
      ValueError: shapes that differ, or a stage that lacks an argument it needs.
      TypeError: an argument that no chain takes.
    """
    given = {name: x for name, x in given.items() if x is not None}
    inputs = check_inputs(old_logp, sampler_logp, mask, given)
    for stage in self.stages:
      for name in stage.needs:
        if name not in given:
          raise ValueError(f"{stage.name} needs {name}=, which the call does not give")
    return _correct(self, [stage.bounds for stage in self.stages], inputs)


# A chain's thresholds are of no interest here, only the bounds made of them are.
@partial(jax.jit, inline=True)
def _correct(corrector: Chain, bounds: list[dict], inputs: Inputs) -> Correction:
  bounds, inputs = jax.lax.stop_gradient((bounds, inputs))
  batch = Incoming(inputs, share=corrector.metrics != "none")
  state = batch.begin()
  metrics, seen = {}, {}
  for stage, bound in zip(corrector.stages, bounds, strict=True):
    after, found = stage.run(batch, state, **bound, **dict(stage.options))
    if not stage.watched:
      state = after
    kind = (stage.name, stage.watched)
    seen[kind] = nth = seen.get(kind, 0) + 1
    prefix = _prefix(stage, nth)
    metrics |= {f"{prefix}{key}": value for key, value in found.items()}
  weight = jnp.where(batch.mask, state.weight, 0.0)
  if corrector.metrics == "none":
    return Correction(weight, state.mask, {})
  metrics |= core_metrics(batch, state)
  if inputs.rewards is not None:
    metrics |= reward_metrics(batch, state, inputs.rewards)
  if corrector.metrics == "full":
    metrics |= detail_metrics(batch, state)
  return Correction(weight, state.mask, metrics)


def _prefix(stage: Stage, nth: int) -> str:
  """What the metrics of the nth stage of its name are called after."""
  name = stage.name if nth == 1 else f"{stage.name}_{nth}"
  return "watch/" * stage.watched + f"{name}/" * stage.named
