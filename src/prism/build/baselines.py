"""How good is `mini`: bits per byte on held-out documents, beside a unigram and a 5-gram model.

The 5-gram is interpolated Kneser–Ney with one absolute discount an order (Chen & Goodman 1999, section 2.7),
trained on *all* training tokens, however few of them the language model has seen.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from prism.build.corpus import END, encode_documents, find_kinds, split_documents


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
        self.orders: list[SimpleNamespace] = []
        for n in range(order, 0, -1):
            self.orders.insert(0, self._tabulate(grams, counts))
            if n > 1:  # lower orders count in how many different contexts an n-gram was seen
                grams, counts = np.unique(grams % np.uint64(vocabulary ** (n - 1)), return_counts=True)

    def _tabulate(self, grams: np.ndarray, counts: np.ndarray) -> SimpleNamespace:
        """Counts of one order: sorted n-gram codes, and totals of their contexts."""
        contexts, first = np.unique(grams // np.uint64(self.vocabulary), return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return SimpleNamespace(
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


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer,
    corpus: Path,
    train: dict[str, np.ndarray] | None = None,
    max_bytes: int = 200_000,
) -> dict[str, dict[str, float]]:
    """What the held-out documents of each kind cost, in bits per byte; the model reads windows of at most 256 tokens.

    Args:
        train: kind -> token ids that the two baselines are counted on; without it there are none.
        max_bytes: held-out text used of each kind (bytes), whole documents.

    Returns:
        kind -> "model", with `train` also "unigram" and "5-gram", and "bytes"; plus the row "all", weighted by bytes.
    """
    end, context = tokenizer.token_to_id(END), min(256, model.config.max_position_embeddings)
    measures = {"model": lambda ids: model_nats(model, ids, context, end)}
    if train is not None:
        stream = np.concatenate([np.asarray(train[kind]) for kind in sorted(train)])
        ngram = NGram(stream, tokenizer.get_vocab_size())
        unigram = np.bincount(stream, minlength=tokenizer.get_vocab_size()) + 1.0
        unigram = np.log(unigram / unigram.sum())
        measures["unigram"] = lambda ids: -unigram[ids].sum()
        measures["5-gram"] = lambda ids: -np.log(ngram.probabilities(np.append(np.uint16(end), ids))).sum()
    rows: dict[str, dict[str, float]] = {}
    for kind, path in find_kinds(corpus).items():
        nats, n_bytes = dict.fromkeys(measures, 0.0), 0
        for text in split_documents(path)[1]:
            if n_bytes >= max_bytes:
                break
            n_bytes += len(text.encode())
            ids = encode_documents(tokenizer, [text])[:-1]
            for name, measure in measures.items():
                nats[name] += measure(ids)
        rows[kind] = {name: value / math.log(2) / n_bytes for name, value in nats.items()} | {"bytes": n_bytes}
    total = sum(row["bytes"] for row in rows.values())
    every = {name: sum(row[name] * row["bytes"] for row in rows.values()) / total for name in measures}
    return rows | {"all": every | {"bytes": total}}


def kind_bits(model: PreTrainedModel, tokenizer, corpus: Path, max_bytes: int = 200_000) -> dict[str, float]:
    """Bits per byte of a model alone, by kind, and 'all'."""
    rows = bits_per_byte(model, tokenizer, corpus, max_bytes=max_bytes)
    return {kind: row["model"] for kind, row in rows.items()}
