"""Is a unit about one thing? Scores of a neuron's or a feature's examples, and a comparison of many of both.

A unit is judged by `k` example tokens (`examples.example_rows`). Purity and entropy ask whether the examples share a
category or a token; the intruder test asks whether their contexts are alike. No score sees the activations, and no
unit is picked by hand: many are drawn at random, and random tokens show what the scores give for nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from prism.analysis.claims import difference_interval
from prism.analysis.examples import example_rows, random_rows, sample_units, windows
from prism.analysis.intruder import embedding_vectors, intruder_score, ngram_vectors
from prism.features import FeatureMatrix

NEURON, FEATURE, CONTROL = KINDS = ("neuron", "feature", "random tokens")
SCORES = {  # column of `compare_units` -> whether more of it means purer
    "category_purity": True,
    "token_purity": True,
    "category_entropy": False,
    "token_entropy": False,
    "intruder": True,
    "intruder_embedding": True,
}


def purity(rows: Int[np.ndarray, "units k"], table: pd.DataFrame) -> pd.DataFrame:
    """How far each unit's examples agree, by category and by token.

    Tokens are compared without surrounding white space and in lower case, so that ' The' and 'the' are one; tokens
    of white space alone stay as they are. The entropy, in bits, is that of the `k` examples themselves: at most
    log2 k, and too low for the unit's real spread, so compare it at one k only.

    Args:
        rows: examples of each unit, as rows of the table (`examples.example_rows`).
        table: a token table with categories.

    Returns:
        One row a unit: category (the most common, ties to the first in the table's order), category_purity (its
        share of the k examples, 1/k to 1), category_entropy (bits, 0 where purity is 1), and the same for token.

    Raises:
        ValueError: texts without categories, or with one only: every unit would be pure.
    """
    if "category" not in table or table["category"].nunique() < 2:
        raise ValueError("purity needs texts of two or more categories; give them to data.token_table(..., categories)")
    columns = {}
    for name, values in (("category", table["category"]), ("token", _plain_tokens(table["token"]))):
        values = pd.Categorical(values)
        counted = _agreement(values.codes[rows])
        columns[name] = np.asarray(values.categories.astype(str), dtype=object)[counted[0]]
        columns[f"{name}_purity"], columns[f"{name}_entropy"] = counted[1:]
    return pd.DataFrame(columns)


def _plain_tokens(tokens: pd.Series) -> pd.Categorical:
    """Tokens without surrounding white space and in lower case; each distinct token is looked at once."""
    tokens = tokens.astype("category")
    plain = [str(token).strip().lower() or str(token) for token in tokens.cat.categories]
    names, place = np.unique(np.array(plain, dtype=object), return_inverse=True)
    return pd.Categorical.from_codes(place[tokens.cat.codes], names)


def _agreement(codes: Int[np.ndarray, "units k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of codes: the most common code (ties to the lowest), its share, and the entropy in bits.

    >>> [values.tolist() for values in _agreement(np.array([[3, 3, 3, 3], [1, 2, 1, 2], [0, 1, 2, 2]]))]
    [[3, 1, 2], [1.0, 0.5, 0.5], [0.0, 1.0, 1.5]]
    """
    codes = np.asarray(codes, dtype=np.int64)
    n, k = codes.shape
    width = int(codes.max(initial=0)) + 1
    pairs, counts = np.unique(np.arange(n)[:, None] * width + codes, return_counts=True)
    unit, share = pairs // width, counts / k
    order = np.lexsort((pairs, -counts, unit))  # each unit's most common code comes first
    first = order[np.searchsorted(unit, np.arange(n))]
    entropy = np.bincount(unit, -share * np.log2(share), minlength=n)
    return pairs[first] % width, share[first], np.abs(entropy)


