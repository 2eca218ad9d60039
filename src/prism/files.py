"""Files that are whole or not there: written under a temporary name, then renamed; a damaged one is named."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from prism.stopping import at_end

# What libraries look for in a model's folder.
MODEL_FILES = ("*config.json", "*token*.json", "vocab.json", "*.index.json", "*.safetensors")


class DamagedFile(ValueError):
    """A file is not what it should be; the message names it and says how to restore it."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` at the end, removed if anything goes wrong.

    Folders above it are made. Whatever stood at `path` stays until then.

    Raises:
        OSError: the disk is full or the folder cannot be written; names the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with at_end(partial(temporary.unlink, missing_ok=True)):
        try:
            yield temporary
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            if str(getattr(error, "filename", None) or temporary) != str(temporary):  # it is about another file
                raise
            why = getattr(error, "strerror", None) or error
            raise OSError(f"could not write '{path}' ({why}); nothing was changed there") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def reading(path: str | Path, *further: type[Exception]) -> Iterator[None]:
    """Around code that reads a JSON or safetensors file: a damaged one is a ValueError that names it and what to do.

    Args:
        further: errors that say the same of a file of another kind.
    """
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, SafetensorError, *further) as error:
        raise damaged(path, error) from error


def damaged(path: str | Path, why: object) -> DamagedFile:
    """The error for a file that is not what it should be; the caller raises it."""
    path = Path(path).absolute()
    folder = next(above for above in path.parents if above.is_dir())  # its own may be missing
    remedy = f"`git checkout -- {path}` restores it" if _tracked(path, folder) else "write or fetch it again"
    return DamagedFile(f"the file '{path}' is damaged: {why}; {remedy}")


def _tracked(path: Path, folder: Path) -> bool:
    """Whether git knows the file; no where there is no git, or no repository."""
    try:
        told = subprocess.run(["git", "ls-files", "--", str(path)], cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return bool(told.stdout)


def read_json(path: str | Path) -> object:
    """What a UTF-8 JSON file holds.

    Raises:
        ValueError: it is damaged; the message names it and says how to restore it.
    """
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def check_folder(folder: str | Path) -> None:
    """Look at the files of a model's folder: those that nobody could read are named, here and not by a library.

    Raises:
        DamagedFile: one is damaged.
    """
    for path in sorted(path for kind in MODEL_FILES for path in Path(folder).glob(kind)):
        if path.suffix == ".json":
            read_json(path)
        else:
            with reading(path), safe_open(path, "np"):  # whether it is as long as it says
                pass


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
