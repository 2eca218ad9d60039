"""What `data/` holds as it was published: size and sha256 of every file, looked at when one is loaded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from prism.files import damaged, read_json, sha256, write_text

DATA = Path(os.environ.get("PRISM_DATA") or Path(__file__).resolve().parents[2] / "data")
NAME = "MANIFEST.json"  # in that folder: path -> {"size": bytes, "sha256": hash}
SMALL = 1_000_000  # bytes; of larger files only the size is compared when they are loaded
OWN = ("phase1_activations.safetensors", "cache/*", "*.part", ".*", "*/.*")  # what a reader's own work leaves there
LOADED = ("config.json", "cfg.json")  # beside these, libraries look for further files by their names

_unfinished: list[Path] = []  # folders whose files are being made


def write(folder: Path) -> Path:
    """Writes the manifest of a folder: of what git tracks there, or outside of git of all that lies there."""
    try:
        told = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True, encoding="utf-8")
        tracked = told.stdout.split("\0")[:-1]
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        tracked = []
    files = {name: folder / name for name in sorted(tracked or _below(folder)) if name != NAME}
    found = {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
    write_text(folder / NAME, f"{{\n{lines}\n}}\n")
    return folder / NAME


def entries(folder: Path = DATA) -> dict[str, dict]:
    """What a folder's manifest says; empty if it has none.

    Raises:
        ValueError: the manifest itself is damaged.
    """
    path = folder / NAME
    return _entries(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)
def _entries(path: Path, changed: int) -> dict[str, dict]:
    found = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(entry, dict) and {"size", "sha256"} <= set(entry) for entry in found.values()
    ):
        raise damaged(path, "it holds no sizes and hashes")
    return found


def intact(path: Path, folder: Path = DATA) -> Path:
    """`path`, a file or a folder with files; what lies in `data/` only if it is as the manifest says.

    Small files are compared whole, large ones by their size: a flipped bit in those is found by `prism doctor`.

    Raises:
        ValueError: a file is missing or another one; the message names it and says how to restore it.
    """
    if path.is_relative_to(folder) and folder not in _unfinished:
        name = path.relative_to(folder)
        for error in _compare(folder, [file for file in entries(folder) if name in (Path(file), Path(file).parent)]):
            raise error
    return path


def problems(folder: Path = DATA) -> list[str]:
    """What is wrong with a folder's files, all of them compared whole: which file, and how to restore it."""
    return [str(error) for error in _compare(folder, entries(folder), limit=None)]


def foreign(folder: Path = DATA) -> tuple[list[str], list[str]]:
    """Files that the manifest does not list: beside a model's or an SAE's, where they may be loaded too, and others."""
    listed = entries(folder)
    homes = {Path(name).parent for name in listed if Path(name).name in LOADED}
    extra = [name for name in _below(folder) if name not in {*listed, NAME}]
    beside = [name for name in extra if Path(name).parent in homes]
    return beside, [name for name in extra if name not in beside]


@contextmanager
def being_made(folder: Path) -> Iterator[None]:
    """Inside, the files of `folder` are being made, and not compared with its manifest."""
    _unfinished.append(folder)
    try:
        yield
    finally:
        _unfinished.remove(folder)


def _compare(folder: Path, names: Iterable[str], limit: int | None = SMALL) -> Iterator[ValueError]:
    """What is wrong with some of the listed files; those of at most `limit` bytes are compared whole."""
    yours = "(is the change yours? `python -m prism.build manifest`)"
    for name in names:
        entry, path = entries(folder)[name], folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            yield damaged(path, "it is missing")
        elif found != entry["size"]:
            yield damaged(path, f"it has {found:,} bytes, not {entry['size']:,} {yours}")
        elif (limit is None or found <= limit) and sha256(path) != entry["sha256"]:
            yield damaged(path, f"its content is not what was published {yours}")


def _below(folder: Path) -> list[str]:
    """Files at any depth, without a reader's own."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in paths if not any(path.match(own) for own in OWN)]
