"""Features that specialise in a category, and the controls that test them: a null of the search, held-out texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from prism.analysis.counting import category_codes, category_indicator, fires_above
from prism.features import FeatureMatrix

NULL_BYTES = 2**25  # size of one block of the permutation null: small enough to stay near the processor


Counts = Int[np.ndarray, " rows"]


def fisher_p(inside: Counts, outside: Counts, n_inside: Counts, n_outside: Counts) -> Float[np.ndarray, " rows"]:
    """Fisher's exact one-sided p: the chance of `inside` or more, had as many texts fired whatever their category.

    The hypergeometric distribution: `inside + outside` of all texts fire, and `n_inside` of them are in the category.

    >>> print(f"{7 / 10 - 10 / 60:+.3f}, p = {fisher_p(7, 10, 10, 60):.4f}")  # 7 of 10 inside, 10 of 60 outside
    +0.533, p = 0.0012
    """
    return hypergeom.sf(np.asarray(inside) - 1, np.add(n_inside, n_outside), np.add(inside, outside), n_inside)


def specialist_scores(matrix: FeatureMatrix, threshold: float = 0.0) -> pd.DataFrame:
    """Every feature's specialist score for every category.

    score = (texts inside the category that fire) − (texts outside it that fire) = 2 inside − all that fire. It ignores
    how many texts there are of either; rate_difference, the share inside that fires − the share outside, does not.

    Args:
        threshold: a text fires if its activation is strictly above this (activation units, 0 or more).

    Returns:
        One row per feature and category, feature by feature: feature, category, inside, outside, score (texts),
        rate_difference (−1 to 1), and mean_inside, the mean activation over all the category's texts, silent ones
        included.
    """
    names, codes = category_codes(matrix)
    peaks, indicator = matrix.text_max(), category_indicator(codes, len(names))
    fires = fires_above(peaks, threshold)
    inside = (indicator @ fires).toarray().T.astype(np.int64)  # [d_sae, categories]
    outside = inside.sum(1, keepdims=True) - inside
    size = np.bincount(codes, minlength=len(names))
    means = (indicator @ peaks).toarray().T / size
    rates = inside / size - outside / np.maximum(len(codes) - size, 1)
    return pd.DataFrame(
        {
            "feature": np.repeat(np.arange(matrix.d_sae), len(names)),
            "category": pd.Categorical.from_codes(np.tile(np.arange(len(names)), matrix.d_sae), names, ordered=True),
            "inside": inside.ravel(),
            "outside": outside.ravel(),
            "score": (inside - outside).ravel(),
            "rate_difference": rates.ravel(),
            "mean_inside": means.ravel(),
        }
    )


def specialists(matrix: FeatureMatrix, k: int = 5, threshold: float = 0.0, positive: bool = True) -> pd.DataFrame:
    """The best specialists of each category, by score, then by mean activation inside.

    Only scores above zero count, so that a feature stands under one category only, and a category may have fewer
    than `k` rows. These are the winners of a search over all features: hold them against `permutation_null` and
    test them with `confirm`.

    Args:
        k: features a category; 1 for the single best of each.
        threshold: see `specialist_scores`.
        positive: False lets a category whose every score is zero or below keep its best, among features that fire in
            one of its texts.

    Returns:
        The rows of `specialist_scores`, category by category, best first, with fisher_p: of a winner of a search it
        is far too small, see `confirm`.
    """
    scores = specialist_scores(matrix, threshold)
    scores = scores[scores["score" if positive else "inside"] > 0]
    order = ["category", "score", "mean_inside", "feature"]
    scores = scores.sort_values(order, ascending=[True, False, False, True])
    return _with_fisher(scores.groupby("category", observed=True).head(k).reset_index(drop=True), matrix)


def _with_fisher(rows: pd.DataFrame, matrix: FeatureMatrix) -> pd.DataFrame:
    """Rows of `specialist_scores` with Fisher's p. (All of them at once would take as long as the search.)"""
    size = np.bincount(category_codes(matrix)[1])[rows["category"].cat.codes]
    return rows.assign(fisher_p=fisher_p(rows["inside"], rows["outside"], size, matrix.n_texts - size))


