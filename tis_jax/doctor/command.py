"""`tis doctor`: a dump's verdict, its evidence, and a configuration to paste."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tis_jax.doctor.diagnosis import diagnose
from tis_jax.doctor.errors import DumpError
from tis_jax.doctor.page import diagnosis_page, prescription_page
from tis_jax.doctor.reading import read

SICK = 1
"""Exit code where the verdict is a fault, or unclear."""
UNREADABLE = 2
"""Exit code where the file cannot be read."""

_EPILOG = """\
FILE is an npz file (old_logp, sampler_logp, mask and maybe tokens, versions, rewards,
... under any framework's names), NeMo-RL's train_data_step*.jsonl, prime-rl's
token_exports, slime's .pt, a workdir of tis train, or the URL of its store. Nothing in
a file is executed.

Exit codes: 0 healthy, numerics or staleness; 1 a fault, or unclear; 2 not readable.
"""

_NO_FAULT = ("healthy", "numerics", "staleness")


def main(argv: Sequence[str] | None = None) -> None:
  """Reads, diagnoses, prescribes and prints; exits with a code."""
  given = _parser().parse_args(sys.argv[1:] if argv is None else argv)
  try:
    dump = read(given.file)
    report = diagnose(dump, sampler_dtype=given.sampler_dtype)
  except DumpError as error:
    print(f"tis doctor: {error}", file=sys.stderr)
    sys.exit(UNREADABLE)
  if not given.json:
    print(diagnosis_page(report), flush=True)
  # Here, not above: this needs jax, and the verdict does not wait for it.
  from tis_jax.doctor.prescription import prescribe

  prescription = prescribe(dump, report)
  if given.html:
    from tis_jax.doctor.html import html

    given.html.write_text(html(dump, report, prescription), encoding="utf-8")
  if given.json:
    table = prescription.to_json()
    found = report.to_json() | {
      "corrections": table.pop("corrections"),
      "advice": table,
    }
    print(json.dumps(found, indent=2, allow_nan=False))
  else:
    print(prescription_page(prescription, given.framework), end="")
  sys.exit(0 if report.verdict in _NO_FAULT else SICK)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="tis doctor",
    description=__doc__,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("file", metavar="FILE", help="the dump, or the URL of a store")
  parser.add_argument(
    "--framework",
    nargs="+",
    default=(),
    metavar="NAME",
    choices=FRAMEWORK_NAMES,
    help=f"print its configuration to paste: {', '.join(FRAMEWORK_NAMES)}",
  )
  parser.add_argument(
    "--sampler_dtype",
    "--sampler-dtype",
    default="",
    metavar="DTYPE",
    help="of the sampler, where the dump does not say: bfloat16, int8, ...",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object instead")
  parser.add_argument(
    "--html", type=Path, metavar="FILE", help="write a page with figures there, too"
  )
  return parser


FRAMEWORK_NAMES = (
  *("verl", "skyrl", "slime", "trl", "nemo_rl", "areal"),
  *("prime_rl", "openrlhf", "roll", "ms_swift", "tunix"),
)
"""Those of `tis_jax.doctor.paste.FRAMEWORKS`, known without jax."""
