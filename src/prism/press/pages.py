"""Notebooks as pages that need no network."""

from __future__ import annotations

import copy
import html
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from nbformat import NotebookNode

from prism.press.notebooks import PLOTLY, WIDGET, WIDGET_NOTE, alt_text

PLOTLY_JS = "plotly.min.js"

# nbconvert's page without the two libraries that it would load from a network; wide tables scroll on a phone.
_TEMPLATE = """{% extends 'index.html.j2' %}{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block extra_css -%}<style>.jp-RenderedMarkdown, .jp-RenderedHTML { overflow-x: auto; }</style>{%- endblock -%}"""

# Markdown's code: fenced, or a span that may wrap but not beyond its paragraph.
_CODE = re.compile(r"(```.*?```|``.+?``|`(?:[^`\n]|\n(?!\s*\n))+`)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])", re.DOTALL)
# A tag's or a Markdown link's target that is neither a whole address nor an anchor; text that looks like one is left.
_TARGET = r"""(?P<target>(?![a-zA-Z][\w+.-]*:|[/#])[^)\s"'#<>]+)"""
_TAG_LINK = re.compile(r"""(?P<before><\w(?:[^<>"']|"[^"]*"|'[^']*')*?\s(?:href|src)=["'])""" + _TARGET)
_TEXT_LINK = re.compile(r"(?P<before>\]\()" + _TARGET)


def to_html(notebook: NotebookNode, title: str, link: Callable[[str], str], plotly: str = PLOTLY_JS) -> str:
    """The notebook as a page that needs no network.

    Args:
        notebook: executed; left as it is.
        title: of the page.
        link: gives the page's link for a relative link of the notebook, its anchor left out.
        plotly: link to the plotly.js that draws the page's figures.
    """
    from nbconvert import HTMLExporter

    page = copy.deepcopy(notebook)
    page.metadata.pop("widgets", None)
    page.metadata["title"] = title
    for number, cell in enumerate(page.cells):
        if cell.cell_type == "markdown":
            parts = _CODE.split(cell.source)  # code at every second place, which stays as it is
            cell.source = "".join(part if i % 2 else _prose(part, link) for i, part in enumerate(parts))
        for i, output in enumerate(cell.get("outputs", [])):
            if "data" in output:
                output.data = _page_data(output.data, f"figure-{number}-{i}", link)
    # plotly.js takes the place of require.js, which would keep it from being a global (and comes from a network).
    exporter = HTMLExporter(require_js_url=plotly, exclude_anchor_links=True, raw_template=_TEMPLATE)
    return exporter.from_notebook_node(page)[0]


def _prose(text: str, link: Callable[[str], str]) -> str:
    """Links as the page needs them; formulas as MathML, which a browser shows without a script from the network."""

    def mathml(match: re.Match) -> str:
        return convert(match["block"] or match["inline"], display="block" if match["block"] else "inline")

    return _FORMULA.sub(mathml, _relinked(_relinked(text, link), link, _TEXT_LINK))


def _relinked(text: str, link: Callable[[str], str], kind: re.Pattern = _TAG_LINK) -> str:
    """The text with each relative link `x` of that kind replaced by `link(x)`; whole addresses and anchors stay."""
    return kind.sub(lambda match: match["before"] + link(match["target"]), text)


def _page_data(data: dict, name: str, link: Callable[[str], str]) -> dict:
    """One output's MIME bundle with figures and controls replaced by what a page can show."""
    if PLOTLY in data:
        return {"text/html": _figure_html(data[PLOTLY], name)}
    if WIDGET in data:
        return {"text/html": f"<p><em>{WIDGET_NOTE}</em></p>"}
    if "text/html" in data:
        return {**data, "text/html": _relinked("".join(data["text/html"]), link)}
    return data


def _figure_html(figure: dict, name: str) -> str:
    """A `div` and the script that draws into it; `</` is escaped so that no text in a figure ends the script.

    A screen reader is told what the figure is.
    """
    config = {"responsive": True, **figure.get("config", {})}
    parts = (figure.get("data", []), figure.get("layout", {}), config)
    arguments = ", ".join(json.dumps(part).replace("</", "<\\/").replace("<!--", "<\\!--") for part in parts)
    height = figure.get("layout", {}).get("height") or 450
    script = f'<script>Plotly.newPlot("{name}", {arguments})</script>'
    label = html.escape(alt_text(figure))
    return f'<div id="{name}" role="img" aria-label="{label}" style="min-height:{height}px"></div>\n{script}'


def link_from(source: Path, target: Path) -> Callable[[str], str]:
    """What `to_html` needs for a text that moves from the folder `source` to a run's folder `target`.

    Links between phase notebooks become links between pages, the glossary becomes its page, and every other file is
    reached where it is.
    """

    def link(to: str) -> str:
        if re.fullmatch(r"(\./)?phase_[\w-]+\.ipynb", to):
            return to.removesuffix(".ipynb") + ".html"
        if to.endswith("docs/GLOSSARY.md"):
            return "glossary.html"
        return Path(os.path.relpath(source / to, target)).as_posix()

    return link


def index(lead: str, sections: dict[str, list[dict]]) -> str:
    """The page that links all others.

    Args:
        sections: heading -> items with a title, and maybe page, about, error.
    """
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    made = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return made.get_template("index.html").render(lead=lead, sections=sections)
