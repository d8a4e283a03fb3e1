# What the doctor's package has; a name is imported when it is first asked for.

from tis_jax.doctor.causes import REMARKS as REMARKS
from tis_jax.doctor.causes import VERDICTS as VERDICTS
from tis_jax.doctor.columns import COLUMNS as COLUMNS
from tis_jax.doctor.diagnosis import diagnose as diagnose
from tis_jax.doctor.dump import Dump as Dump
from tis_jax.doctor.dump import from_arrays as from_arrays
from tis_jax.doctor.errors import DumpError as DumpError
from tis_jax.doctor.evidence import Scale as Scale
from tis_jax.doctor.paste import FRAMEWORKS as FRAMEWORKS
from tis_jax.doctor.paste import config_of as config_of
from tis_jax.doctor.prescription import CORRECTIONS as CORRECTIONS
from tis_jax.doctor.prescription import Effect as Effect
from tis_jax.doctor.prescription import Prescription as Prescription
from tis_jax.doctor.prescription import prescribe as prescribe
from tis_jax.doctor.reading import read as read
from tis_jax.doctor.replaying import Gradient as Gradient
from tis_jax.doctor.replaying import Replayed as Replayed
from tis_jax.doctor.replaying import replay as replay
from tis_jax.doctor.report import Finding as Finding
from tis_jax.doctor.report import Place as Place
from tis_jax.doctor.report import Report as Report
from tis_jax.doctor.report import Transcript as Transcript
