"""What mkdocs does beside building: formulas become MathML, and llms.txt is written.

Browsers draw MathML themselves, so the site needs no script and no network for it.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(
  r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
# The converter sets log as it sets a variable, without the space of an operator.
_LOG = ("<mi>log</mi>", '<mspace width="0.17em"/><mi>log</mi><mspace width="0.17em"/>')


def on_page_content(content, **_):
  """MathML in place of each formula."""
  return _FORMULA.sub(_mathml, content)


def on_env(env, config, files, **_):
  """llms.txt (llmstxt.org): what the site is, and a line for each page."""
  lines = [
    f"# {config.site_name}",
    "",
    f"> {config.site_description}",
    "",
    "## Pages",
    "",
  ]
  for file in files.documentation_pages():
    page = file.page
    lines.append(f"- [{page.title}]({page.canonical_url}): {_summary(page.content)}")
  site = Path(config.site_dir)
  site.mkdir(parents=True, exist_ok=True)
  (site / "llms.txt").write_text("\n".join(lines) + "\n")
  return env


def _mathml(found: re.Match) -> str:
  display = "block" if found[1] == "div" else "inline"
  return convert(html.unescape(found[2]), display=display).replace(*_LOG)


def _summary(content: str) -> str:
  """The first paragraph, without its markup."""
  found = re.search(r"<p>(.*?)</p>", content, re.DOTALL)
  text = re.sub(r"<[^>]+>", "", found[1] if found else "")
  return " ".join(html.unescape(text).split())
