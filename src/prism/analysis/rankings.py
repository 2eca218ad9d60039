"""The features that are strongest, most frequent and most selective."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prism.analysis.counting import best_indices, category_codes, category_indicator
from prism.features import FeatureMatrix


def strongest(matrix: FeatureMatrix, k: int = 20) -> pd.DataFrame:
    """The features with the largest activation on any token.

    Returns:
        Columns feature, max_activation, density (share of tokens), texts (on which it fires), and the token, text
        and category (if any) of its strongest firing. Features that never fire are left out.
    """
    peak = matrix.max_activation()
    features = best_indices(peak, k)
    where = [matrix.top_tokens(feature, 1) for feature in features]
    columns = [name for name in ("token", "text", "category") if name in matrix.table]
    places = {name: [frame[name].iloc[0] for frame in where] for name in columns}
    return _describe(matrix, features).assign(**places)


def most_frequent(matrix: FeatureMatrix, k: int = 20, by: str = "text") -> pd.DataFrame:
    """The features that fire on most texts, or on most tokens.

    Args:
        by: 'text' or 'token': what is counted.

    Returns:
        Columns feature, max_activation, density, texts, and share: of texts or tokens that fire, 0 to 1.

    Raises:
        ValueError: `by` is something else.
    """
    if by not in ("text", "token"):
        raise ValueError(f"by is '{by}'; choose 'text' or 'token'")
    counts = matrix.firing_counts() if by == "token" else matrix.text_max().getnnz(axis=0)
    features = best_indices(counts, k)
    total = matrix.n_tokens - matrix.massive if by == "token" else matrix.n_texts
    return _describe(matrix, features).assign(share=counts[features] / total)


def most_selective(matrix: FeatureMatrix, k: int = 20, min_texts: int = 3) -> pd.DataFrame:
    """The features whose activation falls in one category.

    With `m[c]` the mean over category `c`'s texts of the feature's text maximum, selectivity is
    `max m / sum m`: the top category's share, 1 for a feature that knows one category alone and 1/(number of
    categories) for an indifferent one. (With categories of equal size, the share of the summed text maxima.)
    A feature of one text has selectivity 1 by necessity; hence the least number of texts.

    Args:
        min_texts: texts that the feature must fire on.

    Returns:
        Columns feature, max_activation, density, texts, category (the top one), selectivity, mean_inside (`max m`);
        most selective first, ties to the feature that fires on more texts.
    """
    names, codes = category_codes(matrix)
    peaks = matrix.text_max()
    means = (category_indicator(codes, len(names)) @ peaks).toarray() / np.bincount(codes, minlength=len(names))[
        :, None
    ]
    selectivity = means.max(0) / np.maximum(means.sum(0), np.finfo(np.float32).tiny)
    texts = peaks.getnnz(axis=0)
    order = np.lexsort((-means.max(0), -texts, -selectivity.round(6)))
    features = order[texts[order] >= max(min_texts, 1)][:k]
    return _describe(matrix, features).assign(
        category=[names[i] for i in means[:, features].argmax(0)],
        selectivity=selectivity[features],
        mean_inside=means.max(0)[features],
    )


def _describe(matrix: FeatureMatrix, features: np.ndarray) -> pd.DataFrame:
    """What every ranking says of its features."""
    part = FeatureMatrix(matrix.values[:, features], matrix.table)
    return pd.DataFrame(
        {
            "feature": features,
            "max_activation": part.max_activation(),
            "density": part.density(),
            "texts": part.text_max().getnnz(axis=0),
        }
    )