def compare_units(
    neurons: FeatureMatrix,
    features: FeatureMatrix,
    n: int = 200,
    k: int = 20,
    which: str = "top",
    seed: int = 0,
    embedding: Float[np.ndarray, "d_vocab d"] | None = None,
    draws: int = 100,
) -> pd.DataFrame:
    """Score random neurons, random features, and as many sets of random tokens, by the same rules.

    Args:
        neurons: from `examples.neuron_features`.
        features: of an SAE at the same hook, on the same tokens.
        n: units of each kind (fewer where fewer have k examples).
        k: examples a unit.
        which: 'top' or 'any', see `example_rows`.
        seed: of the units, the control and the intruder test.
        embedding: the model's embedding matrix, for a second intruder test; without it that column is NaN.
        draws: of the intruder test, a unit.

    Returns:
        One row a unit: kind ('neuron', 'feature', 'random tokens'), unit (its column, or the number of the set),
        density (share of tokens on which it fires; NaN for the control), the columns of `purity`, intruder and
        intruder_embedding (accuracies, chance 0.2; intruders come from units of the same kind).

    Raises:
        ValueError: matrices of different tokens, no categories, or fewer than two units of a kind with k examples.
    """
    _check_same_tokens(neurons, features)
    groups, table = [], features.table
    for kind, matrix in ((NEURON, neurons), (FEATURE, features)):
        units = sample_units(matrix, n, k, which, seed)
        if len(units) < 2:
            raise ValueError(f"{len(units)} {kind}s have {k} examples from different texts; take more texts or less k")
        groups.append((kind, units, example_rows(matrix, units, k, which, seed), matrix.density()[units]))
    groups.append((CONTROL, np.arange(n), random_rows(table, n, k, seed), np.full(n, np.nan)))
    rows = np.concatenate([group[2] for group in groups])
    frame = pd.DataFrame(
        {
            "kind": pd.Categorical(np.repeat(KINDS, [len(group[1]) for group in groups]), categories=KINDS),
            "unit": np.concatenate([group[1] for group in groups]),
            "density": np.concatenate([group[3] for group in groups]),
        }
    ).join(purity(rows, table))
    spaces = {"intruder": ngram_vectors(windows(table, rows)), "intruder_embedding": None}
    if embedding is not None:
        spaces["intruder_embedding"] = embedding_vectors(table, rows, embedding)
    for name, vectors in spaces.items():
        frame[name] = np.nan if vectors is None else _by_kind(frame["kind"], vectors, k, draws, seed)
    return frame


def _by_kind(kinds: pd.Series, vectors, k: int, draws: int, seed: int) -> np.ndarray:
    """The intruder test within each kind of unit."""
    parts = [intruder_score(vectors[np.repeat((kinds == kind).to_numpy(), k)], k, draws, seed=seed) for kind in KINDS]
    return np.concatenate(parts)


def _check_same_tokens(a: FeatureMatrix, b: FeatureMatrix) -> None:
    same = a.n_tokens == b.n_tokens and all(
        np.array_equal(a.table[name].to_numpy(), b.table[name].to_numpy()) for name in ("text", "token_id")
    )
    if not same:
        raise ValueError(
            f"the two matrices have different tokens ({a.n_tokens:,} and {b.n_tokens:,} rows); make both "
            "from one batch and its table"
        )


def score_differences(
    frame: pd.DataFrame, statistic: str = "median", n: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Features against neurons, score by score, with intervals over the units.

    The texts are held fixed: the interval is about other units of these kinds, not about other texts.

    Args:
        frame: from `compare_units`.
        statistic: 'median' or 'mean'.
        n: resamples.
        level: coverage.

    Returns:
        One row a score (those that were computed): score, neuron, feature, control (the statistic of each),
        difference (feature − neuron), low, high (its interval), purer ('feature', 'neuron', or 'neither' where the
        interval holds 0, or there is none).

    Raises:
        ValueError: an unknown statistic.
    """
    rows = []
    for score in (name for name in SCORES if not frame[name].isna().any()):
        by_kind = [frame.loc[frame["kind"] == kind, score].to_numpy(float) for kind in KINDS]
        low, high = difference_interval(by_kind[1], by_kind[0], statistic, n, level, seed)
        middle = [float(getattr(np, statistic)(values)) for values in by_kind]
        apart = low > 0 or high < 0  # not so where a kind has one unit, and no interval
        better = (FEATURE if (low > 0) == SCORES[score] else NEURON) if apart else "neither"
        rows.append([score, *middle, middle[1] - middle[0], low, high, better])
    names = ["score", NEURON, FEATURE, "control", "difference", "low", "high", "purer"]
    return pd.DataFrame(rows, columns=names)
