"""One file from the Hugging Face hub into the local cache: resumed when broken off, checked before it is visible."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TypeVar

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, parse_ratelimit_headers
from tqdm.auto import tqdm

TIMEOUT = 20.0  # s of silence that count as a broken connection
TRIES = 5
LONGEST_WAIT = 60.0  # s between two tries, whatever the server asks for
TRY_AGAIN = (408, 416, 429, 500, 502, 503, 504)  # HTTP states that may pass
CHUNK = 1 << 20  # bytes written at a time
HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # git's sha1 (small files, commits) or sha256 (large files)
RESUME = "run it again: the download goes on where it stopped"
T = TypeVar("T")


class HubError(OSError):
    """A file of the hub cannot be had. The message is one line: which file, what was wrong, what to do."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository on the hub.

    Attributes:
        filename: path inside the repository.
        repo_type: `model` or `dataset`.
        optional: its readers do without it if the repository has no such file.
    """

    repo_id: str
    filename: str
    repo_type: str = "model"
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.repo_id}, file {self.filename}"

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache, there or not."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo_id, repo_type=self.repo_type)

    @property
    def revision(self) -> str:
        """The cached commit, so that all files of a repository come from one; `main` if nothing is cached."""
        ref = self.folder / "refs" / "main"
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else "main"

    def url(self, revision: str) -> str:
        """Address on the hub."""
        return hf_hub_url(self.repo_id, self.filename, repo_type=self.repo_type, revision=revision)


def knock(file: HubFile, patience: float) -> None:
    """One request, to learn within `patience` seconds whether there is a network; a HubError if not."""
    errors: list[Exception | None] = [TimeoutError("no answer")]

    def head() -> None:
        try:
            get_session().head(file.url("main"), timeout=patience, follow_redirects=False)
            errors.append(None)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=head, daemon=True)  # looking up a host's name knows no timeout
    thread.start()
    thread.join(patience)
    if isinstance(errors[-1], OfflineModeIsEnabled):
        raise HubError(f"{file}: not fetched, because HF_HUB_OFFLINE is set; unset it to allow downloads")
    if errors[-1] is not None:
        raise HubError(f"{file}: {constants.ENDPOINT} cannot be reached ({_told(errors[-1])}); check the network")


def download(file: HubFile, progress: bool) -> tuple[int, str] | None:
    """Into `blobs/HASH.incomplete`, which is checked, becomes `blobs/HASH`, and is pointed at by the snapshot.

    Returns:
        Size (bytes) and hash; None for an optional file that does not exist.
    """
    try:
        meta = retrying(file, lambda: _metadata(file))
        if meta is None:
            return None
        blob = file.folder / "blobs" / meta.etag
        part = blob.with_name(f"{meta.etag}.incomplete")
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / file.folder.name / f"{meta.etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may be fetching the same file
            if blob.exists():
                check(file, blob, meta.etag)
            else:
                retrying(file, lambda: _stream(file, meta, part, progress))
                check(file, part, meta.etag)
                os.replace(part, blob)
            size = blob.stat().st_size
            _point(file, blob, meta.commit_hash)
        return size, meta.etag
    except HubError:
        raise
    except OSError as error:
        cache = constants.HF_HUB_CACHE
        raise HubError(f"{file}: {_told(error)}; mend that in HF_HUB_CACHE ({cache}), then {RESUME}") from None


def _metadata(file: HubFile) -> HfFileMetadata | None:
    """Hash, size and commit of the file on the hub; None for an optional file that does not exist."""
    try:
        meta = get_hf_file_metadata(file.url(file.revision), timeout=TIMEOUT)
    except RemoteEntryNotFoundError:
        if file.optional:
            return None
        raise
    if not (HASH.fullmatch(meta.etag or "") and HASH.fullmatch(meta.commit_hash or "")):
        raise HubError(f"{file}: {constants.ENDPOINT} does not answer like a hub; is a proxy in between?")
    return meta


def _stream(file: HubFile, meta: HfFileMetadata, part: Path, progress: bool) -> None:
    """Append to `part` what it lacks."""
    done = part.stat().st_size if part.exists() else 0
    if done and done == meta.size:
        return
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    url = file.url(meta.commit_hash)
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # `part` is longer than the file: begin again
            part.unlink()
        hf_raise_for_status(response)
        done = done if response.status_code == 206 else 0  # else the whole file comes, whatever was asked for
        name, size = Path(file.filename).name, meta.size
        bar = tqdm(desc=name, total=size, initial=done, unit="B", unit_scale=True, leave=False, disable=not progress)
        with bar, part.open("ab" if done else "wb") as out:
            for chunk in response.iter_bytes(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))


def check(file: HubFile, path: Path, sha: str) -> None:
    """Raise a HubError, and delete the content, if it does not have that hash (sha256, or git's sha1)."""
    with path.open("rb") as content:
        if len(sha) == 64:
            digest = hashlib.file_digest(content, "sha256")
        else:
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            digest.update(content.read())
    if digest.hexdigest() != sha:
        blob = path.parent / os.readlink(path) if path.is_symlink() else path
        for entry in {blob, path}:
            entry.unlink(missing_ok=True)
        raise HubError(f"{file}: its content does not have the hash {sha[:12]}…, so it was deleted; fetch it again")


def _point(file: HubFile, blob: Path, commit: str) -> None:
    """Make the blob visible in the snapshot of that commit, and that commit the cached one if there is none."""
    pointer = file.folder / "snapshots" / commit / file.filename
    ref = file.folder / "refs" / "main"
    for folder in (pointer.parent, ref.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)  # a link that leads nowhere
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # no symbolic links here
            os.replace(blob, pointer)
    if not ref.is_file():
        temporary = ref.with_name(f"main.{os.getpid()}.tmp")
        temporary.write_text(commit, encoding="utf-8")
        os.replace(temporary, ref)


def retrying(file: HubFile, request: Callable[[], T]) -> T:
    """`request()`, again after a broken connection or an answer that asks for patience; else a HubError."""
    problem = ""
    for attempt in range(TRIES):
        wait = 2.0**attempt
        try:
            return request()
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            problem = f"the server answered HTTP {status}"
            if status in (401, 403, 404):
                raise HubError(f"{file}: {problem}: no such file, or not for you; check the name, or "
                               "log in with `hf auth login`") from None  # fmt: skip
            if status not in TRY_AGAIN:
                raise HubError(f"{file}: {problem}; {RESUME}") from None
            asked, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
            wait = float(asked) if asked.isdigit() else float(limit.reset_in_seconds) if limit else wait
        except HTTPError as error:
            problem = f"the connection broke ({_told(error)})"
        if attempt < TRIES - 1:
            sleep(min(wait, LONGEST_WAIT))
    raise HubError(f"{file}: {problem}, {TRIES} times in a row; {RESUME}")


def _told(error: Exception) -> str:
    """The error in a few words, on one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:100]
