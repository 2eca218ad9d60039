"""Runs notebooks: as pages in a folder, or to keep their outputs in the files themselves."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from prism import stopping
from prism.files import write_text
from prism.press import notebooks, pages
from prism.press.browser import find_browser

CELL_TIMEOUT = 3600  # seconds; a cell that takes longer hangs
TOLD_OF = "smollm2"  # the model that the notebooks' text tells of, and that committed outputs come from


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


def run_notebook(path: Path, environment: dict[str, str], on_cell: Callable[[int, int], None] | None = None) -> Run:
    """Executes one notebook in a fresh kernel that starts in the notebook's folder; writes nothing.

    Args:
        path: the notebook.
        environment: variables set for the kernel beside this process's own.
        on_cell: called after each cell with (cells done, cells in all).
    """
    start = time.perf_counter()
    try:
        notebook = notebooks.read(path)
    except (OSError, ValueError) as error:
        return Run(path, path.stem, None, 0.0, str(error))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    total, begun = len(notebook.cells), []
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # no lines about sockets between ours
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=lambda cell, cell_index: begun.append((cell_index, cell)),
        on_cell_complete=lambda cell, cell_index: on_cell(cell_index + 1, total) if on_cell else None,
    )
    error = None
    try:
        _execute(client, {**os.environ, **environment})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = _failure(*begun[-1], failure)
    except Exception as failure:  # whatever keeps this kernel from starting, the other notebooks are run
        reason = (str(failure).strip().splitlines() or ["no reason given"])[0]
        error = f"the kernel failed: {type(failure).__name__}: {reason}"
        if client.km is None:  # shut down already: nbclient's own attempt at exit would end in a traceback
            atexit.unregister(client._cleanup_kernel)
    return Run(path, notebooks.title_of(notebook, path.stem), notebook, time.perf_counter() - start, error)


def _execute(client: NotebookClient, environment: dict[str, str]) -> None:
    """In a thread, where nbclient cannot take the signals for itself; if the command is stopped, the kernel ends."""

    def forget() -> None:
        if client.km is not None:
            client.km.cleanup_connection_file()

    with ThreadPoolExecutor(1) as thread, stopping.at_stop(forget), stopping.ending_children():
        thread.submit(client.execute, env=environment).result()


def _failure(number: int, cell: NotebookNode, failure: Exception) -> str:
    """Which cell stopped the notebook, its last line, and the error's own last line."""
    raised = isinstance(failure, CellExecutionError)
    name, told = (failure.ename, failure.evalue) if raised else (type(failure).__name__, str(failure))
    value = (told.strip().splitlines() or [""])[-1 if raised else 0]
    return f"cell {number + 1}, which ends '{cell.source.strip().splitlines()[-1].strip()}'\n{name}: {value}"


def _run_aloud(path: Path, environment: dict[str, str]) -> Run:
    """Runs one notebook: a line that updates on a terminal, else one line at its start and one at its end."""
    live = sys.stdout.isatty()
    name = path.stem

    def show(done: int, total: int) -> None:
        print(f"\r{name}  {done}/{total} cells", end="", flush=True)

    print(f"{name}  running", end="" if live else "\n", flush=True)
    run = run_notebook(path.resolve(), environment, show if live else None)
    state = "FAILED" if run.error else "done"
    print(f"{chr(13) if live else ''}{name}  {state} in {run.seconds:.0f} s      ", flush=True)
    if run.error:
        print("    " + run.error.replace("\n", "\n    "), flush=True)
    return run


def model_name(name: str | None) -> str:
    """The checked name or folder of a model, the default if None; the import waits until here as it takes seconds."""
    from prism.models import MODELS, get_spec

    spec = get_spec(name)
    return spec.name if MODELS.get(spec.name) is spec else str(spec.folder)


# --- into pages ------------------------------------------------------------------------------------------------------


def write_runs(paths: list[Path], model: str | None, out: Path) -> bool:
    """Runs notebooks and writes each, and its page, as soon as it is done; then the page that links them.

    Args:
        paths: the notebooks, from one folder.
        model: name or folder; by default what `PRISM_MODEL` says, else the readers' default.
        out: folder to write.

    Returns:
        Whether all ran to their end.

    Raises:
        ValueError: there is no such model; then nothing is written.
        OSError: the folder cannot be written.
    """
    model = model_name(model)
    index, runs = out / "index.html", []

    def stopped() -> str:
        kept = f"{len(runs)} of {len(paths)} notebooks ran"
        write_text(index, _index(runs, model, f"The run was stopped: {kept}."))
        return f"{kept}, see {index.resolve()}"

    _write_shared(out, paths[0].parent.resolve().parent / "docs" / "GLOSSARY.md")
    with stopping.at_stop(stopped):
        for path in paths:
            run = _run_aloud(path, {"PRISM_MODEL": model})
            if run.notebook is not None:
                write_text(out / run.path.name, nbformat.writes(run.notebook) + "\n")
                link = pages.link_from(run.path.parent, out.resolve())
                write_text(out / f"{run.path.stem}.html", pages.to_html(run.notebook, run.title, link))
            runs.append(run)
            write_text(index, _index(runs, model))
    failed = sum(run.error is not None for run in runs)
    print(f"\n{len(runs) - failed} of {len(runs)} notebooks ran to their end. Open {index.resolve()}")
    return not failed


def _write_shared(out: Path, glossary: Path) -> None:
    """What all pages use: plotly.js, and the glossary as a page."""
    from plotly.offline import get_plotlyjs

    write_text(out / pages.PLOTLY_JS, get_plotlyjs())
    if glossary.exists():
        link = pages.link_from(glossary.parent, out.resolve())
        write_text(out / "glossary.html", pages.to_html(notebooks.read_any(glossary), "Glossary", link))


def _index(runs: list[Run], model: str, note: str = "") -> str:
    """The page that links all others, with a note above them."""
    items = [
        {
            "title": run.title,
            "page": run.notebook and f"{run.path.stem}.html",
            "about": "" if run.error else f"ran to its end in {run.seconds:.0f} s",
            "error": run.error,
        }
        for run in runs
    ]
    return pages.index(f"{note} On {model}.".strip(), {"Notebooks": items})


# --- to be committed -------------------------------------------------------------------------------------------------


def replace_outputs(paths: list[Path]) -> bool:
    """Executes notebooks on the model their text tells of; replaces all the files, or none if one has a fault.

    Returns:
        Whether they were replaced.

    Raises:
        OSError: there is no browser to draw the pictures, or a file cannot be written.
    """
    if find_browser() is None:
        raise FileNotFoundError(
            "the PNG beside each figure needs Chromium or Chrome, and none was found; install one, "
            "or set BROWSER_PATH to it. Nothing was replaced."
        )
    replaced = []
    with stopping.at_stop(lambda: f"{len(replaced)} of {len(paths)} notebooks were replaced"):
        runs = [_run_aloud(path, {"PRISM_MODEL": TOLD_OF, "PRISM_PNG": "1"}) for path in paths]
        whole = [run for run in runs if run.error is None]
        problems = [
            f"{run.path.name}: {problem}"
            for run in whole
            for problem in notebooks.commit_problems(notebooks.normalise(run.notebook))
        ]
        if problems or len(whole) < len(runs):
            print("\n".join([*problems, "prism: nothing was replaced"]), file=sys.stderr)
            return False
        for run in runs:
            write_text(run.path, nbformat.writes(run.notebook) + "\n")
            replaced.append(run.path)
    print(f"\nreplaced {len(runs)} notebooks in {paths[0].parent}")
    return True
