"""Runs notebooks, turns them into pages that need no network, and checks what may be committed."""

from __future__ import annotations

import atexit
import copy
import difflib
import functools
import html
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from prism import stopping

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_NOTE = "Interactive control: run this cell in Jupyter to use it."
MAX_BYTES = 1_000_000  # of a committed notebook; GitHub shows larger ones badly or not at all
CELL_TIMEOUT = 3600  # seconds; a cell that takes longer hangs

CHARTS = {"bar": "bars", "scatter": "points", "scattergl": "points", "heatmap": "heatmap", "histogram": "histogram"}

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


@dataclass(frozen=True)
class Run:
    """One notebook, executed.

    Attributes:
        path: where the notebook was read.
        title: its first heading.
        notebook: with outputs, as far as it got; None if the file could not be read.
        seconds: wall-clock time.
        error: what stopped it, in one or two lines; None if it ran to its end.
    """

    path: Path
    title: str
    notebook: NotebookNode | None
    seconds: float
    error: str | None = None


def phase_of(path: Path) -> str:
    """The phase in a notebook's name: `phase_6a_x.ipynb` -> `6a`."""
    return path.stem.split("_")[1]


def find_notebooks(folder: Path, only: list[str] | None = None) -> list[Path]:
    """The folder's `phase_*.ipynb` in the order of their phases.

    Args:
        folder: where to look.
        only: phases to keep, such as `["1", "6a"]`; all if None.

    Raises:
        ValueError: the folder holds none, or a phase is unknown; names the nearest valid choice.
    """
    found = {phase_of(path): path for path in folder.glob("phase_*.ipynb")}
    if not found:
        raise ValueError(f"no phase_*.ipynb in {folder}; give their folder with --notebooks")
    phases = sorted(found, key=lambda phase: (int(re.match(r"\d*", phase).group() or 0), phase))
    for phase in only or []:
        if phase not in found:
            nearest = difflib.get_close_matches(phase, phases, n=1, cutoff=0.0)[0]
            raise ValueError(f"no phase '{phase}'; nearest is '{nearest}' (there are {', '.join(phases)})")
    return [found[phase] for phase in phases if not only or phase in only]


