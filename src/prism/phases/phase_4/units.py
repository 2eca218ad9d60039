"""Is a unit, a neuron or a feature, about one thing? The purity of its examples, and a comparison of many units.

A unit is judged by the `k` tokens on which it is strongest: do they share a token, or a kind of text? No unit is picked
by hand: many are drawn at random, and random tokens show what the score gives for nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt

from prism.analysis import difference_interval
from prism.features import FeatureMatrix

NEURON, FEATURE, CONTROL = KINDS = ("neuron", "feature", "random tokens")
SCORES = ("token_purity", "category_purity")
CONTEXT = 6  # tokens, the unit's own and five before it


def example_rows(matrix: FeatureMatrix, n: int, k: int, seed: int) -> dict[int, Int[np.ndarray, " k"]]:
    """`n` units at random out of those with `k` examples, and the tokens of each as rows of the matrix, best first.

    At most one token a text: neighbouring tokens, and words that a text repeats, say the same thing again. And at most
    one of each left context (the token and the five before it): a causal model sees only the left, so texts with a
    common beginning give the same activation again. Units that fire in fewer texts cannot be judged on `k` examples: a
    study of the sample says nothing about them.

    Args:
        n: units at most; fewer where fewer have `k` examples.
        k: examples a unit.
        seed: of the draw of units.

    Returns:
        Unit (column of the matrix) -> its rows; units in rising order.

    Raises:
        ValueError: n or k below 1.
    """
    if min(n, k) < 1:
        raise ValueError(f"{n} units with {k} examples each; give at least 1 of both, better 200 and 20")
    values, found = matrix.values.tocsc(), {}
    labels = (_left_contexts(matrix.table), matrix.table["text"].to_numpy())
    for unit in np.random.default_rng(seed).permutation(matrix.d_sae):
        part = slice(*values.indptr[unit : unit + 2])
        rows = values.indices[part][np.argsort(-values.data[part], kind="stable")]
        for label in labels:  # of each context, then of each text, the strongest
            rows = rows[np.sort(np.unique(label[rows], return_index=True)[1])]
        if len(rows) >= k and len(found) < n:
            found[int(unit)] = rows[:k].astype(np.int64)
    return dict(sorted(found.items()))


def _left_contexts(table: pd.DataFrame) -> UInt[np.ndarray, " tokens"]:
    """A number for each token's left context: the same for the same last `CONTEXT` tokens of a text."""
    texts = table["text"].to_numpy()
    ids = table["token_id"].to_numpy().astype(np.uint64) + np.uint64(1)
    weights = np.random.default_rng(0).integers(1, 2**63, CONTEXT, dtype=np.uint64) | np.uint64(1)
    numbers = ids * weights[0]  # wraps round at 2^64, as meant
    for back in range(1, min(CONTEXT, len(ids))):
        same = texts[back:] == texts[:-back]
        numbers[back:] += np.where(same, ids[:-back] * weights[back], np.uint64(0))
    return numbers


def random_rows(table: pd.DataFrame, n: int, k: int, seed: int) -> Int[np.ndarray, "units k"]:
    """A control without any unit: `n` times `k` random tokens, each of another text.

    Raises:
        ValueError: fewer than `k` texts.
    """
    texts, start, count = np.unique(table["text"].to_numpy(), return_index=True, return_counts=True)
    if len(texts) < k:
        raise ValueError(f"{k} tokens of different texts were asked for; there are {len(texts)} texts")
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.choice(len(texts), k, replace=False) for _ in range(n)])
    return start[chosen] + rng.integers(count[chosen])


def purity(rows: Int[np.ndarray, "units k"], table: pd.DataFrame) -> pd.DataFrame:
    """The share of each unit's examples that have their most common token, and their most common category.

    Tokens are compared without surrounding white space and in lower case, so that ' The' and 'the' are one; tokens
    of white space alone stay as they are.

    Args:
        rows: examples of each unit, as rows of the table.
        table: a token table with categories.

    Returns:
        One row a unit: token_purity and category_purity, from 1/k to 1.

    Raises:
        ValueError: texts without categories, or with one only: every unit would be pure.
    """
    if "category" not in table or table["category"].nunique() < 2:
        raise ValueError("purity needs texts of two or more categories; give them to data.token_table(..., categories)")
    plain = table["token"].astype(str).map(lambda token: token.strip().lower() or token)
    codes = {"token_purity": pd.factorize(plain)[0], "category_purity": pd.factorize(table["category"])[0]}
    return pd.DataFrame(
        {name: [np.bincount(of[some]).max() / len(some) for some in rows] for name, of in codes.items()}
    )


def compare_units(neurons: FeatureMatrix, features: FeatureMatrix, n: int, k: int, seed: int = 0) -> pd.DataFrame:
    """Score random neurons, random features, and as many sets of random tokens, by the same rules.

    Args:
        neurons: activations where they are positive.
        features: of an SAE at the same hook, on the same tokens.
        n: units of each kind (fewer where fewer have k examples).
        k: examples a unit.

    Returns:
        One row a unit: kind ('neuron', 'feature', 'random tokens'), unit (its column, or the number of the set),
        density (share of tokens on which it fires; NaN for the control), and the columns of `purity`.

    Raises:
        ValueError: matrices of different tokens, no categories, or fewer than two units of a kind with k examples.
    """
    if not neurons.table[["text", "token_id"]].equals(features.table[["text", "token_id"]]):
        raise ValueError("the two matrices have different tokens; make both from one batch and its table")
    parts = []
    for kind, matrix in ((NEURON, neurons), (FEATURE, features)):
        found = example_rows(matrix, n, k, seed)
        if len(found) < 2:
            raise ValueError(f"{len(found)} {kind}s have {k} examples from different texts; take more texts or less k")
        scores = purity(np.array(list(found.values())), matrix.table)
        parts.append(scores.assign(kind=kind, unit=list(found), density=matrix.density()[list(found)]))
    control = purity(random_rows(features.table, n, k, seed), features.table)
    parts.append(control.assign(kind=CONTROL, unit=np.arange(n), density=np.nan))
    return pd.concat(parts, ignore_index=True)[["kind", "unit", "density", *SCORES]]


def score_differences(frame: pd.DataFrame, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean purity of features minus that of neurons, with a 95 % bootstrap interval over the units.

    The texts are held fixed: the interval is about other units of these kinds, not about other texts.

    Args:
        frame: from `compare_units`.
        n: resamples.

    Returns:
        One row a score, its index: neuron, feature, control (means), difference (feature − neuron), low, high.
    """
    rows = {}
    for score in SCORES:
        neuron, feature, control = (frame.loc[frame["kind"] == kind, score].to_numpy() for kind in KINDS)
        interval = difference_interval(feature, neuron, "mean", n, 0.95, seed)
        rows[score] = [neuron.mean(), feature.mean(), control.mean(), feature.mean() - neuron.mean(), *interval]
    return pd.DataFrame.from_dict(rows, "index", columns=["neuron", "feature", "control", "difference", "low", "high"])
