"""Which features fire together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from prism.analysis.counting import best_indices, category_codes, fires_above
from prism.features import FeatureMatrix

OVERVIEW = 30  # features that `coactivation` shows when none are named


def coactivation(
    matrix: FeatureMatrix,
    features: Sequence[int] | None = None,
    category: str | None = None,
    level: str = "token",
    measure: str = "jaccard",
    threshold: float = 0.0,
) -> pd.DataFrame:
    """How often features fire together: `FᵀF` of the binarised matrix counts the rows where both do.

    Args:
        features: which; by default the 30 that fire on most tokens (or texts) of those looked at.
        category: look at this category's texts only.
        level: 'token' or 'text', what is counted.
        measure: 'jaccard', both / either (symmetric); or 'conditional', the share of the row feature's firings on
            which the column feature fires too.
        threshold: a token or text fires if its activation is strictly above this.

    Returns:
        A square with the features as index and columns; 0 for a feature that never fires, else 1 on the diagonal.

    Raises:
        IndexError: no such feature.
        ValueError: unknown category, level or measure.
    """
    if measure not in ("jaccard", "conditional"):
        raise ValueError(f"measure is '{measure}'; choose 'jaccard' or 'conditional'")
    features, both = _together(matrix, features, category, level, threshold)
    alone = both.diagonal()[:, None]
    base = alone + alone.T - both if measure == "jaccard" else np.broadcast_to(alone, both.shape)
    return pd.DataFrame(both / np.maximum(base, 1), index=features, columns=features)


def coactivation_edges(
    matrix: FeatureMatrix,
    features: Sequence[int] | None = None,
    minimum: float = 0.1,
    category: str | None = None,
    level: str = "token",
    threshold: float = 0.0,
) -> pd.DataFrame:
    """The pairs of features that fire together, as edges of a network.

    Args:
        minimum: least Jaccard overlap of an edge, 0 to 1.
        features, category, level, threshold: see `coactivation`.

    Returns:
        Columns source, target, jaccard, count (tokens or texts with both); each pair once, the closest first.
    """
    features, both = _together(matrix, features, category, level, threshold)
    rows, columns = np.triu_indices(len(features), k=1)
    count, alone = both[rows, columns], both.diagonal()
    jaccard = count / np.maximum(alone[rows] + alone[columns] - count, 1)
    ends = {"source": features[rows], "target": features[columns]}
    edges = pd.DataFrame(ends | {"jaccard": jaccard, "count": count})
    edges = edges[(count > 0) & (jaccard >= minimum)]
    return edges.sort_values("jaccard", ascending=False, kind="stable").reset_index(drop=True)


def _together(
    matrix: FeatureMatrix, features: Sequence[int] | None, category: str | None, level: str, threshold: float
) -> tuple[Int[np.ndarray, " features"], Int[np.ndarray, "features features"]]:
    """The features looked at, and in how many rows each pair of them fires."""
    if level not in ("token", "text"):
        raise ValueError(f"level is '{level}'; choose 'token' or 'text'")
    if category is not None:
        known = category_codes(matrix)[0]
        if category not in known:
            raise ValueError(f"no category '{category}' in this matrix; choose from {', '.join(known)}")
        matrix = matrix.select((matrix.table["category"] == category).to_numpy(dtype=bool))
    values = matrix.values if level == "token" else matrix.text_max()
    if features is None:
        features = best_indices(fires_above(values, threshold).getnnz(axis=0), OVERVIEW)
    features = np.array([matrix.check_feature(feature) for feature in features], dtype=np.int64)
    part = fires_above(values[:, features], threshold).astype(np.int32)
    return features, (part.T @ part).toarray()
