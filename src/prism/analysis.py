"""Discovery on a `FeatureMatrix`: rankings, specialists, concepts, co-activation; and the controls that test them.

A feature *fires* on a text where its activation there, the maximum over the text's tokens, is strictly above a
threshold. All counting is sparse: a feature's texts per category are one product with an indicator matrix.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.stats import hypergeom

from prism.data import CATEGORIES
from prism.features import FeatureMatrix

NULL_BYTES = 2**25  # size of one block of the permutation null: small enough to stay near the processor
OVERVIEW = 30  # features that `coactivation` shows when none are named

# rankings


def strongest(matrix: FeatureMatrix, k: int = 20) -> pd.DataFrame:
    """The features with the largest activation on any token.

    Returns:
        Columns feature, max_activation, density (share of tokens), texts (on which it fires), and the token, text
        and category (if any) of its strongest firing. Features that never fire are left out.
    """
    peak = matrix.max_activation()
    features = _best(peak, k)
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
    features = _best(counts, k)
    total = matrix.n_tokens if by == "token" else matrix.n_texts
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
    names, codes = _labels(matrix)
    peaks = matrix.text_max()
    means = (_indicator(codes, len(names)) @ peaks).toarray() / np.bincount(codes, minlength=len(names))[:, None]
    selectivity = means.max(0) / np.maximum(means.sum(0), np.finfo(np.float32).tiny)
    texts = peaks.getnnz(axis=0)
    order = np.lexsort((-means.max(0), -texts, -selectivity.round(6)))
    features = order[texts[order] >= max(min_texts, 1)][:k]
    return _describe(matrix, features).assign(
        category=[names[i] for i in means[:, features].argmax(0)],
        selectivity=selectivity[features],
        mean_inside=means.max(0)[features],
    )


def _best(score: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` largest scores above zero, the largest first, ties to the lower index."""
    order = np.argsort(-score, kind="stable")[:k]
    return order[score[order] > 0]


def _describe(matrix: FeatureMatrix, features: np.ndarray) -> pd.DataFrame:
    """What every ranking says of its features."""
    part = FeatureMatrix(matrix.values[:, features], matrix.table)
    return pd.DataFrame({
        "feature": features, "max_activation": part.max_activation(), "density": part.density(),
        "texts": part.text_max().getnnz(axis=0),
    })  # fmt: skip


def _labels(matrix: FeatureMatrix) -> tuple[list[str], Int[np.ndarray, " texts"]]:
    """The categories' names in the project's order (others after, sorted), and each text's place among them."""
    categories = matrix.text_categories()
    found = set(categories.tolist())
    names = [name for name in CATEGORIES if name in found] + sorted(found.difference(CATEGORIES))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[name] for name in categories.tolist()], dtype=np.int64)


def _indicator(codes: Int[np.ndarray, " texts"], n: int) -> csr_matrix:
    """`[n, texts]`: 1 where the text has that code, so that a product with it sums within categories."""
    ones = np.ones(len(codes), np.float32)
    return csr_matrix((ones, (codes, np.arange(len(codes)))), shape=(n, len(codes)))


def _above(values: csr_matrix, threshold: float) -> csr_matrix:
    """1 where a stored value is strictly above the threshold, compared in the values' own precision."""
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; activations start at 0, so give 0 or more")
    fires = (values.data > values.dtype.type(threshold)).astype(np.float32)
    fires = csr_matrix((fires, values.indices.copy(), values.indptr.copy()), shape=values.shape)
    fires.eliminate_zeros()
    return fires


# specialists


def specialist_scores(matrix: FeatureMatrix, threshold: float = 0.0) -> pd.DataFrame:
    """Every feature's specialist score for every category.

    score = (texts inside the category that fire) − (texts outside it that fire) = 2 inside − all that fire.

    Args:
        threshold: a text fires if its activation is strictly above this (activation units, 0 or more).

    Returns:
        One row per feature and category, feature by feature: feature, category, inside, outside, score (texts), and
        mean_inside, the mean activation over all the category's texts, silent ones included.
    """
    names, codes = _labels(matrix)
    peaks, indicator = matrix.text_max(), _indicator(codes, len(names))
    fires = _above(peaks, threshold)
    inside = (indicator @ fires).toarray().T.astype(np.int64)  # [d_sae, categories]
    outside = inside.sum(1, keepdims=True) - inside
    means = (indicator @ peaks).toarray().T / np.bincount(codes, minlength=len(names))
    return pd.DataFrame({
        "feature": np.repeat(np.arange(matrix.d_sae), len(names)),
        "category": pd.Categorical.from_codes(np.tile(np.arange(len(names)), matrix.d_sae), names, ordered=True),
        "inside": inside.ravel(), "outside": outside.ravel(), "score": (inside - outside).ravel(),
        "mean_inside": means.ravel(),
    })  # fmt: skip


