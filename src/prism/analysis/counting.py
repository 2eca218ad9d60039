"""What the analyses share: which scores are best, which texts are in a category, what fires."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_matrix

from prism.data import CATEGORIES
from prism.features import FeatureMatrix


def as_array(values: object) -> np.ndarray:
    """A float numpy array from a list, a numpy array or a torch tensor (with or without gradient)."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


def best_indices(score: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` largest scores above zero, the largest first, ties to the lower index."""
    order = np.argsort(-score, kind="stable")[:k]
    return order[score[order] > 0]


def category_codes(matrix: FeatureMatrix) -> tuple[list[str], Int[np.ndarray, " texts"]]:
    """The categories' names in the project's order (others after, sorted), and each text's place among them."""
    categories = matrix.text_categories()
    found = set(categories.tolist())
    names = [name for name in CATEGORIES if name in found] + sorted(found.difference(CATEGORIES))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[name] for name in categories.tolist()], dtype=np.int64)


def category_indicator(codes: Int[np.ndarray, " texts"], n: int) -> csr_matrix:
    """`[n, texts]`: 1 where the text has that code, so that a product with it sums within categories."""
    ones = np.ones(len(codes), np.float32)
    return csr_matrix((ones, (codes, np.arange(len(codes)))), shape=(n, len(codes)))


def fires_above(values: csr_matrix, threshold: float) -> csr_matrix:
    """1 where a stored value is strictly above the threshold, compared in the values' own precision."""
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; activations start at 0, so give 0 or more")
    fires = (values.data > values.dtype.type(threshold)).astype(np.float32)
    fires = csr_matrix((fires, values.indices.copy(), values.indptr.copy()), shape=values.shape)
    fires.eliminate_zeros()
    return fires
