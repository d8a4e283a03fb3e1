"""A diagnosis as a page of text."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from tis_jax.doctor.prescription import Effect, Prescription
from tis_jax.doctor.report import Finding, Report, Transcript

WIDTH = 88
TITLES = {
  "verl": "verl",
  "skyrl": "SkyRL",
  "slime": "slime",
  "trl": "TRL",
  "nemo_rl": "NeMo-RL",
  "areal": "AReaL",
  "prime_rl": "prime-rl",
  "openrlhf": "OpenRLHF",
  "roll": "ROLL",
  "ms_swift": "ms-swift",
  "tunix": "Tunix",
}
"""What frameworks are called."""


def diagnosis_page(report: Report) -> str:
  """The verdict and its evidence, for a terminal."""
  parts = [
    _head(report),
    _read(report),
    *(
      _finding(finding, main=i == 0)
      for i, finding in enumerate(report.findings)
      if i == 0 or finding.found
    ),
    _not_found(report),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def prescription_page(
  prescription: "Prescription", frameworks: Sequence[str] = ()
) -> str:
  """What each correction would do, and the configuration to paste.

  Args:
    prescription: from `prescribe`.
    frameworks: whose configurations to print.
  """
  pasted = (_paste(prescription, framework) for framework in frameworks)
  return "\n\n".join([_corrections(prescription), *pasted]) + "\n"


def _head(report: Report) -> str:
  sure = _share(report.confidence)
  words = report.verdict.replace("_", " ")
  line = f"{words.upper()}   in {sure} of random halves of its rows"
  return f"{line}\n{_wrap(report.finding.means)}"


def _read(report: Report) -> str:
  scale = report.scale
  columns = ", ".join(
    f"{field} = {name}" if name != field else field
    for field, name in report.columns.items()
  )
  lines = [
    f"read      {report.source or 'arrays'}: {scale.rows:,} rows, "
    f"{scale.tokens:,} tokens with both log-probs",
    *([f"columns   {columns}"] if columns else []),
    *(f"note      {note}" for note in report.notes),
    f"gap       mean |d| {scale.mean_abs:.3g}, max {scale.max_abs:.3g} nats; k1 "
    f"{scale.k1:.3g}, k3 {scale.k3:.3g}; correlation {scale.correlation:.4f}",
    f"ratio     mean {scale.ratio_mean:.4f}, outside [0.9, 1.1] {scale.outside:.1%}; "
    f"uncut weights leave {scale.ess:.1%} of tokens, {scale.ess_sequence:.1%} of rows",
  ]
  return "\n".join(_wrap(line, hang=10) for line in lines)


def _finding(finding: Finding, main: bool) -> str:
  title = "evidence" if main else f"also      {finding.kind}"
  lines = [] if main else [title]
  lines += [
    f"evidence  {finding.evidence}",
    f"measure   {finding.measured}: {finding.statistic:.3g}, found at {finding.limit} "
    f"(score {finding.score:.2g}, in {_share(finding.confidence)} of halves)",
    f"usually   {finding.cause}",
    f"do        {finding.do}",
    f"see       {finding.link}",
  ]
  text = "\n".join(_wrap(line, hang=10) for line in lines)
  shown = finding.rows if main else finding.rows[:1]
  return "\n".join([text, *(transcript(row) for row in shown)])


def transcript(found: Transcript) -> str:
  """A row as a table: place, id, both log-probs, and what shows the fault."""
  held = any(place.token is not None for place in found.places)
  head = f"  row {found.row} ({found.tokens} tokens)"
  lines = [
    f"{head}\n    {'place':>6} {'id' if held else '':>8} {'learner':>10} "
    f"{'sampler':>10} {'d':>9}"
  ]
  for place in found.places:
    both = place.old_logp is not None and place.sampler_logp is not None
    gap = f"{place.old_logp - place.sampler_logp:+.4f}" if both else ""  # pyrefly: ignore
    lines.append(
      f"  {'>' if place.marked else ' '} {place.column:>6} "
      f"{'' if place.token is None else place.token:>8} {_logp(place.old_logp):>10} "
      f"{_logp(place.sampler_logp):>10} {gap:>9}"
    )
  return "\n".join(lines)


def _not_found(report: Report) -> str:
  near = [
    f"{finding.kind} {finding.score:.2g}"
    for finding in report.findings[1:]
    if not finding.found and finding.score >= 0.05
  ]
  return _wrap(f"not found {', '.join(near)} (1 would be)", hang=10) if near else ""


def _corrections(prescription: "Prescription") -> str:
  head = ("", "ess", "gradient", "norm", "tokens 0", "rows 0", "largest", "options in")
  rows: list[tuple[str, ...]] = [head]
  for effect in prescription.corrections:
    mark = "*" if effect.name == prescription.take else " "
    rows.append((f"{mark} {effect.name}", *_numbers(effect), _where(effect)))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
  lines = []
  for first, *middle, last in rows:
    cells = [x.rjust(w) for x, w in zip(middle, widths[1:], strict=True)]
    lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
  advice = _wrap(f"take      {prescription.take}: {prescription.why}", hang=10)
  return "\n".join([advice, *lines])


def _numbers(effect: "Effect") -> tuple[str, ...]:
  norm = "" if effect.gradient_norm is None else f"{effect.gradient_norm:.3f}"
  return (
    f"{effect.ess:.3f}",
    f"{effect.gradient_scale:.3f}",
    norm,
    f"{effect.dropped_tokens:.1%}",
    f"{effect.dropped_sequences:.1%}",
    f"{effect.largest:.3g}",
  )


def _where(effect: "Effect") -> str:
  have = [TITLES[name] for name, config in effect.configs.items() if config is not None]
  return "all" if len(have) == len(TITLES) else f"{len(have)} of {len(TITLES)}"


def _paste(prescription: "Prescription", framework: str) -> str:
  text = prescription.taken.texts[framework]
  title = f"{TITLES[framework]}, {prescription.take}:"
  if text is None:
    others = [e.name for e in prescription.corrections if e.texts[framework]]
    also = f"; it has: {', '.join(others)}" if others else ""
    return _wrap(f"{title} not expressible there{also}")
  return f"{title}\n\n{textwrap.indent(text, '  ')}"


def _logp(value: float | None) -> str:
  return "missing" if value is None else f"{value:.4f}"


def _share(value: float) -> str:
  return "none" if value != value else f"{value:.0%}"


def _wrap(text: str, hang: int = 0) -> str:
  return textwrap.fill(
    text,
    WIDTH,
    subsequent_indent=" " * hang,
    break_on_hyphens=False,
    break_long_words=False,
  )
