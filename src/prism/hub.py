"""The Hugging Face hub: which files a model and its SAEs need, which of them are cached, fetching the rest.

The cache and the downloads are huggingface_hub's own, so transformers and SAELens find whatever is fetched here. Added
is what it leaves out: content checked against its hash, a quick answer where there is no network, errors of one line.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import repo_folder_name, try_to_load_from_cache
from huggingface_hub.utils.sha import git_hash
from tqdm.auto import tqdm

from prism.files import sha256

PATIENCE = 3.0  # s until the first answer: without a network the error must come quickly
HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # git's sha1 (small files, commits) or sha256 (large files)
WEIGHTS = re.compile(r"model(-\d+-of-(?P<shards>\d+))?\.safetensors(\.index\.json)?")
TOKENIZER = re.compile(r"tokenizer\.json|merges\.txt|vocab\.txt|.*\.model")  # one such file is enough
SETTINGS = re.compile(r"((generation_|tokenizer_)?config|vocab|added_tokens|special_tokens_map)\.json")
AGAIN = "run it again: files that are complete are kept"


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
    def revision(self) -> str:
        """The cached commit, so that all files of a repository come from one; `main` if nothing is cached."""
        folder = repo_folder_name(repo_id=self.repo_id, repo_type=self.repo_type)
        ref = Path(constants.HF_HUB_CACHE, folder, "refs", "main")
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else "main"

    @property
    def url(self) -> str:
        """Address on the hub."""
        return hf_hub_url(self.repo_id, self.filename, repo_type=self.repo_type, revision=self.revision)


# What `fetch` did with one file. size: bytes; state: `cached` (it was there) or `downloaded`; sha: the hash that its
# content was checked against, empty if it was not checked.
Fetched = namedtuple("Fetched", ["file", "size", "state", "sha"])


def cached_path(file: HubFile) -> Path | None:
    """Where the file lies in the local cache, or None. No request is made."""
    found = try_to_load_from_cache(file.repo_id, file.filename, repo_type=file.repo_type)
    return Path(found) if isinstance(found, str) else None


def _cached_model_files(repo_id: str) -> list[HubFile]:
    """A model's files if configuration, tokenizer and weights are all cached, else an empty list. No request."""
    config = cached_path(HubFile(repo_id, "config.json"))
    if config is None:
        return []
    names = {path.name for path in config.parent.iterdir() if path.is_file()}
    shards = [int(match["shards"]) for name in names if (match := WEIGHTS.fullmatch(name)) and match["shards"]]
    sharded = "model.safetensors.index.json" in names and {*shards} == {len(shards)}
    whole = ("model.safetensors" in names or sharded) and any(map(TOKENIZER.fullmatch, names))
    return _model_files(repo_id, names) if whole else []


def model_files(repo_id: str, patience: float = PATIENCE) -> list[HubFile]:
    """What `AutoModelForCausalLM` and `AutoTokenizer` read: configuration, tokenizer and, last, safetensors weights.

    Asks the hub for the repository's list of files, unless the model is cached.

    Args:
        patience: longest wait for the first answer (s).

    Raises:
        HubError: neither cached nor listed; or the repository has no safetensors weights.
    """
    if cached := _cached_model_files(repo_id):
        return cached
    config = HubFile(repo_id, "config.json")
    knock(config, patience)
    try:
        info = HfApi().model_info(repo_id, revision=config.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.HTTPError, OSError, ValueError) as error:
        raise _in_one_line(config, error) from None
    files = _model_files(repo_id, [entry.rfilename for entry in info.siblings or []])
    if not files or not WEIGHTS.fullmatch(files[-1].filename):
        raise HubError(f"{repo_id}: it has no weights in the safetensors format; choose another model")
    return files


def _model_files(repo_id: str, names: Iterable[str]) -> list[HubFile]:
    names = sorted(names)
    return [HubFile(repo_id, name) for kind in (SETTINGS, TOKENIZER, WEIGHTS) for name in filter(kind.fullmatch, names)]


def sae_files(release: str, sae_id: str) -> list[HubFile]:
    """What SAELens reads of one SAE, by its own registry; empty for a release that is not in SAELens' own format.

    Raises:
        ValueError: the release has no SAE of that id.
    """
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name, get_repo_id_and_folder_name

    repo_id, folder = get_repo_id_and_folder_name(release, sae_id)
    if get_conversion_loader_name(release) != "sae_lens":
        return []
    needed = [HubFile(repo_id, f"{folder}/{name}") for name in ("cfg.json", "sae_weights.safetensors")]
    return [*needed, HubFile(repo_id, f"{folder}/sparsity.safetensors", optional=True)]


@contextmanager
def _switched_on(name: str) -> Iterator[None]:
    """Inside, one of huggingface_hub's switches is on."""
    before = getattr(constants, name)
    setattr(constants, name, True)
    try:
        yield
    finally:
        setattr(constants, name, before)


def cached_only() -> AbstractContextManager[None]:
    """Inside, huggingface_hub, transformers and SAELens answer from the cache alone and make no request.

    A switch for the whole process: what `HF_HUB_OFFLINE=1` sets, which is read only at import. `datasets` has its own.
    """
    return _switched_on("HF_HUB_OFFLINE")


def fetch(
    files: Sequence[HubFile], progress: bool = True, verify: bool = True, patience: float = PATIENCE
) -> list[Fetched]:
    """Download what the cache lacks; no request if it lacks nothing (or nothing but optional files).

    A file becomes visible when it is complete, and then its content is checked against the hash that the hub names.

    Args:
        progress: show a bar for each download.
        verify: check files that are cached, too; a damaged one is deleted and downloaded again.
        patience: longest wait for the first answer (s).

    Returns:
        One entry a file, without optional files that do not exist.

    Raises:
        HubError: no network, no such file, a disk that cannot be written, or content that fails its check.
    """
    found = {file: _look_up(file, verify) for file in files}
    missing = [file for file, entry in found.items() if entry is None]
    if not all(file.optional for file in missing):
        knock(missing[0], patience)
        with _switched_on("HF_HUB_DISABLE_XET"):  # it has errors and waits of its own
            found |= {file: _download(file, progress) for file in missing}
    return [entry for entry in found.values() if entry]


