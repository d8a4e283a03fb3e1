"""Bytes that a coverage-guided fuzzer makes of a record's header and arrays.

  make fuzz-guided

libFuzzer mutates what reached a new branch; length and checksum are put right, or no
mutation would come further than them. Ends at the first exception that is no refusal,
with the input in a file. Needs atheris, of the extra `fuzz`.
"""

import sys
import tempfile
from pathlib import Path

_SEPARATOR = b"\0--\0"


def main() -> None:
  import atheris  # Not there when pytest looks for doctests.

  with atheris.instrument_imports(include=["tis_jax.rollouts", "tis_jax.store.notes"]):
    import examine

  def one_input(data: bytes) -> None:
    header, _, arrays = data.partition(_SEPARATOR)
    examine.examine(examine.framed(header, arrays))
    examine.examine(data)
    examine.examine_note(header)

  corpus = Path(tempfile.mkdtemp())
  header, arrays = examine.split(examine.good_record())
  (corpus / "good").write_bytes(header + _SEPARATOR + arrays)
  (corpus / "beat").write_bytes(b'{"time": 1.5, "version": 3, "health": {"x": 1}}')
  limits = ["-max_len=4096", "-seed=1", "-len_control=0", "-timeout=10"]
  atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(corpus)], one_input)
  atheris.Fuzz()


if __name__ == "__main__":
  main()
