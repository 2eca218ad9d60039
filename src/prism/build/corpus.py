"""Training text: read documents by kind, hold some out, and tokenise them into one array per kind.

A corpus is a folder of `KIND.txt` or `KIND.txt.xz` files whose documents are separated by a line `<|endoftext|>`.
"""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import numpy as np

from prism.files import sha256

END = "<|endoftext|>"
HELD_OUT_EVERY = 100  # one document in a hundred is never trained on

# kind -> (share of the training tokens, what it stands for). The seven categories of phase 2 come first.
MIXTURE = {
    "python": 0.13,
    "web": 0.11,
    "math": 0.12,
    "nonenglish": 0.19,
    "social": 0.09,
    "formal": 0.11,
    "conversational": 0.11,
    "stories": 0.07,
    "encyclopedic": 0.07,
}


def find_kinds(corpus: Path) -> dict[str, Path]:
    """The text files of a corpus folder, by kind.

    Raises:
        FileNotFoundError: the folder is missing or holds no file of a known kind.
    """
    names = ((kind, corpus / f"{kind}.txt{ending}") for kind in MIXTURE for ending in ("", ".xz"))
    found = {kind: path for kind, path in names if path.is_file()}
    if not found:
        expected = ", ".join(f"{kind}.txt[.xz]" for kind in MIXTURE)
        raise FileNotFoundError(f"no training text in '{corpus}'; expected files named {expected}")
    return found


def read_documents(path: Path) -> list[str]:
    """The documents of one `KIND.txt[.xz]` file, without the separator lines."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        parts = re.split(rf"^{re.escape(END)}\r*(?:\n|\Z)", file.read(), flags=re.M)
    return [text for part in parts if (text := part.strip("\n"))]


def split_documents(path: Path) -> tuple[list[str], list[str]]:
    """Documents of one kind as (training, held out): every hundredth is held out, or the last of fewer."""
    documents = read_documents(path)
    if len(documents) < HELD_OUT_EVERY:
        return documents[:-1], documents[-1:]
    held_out = documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    del documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return documents, held_out


def encode_documents(tokenizer, documents: list[str], batch: int = 512) -> np.ndarray:
    """Token ids of the documents in one flat uint16 array, each document followed by the end token."""
    end = tokenizer.token_to_id(END)
    parts = []
    for start in range(0, len(documents), batch):
        for encoding in tokenizer.encode_batch(documents[start : start + batch], add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def tokenise(corpus: Path, tokenizer, tokenizer_path: Path, work: Path) -> dict[str, np.ndarray]:
    """Training tokens by kind, memory-mapped; made once per tokenizer and kept in `work/tokens`.

    Returns:
        kind -> uint16 array `[tokens]`, documents separated by the end token.
    """
    folder = work / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    key = {"tokenizer": sha256(tokenizer_path), "files": {k: p.stat().st_size for k, p in find_kinds(corpus).items()}}
    key_path = folder / "key.json"
    if not (key_path.is_file() and json.loads(key_path.read_text(encoding="utf-8")) == key):
        key_path.unlink(missing_ok=True)  # an interrupted run leaves no key behind
        for kind, path in find_kinds(corpus).items():
            train, _ = split_documents(path)
            np.save(folder / f"{kind}.npy", encode_documents(tokenizer, train))
        key_path.write_text(json.dumps(key), encoding="utf-8")
    return {kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in key["files"]}
