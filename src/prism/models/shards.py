"""A model's activations in a folder, to train SAEs on: in files of equal size, by one process or several together.

Each process makes files of its own, and each file is whole or not there; so a harvest that was ended at any moment goes
on with the same settings. `prism.training.stored` reads the folder, and so do `datasets` and SAELens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Array2D, Features, Value
from datasets import Sequence as ListOf
from jaxtyping import Float, Int
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from prism import __version__
from prism.data import read_table, token_rows, training_documents
from prism.device import as_float16, dtype_name
from prism.files import DamagedFile, read_json, replacing, write_text
from prism.models.harvesting import activations_at, check_hook
from prism.models.loading import load_model
from prism.models.registry import ModelSpec
from prism.training.stored import MANIFEST, SETTINGS, STATE, TOKENS, open_shard

SHARD = 32 * 2**20  # bytes of a file, about
BATCH = 32  # rows of one forward pass
INFO = "dataset_info.json"
RULE = "before each document; documents lie end to end, and a row may begin inside one"


@dataclass(frozen=True)
class Harvest:
    """What is stored where, worked out from the arguments alone: see `plan`.

    Attributes:
        rows: token ids.
        settings: what has to be equal for a harvest to go on; `hooks` has their widths (channels).
    """

    folder: Path
    model: TransformerBridge
    rows: Int[np.ndarray, "rows context"]
    settings: dict

    @property
    def names(self) -> list[str]:
        """The files, in order."""
        n = -(-len(self.rows) // self.settings["rows_a_shard"])
        return [f"data-{shard:05d}-of-{n:05d}.arrow" for shard in range(n)]

    @property
    def features(self) -> Features:
        """The columns, as `datasets` knows them."""
        shapes = {hook: (self.rows.shape[1], width) for hook, width in self.settings["hooks"].items()}
        columns = {hook: Array2D(shape, self.settings["dtype"]) for hook, shape in shapes.items()}
        return Features({**columns, TOKENS: ListOf(Value("int32"), length=self.rows.shape[1])})

    def of_shard(self, shard: int) -> Int[np.ndarray, "rows context"]:
        """A file's rows."""
        each = self.settings["rows_a_shard"]
        return self.rows[shard * each : (shard + 1) * each]


