"""Monitors for a class of content: fitted and calibrated on one source of text, then tested on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from prism.data import TokenBatch, token_table
from prism.evaluation.metrics import bootstrap_counts, middle
from prism.evaluation.probing import Values, auc_draws, auc_interval, fit_probe, text_means, top_columns
from prism.features import encode_activations, word_features

STRENGTHS = (0.001, 0.01, 0.1)  # scikit-learn's C: from strongly to weakly held back
Estimate = tuple[float, float, float]  # a value, the lower and the upper end of its 95 % interval


def monitor_inputs(
    x: Float[Tensor, "tokens d_in"], batch: TokenBatch, tokenizer, dictionaries: dict[str, object]
) -> dict[str, Values]:
    """What monitors may read of each document: SAE features, the raw activation, its words.

    Args:
        x: the batch's kept activations at the hook (`models.kept_activations`).
        batch: one row a document.
        dictionaries: name -> SAE, or anything with `encode` and `cfg.d_sae`.

    Returns:
        name -> one row a document: each dictionary's maxima over tokens (sparse); 'raw activation', the mean over
        tokens; 'bag of words', which tokens occur.

    Raises:
        ValueError: activations of another batch.
    """
    table = token_table(batch, tokenizer)
    found = {name: encode_activations(one, [x], table).text_max() for name, one in dictionaries.items()}
    found["raw activation"] = text_means(x.numpy(), table["text"].to_numpy())
    found["bag of words"] = word_features(batch, table, len(tokenizer)).text_max()
    return found


@dataclass(frozen=True, eq=False)
class LinearMonitor:
    """A linear score on some columns of an input, and the score from which it raises the alarm.

    Attributes:
        columns: the input's columns that it reads.
        weights: of those columns, in the input's own units.
        bias: added to the weighted sum.
        threshold: the alarm is raised at this score or above.
        strength: C of the logistic regression, the best of several on the calibration units.
    """

    columns: Int[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    bias: float
    threshold: float
    strength: float

    def scores(self, values: Values) -> Float[np.ndarray, " units"]:
        """The score of each unit; log-odds as fitted, for balanced classes."""
        return np.asarray(values[:, self.columns] @ self.weights).ravel() + self.bias


def fit_monitor(
    values: Values,
    labels: Bool[np.ndarray, " units"],
    fit: Bool[np.ndarray, " units"],
    k: int | None = None,
    recall: float = 0.95,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearMonitor:
    """Logistic regression on standardised columns; all that is chosen is chosen on the units given here.

    Columns and weights come from the `fit` units. The others calibrate: they choose the strength (by AUC) and set the
    threshold. Give training sources only, and no source that is to be tested on.

    Args:
        values: one row a unit, from one of `monitor_inputs`.
        labels: which units are of the class.
        fit: units that fit; all others calibrate.
        k: read only the `k` columns of largest mean difference (`probing.top_columns`); None reads all.
        recall: share of the calibrating positives that the threshold lets raise the alarm, 0 to 1.
        strengths: values of C to choose from.

    Raises:
        ValueError: lengths that differ, or one of the two parts without both kinds of units.
    """
    from sklearn.metrics import roc_auc_score  # here, because it takes a second to import
    from sklearn.preprocessing import StandardScaler

    labels, fit = np.asarray(labels, dtype=bool), np.asarray(fit, dtype=bool)
    if not values.shape[0] == len(labels) == len(fit):
        raise ValueError(f"{values.shape[0]} units, {len(labels)} labels, {len(fit)} marks of the fitting part")
    for part, name in ((fit, "fitting"), (~fit, "calibrating")):
        if not labels[part].any() or labels[part].all():
            raise ValueError(f"the {name} units need some of the class and some that are not; give more documents")
    columns = np.arange(values.shape[1])
    if k is not None:
        columns = top_columns(values[fit], labels[fit], k, standardise=not issparse(values))
    part = values[:, columns].astype(np.float64)
    scaler = StandardScaler(with_mean=not issparse(part)).fit(part[fit])
    x = scaler.transform(part)
    tried = [(fit_probe(x[fit], labels[fit], strength), strength) for strength in strengths]
    aucs = [roc_auc_score(labels[~fit], probe.decision_function(x[~fit])) for probe, _ in tried]
    probe, strength = tried[int(np.argmax(aucs))]  # equal ones: the more strongly held back
    weights = probe.coef_[0] / scaler.scale_
    bias = float(probe.intercept_[0]) - (0.0 if issparse(part) else float(weights @ scaler.mean_))
    monitor = LinearMonitor(columns, weights, bias, 0.0, strength)
    threshold = threshold_at_recall(monitor.scores(values)[~fit], labels[~fit], recall)
    return LinearMonitor(columns, weights, bias, threshold, strength)


def random_parts(kinds: Sequence[str], n: int = 4, seed: int = 0) -> Int[np.ndarray, " units"]:
    """A part for each document, 0 to n − 1, at random; where a kind would be missing from one, its documents are dealt.

    >>> sorted(random_parts(["a", "b", "a", "b"], n=2).tolist())
    [0, 0, 1, 1]

    Args:
        kinds: of each document, the documents in random order.
        n: parts of equal size.
        seed: of the draw.
    """
    kinds, parts = pd.Series(list(kinds)), np.random.default_rng(seed).permutation(len(kinds)) % n
    counts = pd.crosstab(kinds, parts)
    missing = counts.shape[1] < n or not counts.to_numpy().all()
    return kinds.groupby(kinds).cumcount().to_numpy() % n if missing else parts


def threshold_at_recall(
    scores: Float[np.ndarray, " units"], labels: Bool[np.ndarray, " units"], recall: float = 0.95
) -> float:
    """The highest threshold at which at least `recall` of the positives score as much or more.

    >>> threshold_at_recall(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, True]), 0.6)
    2.0

    Raises:
        ValueError: no positives, or a recall that is not above 0 and at most 1.
    """
    positives = np.sort(np.asarray(scores)[np.asarray(labels, dtype=bool)])[::-1]
    if not len(positives) or not 0 < recall <= 1:
        raise ValueError(f"{len(positives)} positives, recall {recall}; need one positive and a recall in (0, 1]")
    return float(positives[_needed(recall, len(positives)) - 1])


def _needed(recall: float, positives: float | np.ndarray) -> np.ndarray:
    """How many of the positives have to be found; at least one."""
    return np.maximum(np.ceil(recall * np.asarray(positives) - 1e-9), 1).astype(int)


def operating_point(
    scores: Float[np.ndarray, " units"], labels: Bool[np.ndarray, " units"], threshold: float
) -> tuple[float, float]:
    """Recall and false-positive rate of a threshold that is given, both 0 to 1; NaN where there is no such unit.

    >>> operating_point(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 3.0)
    (0.5, 0.5)
    """
    alarm, labels = np.asarray(scores) >= threshold, np.asarray(labels, dtype=bool)
    inside, outside = (float(alarm[part].mean()) if part.any() else float("nan") for part in (labels, ~labels))
    return inside, outside


def fpr_at_recall(
    scores: Float[np.ndarray, " units"], labels: Bool[np.ndarray, " units"], recall: float = 0.95
) -> float:
    """Share of the negatives that raise the alarm at the threshold that finds `recall` of these very positives.

    >>> fpr_at_recall(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 0.95)
    0.5
    """
    return operating_point(scores, labels, threshold_at_recall(scores, labels, recall))[1]


@dataclass(frozen=True)
class MonitorReport:
    """How a monitor did on some source of text: each an estimate with its 95 % bootstrap interval over documents.

    Attributes:
        auc: chance that a document of the class scores higher than another, ties counted half.
        fpr_at_recall: false-positive rate where the threshold is moved to this source's own recall: not to be had in
            use, where nobody has labelled the new source.
        recall: realised by the monitor's own threshold, as it was set on the training sources.
        fpr: false-positive rate realised by that threshold.
    """

    auc: Estimate
    fpr_at_recall: Estimate
    recall: Estimate
    fpr: Estimate


def monitor_report(
    monitor: LinearMonitor,
    values: Values,
    labels: Bool[np.ndarray, " units"],
    recall: float = 0.95,
    n: int = 1000,
    seed: int = 0,
) -> MonitorReport:
    """Test a monitor on documents of one source, resampling the documents for the intervals.

    Args:
        values: the same input as it was fitted on, of other documents.
        labels: which of them are of the class.
        recall: for `fpr_at_recall`.
        n: bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: documents without both kinds.
    """
    labels, scores = np.asarray(labels, dtype=bool), monitor.scores(values)
    if not labels.any() or labels.all():
        raise ValueError("a test needs documents of the class and documents that are not")
    counts = bootstrap_counts(len(labels), n, seed)
    alarm = scores >= monitor.threshold
    realised = operating_point(scores, labels, monitor.threshold)
    with np.errstate(invalid="ignore"):
        rates = [(counts @ (alarm & part)) / (counts @ part) for part in (labels, ~labels)]
    moved = fpr_at_recall(scores, labels, recall)
    return MonitorReport(
        auc=auc_interval(scores, labels, n=n, seed=seed),
        fpr_at_recall=(moved, *middle(_fpr_draws(scores, labels, counts, recall))),
        recall=(realised[0], *middle(rates[0])),
        fpr=(realised[1], *middle(rates[1])),
    )


def _fpr_draws(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray, recall: float) -> np.ndarray:
    """`fpr_at_recall` of each resample."""
    order = np.argsort(-scores, kind="stable")
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1  # of the units that tie with each
    found = np.cumsum(counts[:, order] * labels[order], axis=1)
    false = np.cumsum(counts[:, order] * ~labels[order], axis=1)
    wanted = _needed(recall, found[:, -1])
    at = last[np.argmax(found >= wanted[:, None], axis=1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = false[np.arange(len(at)), at] / false[:, -1]
    return np.where(found[:, -1] > 0, rate, np.nan)


def auc_difference(
    a: Float[np.ndarray, "classes units"],
    b: Float[np.ndarray, "classes units"],
    labels: Bool[np.ndarray, "classes units"],
    n: int = 1000,
    seed: int = 0,
) -> Estimate:
    """AUC of one monitor minus that of another on the same documents, averaged over classes of content.

    The documents are resampled once for both monitors and for all classes, so what is hard for both cancels.

    Args:
        a: scores, a row for each class; b: those of the other monitor.
        labels: which documents are of each class.
        n: resamples.
        seed: of the resamples.

    Raises:
        ValueError: shapes that differ.
    """
    a, b, labels = (np.atleast_2d(part) for part in (a, b, labels))
    if not a.shape == b.shape == labels.shape:
        raise ValueError(f"scores {a.shape} and {b.shape}, labels {labels.shape}; need one shape, classes by documents")
    counts = bootstrap_counts(labels.shape[1], n, seed)
    counts = np.concatenate([np.ones((1, labels.shape[1]), dtype=counts.dtype), counts])  # first, all as they are
    draws = [auc_draws(x, y, counts) - auc_draws(z, y, counts) for x, z, y in zip(a, b, labels, strict=True)]
    mean = np.mean(draws, axis=0)
    return (float(mean[0]), *middle(mean[1:]))


def roc_band(
    scores: Float[np.ndarray, " units"],
    labels: Bool[np.ndarray, " units"],
    points: int = 101,
    n: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """A ROC curve with a 95 % band: recall at each false-positive rate, documents resampled.

    Returns:
        Columns fpr (evenly spaced, 0 to 1), recall, low, high: step-wise, the best recall at no more than that rate.
    """
    from sklearn.metrics import roc_curve  # here, because it takes a second to import

    labels = np.asarray(labels, dtype=bool)
    grid = np.linspace(0, 1, points)

    def curve(weight: np.ndarray) -> np.ndarray:
        fpr, recall, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
        return recall[np.searchsorted(fpr, grid + 1e-12, side="right") - 1]

    drawn = bootstrap_counts(len(labels), n, seed)
    drawn = drawn[((drawn @ labels) > 0) & ((drawn @ ~labels) > 0)]
    low, high = np.quantile([curve(row) for row in drawn], [0.025, 0.975], axis=0)
    return pd.DataFrame({"fpr": grid, "recall": curve(np.ones(len(labels))), "low": low, "high": high})


def silent_share(values: csr_matrix, labels: Bool[np.ndarray, " units"], columns: Sequence[int]) -> float:
    """Share of the class's units on which none of some features fires: what no threshold on these can ever find.

    Whether the features were absorbed into others or never stood for the class, the monitor is blind there.

    Raises:
        ValueError: no unit of the class.
    """
    labels = np.asarray(labels, dtype=bool)
    if not labels.any():
        raise ValueError("no unit is of the class; check the labels")
    fires = values[np.flatnonzero(labels)][:, list(columns)].getnnz(axis=1)
    return float((fires == 0).mean())
