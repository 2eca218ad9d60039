"""Two models on the same texts: tokens that end at the same character, and the units that correspond there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

from prism.analysis.matching import match_activations
from prism.features import FeatureMatrix


def token_ends(texts: Sequence[str], tokenizer) -> list[Int[np.ndarray, " tokens"]]:
    """Where each token of each text ends (in characters), in the order of `data.tokenize`, BOS left out.

    Raises:
        ValueError: a tokenizer that does not know (only fast ones do).
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("this tokenizer does not say where its tokens lie in the text; load the fast version of it")
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [np.array([end for _, end in offsets], dtype=np.int64) for offsets in found]


def aligned_rows(
    ends_a: Sequence[Int[np.ndarray, " tokens_a"]], ends_b: Sequence[Int[np.ndarray, " tokens_b"]]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows of two token tables whose tokens end at the same character of the same text.

    A causal model has then read the same text in both cases, however it was cut up. Of several tokens with one end
    (the bytes of one character) the last counts. With the same tokenizer twice, the rows are the same twice.

    >>> aligned_rows([np.array([2, 5, 9])], [np.array([5, 7, 9])])
    (array([1, 2]), array([0, 2]))

    Args:
        ends_a: from `token_ends`; ends_b: of the same texts with another tokenizer.

    Returns:
        Row numbers, counted over all texts, as in a `data.token_table`.

    Raises:
        ValueError: different numbers of texts.
    """
    if len(ends_a) != len(ends_b):
        raise ValueError(f"{len(ends_a)} texts against {len(ends_b)}; give the token ends of the same texts")
    rows: list[list[np.ndarray]] = [[], []]
    offset_a = offset_b = 0
    for a, b in zip(ends_a, ends_b, strict=True):
        _, from_a, from_b = np.intersect1d(a[::-1], b[::-1], return_indices=True)  # the last of equal ones comes first
        rows[0].append(offset_a + len(a) - 1 - from_a)
        rows[1].append(offset_b + len(b) - 1 - from_b)
        offset_a, offset_b = offset_a + len(a), offset_b + len(b)
    return tuple(np.concatenate(part).astype(np.int64) for part in rows)


@dataclass(frozen=True, eq=False)
class ModelUnits:
    """What one model did on some texts, as far as another can be matched with it.

    Attributes:
        ends: from `token_ends`, of all texts.
        features: its SAE's features on them.
        signed: what else it has on the same tokens, such as neurons: name -> activations of any sign.
    """

    ends: Sequence[Int[np.ndarray, " tokens_of_a_text"]]
    features: FeatureMatrix
    signed: dict[str, Float[np.ndarray, "tokens units"]]


def frequent(matrix: FeatureMatrix, rows: Int[np.ndarray, " rows"] | slice, least: int) -> csr_matrix:
    """The features that fire on at least `least` of these tokens, `[rows, features]`.

    The best of many correlations of a column with a handful of firings is high by luck.
    """
    values = matrix.values[rows]
    return values[:, np.flatnonzero(values.getnnz(axis=0) >= least)]


def match_models(a: ModelUnits, b: ModelUnits, least: int = 20, seed: int = 0) -> dict[str, pd.DataFrame]:
    """For the units of one model the best partners in another, where tokens of both end together.

    Signed units may find their partner upside down, since their sign is a convention. The control of
    `match_activations` swaps only occurrences of the same token (of the same pair, where the tokenizers differ).

    Args:
        least: tokens that a feature must fire on.
        seed: of the control's swap.

    Returns:
        'features' and each name in both models' `signed` -> the rows of `match_activations`, without constant units;
        without a kind of which a model has no unit.
    """
    rows_a, rows_b = aligned_rows(a.ends, b.ends)
    ids = [m.features.table["token_id"].to_numpy()[rows] for m, rows in ((a, rows_a), (b, rows_b))]
    groups = np.unique(np.column_stack(ids), axis=0, return_inverse=True)[1].ravel()
    sides = {"features": (frequent(a.features, rows_a, least), frequent(b.features, rows_b, least))}
    for kind in (kind for kind in a.signed if kind in b.signed):
        sides[kind] = (a.signed[kind][rows_a], np.hstack([b.signed[kind][rows_b], -b.signed[kind][rows_b]]))
    return {
        kind: match_activations(x, y, groups, seed).dropna()
        for kind, (x, y) in sides.items()
        if x.shape[1] and y.shape[1]
    }
