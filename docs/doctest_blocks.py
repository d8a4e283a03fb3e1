"""For the API pages: doctests, formulas and tables in docstrings become code blocks."""

import re

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example)s?:", re.M)


class DoctestBlocks(griffe.Extension):
  """Fences paragraphs that are to be shown as they were typed.

  Those are doctests; and, above the sections, indented paragraphs and lines that are
  set in columns.
  """

  def on_object(self, *, obj, **kwargs):
    if not obj.docstring:
      return
    paragraphs = obj.docstring.value.split("\n\n")
    sections = [i for i, text in enumerate(paragraphs) if _SECTION.search(text)]
    prose = min(sections, default=len(paragraphs))
    obj.docstring.value = "\n\n".join(
      _fenced(text, i < prose) for i, text in enumerate(paragraphs)
    )


def _fenced(paragraph: str, prose: bool) -> str:
  if paragraph.lstrip().startswith(">>>"):
    return f"```pycon\n{paragraph.strip()}\n```"
  lines = paragraph.strip("\n").split("\n")
  indented = all(line.startswith("  ") for line in lines)
  columns = len(lines) > 1 and all(re.search(r"\S {2,}\S", line) for line in lines)
  if prose and (indented or columns):
    return f"```text\n{paragraph}\n```"
  return paragraph