def specialists(matrix: FeatureMatrix, k: int = 5, threshold: float = 0.0) -> pd.DataFrame:
    """The best specialists of each category, by score, then by mean activation inside.

    Only scores above zero count, so that a feature stands under one category only, and a category may have fewer
    than `k` rows. These are the winners of a search over all features: hold them against `permutation_null` and
    test them with `confirm`.

    Args:
        k: features a category; 1 for the single best of each.
        threshold: see `specialist_scores`.

    Returns:
        The rows of `specialist_scores`, category by category, best first.
    """
    scores = specialist_scores(matrix, threshold)
    scores = scores[scores["score"] > 0]
    order = ["category", "score", "mean_inside", "feature"]
    scores = scores.sort_values(order, ascending=[True, False, False, True])
    return scores.groupby("category", observed=True).head(k).reset_index(drop=True)


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
    names, codes = _labels(matrix)
    fires = _above(matrix.text_max(), threshold).T.tocsr()  # [d_sae, texts]
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

    Nothing is searched here, so each feature gets an exact one-sided p: with `N` texts, `n` of them in the category
    and `K` on which the feature fires, the chance of `inside` or more by the hypergeometric distribution (Fisher's
    exact test). Holm's correction covers the features tested.

    Args:
        found: from `specialists`, with the columns feature and category.
        matrix: the held-out texts through the same SAE.
        threshold: as in the search.
        alpha: family-wise error over the rows of `found`.

    Returns:
        In the order of `found`: feature, category, found_score (if `found` has a score); inside, outside, score,
        mean_inside on the held-out texts; p_value, p_holm; held, True where p_holm < alpha and the score is above 0.

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
    size = np.bincount(_labels(matrix)[1], minlength=len(names))[codes]
    p = hypergeom.sf(out["inside"] - 1, matrix.n_texts, out["inside"] + out["outside"], size)
    corrected = holm(p)
    return out.assign(p_value=p, p_holm=corrected, held=(corrected < alpha) & (out["score"] > 0))


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


# concepts


def composite_score(activations: Float[np.ndarray, " texts"], threshold: float = 0.0) -> float:
    """How well one feature covers a concept's texts: share of them that fire, in %, times the mean activation.

    >>> composite_score([9.0, 10.84])  # 100 % × 9.92
    992.0
    >>> composite_score([8.0, 0.0])  # 50 % × 4
    200.0

    Args:
        activations: the feature's activation on each of the concept's texts, silent ones included.
        threshold: a text fires if its activation is strictly above this.

    Raises:
        ValueError: no texts.
    """
    activations = np.asarray(activations, dtype=float)
    if activations.size == 0:
        raise ValueError("composite_score needs at least one text of the concept")
    return float(100 * (activations > threshold).mean() * activations.mean())


def find_features_for_concept(
    concept: FeatureMatrix, background: FeatureMatrix | None = None, threshold: float = 0.0, k: int = 20,
    max_background: float = 1.0,
) -> pd.DataFrame:  # fmt: skip
    """The features that cover a concept's texts best, by composite score.

    A feature that fires on everything scores high as well; its background share shows it up.

    Args:
        concept: texts that share the concept (`matrix.select` takes them out of a larger matrix).
        background: texts without the concept, through the same SAE.
        threshold: a text fires if its activation is strictly above this.
        k: features.
        max_background: leave out features that fire on a larger share of the background than this.

    Returns:
        Columns feature, share (of the concept's texts that fire, 0 to 1), mean_activation (over all its texts),
        composite_score; with a background also background_share. Features that never fire are left out.

    Raises:
        ValueError: no texts of the concept, or a background from another SAE.
    """
    if not concept.n_texts:
        raise ValueError("the concept has no texts; give at least one")
    peaks = concept.text_max()
    share = _above(peaks, threshold).getnnz(axis=0) / concept.n_texts
    mean = np.asarray(peaks.sum(0, dtype=np.float64)).ravel() / concept.n_texts
    score = 100 * share * mean
    columns = {"share": share, "mean_activation": mean, "composite_score": score}
    if background is not None:
        if background.d_sae != concept.d_sae:
            raise ValueError(f"{background.d_sae} background features, {concept.d_sae} concept features; use one SAE")
        fires = _above(background.text_max(), threshold).getnnz(axis=0)
        columns["background_share"] = fires / max(background.n_texts, 1)
        score = np.where(columns["background_share"] <= max_background, score, 0.0)
    features = _best(score, k)
    return pd.DataFrame({"feature": features} | {name: values[features] for name, values in columns.items()})


