"""Activations in a folder, as `prism harvest` and SAELens' `CacheActivationsRunner` write them, to train on.

The layout is that of `datasets.Dataset.save_to_disk`: Arrow files with a column of `[context, d_in]` for each hook and
one of token ids, and `state.json`, which names the files and is written last.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism.files import damaged, read_json, reading, sha256
from prism.training.sources import StreamSource

TOKENS = "token_ids"  # a column's name
SETTINGS, MANIFEST, STATE = "harvest.json", "manifest.json", "state.json"
AT_ONCE = 8  # shards that are read at a time, so that a batch has texts of several
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream that was written to its end


class ShardSource(StreamSource):
    """Batches of a stored hook's activations, for `train(ShardSource(...), ...)`, without BOS.

    Rows of a few shards at a time, in random order, go through a shuffling buffer: memory does not depend on how many
    shards there are, and the order depends on the folder's content and the seed alone. A file is compared with its hash
    in `manifest.json`, if there is one, when it is first read. Without a manifest BOS is the token that every row of
    the first file begins with, if there is one.

    Args:
        size: activations in the buffer (by default 16 batches).
        longest: activations of a greater norm are left out, such as those of massive tokens; None leaves all in.

    Raises:
        ValueError: no stored activations there, or none of that hook; a damaged file, here or when it is read.
    """

    def __init__(
        self,
        folder: str | Path,
        hook: str,
        batch: int,
        seed: int = 0,
        size: int | None = None,
        longest: float | None = None,
    ):
        super().__init__((), batch, seed, size)
        self.folder, self.hook, self.longest = Path(folder), hook, longest
        self.names, manifest = stored_files(self.folder)
        self.hashes = {shard["file"]: shard["sha256"] for shard in manifest.get("shards", ())}
        first = self._table(self.names[0])
        if hook not in (there := [name for name in first.column_names if name != TOKENS]):
            near = difflib.get_close_matches(hook, there, n=1, cutoff=0.0)
            hint = f"; the nearest is '{near[0]}'" if near else ""
            raise ValueError(f"'{self.folder}' has no activations of '{hook}'{hint}")
        self.bos = manifest["bos"]["token"] if manifest else _first_token(first)

    def _endless(self) -> Iterator[Tensor]:
        for epoch in itertools.count():
            rng, found = np.random.default_rng([self.seed, epoch]), 0
            order = rng.permutation(len(self.names))
            for start in range(0, len(order), AT_ONCE):
                tables = [self._table(self.names[shard]) for shard in order[start : start + AT_ONCE]]
                places = [(table, row) for table in tables for row in range(table.num_rows)]
                for place in rng.permutation(len(places)):
                    part = self._kept(*places[place])
                    found += len(part)
                    yield part
            if not found:
                raise ValueError(f"nothing of '{self.folder}' is left: each activation is BOS's or too long")

    def _table(self, name: str) -> pa.Table:
        table = open_shard(self.folder / name, self.hashes.get(name))
        self.hashes.pop(name, None)
        if TOKENS not in table.column_names and self.hook not in table.column_names:
            raise ValueError(f"'{self.folder}' is a data set of something else; its columns are {table.column_names}")
        return table

    def _kept(self, table: pa.Table, row: int) -> Float[Tensor, "kept d_in"]:
        """One row's activations without BOS and without those that are too long."""
        x = torch.from_numpy(activations_of(table, self.hook, row).astype(np.float32))
        keep = torch.ones(len(x), dtype=torch.bool)
        if self.bos is not None:
            keep &= torch.from_numpy(tokens_of(table, row) != self.bos)
        if self.longest is not None:
            keep &= x.norm(dim=1) <= self.longest
        return x[keep]


def stored_files(folder: Path) -> tuple[list[str], dict]:
    """Names of a folder's files of activations, and the manifest's `shards` and `bos`, if they are of `prism harvest`.

    Raises:
        ValueError: no stored activations there, or not all of them; a damaged file.
    """
    path = folder / STATE
    if not path.is_file():
        begun = "; the harvest did not end: the same `prism harvest` goes on" if (folder / SETTINGS).is_file() else ""
        raise ValueError(f"'{folder}' holds no stored activations: there is no {STATE}{begun}")
    manifest = {}
    try:
        names = [entry["filename"] for entry in read_json(path)["_data_files"]]
        if (folder / SETTINGS).is_file():
            path = folder / MANIFEST
            manifest = {"shards": read_json(path)["shards"], "bos": read_json(path)["bos"]}
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not names:
        raise ValueError(f"'{folder}' holds no activations: its {STATE} names no file")
    return names, manifest


def open_shard(path: Path, sha: str | None = None) -> pa.Table:
    """One Arrow file, mapped into memory.

    Raises:
        DamagedFile: it is missing, torn, or has another hash than `sha`; the message names it.
    """
    if not path.is_file():
        raise damaged(path, "it is missing")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(END)))
        if file.read() != END:
            raise damaged(path, "it is torn")
    if sha is not None and sha256(path) != sha:
        raise damaged(path, "its content is not what was stored")
    with reading(path, pa.ArrowException, OSError), pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def activations_of(table: pa.Table, hook: str, row: int) -> Float[np.ndarray, "context d_in"]:
    """One row's activations, in the number format that they are stored in."""
    part = _cell(table, hook, row)
    part = getattr(part, "storage", part).flatten()  # without `datasets`, nobody knows the column's own type
    return part.flatten().to_numpy(zero_copy_only=False).reshape(len(part), -1)


def tokens_of(table: pa.Table, row: int) -> Int[np.ndarray, "context"]:
    """One row's token ids."""
    return _cell(table, TOKENS, row).flatten().to_numpy(zero_copy_only=False)


def _cell(table: pa.Table, name: str, row: int) -> pa.Array:
    return next(chunk for chunk in table.column(name).slice(row, 1).chunks if len(chunk))


def _first_token(table: pa.Table) -> int | None:
    """The token that every row begins with; None if they differ, or nothing is known of them."""
    if TOKENS not in table.column_names or table.num_rows < 2:
        return None
    found = {int(tokens_of(table, row)[0]) for row in range(table.num_rows)}
    return found.pop() if len(found) == 1 else None
