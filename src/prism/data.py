"""Texts, corpora, token batches and the activation cache: everything before the model runs."""

from __future__ import annotations

import json
import os
import re
import reprlib
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers.convert_slow_tokenizer import bytes_to_unicode

from prism import hub
from prism.device import device
from prism.files import reading, replacing
from prism.manifest import DATA, intact

CACHE = Path(os.environ.get("PRISM_CACHE") or DATA.parent / "outputs" / "cache")

CATEGORY_TITLES = {
    "python": "Python code",
    "urls": "URLs and web",
    "math": "Mathematical notation",
    "nonenglish": "Non-English",
    "social": "Social and emoji",
    "formal": "Formal and legal",
    "conversational": "Conversational",
}
CATEGORIES = tuple(CATEGORY_TITLES)
SPLITS = ("discover", "confirm")
BYTES = re.compile(
    "‹(?:[0-9A-F]{2})+›|<0x[0-9A-F]{2}>"
)  # in a token's text: a part of a character, as `token_text` has it


def load_texts(split: str = "discover") -> pd.DataFrame:
    """The labelled texts written for this project: 7 categories × 10.

    Args:
        split: `discover` to search on, `confirm` to test on what the search found.

    Returns:
        70 rows with the columns id, category, subcategory, language, text; ordered by category.

    Raises:
        ValueError: unknown split, or a damaged file.
    """
    if split not in SPLITS:
        raise ValueError(f"no split '{split}' of the labelled texts; choose from {', '.join(SPLITS)}")
    frame = read_table(DATA / "texts" / f"{split}.jsonl")
    order = frame["category"].map({category: i for i, category in enumerate(CATEGORIES)})
    return frame.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """A table from a file of JSON lines or Parquet; one of `data/` only as it was published.

    Raises:
        ValueError: the file is damaged; the message names it and says how to restore it.
    """
    with reading(intact(path), ValueError):
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)


HUB_CORPORA = {"tinystories": "roneneldan/TinyStories", "openwebtext": "stas/openwebtext-10k"}
CACHED_DOCUMENTS = 5_000  # of a hub corpus, kept on disk after the first use


EMBEDDED = {"mini": DATA / "corpus" / "sampled.parquet", "smollm2": DATA / "smollm2" / "corpus.parquet"}


