"""One feature in numbers: examples, profile, logits, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from prism.analysis.counting import as_array
from prism.data import CATEGORIES
from prism.features import FeatureMatrix


@dataclass(frozen=True)
class FeatureSummary:
    """What a feature matrix says about one feature."""

    feature: int
    density: float  # share of tokens
    firings: int  # tokens
    n_tokens: int
    maximum: float  # activation
    top_token_share: float  # share of the 20 strongest firings that fall on their most common token
    categories: pd.DataFrame  # category, texts, share_firing, mean_max; empty if the texts have no categories
    examples: pd.DataFrame  # row, text, position, token, activation, category: the k strongest texts


def summarise_feature(matrix: FeatureMatrix, feature: int, k: int = 10) -> FeatureSummary:
    """Density, maximum, category profile and strongest texts of one feature.

    Args:
        matrix: sparse features of many tokens.
        feature: column, 0 to d_sae − 1.
        k: examples, at most one per text.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    column, table = matrix.column(feature), matrix.table
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    tokens = table["token"].iloc[order[:20]]
    _, first = np.unique(table["text"].to_numpy()[order], return_index=True)
    best = order[np.sort(first)[:k]]  # one a text
    counted = len(column) - matrix.massive
    return FeatureSummary(
        feature=int(feature),
        density=len(order) / max(counted, 1),
        firings=len(order),
        n_tokens=counted,
        maximum=float(column.max(initial=0)),
        categories=_category_profile(column, table),
        top_token_share=float(tokens.value_counts(normalize=True).iloc[0]) if len(tokens) else 0.0,
        examples=table.iloc[best].reset_index(drop=True).assign(row=best, activation=column[best]),
    )


def _category_profile(column: np.ndarray, table: pd.DataFrame) -> pd.DataFrame:
    if "category" not in table:
        return pd.DataFrame(columns=["category", "texts", "share_firing", "mean_max"])
    starts = np.flatnonzero(np.diff(table["text"].to_numpy(), prepend=-1))  # of each text
    peaks = table[["category"]].iloc[starts]
    peaks = peaks.assign(max=np.maximum.reduceat(column, starts) if len(starts) else np.zeros(0))
    profile = peaks.groupby("category", sort=False, observed=True)["max"].agg(
        texts="size", share_firing=lambda peak: float((peak > 0).mean()), mean_max="mean"
    )
    known = [name for name in CATEGORIES if name in profile.index]
    return profile.loc[[*known, *profile.index.difference(known, sort=False)]].reset_index()


def top_logits(
    decoder_row: Float[np.ndarray, " d_in"],
    unembed: Float[np.ndarray, "d_in d_vocab"],
    tokens: Sequence[str],
    k: int = 10,
) -> pd.DataFrame:
    """The tokens that a feature's direction writes towards and away from: its decoder row through the unembedding.

    Logits mean something only relative to each other, so their mean over the vocabulary is taken off. The final layer
    norm and the later layers are left out ('direct' effect; logit lens, nostalgebraist 2020).

    Args:
        decoder_row: the feature's direction.
        unembed: the model's unembedding.
        tokens: the vocabulary by token id.
        k: tokens on each side.

    Returns:
        Columns `side` ('top', 'bottom'), `token_id`, `token`, `logit`; each side's strongest first.

    Raises:
        ValueError: the shapes do not fit.

    >>> top_logits([1.0, 0.0], [[3.0, 0.0, -3.0], [9.0, 9.0, 9.0]], ["a", "b", "c"], k=1)["token"].tolist()
    ['a', 'c']
    """
    row, unembed = as_array(decoder_row), as_array(unembed)
    if unembed.ndim != 2 or row.shape != unembed.shape[:1] or len(tokens) < unembed.shape[1]:
        raise ValueError(
            f"decoder row {row.shape}, unembedding {unembed.shape} and {len(tokens)} tokens do not fit: "
            "give (d_in,), (d_in, d_vocab) and d_vocab tokens"
        )
    logits = row @ unembed
    logits = logits - logits.mean()
    order = np.argsort(-logits, kind="stable")
    ids = np.concatenate([order[:k], order[::-1][:k]])
    sides = ["top"] * len(order[:k]) + ["bottom"] * len(order[:k])
    return pd.DataFrame({"side": sides, "token_id": ids, "token": [tokens[i] for i in ids], "logit": logits[ids]})


def co_active(matrix: FeatureMatrix, feature: int, k: int = 10) -> pd.DataFrame:
    """The features that fire most often on the same tokens: columns `feature`, `jaccard`, `count` (tokens)."""
    rows = np.flatnonzero(matrix.column(feature))
    together = matrix.values[rows].getnnz(axis=0)
    either = len(rows) + np.asarray(matrix.firing_counts()) - together
    jaccard = together / np.maximum(either, 1)
    jaccard[feature] = -1
    best = [other for other in np.argsort(-jaccard, kind="stable")[:k] if together[other] and other != feature]
    return pd.DataFrame({"feature": best, "jaccard": jaccard[best], "count": together[best]})


def decoder_neighbours(decoder: Float[np.ndarray, "d_sae d_in"], feature: int, k: int = 10) -> pd.DataFrame:
    """The features whose decoder rows point the same way: columns `feature`, `cosine`."""
    decoder = as_array(decoder)
    norms = np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    cosine = decoder @ decoder[feature] / (norms * norms[feature])
    best = [other for other in np.argsort(-cosine, kind="stable") if other != feature][:k]
    return pd.DataFrame({"feature": best, "cosine": cosine[best]})