def _look_up(file: HubFile, verify: bool) -> Fetched | None:
    path = cached_path(file)
    if path is None:
        return None
    try:
        return Fetched(file, path.stat().st_size, "cached", _verify_cached(file) if verify else "")
    except HubError as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


def _download(file: HubFile, progress: bool) -> Fetched | None:
    """None for an optional file that does not exist."""

    def bar(**settings: object) -> tqdm:
        return tqdm(**settings | {"desc": Path(file.filename).name, "leave": False, "disable": not progress})

    place = {"repo_type": file.repo_type, "revision": file.revision}
    try:
        path = Path(hf_hub_download(file.repo_id, file.filename, **place, tqdm_class=bar))
        sha = _recorded_hash(path) or get_hf_file_metadata(file.url, timeout=constants.HF_HUB_ETAG_TIMEOUT).etag
    except (errors.HTTPError, OSError) as error:
        if file.optional and isinstance(error, errors.RemoteEntryNotFoundError):
            return None
        raise _in_one_line(file, error) from None
    _check(file, path, sha)
    return Fetched(file, path.stat().st_size, "downloaded", sha)


def knock(file: HubFile, patience: float) -> None:
    """One question about the file, to learn within `patience` seconds whether a hub can be reached.

    Raises:
        HubError: it cannot, or something else answers. (An answer that it has no such file is no error here.)
    """
    answers: list = [TimeoutError("no answer")]

    def ask() -> None:
        try:
            answers.append(get_hf_file_metadata(file.url, timeout=patience))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # looking up a host's name knows no timeout
    thread.start()
    thread.join(patience)
    answer = answers[-1]
    if isinstance(answer, errors.OfflineModeIsEnabled):
        raise HubError(f"{file}: not fetched, because HF_HUB_OFFLINE is set; unset it to allow downloads")
    if isinstance(answer, errors.HfHubHTTPError):
        return
    if isinstance(answer, Exception):
        raise HubError(f"{file}: {constants.ENDPOINT} cannot be reached ({_told(answer)}); check the network")
    if not (HASH.fullmatch(answer.etag or "") and HASH.fullmatch(answer.commit_hash or "")):
        raise _in_one_line(file, errors.FileMetadataError())


def _verify_cached(file: HubFile) -> str:
    """Check a cached file against the hash that names its blob. No request is made.

    Returns:
        The hash: sha256 of a large file, git's sha1 of a small one. Empty where the cache records none (file systems
        without symbolic links).

    Raises:
        HubError: not cached; or damaged, and then it is deleted.
    """
    path = cached_path(file)
    if path is None:
        raise HubError(f"{file}: not in the cache {constants.HF_HUB_CACHE}; fetch it first")
    if sha := _recorded_hash(path):
        _check(file, path, sha)
    return sha


def _recorded_hash(path: Path) -> str:
    """The name of the blob that a cached file is a link to; empty for a file of its own."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if HASH.fullmatch(name) else ""


def _check(file: HubFile, path: Path, sha: str) -> None:
    """Raise a HubError, and delete the content, if it does not have that hash (sha256, or git's sha1)."""
    if sha != (sha256(path) if len(sha) == 64 else git_hash(path.read_bytes())):
        for entry in (path.resolve(), path):
            entry.unlink(missing_ok=True)
        raise HubError(f"{file}: its content does not have the hash {sha[:12]}…, so it was deleted; fetch it again")


def _in_one_line(file: HubFile, error: Exception) -> HubError:
    """What huggingface_hub, the network or the disk had to say."""
    if isinstance(error, errors.LocalEntryNotFoundError):  # 'neither there nor here': the cause is what counts
        error = error.__cause__ or error
    if isinstance(error, errors.HfHubHTTPError):
        told = f"the server answered HTTP {error.response.status_code}"
        if error.response.status_code in (401, 403, 404):
            return HubError(
                f"{file}: {told}: no such file, or not for you; check the name, or log in with `hf auth login`"
            )
    elif isinstance(error, (errors.FileMetadataError, ValueError)):
        return HubError(f"{file}: {constants.ENDPOINT} does not answer like a hub; is a proxy in between?")
    elif getattr(error, "errno", None):
        cache = constants.HF_HUB_CACHE
        return HubError(f"{file}: {_told(error)}; mend that in HF_HUB_CACHE ({cache}), then {AGAIN}")
    else:
        told = f"the connection broke ({_told(error)})"
    return HubError(f"{file}: {told}; {AGAIN}")


def _told(error: Exception) -> str:
    """The error in a few words, on one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:100]


def not_available(what: str, name: str, megabytes: int, reason: object) -> FileNotFoundError:
    """The one-line error for what is neither cached nor downloadable; the caller raises it.

    Args:
        what: what is missing, such as `the SAE '6-res-jb'`.
        name: the model that it belongs to, as in `prism fetch NAME`.
        megabytes: the model's download in all (MB).
        reason: why the download failed.
    """
    return FileNotFoundError(
        f"{what} of '{name}' is not in the local Hugging Face cache and could not be downloaded (about {megabytes} MB "
        f"in all for this model): {reason}. With a network, run `prism fetch {name}`; without one, the model 'mini' "
        "works offline: PRISM_MODEL=mini"
    )
