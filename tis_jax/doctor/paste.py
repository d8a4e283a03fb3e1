"""A chain in a framework's own words: the inverse of `tis_jax.compat`.

A framework is asked for the same weight and the same mask, and for nothing more: its
denominator and its loss are its own (`docs/translation.md`). What it has no option for
is not expressible there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tis_jax.corrections import Chain
from tis_jax.doctor import paste_filters, paste_modes
from tis_jax.doctor.parts import Parts, parts_of


def config_of(framework: str, correct: Chain) -> dict[str, Any] | None:
  """The framework's options that make the weight and the mask of a chain.

  Args:
    framework: one of `FRAMEWORKS`.
    correct: from `tis.chain`, thresholds not traced.

  Returns:
    Its own section, as `tis.compat.FRAMEWORK.correction` takes it; None where the
    framework cannot do the same.

  >>> import tis_jax as tis
  >>> config_of("verl", tis.chain(tis.truncate(2.0)))
  {'rollout_is': 'token', 'rollout_is_threshold': 2.0}
  >>> config_of("prime_rl", tis.chain(tis.truncate(2.0))) is None
  True
  """
  parts = parts_of(correct)
  return None if parts is None else FRAMEWORKS[framework](parts)


FRAMEWORKS: Mapping[str, Callable[[Parts], dict[str, Any] | None]] = {
  "verl": paste_filters.verl,
  "skyrl": paste_filters.skyrl,
  "slime": paste_filters.slime,
  "trl": paste_modes.trl,
  "nemo_rl": paste_modes.nemo_rl,
  "areal": paste_modes.areal,
  "prime_rl": paste_modes.prime_rl,
  "openrlhf": paste_modes.openrlhf,
  "roll": paste_filters.roll,
  "ms_swift": paste_modes.ms_swift,
  "tunix": paste_modes.tunix,
}
"""Those that a chain can be written for, by the names of `tis_jax.compat`."""
