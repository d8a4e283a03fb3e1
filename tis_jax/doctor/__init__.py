"""Is it a bug, numerics, staleness or support, and what to do: the doctor of a dump.

`read` takes a dump, whichever framework wrote it; `diagnose` says what explains the gap
between sampler and learner in it, with evidence; `prescribe` what each correction would
do to it, which to take, and the configuration to paste. `tis doctor FILE` is all three.
Reading and diagnosing need numpy alone.

>>> import numpy as np
>>> from tis_jax import doctor
>>> rng = np.random.default_rng(0)
>>> sampler_logp = -rng.exponential(1.0, (16, 12))
>>> old_logp = sampler_logp + rng.normal(0, 0.02, sampler_logp.shape)
>>> report = doctor.diagnose(doctor.from_arrays(old_logp, sampler_logp))
>>> report.verdict, report.healthy
('numerics', True)
"""

from typing import TYPE_CHECKING, Any

from tis_jax.doctor.causes import REMARKS as REMARKS
from tis_jax.doctor.causes import VERDICTS as VERDICTS
from tis_jax.doctor.columns import COLUMNS as COLUMNS
from tis_jax.doctor.diagnosis import diagnose as diagnose
from tis_jax.doctor.dump import Dump as Dump
from tis_jax.doctor.dump import from_arrays as from_arrays
from tis_jax.doctor.errors import DumpError as DumpError
from tis_jax.doctor.evidence import Scale as Scale
from tis_jax.doctor.reading import read as read
from tis_jax.doctor.report import Finding as Finding
from tis_jax.doctor.report import Place as Place
from tis_jax.doctor.report import Report as Report
from tis_jax.doctor.report import Transcript as Transcript

if TYPE_CHECKING:
  from tis_jax.doctor.prescription import Effect as Effect
  from tis_jax.doctor.prescription import Prescription as Prescription
  from tis_jax.doctor.prescription import prescribe as prescribe

# What needs jax is imported when it is asked for.
_WITH_JAX = ("Effect", "Prescription", "prescribe")


def __getattr__(name: str) -> Any:
  if name in _WITH_JAX:
    from tis_jax.doctor import prescription

    return getattr(prescription, name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *_WITH_JAX])
