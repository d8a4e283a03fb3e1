"""Alarms of a run: which of its metrics is out of range, and since when."""

import dataclasses
from collections.abc import Mapping

from tis_jax.numerics.checks import check_choice, check_number

ACTIONS = ("off", "warn", "save", "tighten", "stop")

# Alarms of a gap that smaller weights take the edge off. A sampler that disagrees while
# it is fresh has a bug, and where much is rejected a cap is not what starves the batch.
WEIGHTY = frozenset({"max_k3", "max_growth", "min_ess", "max_mean_weight"})

# k3 of a sampler that holds the learner's params, ten times what the mismatch atlas
# measured on a language model (docs/atlas.md); the quickstart's policy stays below a
# tenth of it.
_FRESH_K3 = {
  "float32": 1e-6,
  "float16": 1e-3,
  "bfloat16": 1e-2,
  "float8": 5e-2,
  "int8": 5e-2,
}


@dataclasses.dataclass(frozen=True)
class GuardSettings:
  """Alarms on what every step measures. A bound of 0 is not looked at.

  Attributes:
    action: on an alarm: "warn" says it, "save" also writes the batch, "tighten" also
      halves the log of the correction's caps, "stop" saves and ends the run; "off"
      looks at nothing.
    patience: steps in a row that a metric is out of range before it is an alarm.
    fresh_k3: most `mismatch/k3` of a batch that is not stale: a sampler that disagrees
      then has a bug. None is ten times what the sampler's precision is known for.
    max_k3: most `mismatch/k3` of any batch, nats a token.
    max_growth: most that `mismatch/k3` may grow by from twenty steps to the next
      twenty, once it is above a tenth of `max_k3`.
    min_ess: least `weight/ess`.
    max_rejected: largest share of tokens in `rejected/tokens`.
    max_mean_weight: `weight/raw_mean` lies between its inverse and this.
    max_saved: batches that are written in a run.

  Raises:
    ValueError: an unknown action, or a number outside its range.
  """

  action: str = "warn"
  patience: int = 3
  fresh_k3: float | None = None
  max_k3: float = 0.3
  max_growth: float = 4.0
  min_ess: float = 0.1
  max_rejected: float = 0.5
  max_mean_weight: float = 2.0
  max_saved: int = 3

  def __post_init__(self):
    check_choice("action", self.action, ACTIONS)
    check_number("patience", self.patience, at_least=1)
    for name in ("max_k3", "max_growth", "min_ess", "max_rejected", "max_mean_weight"):
      check_number(name, getattr(self, name), at_least=0)
    check_number("max_saved", self.max_saved, at_least=0)


class Guard:
  """Looks at each step's metrics and says, once for each time, what went out of range.

  Args:
    settings: the bounds.
    precision: of the sampler; decides what is normal for a batch that is not stale.

  Example:
    >>> guard = Guard(GuardSettings(patience=1), "bfloat16")
    >>> for k3 in (0.001, 0.06, 0.07):
    ...   said = guard.look({"mismatch/k3": k3, "staleness/max": 0.0})
    ...   print({bound: sentence[:29] for bound, sentence in said.items()})
    {}
    {'fresh_k3': 'mismatch/k3 0.06 is above 0.0'}
    {}
  """

  def __init__(self, settings: GuardSettings, precision: str):
    self._settings = settings
    self._precision = precision
    fresh = settings.fresh_k3
    self._fresh_k3 = _FRESH_K3.get(precision, 0.0) if fresh is None else fresh
    self._since: dict[str, int] = {}
    self._k3: list[float] = []

  def look(self, scalars: Mapping[str, float]) -> dict[str, str]:
    """The alarms that this step raises, by bound; what goes on is not said again."""
    if self._settings.action == "off":
      return {}
    found = self._found(scalars)
    self._since = {name: self._since.get(name, 0) + 1 for name in found}
    return {
      name: sentence
      for name, sentence in found.items()
      if self._since[name] == self._settings.patience
    }

  def _found(self, scalars: Mapping[str, float]) -> dict[str, str]:
    """What is out of range now, by the name of its bound. NaN is in no range."""
    s, found = self._settings, {}
    k3 = scalars.get("mismatch/k3", 0.0)
    if self._fresh_k3 and scalars.get("staleness/max") == 0 and k3 > self._fresh_k3:
      found["fresh_k3"] = (
        f"mismatch/k3 {k3:.2g} is above {self._fresh_k3:.2g} (guard.fresh_k3) though "
        f"the {self._precision} sampler holds the learner's own params: weights that "
        "were not taken over, tokens shifted by one, another temperature"
      )
    if s.max_k3 and k3 > s.max_k3:
      found["max_k3"] = (
        f"mismatch/k3 {k3:.2g} is above {s.max_k3:.2g} (guard.max_k3): the sampler is "
        "another policy; a lower staleness, a smaller learning rate or a correction"
      )
    if (grown := self._growth(k3)) and grown > s.max_growth:
      found["max_growth"] = (
        f"mismatch/k3 has grown {grown:.1f}-fold in twenty steps (guard.max_growth): "
        "the policy runs away from its sampler; a correction, or a lower staleness"
      )
    ess = scalars.get("weight/ess", 1.0)
    if ess < s.min_ess:
      found["min_ess"] = (
        f"weight/ess {ess:.2g} is below {s.min_ess:.2g} (guard.min_ess): a few tokens "
        "carry the batch; a lower cap, or weights by token"
      )
    rejected = scalars.get("rejected/tokens", 0.0)
    if s.max_rejected and rejected > s.max_rejected:
      found["max_rejected"] = (
        f"{rejected:.1%} of the tokens are rejected (guard.max_rejected "
        f"{s.max_rejected:.0%}): the bounds are narrower than the gap; wider ones, or "
        "weights in place of the mask"
      )
    mean, most = scalars.get("weight/raw_mean", 1.0), s.max_mean_weight
    if most and not 1 / most <= mean <= most and mean == mean:
      found["max_mean_weight"] = (
        f"weight/raw_mean {mean:.2g} is not between {1 / most:.2g} and {most:.2g} "
        "(guard.max_mean_weight): the log-probs are of another law than the tokens; "
        "look at the temperature and at top-p"
      )
    return found

  def _growth(self, k3: float) -> float:
    """k3 of twenty steps over that of the twenty before; 0 where it is small."""
    self._k3 = [*self._k3, k3][-40:]
    if len(self._k3) < 40:
      return 0.0
    before, now = sum(self._k3[:20]), sum(self._k3[20:])
    large = self._settings.max_k3 and now / 20 > self._settings.max_k3 / 10
    return now / before if large and before > 0 and self._settings.max_growth else 0.0
