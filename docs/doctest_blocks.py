"""For the API pages: doctests in docstrings become code blocks."""

import griffe


class DoctestBlocks(griffe.Extension):
  """Fences every paragraph that starts with `>>>`."""

  def on_object(self, *, obj, **kwargs):
    if obj.docstring:
      paragraphs = obj.docstring.value.split("\n\n")
      obj.docstring.value = "\n\n".join(map(_fenced, paragraphs))


def _fenced(paragraph: str) -> str:
  if not paragraph.lstrip().startswith(">>>"):
    return paragraph
  return f"```pycon\n{paragraph.strip()}\n```"
