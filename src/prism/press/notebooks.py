"""Notebook files: found, read, put into words, and made fit to be committed."""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_NOTE = "Interactive control: run this cell in Jupyter to use it."
MAX_BYTES = 1_000_000  # of a committed notebook; GitHub shows larger ones badly or not at all

CHARTS = {"bar": "bars", "scatter": "points", "scattergl": "points", "heatmap": "heatmap", "histogram": "histogram"}


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


def read_any(path: Path) -> NotebookNode:
    """A notebook as it is; a document, or a source file under its name, as a new notebook.

    Raises:
        ValueError, OSError: as for `read`.
    """
    new = nbformat.v4
    if path.suffix == ".ipynb":
        return read(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return new.new_notebook(cells=[new.new_markdown_cell(f"# {path.name}"), new.new_code_cell(text)])
    return new.new_notebook(cells=[new.new_markdown_cell(text)])


def title_of(notebook: NotebookNode, default: str) -> str:
    """The text of the first level-1 heading."""
    for cell in notebook.cells:
        match = re.search(r"^# (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if match:
            return match.group(1).strip()
    return default


def outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Every output with the number of its cell, from 1."""
    for number, cell in enumerate(notebook.cells, start=1):
        yield from ((number, output) for output in cell.get("outputs", []))


# --- what may be committed -------------------------------------------------------------------------------------------


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Takes out, in place, all that differs from run to run without meaning: timing, widget ids, local kernel names.

    The picture beside each figure is given its text for those who do not see it.
    """
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        for key in ("execution", "ExecuteTime", "papermill"):
            cell.metadata.pop(key, None)
    for _, output in outputs(notebook):
        data = output.get("data", {})
        if WIDGET in data:
            output.data = nbformat.from_dict({"text/plain": WIDGET_NOTE})
        elif PLOTLY in data and "image/png" in data:
            output.metadata["image/png"] = {"alt": alt_text(data[PLOTLY])}
    return notebook


def commit_problems(notebook: NotebookNode) -> list[str]:
    """Why an executed notebook may not be committed, one line each; empty if it may."""
    problems = [
        f"cell {number}: figure '{_figure_title(output.data[PLOTLY])}' has no PNG beside it"
        for number, output in outputs(notebook)
        if PLOTLY in output.get("data", {}) and "image/png" not in output.data
    ]
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        sizes = [(len(json.dumps(output)), number) for number, output in outputs(notebook)]
        weight, number = max(sizes, default=(0, 0))
        problems.append(
            f"{size / 1e6:.2f} MB, over the limit of {MAX_BYTES / 1e6:.0f} MB; "
            f"the largest output is in cell {number} ({weight / 1e3:.0f} kB)"
        )
    return problems


# --- figures in words ------------------------------------------------------------------------------------------------


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


def _figure_title(figure: dict) -> str:
    title = figure.get("layout", {}).get("title", {})
    return (title.get("text") if isinstance(title, dict) else title) or "untitled"