def plan(
    spec: ModelSpec,
    hooks: Sequence[str],
    corpus: str,
    n_tokens: int,
    folder: str | Path,
    context: int | None = None,
    dtype: str = "float16",
) -> Harvest:
    """Work out what is to be stored; nothing is written.

    Args:
        hooks: hooks inside blocks whose activations are `[batch, pos, d_in]`; all of them come from one pass.
        corpus: a name that `data.load_corpus` knows, of which the training documents are taken, or a Parquet or
            `.jsonl` file with a column `text`.
        n_tokens: how many, made up to whole rows of `context` tokens (by default the model's).
        dtype: number format of what is stored: float16 or float32.

    Raises:
        ValueError: unknown hook or corpus, a corpus that is too short, or a context that the model does not take.
    """
    model = load_model(spec, bulk=True)
    context = context or spec.context
    if not 2 <= context <= model.cfg.n_ctx or n_tokens < 1:
        raise ValueError(
            f"{n_tokens} tokens in rows of {context}; needed is 1 or more, and '{spec.name}' takes rows of 2 to "
            f"{model.cfg.n_ctx}"
        )
    for hook in hooks:
        check_hook(model, hook)
    rows = token_rows(_documents(corpus), model.tokenizer, context, n_tokens)
    widths = _widths(model, rows, list(dict.fromkeys(hooks)))
    row_bytes = context * (sum(widths.values()) * np.dtype(dtype).itemsize + 4)
    settings = {
        "model": spec.name,
        "weights": _hash_of_weights(load_model(spec)),
        "hooks": widths,
        "corpus": corpus,
        "tokens": rows.size,
        "rows": len(rows),
        "context": context,
        "dtype": dtype,
        "computed_in": dtype_name(model.cfg.dtype),
        "bos": {"token": model.tokenizer.bos_token_id, "rule": RULE},
        "rows_a_shard": max(1, SHARD // row_bytes),
        "token_ids_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    return Harvest(Path(folder), model, rows, settings)


def _documents(corpus: str) -> pd.DataFrame:
    return read_table(Path(corpus)) if corpus.endswith((".parquet", ".jsonl")) else training_documents(corpus)


def _widths(model: TransformerBridge, rows: Int[np.ndarray, "rows context"], hooks: list[str]) -> dict[str, int]:
    """How many channels each hook has, from one row."""
    for hook in hooks:
        if not hook.startswith("blocks."):
            raise ValueError(f"'{hook}' is not inside a block; stored are hooks named blocks.LAYER.…")
    found = activations_at(model, torch.from_numpy(rows[:1]).long(), hooks)
    for hook, x in found.items():
        if x.shape[:-1] != (1, rows.shape[1]):
            raise ValueError(f"'{hook}' gives {list(x.shape)} for one row; needed is [rows, context, d_in]")
    return {hook: found[hook].shape[-1] for hook in hooks}


def _hash_of_weights(model: TransformerBridge) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def store(
    harvest: Harvest, rank: int = 0, world: int = 1, total: Callable[[int], int] = int, progress: bool = False
) -> int:
    """Make the files that are not there yet: those of this process, with the first and the last act of the first one.

    Args:
        rank, world: which process this is, and how many there are.
        total: the sum over all processes, which waits for them.

    Returns:
        How many files all of them made.

    Raises:
        ValueError: the folder holds something else; activations that are not finite or do not fit the number format.
        OSError: the disk is full, or the folder cannot be written.
    """
    if rank == 0:
        begin(harvest)
    total(0)
    made = total(write_shards(harvest, rank, world, progress and rank == 0))
    if rank == 0:
        finish(harvest)
    return made


def begin(harvest: Harvest) -> None:
    """Write the settings, or see that they are those of the harvest that is there; remove what a kill left half done.

    Raises:
        ValueError: the folder holds something else, or a harvest with other settings.
    """
    folder, path = harvest.folder, harvest.folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    halves = set(folder.glob(".*.part"))
    there = {file.name for file in {*folder.iterdir()} - halves}
    if path.name not in there and there:
        raise ValueError(f"'{folder}' holds something else, such as '{min(there)}'; give a folder that is new or empty")
    if there - {path.name}:
        old, new = read_json(path), harvest.settings
        differ = [f"{name} {old.get(name)} there and {new[name]} here" for name in new if old.get(name) != new[name]]
        if differ:
            raise ValueError(f"'{folder}' has a harvest of other settings: {', '.join(differ)}; give another folder")
    for half in halves:
        half.unlink(missing_ok=True)
    if there <= {path.name}:
        write_text(path, json.dumps(harvest.settings, indent=1))


def write_shards(harvest: Harvest, rank: int, world: int, progress: bool = False) -> int:
    """Make the files `rank`, `rank + world` and so on, but those that are there whole; returns how many were made."""
    made, mine, known = 0, range(rank, len(harvest.names), world), _known(harvest)
    size = sum(harvest.of_shard(shard).size for shard in mine)
    with tqdm(total=size, desc="harvest", unit="tok", unit_scale=True, disable=not progress) as bar:
        for shard in mine:
            if not _is_whole(harvest.folder / harvest.names[shard], known.get(harvest.names[shard])):
                (harvest.folder / STATE).unlink(missing_ok=True)  # until all are there, nobody takes it for whole
                _write_shard(harvest, shard)
                made += 1
            bar.update(harvest.of_shard(shard).size)
    return made


def _known(harvest: Harvest) -> dict[str, str]:
    """What each file's content was when it was written: noted beside it until the manifest has it."""
    notes = harvest.folder.glob("*.sha256")
    listed = _there(harvest.folder / MANIFEST).get("shards", ())
    return {shard["file"]: shard["sha256"] for shard in listed} | {
        note.with_suffix(".arrow").name: note.read_text(encoding="utf-8") for note in notes
    }


def _there(path: Path) -> dict:
    """What a file says; nothing where it is missing or damaged, so that it is made again."""
    with contextlib.suppress(OSError, DamagedFile):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}


def _is_whole(path: Path, sha: str | None) -> bool:
    """Whether a file is there with the hash that was noted; one that is not as it was written is named."""
    if sha is None or not path.exists():
        return False
    try:
        open_shard(path, sha)
    except DamagedFile:
        tqdm.write(f"{path.name} is damaged, and made again")
        return False
    return True


def _write_shard(harvest: Harvest, shard: int) -> None:
    path, rows = harvest.folder / harvest.names[shard], harvest.of_shard(shard)
    parts: dict[str, list[np.ndarray]] = {hook: [] for hook in harvest.settings["hooks"]}
    for start in range(0, len(rows), BATCH):
        found = activations_at(harvest.model, torch.from_numpy(rows[start : start + BATCH]).long(), list(parts))
        for hook, x in found.items():
            parts[hook].append(_fitting(x, hook, harvest.settings["dtype"]).numpy())
    schema = harvest.features.arrow_schema
    columns = [_column(np.concatenate(parts[hook]), schema.field(hook).type) for hook in parts]
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_table(pa.Table.from_arrays([*columns, tokens], schema=schema))
    content = sink.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    write_text(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())


def _fitting(x: Float[torch.Tensor, "..."], hook: str, dtype: str) -> Float[torch.Tensor, "..."]:
    """Activations in the number format that is stored, if they fit it."""
    if not x.isfinite().all():
        raise ValueError(f"activations at '{hook}' are NaN or infinite; check the model's weights")
    if dtype == "float32":
        return x
    if (half := as_float16(x)).dtype != torch.float16:
        raise ValueError(
            f"activations at '{hook}', up to {float(x.abs().max()):.3g}, do not fit float16; store them with "
            "--dtype float32, in a new folder"
        )
    return half


def _column(x: np.ndarray, kind: pa.ExtensionType) -> pa.ExtensionArray:
    """`[rows, context, d_in]` as Arrow's lists of lists."""
    storage = pa.array(x.reshape(-1))
    for length in (x.shape[2], x.shape[1]):
        ends = np.arange(0, len(storage) + 1, length, dtype=np.int32)
        storage = pa.ListArray.from_arrays(ends, storage)
    return pa.ExtensionArray.from_storage(kind, storage)


def finish(harvest: Harvest) -> None:
    """Write what tells of the files, `state.json` last: with it, the folder is whole."""
    known, settings = _known(harvest), {"_format_columns": None, "_format_kwargs": {}, "_format_type": None}
    shards = [
        {"file": name, "rows": len(harvest.of_shard(shard)), "sha256": known[name]}
        for shard, name in enumerate(harvest.names)
    ]
    wanted = {
        INFO: {"features": harvest.features.to_dict()},
        MANIFEST: {**harvest.settings, "shards": shards},
        STATE: {
            "_data_files": [{"filename": name} for name in harvest.names],
            "_fingerprint": hashlib.sha256("".join(known[name] for name in harvest.names).encode()).hexdigest()[:16],
            **settings,
            "_output_all_columns": False,
            "_split": None,
        },
    }
    wanted = json.loads(json.dumps(wanted))  # as it is read again
    if not all(wanted[name].items() <= _there(harvest.folder / name).items() for name in wanted):
        wanted[MANIFEST]["versions"] = {name: version(name) for name in ("torch", "transformers", "datasets")}
        wanted[MANIFEST]["versions"]["prism"] = __version__
        for name, content in wanted.items():
            write_text(harvest.folder / name, json.dumps(content, indent=1))
    for note in harvest.folder.glob("*.sha256"):
        note.unlink()


def summary(harvest: Harvest, made: int, seconds: float) -> str:
    """The line at the end, of a harvest in which `made` files were made."""
    n, size = len(harvest.names), sum((harvest.folder / name).stat().st_size for name in harvest.names)
    new = sum(harvest.of_shard(shard).size for shard in range(made))
    pace = f"{new / seconds:,.0f} tokens/s" if made == n else f"{n - made:,} of the files were there"
    return f"{harvest.rows.size:,} tokens in {n:,} files ({size / 1e6:,.1f} MB), {pace}: {harvest.folder}"
