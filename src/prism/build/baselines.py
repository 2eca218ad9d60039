"""How good is `mini`: bits per byte on held-out documents, beside a unigram and a 5-gram model.

The 5-gram is interpolated Kneser–Ney with one absolute discount an order (Chen & Goodman 1999, section 2.7),
trained on *all* training tokens, however few of them the language model has seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from prism.build.corpus import END, encode_documents, find_kinds, split_documents


@dataclass(frozen=True)
class _Order:
    """Counts of one n-gram order: sorted n-gram codes, and totals of their contexts."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float


class NGram:
    """Interpolated Kneser–Ney n-gram model over token ids.

    Args:
        tokens: training stream, documents separated by the end token.
        vocabulary: number of token ids; `vocabulary ** order` must fit in 64 bits.

    Raises:
        ValueError: the codes of an n-gram would not fit in 64 bits.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int, order: int = 5):
        if order * math.log2(vocabulary) > 64:
            raise ValueError(f"{order}-grams over {vocabulary} tokens do not fit in 64 bits; lower one of them")
        self.vocabulary, self.order = vocabulary, order
        grams, counts = np.unique(_codes(tokens, order, vocabulary), return_counts=True)
        self.orders: list[_Order] = []
        for n in range(order, 0, -1):
            self.orders.insert(0, self._tabulate(grams, counts))
            if n > 1:  # lower orders count in how many different contexts an n-gram was seen
                grams, counts = np.unique(grams % np.uint64(vocabulary ** (n - 1)), return_counts=True)

    def _tabulate(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, first = np.unique(grams // np.uint64(self.vocabulary), return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return _Order(
            grams=grams,
            counts=counts.astype(np.uint32),
            contexts=contexts,
            totals=np.add.reduceat(counts.astype(np.int64), first),
            types=np.diff(np.append(first, len(grams))),
            discount=once / (once + 2 * twice) if once and twice else 0.5,
        )

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Probability of each token but the first, given at most `order - 1` tokens before it."""
        probability = np.full(len(tokens) - 1, 1.0 / self.vocabulary)
        for n, table in enumerate(self.orders, start=1):
            codes = _codes(tokens, n, self.vocabulary)
            codes = codes[1:] if n == 1 else codes  # n-grams that end at position max(n - 1, 1) and after
            start = max(n - 1, 1) - 1  # index into `probability` of the first of them
            context, known = _lookup(table.contexts, codes // np.uint64(self.vocabulary))
            total = np.where(known, table.totals[context], 1)
            gram, seen = _lookup(table.grams, codes)
            count = np.where(seen, table.counts[gram], 0)
            mass = table.discount * table.types[context] / total
            mixed = np.maximum(count - table.discount, 0) / total + mass * probability[start:]
            probability[start:] = np.where(known, mixed, probability[start:])
        return probability


def _codes(tokens: np.ndarray, n: int, vocabulary: int) -> np.ndarray:
    """One integer for each run of n tokens, uint64 `[len(tokens) - n + 1]`."""
    length = len(tokens) - n + 1
    out = np.zeros(max(length, 0), dtype=np.uint64)
    for j in range(n):
        out *= np.uint64(vocabulary)
        out += tokens[j : j + length].astype(np.uint64)
    return out


def _lookup(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each code in a sorted table, and whether it is there."""
    index = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return index, table[index] == codes


@torch.no_grad()
def model_nats(model, tokens: np.ndarray, context: int, end: int) -> float:
    """Summed negative log-likelihood (nats) of one document's tokens, in half-overlapping windows."""
    total, start, stride = 0.0, 0, (context - 1) // 2
    while start < len(tokens):
        window = tokens[max(0, start - stride) : start + stride]
        new = len(window) - (start - max(0, start - stride))
        ids = torch.tensor([[end, *window.tolist()]])
        logits = model(ids[:, :-1]).logits[0, -new:].float()
        total += F.cross_entropy(logits, ids[0, -new:], reduction="sum").item()
        start += stride
    return total


def held_out(corpus: Path, kind: str, tokenizer, max_bytes: int = 200_000) -> Iterator[tuple[np.ndarray, int]]:
    """Held-out documents of a kind, whole, until `max_bytes` are reached: token ids and size (bytes) of each."""
    n_bytes = 0
    for text in split_documents(find_kinds(corpus)[kind])[1]:
        if n_bytes >= max_bytes:
            return
        n_bytes += len(text.encode())
        yield encode_documents(tokenizer, [text])[:-1], len(text.encode())


def bits_per_byte(
    model, tokenizer, corpus: Path, train: dict[str, np.ndarray], max_bytes: int = 200_000
) -> dict[str, dict[str, float]]:
    """Bits per byte on held-out documents, by kind: the model, a unigram, and the 5-gram.

    Args:
        max_bytes: held-out text used of each kind (bytes), whole documents.

    Returns:
        kind -> {"model", "unigram", "5-gram", "bytes"}; plus the row "all", weighted by bytes.
    """
    end = tokenizer.token_to_id(END)
    stream = np.concatenate([np.asarray(train[kind]) for kind in sorted(train)])
    ngram = NGram(stream, tokenizer.get_vocab_size())
    unigram = np.bincount(stream, minlength=tokenizer.get_vocab_size()) + 1.0
    unigram = np.log(unigram / unigram.sum())
    rows: dict[str, dict[str, float]] = {}
    for kind in find_kinds(corpus):
        nats, n_bytes = np.zeros(3), 0
        for tokens, size in held_out(corpus, kind, tokenizer, max_bytes):
            n_bytes += size
            nats[0] += model_nats(model, tokens, model.config.max_position_embeddings, end)
            nats[1] -= unigram[tokens].sum()
            nats[2] -= np.log(ngram.probabilities(np.concatenate([[end], tokens]).astype(np.uint16))).sum()
        bits = nats / math.log(2) / n_bytes
        rows[kind] = {"model": bits[0], "unigram": bits[1], "5-gram": bits[2], "bytes": n_bytes}
    total = sum(row["bytes"] for row in rows.values())
    rows["all"] = {
        name: sum(row[name] * row["bytes"] for row in rows.values()) / total for name in ("model", "unigram", "5-gram")
    } | {"bytes": total}
    return rows