def load_corpus(name: str = "mini", n_documents: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Documents of an unlabelled corpus, shuffled.

    Args:
        name: `mini` and `smollm2` are embedded (each sampled from the model itself); `tinystories` and `openwebtext`
            come from the Hugging Face hub, once, and then from the cache.
        n_documents: how many; all that there are when not given.

    Returns:
        Columns kind, text; for the embedded one also opening and tokens (the sampled ids).

    Raises:
        ValueError: unknown corpus, or a damaged file.
        FileNotFoundError: neither cached nor downloadable.
    """
    if name not in EMBEDDED and name not in HUB_CORPORA:
        raise ValueError(f"no corpus '{name}'; choose from {', '.join([*EMBEDDED, *HUB_CORPORA])}")
    frame = read_table(EMBEDDED.get(name) or _fetch_corpus(name))
    return frame.sample(n=min(n_documents or len(frame), len(frame)), random_state=seed).reset_index(drop=True)


HELD_OUT = 10  # every so many documents of a corpus, one is kept out of training, for evaluation


def training_documents(corpus: str) -> pd.DataFrame:
    """The documents of a corpus that SAEs are trained on here: nine of ten, without copies of the tenth."""
    documents = load_corpus(corpus)
    copies = documents["text"].isin(held_out_documents(corpus)["text"])
    return documents[~copies].reset_index(drop=True)


def held_out_documents(corpus: str) -> pd.DataFrame:
    """The other tenth, for evaluation."""
    return load_corpus(corpus).iloc[::HELD_OUT].reset_index(drop=True)


def _fetch_corpus(name: str) -> Path:
    """The cached file of a hub corpus; streams its first documents from the hub if there is none yet.

    Raises:
        FileNotFoundError: not cached, and the hub cannot be reached.
    """
    path = CACHE / "corpora" / f"{name}.parquet"
    if path.is_file():
        return path
    from datasets import load_dataset

    try:
        hub.knock(hub.HubFile(HUB_CORPORA[name], "README.md", "dataset"), hub.PATIENCE)  # datasets tries far longer
        rows = load_dataset(HUB_CORPORA[name], split="train", streaming=True).take(CACHED_DOCUMENTS)
        texts = [row["text"] for row in tqdm(rows, total=CACHED_DOCUMENTS, desc=f"corpus {name}", unit="doc")]
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FileNotFoundError(
            f"the corpus '{name}' is not in '{CACHE / 'corpora'}' and could not be downloaded (about 20 MB): {reason}. "
            "With a network, `prism fetch MODEL` gets it; the model 'mini' works without: PRISM_MODEL=mini"
        ) from None
    with replacing(path) as temporary:
        pd.DataFrame({"kind": name, "text": texts}).to_parquet(temporary, index=False)
    return path


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of several sequences of equal (padded) length.

    Attributes:
        tokens: ids; position 0 of each row is the beginning-of-sequence token (BOS).
        keep: True on real tokens, False on BOS and on padding. Every measure counts only kept positions.
    """

    tokens: Int[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]

    @property
    def n_tokens(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: slice) -> TokenBatch:
        return TokenBatch(self.tokens[rows], self.keep[rows])


def readable(text: object, name: str = "the text") -> str:
    """The text itself, if a tokenizer can read it.

    Raises:
        ValueError: no string, or one with half of a character in it (a lone surrogate); the message begins with `name`.
    """
    if not isinstance(text, str):
        raise ValueError(
            f"{name} is {reprlib.repr(text)}, of type {type(text).__name__}; only strings can be read: "
            "leave the others out"
        )
    if half := re.search("[\ud800-\udfff]", text):
        raise ValueError(
            f"{name} has half of a character, {ascii(half[0])} at place {half.start()}; give the whole "
            "character, or leave it out"
        )
    return text


def token_ids(tokenizer, text: str, name: str = "the text") -> list[int]:
    """The ids of a text, without BOS; the name of a special token in it is text like any other.

    Raises:
        ValueError: a text that is not `readable`; the message begins with `name`.
    """
    return tokenizer(readable(text, name), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def tokenize(texts: Sequence[str], tokenizer, context: int) -> TokenBatch:
    """Tokenise texts: BOS in front, padding at the end.

    Args:
        tokenizer: a Hugging Face tokenizer with a BOS token.
        context: the model's longest sequence, BOS included (tokens).

    Raises:
        ValueError: a text that is empty, is not `readable`, or does not fit the context.
    """
    if isinstance(texts, str):
        raise ValueError("tokenize takes a list of texts, not one string: write [text]")
    rows = []
    for i, text in enumerate(texts):
        ids = token_ids(tokenizer, text, f"text {i}")
        if not (text.strip() and ids):
            raise ValueError(f"text {i} is empty; give at least one character that is not a space")
        if len(ids) > context - 1:
            raise ValueError(f"text {i} has {len(ids)} tokens; the longest that fits is {context - 1} (and BOS)")
        rows.append(ids)
    return _pad(rows, tokenizer.bos_token_id)


def _pad(rows: Sequence[Sequence[int]], bos: int) -> TokenBatch:
    """BOS + ids + padding (with BOS, which a causal model never sees from earlier positions)."""
    if not rows:
        raise ValueError("no texts given; need at least one")
    width = 1 + max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), bos, dtype=torch.long)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, 1 : 1 + len(row)] = torch.as_tensor(np.array(row, dtype=np.int64))
        keep[i, 1 : 1 + len(row)] = True
    return TokenBatch(tokens, keep)


def corpus_batch(frame: pd.DataFrame, tokenizer, context: int, n_tokens: int | None = None) -> TokenBatch:
    """Token sequences of corpus documents: BOS + the first `context - 1` tokens of each, padded.

    Documents of fewer than 16 tokens are left out; stops once `n_tokens` are reached.

    Raises:
        ValueError: no usable document, one that is missing or not `readable` (the message names its row), or fewer
            tokens in all of them than asked for.
    """
    return _pad(list(_usable(frame, tokenizer, context, n_tokens).values()), tokenizer.bos_token_id)


def first_sequences(batch: TokenBatch, n_tokens: int) -> TokenBatch:
    """The first sequences of a batch that hold at least `n_tokens` together; all if there are fewer."""
    enough = int((batch.keep.sum(1).cumsum(0) < n_tokens).sum()) + 1
    return batch[:enough]


def corpus_documents(frame: pd.DataFrame, tokenizer, context: int, n_tokens: int | None = None) -> pd.DataFrame:
    """The documents that `corpus_batch` takes, one row for each of its sequences, so that their kinds can be used.

    `token_table(corpus_batch(documents, ...), tokenizer, documents["kind"])` is then labelled by kind.

    Raises:
        ValueError: as `corpus_batch`.
    """
    return frame.iloc[list(_usable(frame, tokenizer, context, n_tokens))].reset_index(drop=True)


