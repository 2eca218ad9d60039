"""The intruder test: is a window of another unit found among a unit's own? Windows as vectors, and the test."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

from prism.analysis.examples import RADIUS


def ngram_vectors(texts: np.ndarray) -> csr_matrix:
    """Windows as tf-idf vectors of character n-grams (2 to 4 characters inside a word, lower case), of length 1.

    Characters see shared words, endings, scripts and punctuation, and nothing of meaning beyond that.

    Raises:
        ValueError: nothing but white space.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # here, because it takes a second to import

    texts = np.asarray(texts, dtype=object).ravel()
    if not any(text.strip() for text in texts):
        raise ValueError("the windows hold nothing but white space, so no two can be told apart")
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32).fit_transform(texts).tocsr()


def embedding_vectors(
    table: pd.DataFrame,
    rows: Int[np.ndarray, "units k"],
    embedding: Float[np.ndarray, "d_vocab d"],
    radius: int = RADIUS,
) -> Float[np.ndarray, "units*k d"]:
    """Windows as the mean token embedding of their tokens, the mean over all windows taken off, of length 1.

    Args:
        embedding: the model's embedding matrix: near rows are tokens that the model treats alike.
    """
    texts, ids, flat = table["text"].to_numpy(), table["token_id"].to_numpy(), np.asarray(rows).ravel()
    total, count = np.zeros((len(flat), embedding.shape[1])), np.zeros((len(flat), 1))
    for shift in range(-radius, radius + 1):
        place = (flat + shift).clip(0, len(ids) - 1)
        inside = (place == flat + shift) & (texts[place] == texts[flat])
        total[inside] += embedding[ids[place[inside]]]
        count += inside[:, None]
    means = total / count
    means -= means.mean(0)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def intruder_score(
    vectors: csr_matrix | Float[np.ndarray, "units*k d"], k: int, draws: int = 100, shown: int = 5, seed: int = 0
) -> Float[np.ndarray, " units"]:
    """How often an intruder among a unit's windows is found: the intruder test (Chang et al. 2009), without people.

    Each draw shows `shown − 1` of a unit's windows and one of another unit's. The guess is the window least like the
    others on average (cosine); where several are equally unlike, the guess is right in its share of the cases.
    Chance is 1/shown. Chang et al. asked people about words of topics ('Reading tea leaves', NeurIPS 2009); here a
    similarity answers, so that the score is bounded by what that similarity can see.

    Args:
        vectors: of length 1 (or 0), the `k` windows of unit 0 first (`ngram_vectors`, `embedding_vectors`).
        k: windows a unit.
        draws: of each unit.
        shown: windows in a draw, the intruder included.
        seed: of the draws.

    Returns:
        The share of draws in which the intruder was found, of each unit.

    Raises:
        ValueError: fewer than two units, windows that are no multiple of k, or `shown` not from 3 to k + 1.
    """
    n = vectors.shape[0] // max(k, 1)
    if n < 2 or n * k != vectors.shape[0]:
        raise ValueError(f"{vectors.shape[0]} windows are not {k} for each of two or more units")
    if not 3 <= shown <= k + 1:
        raise ValueError(f"{shown} windows shown; choose from 3 to {k + 1}: the intruder and up to all {k} of a unit's")
    rng, accuracy = np.random.default_rng(seed), np.empty(n)
    for unit in range(n):
        own = rng.random((draws, k)).argsort(axis=1)[:, : shown - 1]
        other = rng.integers(n - 1, size=draws)
        other += other >= unit
        intruders = vectors[other * k + rng.integers(k, size=draws)]
        mine = vectors[unit * k : (unit + 1) * k]
        accuracy[unit] = _found(_dense(mine @ mine.T), _dense(mine @ intruders.T), own)
    return accuracy


def _dense(product) -> np.ndarray:
    return product.toarray() if hasattr(product, "toarray") else product


def _found(within: np.ndarray, across: np.ndarray, own: Int[np.ndarray, "draws shown-1"]) -> float:
    """Share of draws in which the intruder has the least similarity; `within` is `[k, k]`, `across` `[k, draws]`."""
    pairs = within[own[:, :, None], own[:, None, :]]
    to_intruder = across[own, np.arange(len(own))[:, None]]
    mine = pairs.sum(2) - np.diagonal(pairs, axis1=1, axis2=2) + to_intruder
    likeness = np.column_stack([to_intruder.sum(1), mine])
    least = likeness <= likeness.min(1, keepdims=True) + 1e-6
    return float((least[:, 0] / least.sum(1)).mean())
