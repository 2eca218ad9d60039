"""Monitors for a kind of text: fitted and calibrated on one source, tested on another, and asked for their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from prism.data import CATEGORIES, TokenBatch, corpus_batch, corpus_documents, load_corpus, load_texts, token_table
from prism.evaluation.metrics import bootstrap_counts, middle
from prism.features import FeatureMatrix, encode_activations, word_features

STRENGTHS = (0.001, 0.01, 0.1)  # scikit-learn's C: from strongly to weakly held back
Values = csr_matrix | Float[np.ndarray, "units columns"]


def text_means(
    activations: Float[np.ndarray, "tokens ..."], texts: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, "texts ..."]:
    """Mean over the tokens of each text (or over the pairs of each template).

    Args:
        texts: the text of each token, 0 to n − 1, none left out.
    """
    counts = np.bincount(texts)
    ones = csr_matrix((1 / counts[texts], (texts, np.arange(len(texts)))))
    return ones @ np.asarray(activations, dtype=np.float64)


def load_sources(
    tokenizer, documents: int, context: int, seed: int = 0
) -> tuple[dict[str, pd.DataFrame], dict[str, TokenBatch]]:
    """The two sources of texts: 'known', which SmolLM2 wrote, and 'new', which people wrote for this project.

    Args:
        documents: of each kind in the known source.
        context: tokens kept of a document, BOS included.
        seed: of the draw from the known source.

    Returns:
        'known' and 'new' -> a row a document (kind, text; of the new ones also half, 'discover' before 'confirm'), and
        -> their tokens, row by row.
    """
    written = load_corpus("smollm2", seed=seed).replace({"kind": {"web": "urls"}}).groupby("kind").head(documents)
    people = pd.concat([load_texts(half).assign(half=half) for half in ("discover", "confirm")], ignore_index=True)
    sources = {"known": written, "new": people.rename(columns={"category": "kind"})}
    frames = {name: corpus_documents(frame, tokenizer, context) for name, frame in sources.items()}
    return frames, {name: corpus_batch(frame, tokenizer, context) for name, frame in frames.items()}


def monitor_inputs(
    x: Float[Tensor, "tokens d_in"], batch: TokenBatch, tokenizer, dictionaries: dict[str, object]
) -> tuple[dict[str, Values], FeatureMatrix]:
    """What monitors may read of each document, and the first dictionary's features token by token.

    Args:
        x: the batch's kept activations at the hook (`models.kept_activations`).
        batch: one row a document.
        dictionaries: name -> SAE, or anything with `encode` and `cfg.d_sae`.

    Returns:
        name -> one row a document: each dictionary's maxima over tokens (sparse); 'raw activation', the mean over
        tokens, massive ones left out; 'bag of words', which tokens occur.
    """
    table = token_table(batch, tokenizer)
    read = {name: encode_activations(one, [x], table) for name, one in dictionaries.items()}
    found, matrix = {name: one.text_max() for name, one in read.items()}, next(iter(read.values()))
    ordinary = ~matrix.table.get("massive", pd.Series(False, table.index)).to_numpy()
    found["raw activation"] = text_means(x.numpy()[ordinary], table["text"].to_numpy()[ordinary])
    found["bag of words"] = word_features(batch, table, len(tokenizer)).text_max()
    return found, matrix


def random_parts(kinds: Sequence[str], n: int = 4, seed: int = 0) -> Int[np.ndarray, " units"]:
    """A part for each document, 0 to n − 1: the documents of each kind are dealt out in a random order.

    >>> sorted(random_parts(["a", "b", "a", "b"], n=2).tolist())
    [0, 0, 1, 1]
    """
    order = np.random.default_rng(seed).permutation(len(kinds))
    dealt = pd.Series(np.asarray(kinds)[order]).groupby(np.asarray(kinds)[order]).cumcount().to_numpy() % n
    return dealt[np.argsort(order)]


@dataclass(frozen=True, eq=False)
class Monitor:
    """A linear score on the columns of an input, and the score from which it raises the alarm.

    Attributes:
        weights: of the columns, in the input's own units.
        bias: added to the weighted sum.
        threshold: the alarm is raised at this score or above.
        strength: C of the logistic regression, the best of several on the calibrating units.
        recall: what the threshold was set for.
    """

    weights: Float[np.ndarray, " columns"]
    bias: float
    threshold: float
    strength: float
    recall: float

    def scores(self, values: Values) -> Float[np.ndarray, " units"]:
        """The score of each unit; log-odds as fitted, for balanced classes."""
        return np.asarray(values @ self.weights).ravel() + self.bias

    def alarms(self, values: Values) -> Bool[np.ndarray, " units"]:
        """Whether each unit raises the alarm."""
        return self.scores(values) >= self.threshold

    def leading(self, values: csr_matrix, units: Int[np.ndarray, " n"]) -> pd.DataFrame:
        """For some units (the index) the feature that adds most to the score: feature, adds, score."""
        added = values[units].multiply(self.weights).toarray()
        best, scores = added.argmax(1), added.sum(1) + self.bias
        return pd.DataFrame({"feature": best, "adds": added.max(1, initial=-np.inf), "score": scores}, units)


def fit_probe(x: Values, labels: Bool[np.ndarray, " units"], strength: float = 1.0):
    """scikit-learn's logistic regression with both kinds of units weighing the same; `strength` is its `C`."""
    from sklearn.linear_model import LogisticRegression  # here, because it takes a second to import

    return LogisticRegression(max_iter=1000, class_weight="balanced", C=strength).fit(x, labels)


