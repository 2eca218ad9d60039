"""The Hugging Face hub: which files a model and its SAEs need, which of them are cached, fetching the rest.

The cache is huggingface_hub's own (blobs named by their hash, snapshots that point at them), so transformers and
SAELens find whatever is fetched here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from prism._download import HASH, TIMEOUT, HubError, HubFile, check, download, knock, retrying

PATIENCE = 3.0  # s until the first answer: without a network the error must come quickly
WEIGHTS = re.compile(r"model(-\d+-of-(?P<shards>\d+))?\.safetensors(\.index\.json)?")
TOKENIZER = re.compile(r"tokenizer\.json|merges\.txt|vocab\.txt|.*\.model")  # one such file is enough
SETTINGS = re.compile(r"((generation_|tokenizer_)?config|vocab|added_tokens|special_tokens_map)\.json")


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did with one file.

    Attributes:
        size: bytes.
        state: `cached` (it was there) or `downloaded`.
        sha: hash that the content was checked against; empty if it was not checked.
    """

    file: HubFile
    size: int
    state: str
    sha: str


def cached_path(file: HubFile) -> Path | None:
    """Where the file lies in the local cache, or None. No request is made."""
    found = try_to_load_from_cache(file.repo_id, file.filename, repo_type=file.repo_type)
    return Path(found) if isinstance(found, str) else None


def is_cached(file: HubFile) -> bool:
    """Whether the file is in the local cache. No request is made."""
    return cached_path(file) is not None


def cached_model_files(repo_id: str) -> list[HubFile]:
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
    if cached := cached_model_files(repo_id):
        return cached
    config = HubFile(repo_id, "config.json")
    knock(config, patience)
    try:
        info = retrying(config, lambda: HfApi().model_info(repo_id, revision=config.revision, timeout=TIMEOUT))
    except ValueError:  # not JSON
        raise HubError(f"{repo_id}: {constants.ENDPOINT} does not answer like a hub; is a proxy in between?") from None
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


def cached_sae_files(release: str, sae_id: str) -> list[HubFile]:
    """The cached files of one SAE if none that it needs is missing, else an empty list. No request."""
    files = sae_files(release, sae_id)
    return [file for file in files if is_cached(file)] if all(is_cached(f) or f.optional for f in files) else []


@contextmanager
def cached_only() -> Iterator[None]:
    """Inside, huggingface_hub, transformers and SAELens answer from the cache alone and make no request.

    A switch for the whole process: what `HF_HUB_OFFLINE=1` sets, which is read only at import. `datasets` has its own.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(
    files: Sequence[HubFile], progress: bool = True, verify: bool = True, patience: float = PATIENCE
) -> list[Fetched]:
    """Download what the cache lacks; no request if it lacks nothing (or nothing but optional files).

    A broken download goes on where it stopped, in a later process too. No file becomes visible before its content was
    checked against the hash that the hub names.

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
        for file in missing:
            if got := download(file, progress):
                found[file] = Fetched(file, got[0], "downloaded", got[1])
    return [entry for entry in found.values() if entry]


def _look_up(file: HubFile, verify: bool) -> Fetched | None:
    path = cached_path(file)
    if path is None:
        return None
    try:
        return Fetched(file, path.stat().st_size, "cached", verify_cached(file) if verify else "")
    except HubError as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


def verify_cached(file: HubFile) -> str:
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
    sha = Path(os.readlink(path)).name if path.is_symlink() else ""
    if not HASH.fullmatch(sha):
        return ""
    check(file, path, sha)
    return sha


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