def _usable(frame: pd.DataFrame, tokenizer, context: int, n_tokens: int | None) -> dict[int, Sequence[int]]:
    """Row of the frame -> ids, for the documents that are long enough, up to `n_tokens`."""
    rows, total = {}, 0
    for row, ids in _long_enough(frame, tokenizer):
        rows[row] = ids[: context - 1]
        total += len(rows[row])
        if n_tokens is not None and total >= n_tokens:
            break
    if not rows or (n_tokens is not None and total < n_tokens):
        raise ValueError(f"the corpus holds {total:,} usable tokens, fewer than the {n_tokens or 1:,} asked for")
    return rows


def _long_enough(frame: pd.DataFrame, tokenizer) -> Iterator[tuple[int, Sequence[int]]]:
    """Row of the frame and ids, for the documents that are long enough."""
    if "text" not in frame:
        raise ValueError(f"the corpus has no column 'text'; its columns are {', '.join(map(str, frame.columns))}")
    sampled = list(frame.get("tokens", ()))
    ready = bool(sampled) and _are_ids(sampled[0]) and tokenizer.decode(sampled[0]) == frame["text"].iloc[0]
    for row, text in enumerate(frame["text"]):  # sampled ids are of use to the tokenizer that made them only
        readable(text, f"row {row} of the corpus")
        ids = sampled[row] if ready else tokenizer(text, add_special_tokens=False)["input_ids"]
        if not _are_ids(ids):
            raise ValueError(
                f"row {row} of the corpus has no token ids but {reprlib.repr(ids)}; leave the row out, or "
                "the column 'tokens'"
            )
        if len(ids) >= 16:
            yield row, ids


def token_rows(frame: pd.DataFrame, tokenizer, context: int, n_tokens: int) -> Int[np.ndarray, "rows context"]:
    """Corpus documents laid end to end, BOS before each, and cut into rows of equal length, for work in bulk.

    Unlike those of `corpus_batch`, documents are whole, and a row may begin inside one. Documents of fewer than 16
    tokens are left out.

    Args:
        n_tokens: how many at least; the last row is full.

    Raises:
        ValueError: as `corpus_batch`.
    """
    wanted, total, parts = -(-n_tokens // context) * context, 0, []
    for _, ids in _long_enough(frame, tokenizer):
        parts.append(np.array([tokenizer.bos_token_id, *ids], dtype=np.int32))
        total += len(parts[-1])
        if total >= wanted:
            return np.concatenate(parts)[:wanted].reshape(-1, context)
    raise ValueError(
        f"the corpus holds {total:,} tokens, a BOS for each document included, fewer than the {wanted:,} that "
        f"{wanted // context:,} rows of {context} need"
    )


def _are_ids(ids: object) -> bool:
    return isinstance(ids, Sequence | np.ndarray) and not isinstance(ids, str)


def token_text(tokenizer, token: int) -> str:
    """A token as text; bytes that are only a part of a character stand in hexadecimal, such as `‹F09F›`.

    Decoding would write the same question mark for all of them, and different tokens would look alike; so would '▁the'
    and 'the' of a SentencePiece tokenizer, which drops a text's first space.
    """
    piece, text = tokenizer.convert_ids_to_tokens(int(token)) or "", tokenizer.decode([int(token)])
    if piece.startswith("▁"):
        return piece.replace("▁", " ")
    if "\ufffd" not in text:
        byte = BYTES.fullmatch(piece) and text != piece  # '<0x41>', where 'A' has a token of its own
        own = byte and (not text or tokenizer.convert_tokens_to_ids(text) not in (None, tokenizer.unk_token_id))
        return piece if own else text
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}  # GPT-2's letters for the 256 bytes
    if not set(piece) <= set(byte_of):
        return piece  # Llama's vocabulary has names for bytes: <0xF0>
    text = bytes(byte_of[letter] for letter in piece).decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]+", lambda part: f"‹{part[0].encode(errors='surrogateescape').hex().upper()}›", text)