def fit_monitor(
    values: Values,
    labels: Bool[np.ndarray, " units"],
    fit: Bool[np.ndarray, " units"],
    recall: float = 0.95,
    strengths: Sequence[float] = STRENGTHS,
) -> Monitor:
    """Logistic regression on standardised columns; all that is chosen is chosen on the units given here.

    The weights come from the `fit` units. The others calibrate: they choose the strength (by AUC) and set the
    threshold. Give training sources only, and no source that is to be tested on.

    Args:
        values: one row a unit, from one of `monitor_inputs`.
        labels: which units are of the class.
        fit: units that fit; all others calibrate.
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
    values = values.astype(np.float64)
    scaler = StandardScaler(with_mean=not issparse(values)).fit(values[fit])
    x = scaler.transform(values)
    tried = [(fit_probe(x[fit], labels[fit], strength), strength) for strength in strengths]
    aucs = [roc_auc_score(labels[~fit], probe.decision_function(x[~fit])) for probe, _ in tried]
    probe, strength = tried[int(np.argmax(aucs))]  # equal ones: the more strongly held back
    weights = probe.coef_[0] / scaler.scale_
    bias = float(probe.intercept_[0]) - (0.0 if issparse(values) else float(weights @ scaler.mean_))
    scores = np.asarray(values[~fit] @ weights).ravel() + bias
    return Monitor(weights, bias, threshold_at_recall(scores, labels[~fit], recall), strength, recall)


def frequent_columns(values: Values, least: int) -> Int[np.ndarray, " columns"]:
    """Columns that are above 0 in at least `least` units; where none is, those that are in most.

    >>> frequent_columns(csr_matrix([[1, 0, 2], [3, 0, 0]]), 2).tolist()
    [0]
    """
    support = np.asarray((values > 0).sum(0)).ravel()
    return np.flatnonzero(support >= min(least, support.max()))


def threshold_at_recall(
    scores: Float[np.ndarray, " units"], labels: Bool[np.ndarray, " units"], recall: float = 0.95
) -> float:
    """The highest threshold at which at least `recall` of the positives score as much or more.

    >>> threshold_at_recall(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, True]), 0.6)
    2.0
    """
    positives = np.sort(np.asarray(scores)[np.asarray(labels, dtype=bool)])[::-1]
    return float(positives[max(int(np.ceil(recall * len(positives) - 1e-9)), 1) - 1])


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


def mean_auc(
    scores: Float[np.ndarray, "classes units"],
    labels: Bool[np.ndarray, "classes units"],
    than: Float[np.ndarray, "classes units"] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUC averaged over classes, or its lead over another monitor's, with a 95 % bootstrap interval over documents.

    The documents are resampled once for both monitors and for all classes, so what is hard for both cancels.

    Args:
        scores: a row for each class.
        labels: which documents are of each class.
        than: the other monitor's scores; None takes the AUC as it is.
        n: resamples.
        seed: of the resamples.
    """
    counts = bootstrap_counts(labels.shape[1], n, seed)
    counts = np.concatenate([np.ones((1, labels.shape[1]), dtype=counts.dtype), counts])  # first, all as they are
    draws = np.mean([auc_draws(a, y, counts) for a, y in zip(scores, labels, strict=True)], axis=0)
    if than is not None:
        draws = draws - np.mean([auc_draws(a, y, counts) for a, y in zip(than, labels, strict=True)], axis=0)
    return (float(draws[0]), *middle(draws[1:]))


def over_classes(monitors: Sequence[Monitor], values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Scores and alarms of several monitors: a row a class, a column a document."""
    return np.stack([one.scores(values) for one in monitors]), np.stack([one.alarms(values) for one in monitors])


def summary(scores: np.ndarray, alarms: np.ndarray, own: Bool[np.ndarray, "classes units"]) -> dict[str, float]:
    """Mean AUC; share of the classes' documents that are found; share of alarms among documents of other kinds."""
    return {"AUC": mean_auc(scores, own, n=1)[0], "found": alarms[own].mean(), "false alarms": alarms[~own].mean()}


def promises(alarms: Mapping[str, np.ndarray], own: Bool[np.ndarray, "classes units"]) -> tuple[pd.DataFrame, ...]:
    """Share found, and share of false alarms among the others: a row a category, a column an input."""
    return tuple(
        pd.DataFrame({name: (a & part).sum(1) / part.sum(1) for name, a in alarms.items()}, CATEGORIES)
        for part in (own, ~own)
    )