# co-activation


def coactivation(
    matrix: FeatureMatrix, features: Sequence[int] | None = None, category: str | None = None, level: str = "token",
    measure: str = "jaccard", threshold: float = 0.0,
) -> pd.DataFrame:  # fmt: skip
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
    matrix: FeatureMatrix, features: Sequence[int] | None = None, minimum: float = 0.1, category: str | None = None,
    level: str = "token", threshold: float = 0.0,
) -> pd.DataFrame:  # fmt: skip
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
        known = _labels(matrix)[0]
        if category not in known:
            raise ValueError(f"no category '{category}' in this matrix; choose from {', '.join(known)}")
        matrix = matrix.select((matrix.table["category"] == category).to_numpy(dtype=bool))
    values = matrix.values if level == "token" else matrix.text_max()
    if features is None:
        features = _best(_above(values, threshold).getnnz(axis=0), OVERVIEW)
    features = np.array([matrix.check_feature(feature) for feature in features], dtype=np.int64)
    part = _above(values[:, features], threshold).astype(np.int32)
    return features, (part.T @ part).toarray()


# intervals and claims


def bootstrap_interval(
    values: Float[np.ndarray, "samples ..."], statistic: Callable = np.mean, n: int = 2000, level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Percentile bootstrap interval of a statistic (Efron 1979): resample the rows, take the middle `level`.

    Args:
        values: independent samples along the first axis: texts or sequences, not the tokens within one.
        statistic: takes an array like `values`, returns a number.
        n: resamples.
        level: coverage, between 0 and 1.
        seed: of the resamples.

    Raises:
        ValueError: no samples, NaN among them, or a level that is not between 0 and 1.
    """
    values = np.asarray(values)
    if not len(values) or np.isnan(values).any():
        raise ValueError("bootstrap_interval needs at least one sample and no NaN; drop the missing ones first")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a share between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    estimates = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(n)]
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class ClaimCard:
    """One finding, with what it was held against.

    Attributes:
        claim: the finding, in a sentence.
        effect: its size, with the unit.
        interval: of the effect, and of what kind.
        control: what it was compared with, and the control's value.
        refuted_by: what result would refute the claim.
        supported: the verdict, as computed.
    """

    claim: str
    effect: str
    interval: str
    control: str
    refuted_by: str
    supported: bool

    def __post_init__(self) -> None:
        if not isinstance(self.supported, (bool, np.bool_)):
            raise TypeError(f"supported is {self.supported!r}; compute it as True or False")

    @property
    def verdict(self) -> str:
        """'supported' or 'not supported'."""
        return "supported" if self.supported else "not supported"

    def _rows(self) -> list[tuple[str, str]]:
        fields = ("effect", "interval", "control", "refuted_by")
        rows = [(name.replace("_", " "), str(getattr(self, name))) for name in fields]
        return [*rows, ("verdict", self.verdict)]

    def __str__(self) -> str:
        lines = textwrap.wrap(str(self.claim), 76) + ["─" * 76]
        for name, text in self._rows():
            lines += textwrap.wrap(text, 76, initial_indent=f"{name:<12}", subsequent_indent=" " * 12)
        body = [f"│ {line:<76} │" for line in lines]
        return "\n".join(["┌" + "─" * 78 + "┐", *body, "└" + "─" * 78 + "┘"])

    def _repr_markdown_(self) -> str:
        def safe(text: str) -> str:
            return html.escape(" ".join(text.split())).replace("|", "&#124;")

        rows = "\n".join(f"| {name} | {safe(text)} |" for name, text in self._rows())
        return f"| claim | {safe(str(self.claim))} |\n|:--|:--|\n{rows}"

    def print(self) -> None:
        """Print the card as plain text."""
        print(self)
