"""The examples that a unit (a neuron or a feature) is judged by: which tokens, and the words around them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt
from scipy.sparse import csc_matrix

from prism.features import FeatureMatrix

RADIUS = 5  # tokens of context on either side, as on the feature dashboards of the field
WHICH = ("top", "any")


def match_density(matrix: FeatureMatrix, density: Float[np.ndarray, " units"], seed: int = 0) -> FeatureMatrix:
    """The matrix with each unit's weakest firings silenced, so that the units fire as rarely as other ones do.

    A neuron fires on far more tokens than a feature, and whatever fires more rarely has purer firings (which='any'):
    a comparison at equal density shows what is left beyond that. Each unit is given one of the densities at random
    and keeps that share of the tokens, its strongest (all it has where it fires more rarely).

    Args:
        density: shares of tokens to take from, such as `density()` of the features that fire.
        seed: of the draw.

    Raises:
        ValueError: no density, or one that is not from 0 to 1.
    """
    density = np.asarray(density, dtype=float)
    if not len(density) or not ((density >= 0) & (density <= 1)).all():
        raise ValueError("density needs at least one share of tokens, each from 0 to 1")
    values = matrix.values.tocsc(copy=True)
    keep = np.random.default_rng(seed).choice(density, matrix.d_sae)
    for unit, firings in enumerate(np.rint(keep * (matrix.n_tokens - matrix.massive)).astype(int)):
        part = values.data[values.indptr[unit] : values.indptr[unit + 1]]
        part[np.argsort(-part, kind="stable")[firings:]] = 0
    values.eliminate_zeros()
    return FeatureMatrix(values.tocsr(), matrix.table)


def example_rows(
    matrix: FeatureMatrix, units: Int[np.ndarray, " units"], k: int = 20, which: str = "top", seed: int = 0
) -> Int[np.ndarray, "units k"]:
    """The `k` tokens that stand for each unit, as rows of the matrix and its table.

    At most one token a text: neighbouring tokens, and words that a text repeats, say the same thing again, and twenty
    tokens of one text would look like a pure unit. And at most one of each left context (the token and the five
    before it): a causal model sees only the left, so texts with a common beginning give the same activation again.

    Args:
        units: columns of the matrix.
        k: examples a unit.
        which: 'top', the largest activations, best first; or 'any', drawn at random from all firings, which asks
            whether the unit means at half strength what it means at its strongest (Bolukbasi et al. 2021).
        seed: of the draw; 'top' needs none.

    Raises:
        ValueError: k below 1, an unknown `which`, or a unit that has fewer than `k` such examples.
        IndexError: no such unit.
    """
    units = np.array([matrix.check_feature(unit) for unit in units], dtype=np.int64)
    picker = _Picker(matrix, k, which, seed)
    rows = [picker.pick(unit) for unit in units]
    for unit, found in zip(units, rows, strict=True):
        if len(found) < k:
            raise ValueError(
                f"unit {unit} has {len(found)} examples from different texts, fewer than the {k} asked "
                "for; choose a smaller k, more texts, or units from sample_units"
            )
    return np.array(rows, dtype=np.int64).reshape(len(units), k)


def sample_units(
    matrix: FeatureMatrix, n: int = 200, k: int = 20, which: str = "top", seed: int = 0
) -> Int[np.ndarray, " units"]:
    """`n` units at random out of those with at least `k` examples (see `example_rows`), in rising order.

    Fewer than `n` if there are not as many. Units that fire in fewer texts cannot be judged on `k` examples: a study
    of the sample says nothing about them.

    Raises:
        ValueError: n or k below 1, or an unknown `which`.
    """
    if n < 1:
        raise ValueError(f"{n} units; give at least 1, better 200")
    picker, found = _Picker(matrix, k, which, seed), []
    for unit in np.random.default_rng(seed).permutation(matrix.d_sae):
        if len(found) < n and len(picker.pick(unit)) == k:
            found.append(unit)
    return np.sort(np.array(found, dtype=np.int64))


def random_rows(table: pd.DataFrame, n: int = 200, k: int = 20, seed: int = 0) -> Int[np.ndarray, "units k"]:
    """A control without any unit: `n` times `k` random tokens, each of another text.

    Raises:
        ValueError: n or k below 1, or fewer than `k` texts.
    """
    texts, start, count = np.unique(table["text"].to_numpy(), return_index=True, return_counts=True)
    if min(n, k) < 1 or len(texts) < k:
        raise ValueError(f"{n} times {k} tokens of different texts were asked for; there are {len(texts)} texts")
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.choice(len(texts), k, replace=False) for _ in range(n)])
    return start[chosen] + rng.integers(count[chosen])


def windows(table: pd.DataFrame, rows: Int[np.ndarray, "units k"], radius: int = RADIUS) -> np.ndarray:
    """The text from `radius` tokens before each token to `radius` after it, never across the end of its text.

    Returns:
        `[units, k]` strings (an object array).
    """
    texts, around = table["text"].to_numpy(), np.arange(-radius, radius + 1)
    tokens = table["token"].astype(str).to_numpy()
    flat = np.asarray(rows).ravel()
    places = flat[:, None] + around
    inside = (places >= 0) & (places < len(texts))
    places = places.clip(0, len(texts) - 1)
    inside &= texts[places] == texts[flat][:, None]
    joined = ["".join(tokens[place[keep]]) for place, keep in zip(places, inside, strict=True)]
    return np.array(joined, dtype=object).reshape(np.shape(rows))


class _Picker:
    """Picks the examples of one unit after another; what all units share is computed once."""

    def __init__(self, matrix: FeatureMatrix, k: int, which: str, seed: int) -> None:
        if which not in WHICH:
            raise ValueError(f"which is '{which}'; choose 'top' or 'any'")
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1 example a unit, better 20")
        self.values: csc_matrix = matrix.values.tocsc()
        self.texts, self.contexts = matrix.table["text"].to_numpy(), _left_contexts(matrix.table)
        self.k, self.which, self.seed = k, which, seed

    def pick(self, unit: int) -> Int[np.ndarray, " at_most_k"]:
        """Up to k rows, the best first."""
        part = slice(*self.values.indptr[unit : unit + 2])
        rows, activation = self.values.indices[part], self.values.data[part]
        if self.which == "top":
            rows = rows[np.argsort(-activation, kind="stable")]
        else:  # seeded by the unit, so that its examples do not depend on which other units are looked at
            rows = np.random.default_rng((self.seed, unit)).permutation(rows)
        for label in (self.contexts, self.texts):
            rows = rows[np.sort(np.unique(label[rows], return_index=True)[1])]
        return rows[: self.k].astype(np.int64)


def _left_contexts(table: pd.DataFrame, length: int = RADIUS + 1) -> UInt[np.ndarray, " tokens"]:
    """A number for each token's left context: the same for the same last `length` tokens of a text, itself included."""
    texts = table["text"].to_numpy()
    ids = table["token_id"].to_numpy().astype(np.uint64) + np.uint64(1)
    weights = np.random.default_rng(0).integers(1, 2**63, length, dtype=np.uint64) | np.uint64(1)
    numbers = ids * weights[0]  # wraps round at 2^64, as meant
    for back in range(1, min(length, len(ids))):
        same = texts[back:] == texts[:-back]
        numbers[back:] += np.where(same, ids[:-back] * weights[back], np.uint64(0))
    return numbers
