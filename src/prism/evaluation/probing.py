"""Sparse probes: is a concept readable off a few features, and would something simpler have read it as well?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csr_matrix, issparse

from prism.evaluation.metrics import bootstrap_counts, middle

Values = csr_matrix | Float[np.ndarray, "units columns"]


@dataclass(frozen=True, eq=False)
class ProbeScore:
    """How well one probe told a concept's units from others that it had not seen.

    Attributes:
        auc: chance that a unit with the concept gets the higher score, ties counted half.
        low: lower end of its 95 % interval; NaN where the held-out half has one group only.
        high: upper end.
        columns: the columns read, the most telling first.
    """

    auc: float
    low: float
    high: float
    columns: Int[np.ndarray, " k"]


def text_means(
    activations: Float[np.ndarray, "tokens d_in"], texts: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, "texts d_in"]:
    """Mean raw activation of each text: what a dense probe on texts reads (a maximum suits features, not channels).

    Args:
        texts: the text of each token, 0 to n − 1, none left out.
    """
    counts = np.bincount(texts)
    ones = csr_matrix((1 / counts[texts], (texts, np.arange(len(texts)))))
    return ones @ np.asarray(activations, dtype=np.float64)


def top_columns(
    values: Values, labels: Bool[np.ndarray, " units"], k: int, standardise: bool = False
) -> Int[np.ndarray, " k"]:
    """The `k` columns whose mean differs most between units with and without the concept, the largest first.

    Args:
        standardise: divide each column's difference by its standard deviation (for channels of different scales).
    """
    inside, outside = (np.asarray(values[part].mean(0), dtype=np.float64).ravel() for part in (labels, ~labels))
    difference = np.abs(inside - outside)
    if standardise:
        mean, power = (np.asarray(x.mean(0)).ravel() for x in (values, _square(values)))
        difference = difference / np.sqrt(np.maximum(power - mean**2, 1e-12))
    return np.argsort(-difference, kind="stable")[:k]


def _square(values: Values) -> Values:
    return values.multiply(values) if issparse(values) else np.square(values)


def sparse_probe_auc(
    values: Values,
    labels: Bool[np.ndarray, " units"],
    train: Bool[np.ndarray, " units"],
    k: int | None = 1,
    groups: Shaped[np.ndarray, " units"] | None = None,
    standardise: bool = False,
    n: int = 1000,
    seed: int = 0,
) -> ProbeScore:
    """Logistic regression on the `k` most telling columns, both found on the train half; AUC on the other half.

    Columns are chosen by the difference of class means (Gurnee et al. 2023, arXiv 2305.01610; SAEBench), and divided
    by their standard deviation on the train half before the regression.

    Args:
        values: one row a unit (a text, or a token), one column a feature, channel or word.
        labels: which units have the concept.
        train: which units are the train half; all others are for the AUC.
        k: columns; None for all of them, which makes it a dense probe.
        groups: units of the same group are resampled together: give the texts where the units are tokens. A text
            whose tokens are in both halves would flatter.
        standardise: see `top_columns`; changes the choice only.
        n: bootstrap resamples of the held-out units (or groups).
        seed: of the resamples.

    Raises:
        ValueError: lengths that differ, or a train half without both kinds of units.
    """
    labels, train = np.asarray(labels, dtype=bool), np.asarray(train, dtype=bool)
    if not values.shape[0] == len(labels) == len(train):
        raise ValueError(f"{values.shape[0]} units, {len(labels)} labels, {len(train)} marks of the train half")
    if not labels[train].any() or labels[train].all():
        raise ValueError("the train half needs units with the concept and units without it")
    chosen = np.arange(values.shape[1]) if k is None else top_columns(values[train], labels[train], k, standardise)
    x = _scaled(values[:, chosen], train)
    probe = fit_probe(x[train], labels[train])
    scores = probe.decision_function(x[~train])
    held_groups = None if groups is None else np.asarray(groups)[~train]
    auc, low, high = auc_interval(scores, labels[~train], held_groups, n, seed)
    order = np.argsort(-np.abs(probe.coef_[0]), kind="stable") if k is None else np.arange(len(chosen))
    return ProbeScore(auc, low, high, chosen[order])


def fit_probe(x: Values, labels: Bool[np.ndarray, " units"], strength: float = 1.0):
    """scikit-learn's logistic regression with both kinds of units weighing the same; `strength` is its `C`."""
    from sklearn.exceptions import ConvergenceWarning  # here, because it takes a second to import
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable data: the order of scores is settled early
        return LogisticRegression(max_iter=300, class_weight="balanced", C=strength).fit(x, labels)


def _scaled(x: Values, train: Bool[np.ndarray, " units"]) -> Values:
    """Columns at standard deviation 1 on the train half; dense ones at mean 0 too."""
    mean, power = (np.asarray(part[train].mean(0)).ravel().astype(np.float64) for part in (x, _square(x)))
    spread = np.sqrt(np.maximum(power - mean**2, 0))
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    if issparse(x) and x.shape[1] > 64:
        return csr_matrix(x.multiply(scale))
    dense = x.toarray() if issparse(x) else np.asarray(x)
    return (dense - mean) * scale


def auc_interval(
    scores: Float[np.ndarray, " units"],
    labels: Bool[np.ndarray, " units"],
    groups: Shaped[np.ndarray, " units"] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUC with a 95 % bootstrap interval over units, or over whole groups of them.

    Returns:
        AUC, lower and upper end; NaN where one of the two kinds is missing.
    """
    codes = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = bootstrap_counts(int(codes.max()) + 1, n, seed)
    found = auc_draws(scores, labels, chain([np.ones(len(scores))], (row[codes] for row in counts)))
    return float(found[0]), *middle(found[1:])


def auc_draws(
    scores: Float[np.ndarray, " units"],
    labels: Bool[np.ndarray, " units"],
    counts: Iterable[Float[np.ndarray, " units"]],
) -> Float[np.ndarray, " draws"]:
    """AUC of each resample, given how often each unit is in it; NaN where one kind is missing.

    >>> auc_draws(np.array([2.0, 1.0, 1.0]), np.array([True, False, True]), np.array([[1, 1, 1], [2, 1, 0]])).tolist()
    [0.75, 1.0]
    """
    labels, ranks = np.asarray(labels, dtype=bool), np.unique(scores, return_inverse=True)[1]
    draws = []
    for weight in counts:  # units of one rank are tied
        inside, outside = (np.bincount(ranks[part], weight[part], ranks.max() + 1) for part in (labels, ~labels))
        pairs, below = inside.sum() * outside.sum(), np.cumsum(outside) - outside / 2
        draws.append((inside * below).sum() / pairs if pairs else np.nan)
    return np.array(draws)