@dataclass(frozen=True, eq=False)
class Null:
    """What the whole search finds when there is nothing to find.

    Attributes:
        scores: `[permutations, categories]`, the maximum specialist score over all features under shuffled labels.
        categories: the columns' names.
    """

    scores: Int[np.ndarray, "permutations categories"]
    categories: tuple[str, ...]

    def p_value(self, category: str | None, score: float | np.ndarray) -> float | np.ndarray:
        """Chance that a search without signal finds this score or more: `(1 + #{null ≥ score}) / (1 + n)`.

        The true labelling counts as one of the permutations, so p is never 0 (Phipson & Smyth 2010).

        Args:
            category: a search over all features for one category; None for one over all categories too.
            score: one score, or an array of them.

        Raises:
            ValueError: unknown category.
        """
        null = self.scores.max(1) if category is None else self.scores[:, self._column(category)]
        at_least = len(null) - np.searchsorted(np.sort(null), score, side="left")
        return (1 + at_least) / (1 + len(null))

    def quantile(self, q: float) -> pd.Series:
        """The `q`-quantile of the null by category (rounded up to a score that occurs)."""
        return pd.Series(np.quantile(self.scores, q, axis=0, method="higher"), index=list(self.categories))

    def _column(self, category: str) -> int:
        if category not in self.categories:
            raise ValueError(f"no category '{category}' in this null; choose from {', '.join(self.categories)}")
        return self.categories.index(category)


def permutation_null(matrix: FeatureMatrix, n: int = 1000, threshold: float = 0.0, seed: int = 0) -> Null:
    """Repeat the search for specialists under shuffled text labels, and keep the best score it finds.

    Texts keep all their features, so that features stay as correlated as they are; only the labels move. Taking the
    maximum over all features controls the family-wise error of the whole search (Westfall & Young 1993).

    Args:
        n: permutations.
        threshold: as in the search.
        seed: of the shuffles.

    Raises:
        ValueError: fewer than one permutation, or texts without categories.
    """
    if n < 1:
        raise ValueError(f"{n} permutations; give at least 1, better 1,000")
    names, codes = category_codes(matrix)
    fires = fires_above(matrix.text_max(), threshold).T.tocsr()  # [d_sae, texts]
    total = np.asarray(fires.sum(1), np.float32)  # [d_sae, 1], the same under every labelling
    rng = np.random.default_rng(seed)
    block = max(1, NULL_BYTES // (4 * max(1, matrix.d_sae) * len(names)))
    scores = []
    for start in range(0, n, block):
        shuffled = rng.permuted(np.tile(codes, (min(block, n - start), 1)), axis=1)  # [block, texts]
        labels = shuffled.T[:, :, None] == np.arange(len(names))
        inside = fires @ labels.reshape(len(codes), -1).astype(np.float32)  # [d_sae, block * categories]
        inside *= 2
        inside -= total
        scores.append(inside.max(0).reshape(-1, len(names)))
    return Null(np.concatenate(scores).astype(np.int64), tuple(names))


def survivors(found: pd.DataFrame, null: Null, alpha: float = 0.05) -> pd.DataFrame:
    """Add to found specialists whether they beat chance, allowing for the whole search.

    Args:
        found: from `specialists`; needs the column score.
        null: from `permutation_null` on the same matrix with the same threshold.
        alpha: chance of even one false survivor if nothing were there.

    Returns:
        `found` with p_value (corrected for the search over all features and all categories) and survives.
    """
    p = np.asarray(null.p_value(None, found["score"].to_numpy()), dtype=float)
    return found.assign(p_value=p, survives=p <= alpha)


def confirm(found: pd.DataFrame, matrix: FeatureMatrix, threshold: float = 0.0, alpha: float = 0.05) -> pd.DataFrame:
    """Test found specialists on texts that the search never saw.

    Nothing is searched here, so Fisher's exact p is each feature's own. Holm's correction covers the rows of `found`.

    Args:
        found: from `specialists`, with the columns feature and category.
        matrix: the held-out texts through the same SAE.
        threshold: as in the search.
        alpha: family-wise error over the rows of `found`.

    Returns:
        In the order of `found`: feature, category, found_score (if `found` has a score); inside, outside, score,
        rate_difference, mean_inside, fisher_p on the held-out texts; p_holm; held, True where p_holm < alpha: the
        feature fires on a larger share of the category's texts than of the others, whatever the score.

    Raises:
        IndexError: a feature that this matrix has not.
        ValueError: a category that these texts have not.
    """
    scores = specialist_scores(matrix, threshold)
    names = list(scores["category"].cat.categories)
    if missing := sorted(set(found["category"]).difference(names)):
        raise ValueError(f"no held-out text of category '{missing[0]}'; these have {', '.join(names)}")
    features = np.array([matrix.check_feature(feature) for feature in found["feature"]], dtype=np.int64)
    codes = np.array([names.index(category) for category in found["category"]], dtype=np.int64)
    out = scores.iloc[features * len(names) + codes].reset_index(drop=True)
    if "score" in found:
        out.insert(2, "found_score", found["score"].to_numpy())
    out = _with_fisher(out, matrix)
    corrected = holm(out["fisher_p"])
    return out.assign(p_holm=corrected, held=corrected < alpha)


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Holm's step-down correction: the smallest p times m, the next times m − 1, …, never falling, at most 1.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected
