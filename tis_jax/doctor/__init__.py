"""Is it a bug, numerics, staleness or support, and what to do: the doctor of a dump.

`read` takes a dump, whichever framework wrote it; `diagnose` says what explains the gap
between sampler and learner in it, with evidence; `prescribe` what each correction would
do to it, which to take, and the configuration to paste. `tis doctor FILE` is all three.
Reading and diagnosing need numpy alone. Lazy; the contents are `__init__.pyi`.

>>> import numpy as np
>>> from tis_jax import doctor
>>> rng = np.random.default_rng(0)
>>> sampler_logp = -rng.exponential(1.0, (16, 12))
>>> old_logp = sampler_logp + rng.normal(0, 0.02, sampler_logp.shape)
>>> report = doctor.diagnose(doctor.from_arrays(old_logp, sampler_logp))
>>> report.verdict, report.healthy
('numerics', True)
"""

from tis_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