def whole_characters(tokens: Sequence[str]) -> list[tuple[str, slice]]:
    """A text's tokens, as `token_text` has them, in pieces: one token each, or those that make up one character.

    A character is what a reader takes for one: with its marks and modifiers, a flag, emoji that are joined.

    Returns:
        Each piece's text, with '…' for a part of a character whose other parts are not there; and which tokens it is.

    >>> whole_characters(["so", " ‹F09F›", "‹98›", "‹82›", "!"])
    [('so', slice(0, 1, None)), (' 😂', slice(1, 4, None)), ('!', slice(4, 5, None))]
    """
    pieces: list[tuple[str, slice]] = []
    text, first, decoder = "", 0, getincrementaldecoder("utf-8")("surrogateescape")
    for place, token in enumerate([*tokens, ""]):
        raw = BYTES.sub(_raw, token).encode(errors="surrogateescape")
        waits = decoder.getstate()[0]  # the first bytes of a character
        if place and not (waits and raw[:1] and 0x80 <= raw[0] < 0xC0):
            text = re.sub("[\udc80-\udcff]+", "…", text + decoder.decode(b"", final=True))
            if pieces and _goes_on(pieces[-1][0], text):
                before, part = pieces.pop()
                text, first = (before if text == "…" else before + text), part.start
            pieces.append((text, slice(first, place)))
            text, first = "", place
            decoder.reset()
        text += decoder.decode(raw)
    return pieces


def _raw(part: re.Match) -> str:
    """Bytes in hexadecimal as a string that encodes to them."""
    return bytes.fromhex(part[0].strip("‹›<>").removeprefix("0x")).decode(errors="surrogateescape")


def _goes_on(before: str, after: str) -> bool:
    """Whether the first character of a text belongs to the last one of the text before it."""
    if not before or not after or before[-1] < "\u0300" > after[0]:
        return False
    if after == "…":  # of a character that began before the first token
        return before == "…"
    if "\u200d" in (before[-1], after[0]) or unicodedata.category(after[0]).startswith("M"):  # a joiner, a mark
        return True
    flag = re.search("[\U0001f1e6-\U0001f1ff]*$", before)[0]  # letters of flags, in pairs
    modifier = re.match("[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]", after)
    return bool(modifier) or len(flag) % 2 == 1 and "\U0001f1e6" <= after[0] <= "\U0001f1ff"


def token_table(batch: TokenBatch, tokenizer, categories: Sequence[str] | None = None) -> pd.DataFrame:
    """Where each kept token came from, one row a token, in row-major order.

    Returns:
        Columns text (row of the batch), position (0 is BOS, so real tokens start at 1), token_id, token (as a
        string, as `token_text` has it), and category if `categories` (one a text) is given. Strings are pandas
        categoricals.
    """
    rows, positions = (x.numpy() for x in batch.keep.nonzero(as_tuple=True))
    ids = batch.tokens[batch.keep].numpy()
    unique, codes = np.unique(ids, return_inverse=True)
    texts = np.array([token_text(tokenizer, i) for i in unique], dtype=object)  # NumPy's own strings drop a last NUL
    names, name_codes = np.unique(texts, return_inverse=True)
    table = pd.DataFrame(
        {
            "text": rows.astype(np.int32),
            "position": positions.astype(np.int32),
            "token_id": ids.astype(np.int32),
            "token": pd.Categorical.from_codes(name_codes[codes], names.tolist()),
        }
    )
    if categories is not None:
        if len(categories) != len(batch):
            raise ValueError(f"{len(categories)} categories for {len(batch)} texts; need one for each")
        names = [c for c in CATEGORIES if c in set(categories)] + sorted(set(categories) - set(CATEGORIES))
        table["category"] = pd.Categorical(np.asarray(categories)[rows], categories=names)
    return table


def cache_key(dtype: str = "float32", **parts: object) -> str:
    """A readable key of whatever decides the contents of a cache file: sorted JSON of the parts, the device among them.

    Args:
        dtype: number format that the contents were computed in; bulk work may be in another (see `device.bulk_dtype`).
    """
    return json.dumps({**parts, "dtype": dtype, "device": device().type}, sort_keys=True, default=str)


def save_activations(path: str | Path, tensors: dict[str, Tensor], key: str) -> Path:
    """Write named tensors to a safetensors file: to a temporary name, then renamed.

    Raises:
        OSError: the disk is full or the folder cannot be written; whatever stood at `path` is untouched.
    """
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"key": key})
    return Path(path)


def load_activations(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read back what `save_activations` wrote.

    Args:
        key: the expected key; None to take any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or not a safetensors file, not written by Prism, or made with another key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no activation cache at '{path}'; make it with save_activations")
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("key")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"'{path}' is truncated or not a safetensors file ({error}); delete it, run again") from None
    if found is None:
        raise ValueError(f"'{path}' was not written by Prism: it carries no key; choose another path")
    if key is not None and found != key:
        raise ValueError(f"'{path}' was made with {found}, but {key} is needed; delete it and run again")
    return tensors