def read(path: Path) -> NotebookNode:
    """The notebook in a file.

    Raises:
        ValueError: the file holds none; names it.
        OSError: the file cannot be read.
    """
    text = path.read_bytes()
    try:
        return nbformat.reads(text.decode("utf-8"), as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:  # AttributeError: JSON, but no table
        raise ValueError(f"{path.name} is not a readable notebook: {str(error).splitlines()[0]}") from None


def default_model(path: Path) -> str | None:
    """The model that a notebook names in its metadata as its own; None if it names none.

    A file that cannot be read names none; running it says what is wrong with it.

    Raises:
        ValueError: something else than a name stands there.
    """
    try:
        notebook = read(path)
    except (OSError, ValueError):
        return None
    return model_of(notebook)


def model_of(notebook: NotebookNode) -> str | None:
    """The name under `{"prism": {"model": …}}` in a notebook's metadata; None if there is none.

    Raises:
        ValueError: something else than a name stands there.
    """
    own = notebook.metadata.get("prism", {})
    name = own.get("model") if isinstance(own, dict) else own
    if name is not None and not (isinstance(own, dict) and isinstance(name, str)):
        raise ValueError(f'its metadata names the model {name!r}; write "prism": {{"model": "mini"}}, or nothing')
    return name


def title_of(notebook: NotebookNode, default: str) -> str:
    """The text of the first level-1 heading."""
    for cell in notebook.cells:
        match = re.search(r"^# (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if match:
            return match.group(1).strip()
    return default


def run_notebook(path: Path, environment: dict[str, str], on_cell: Callable[[int, int], None] | None = None) -> Run:
    """Executes one notebook in a fresh kernel that starts in the notebook's folder; writes nothing.

    Args:
        path: the notebook.
        environment: variables set for the kernel beside this process's own.
        on_cell: called after each cell with (cells done, cells in all).
    """
    start = time.perf_counter()
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        return Run(path, path.stem, None, 0.0, f"not a readable notebook: {str(error).splitlines()[0]}")
    _clear(notebook)
    total = len(notebook.cells)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # no lines about sockets between ours
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_complete=lambda cell, cell_index: on_cell(cell_index + 1, total) if on_cell else None,
    )
    error = None
    try:
        _execute(client, {**os.environ, **environment})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = _failure(notebook, failure)
    except Exception as failure:  # whatever keeps this kernel from starting, the other notebooks are run
        reason = (str(failure).strip().splitlines() or ["no reason given"])[0]
        error = f"the kernel failed: {type(failure).__name__}: {reason}"
        if client.km is None:  # shut down already: nbclient's own attempt at exit would end in a traceback
            atexit.unregister(client._cleanup_kernel)
    return Run(path, title_of(notebook, path.stem), notebook, time.perf_counter() - start, error)


def _execute(client: NotebookClient, environment: dict[str, str]) -> None:
    """In a thread, where nbclient cannot take the signals for itself; if the command is stopped, the kernel ends."""

    def forget() -> None:
        if client.km is not None:
            client.km.cleanup_connection_file()

    with ThreadPoolExecutor(1) as thread, stopping.at_stop(forget), stopping.ending_children():
        thread.submit(client.execute, env=environment).result()


def _clear(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _failure(notebook: NotebookNode, failure: Exception) -> str:
    """Which cell stopped the notebook, its last line, and the error's own last line."""
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                value = (output.evalue.strip().splitlines() or [""])[-1]
                return f"cell {number}, which ends '{_last_line(cell)}'\n{output.ename}: {value}"
    code = [(n, c) for n, c in enumerate(notebook.cells, 1) if c.cell_type == "code" and c.source.strip()]
    number, cell = next(((n, c) for n, c in code if c.execution_count is None), code[-1])
    reason = str(failure).strip().splitlines()[0]
    return f"cell {number}, which ends '{_last_line(cell)}'\n{type(failure).__name__}: {reason}"


def _last_line(cell: NotebookNode) -> str:
    return (cell.source.strip().splitlines() or [""])[-1].strip()


# --- pages -----------------------------------------------------------------------------------------------------------


def to_html(notebook: NotebookNode, title: str, link: Callable[[str], str], plotly: str = "plotly.min.js") -> str:
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
            cell.source = _outside_code(cell.source, functools.partial(_prose, link=link))
        for i, output in enumerate(cell.get("outputs", [])):
            if "data" in output:
                output.data = _page_data(output.data, f"figure-{number}-{i}", link)
    # plotly.js takes the place of require.js, which would keep it from being a global (and comes from a network).
    exporter = HTMLExporter(require_js_url=plotly, exclude_anchor_links=True, raw_template=_TEMPLATE)
    return exporter.from_notebook_node(page)[0]


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """A Markdown text changed everywhere but in its code."""
    parts = _CODE.split(text)  # code at every second place
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def _prose(text: str, link: Callable[[str], str]) -> str:
    return formulas(relink(relink(text, link), link, _TEXT_LINK))


def formulas(text: str) -> str:
    """Formulas between dollars as MathML, which a browser shows without a script from the network."""

    def mathml(match: re.Match) -> str:
        return convert(match["block"] or match["inline"], display="block" if match["block"] else "inline")

    return _FORMULA.sub(mathml, text)


def _page_data(data: dict, name: str, link: Callable[[str], str]) -> dict:
    """One output's MIME bundle with figures and controls replaced by what a page can show."""
    if PLOTLY in data:
        return {"text/html": _figure_html(data[PLOTLY], name)}
    if WIDGET in data:
        return {"text/html": f"<p><em>{WIDGET_NOTE}</em></p>"}
    if "text/html" in data:
        return {**data, "text/html": relink("".join(data["text/html"]), link)}
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


def alt_text(figure: dict) -> str:
    """A figure in words: title, subtitle, kinds of traces, axes and series, from its Plotly JSON."""
    layout, traces = figure.get("layout", {}), figure.get("data", [])
    title = layout.get("title", {})
    subtitle = title.get("subtitle", {}).get("text", "") if isinstance(title, dict) else ""
    kinds = {}
    for trace in traces:
        lines = "lines" in trace.get("mode", "lines") and trace.get("type", "scatter") in ("scatter", "scattergl")
        kinds["lines" if lines else CHARTS.get(trace.get("type", "scatter"), trace.get("type"))] = None
    parts = [_figure_title(figure), subtitle, "Chart: " + ", ".join(kinds)]
    for letter, name in (("x", "Horizontal axis"), ("y", "Vertical axis")):
        axes = [value for key, value in layout.items() if re.fullmatch(rf"{letter}axis\d*", key)]
        texts = dict.fromkeys(axis["title"]["text"] for axis in axes if (axis.get("title") or {}).get("text"))
        parts += [f"{name}: {', '.join(texts)}"] if texts else []
    names = dict.fromkeys(trace["name"] for trace in traces if trace.get("name") and trace.get("showlegend", True))
    parts += [f"Series: {', '.join(names)}"] if len(names) > 1 else []
    plain = (" ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split()).rstrip(".") for part in parts)
    return ". ".join(part for part in plain if part) + "."


def relink(text: str, link: Callable[[str], str], kind: re.Pattern = _TAG_LINK) -> str:
    """The text with each relative link `x` of that kind replaced by `link(x)`; whole addresses and anchors stay."""
    return kind.sub(lambda match: match["before"] + link(match["target"]), text)


def run_link(link: str, source: Path, target: Path) -> str:
    """A relative link of a text that moves from the folder `source` to a run's folder `target`.

    Links between phase notebooks become links between pages, the glossary becomes its page, and every other file is
    reached where it is.
    """
    if re.fullmatch(r"(\./)?phase_[\w-]+\.ipynb", link):
        return link.removesuffix(".ipynb") + ".html"
    if link.endswith("docs/GLOSSARY.md"):
        return "glossary.html"
    return Path(os.path.relpath(source / link, target)).as_posix()


def markdown_page(text: str, title: str, link: Callable[[str], str], plotly: str = "plotly.min.js") -> str:
    """A Markdown text as a page in the notebooks' look."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    return to_html(notebook, title, link, plotly)


# --- what may be committed -------------------------------------------------------------------------------------------


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Takes out, in place, all that differs from run to run without meaning: timing, widget ids, local kernel names.

    Of the notebook's own metadata, what the project keeps there stays (`prism`: its default model).

    The picture beside each figure is given its text for those who do not see it.
    """
    own = {"prism": notebook.metadata["prism"]} if "prism" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **own,
        }
    )
    for cell in notebook.cells:
        for key in ("execution", "ExecuteTime", "papermill"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data = nbformat.from_dict({"text/plain": WIDGET_NOTE})
            if PLOTLY in output.get("data", {}) and "image/png" in output.data:
                output.metadata["image/png"] = {"alt": alt_text(output.data[PLOTLY])}
    return notebook


def commit_problems(notebook: NotebookNode) -> list[str]:
    """Why an executed notebook may not be committed, one line each; empty if it may."""
    problems = [
        f"cell {number}: figure '{_figure_title(output.data[PLOTLY])}' has no PNG beside it"
        for number, output in _figures(notebook)
        if "image/png" not in output.data
    ]
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        problems.append(f"{size / 1e6:.2f} MB, over the limit of {MAX_BYTES / 1e6:.0f} MB; {_largest(notebook)}")
    return problems


def _figures(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [
        (number, output)
        for number, cell in enumerate(notebook.cells, start=1)
        for output in cell.get("outputs", [])
        if PLOTLY in output.get("data", {})
    ]


def _figure_title(figure: dict) -> str:
    title = figure.get("layout", {}).get("title", {})
    return (title.get("text") if isinstance(title, dict) else title) or "untitled"


def _largest(notebook: NotebookNode) -> str:
    """The output that weighs most, named."""
    sizes = [
        (len(json.dumps(output)), number, output)
        for number, cell in enumerate(notebook.cells, start=1)
        for output in cell.get("outputs", [])
    ]
    if not sizes:
        return "its text alone is too long"
    size, number, output = max(sizes, key=lambda entry: entry[0])
    data = output.get("data", {})
    if PLOTLY not in data:
        return f"the largest output is in cell {number} ({size / 1e3:.0f} kB)"
    weight = len(json.dumps(data[PLOTLY])) / 1e3
    return f"the largest is figure '{_figure_title(data[PLOTLY])}' in cell {number} ({weight:.0f} kB of Plotly JSON)"
