"""Phase 6e: a table that knows the token and no context, and how much of a model's features it predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix

from prism.phases.phase_6e.methods import Partners, Reading, correlations, halves, partners, testable


def guessed(
    values: csr_matrix,
    ids: Int[np.ndarray, " places"],
    places: pd.DataFrame,
    features: Int[np.ndarray, " features"],
    where: Bool[np.ndarray, " places"] | None = None,
) -> Partners:
    """A rival of `partners` that knows the token and no more: `token_guess`, judged on the second half of the texts.

    Args:
        ids: the token at each place; the rest as for `partners`.
        where: the places where it is judged; all of them when not given. The guesses know the other places as well.
    """
    text, some = places["text"].to_numpy(), values[:, features]
    judged = halves(places)[1] if where is None else np.intersect1d(halves(places)[1], np.flatnonzero(where))
    guess = token_guess(some, ids, text)
    correlation, without = correlations(some[judged].toarray(), guess[judged], text[judged])
    return Partners(pd.DataFrame({"feature": features, "correlation": correlation}), without)


def token_guess(
    values: csr_matrix, ids: Int[np.ndarray, " places"], text: Int[np.ndarray, " places"]
) -> Float[np.ndarray, "places units"]:
    """The mean of each column over the same token in *other* texts; over all other texts where no other one has it."""
    token = np.unique(ids, return_inverse=True)[1]
    pair = np.unique(np.column_stack([token, text]), axis=0, return_inverse=True)[1].ravel()
    (sum_token, n_token), (sum_pair, n_pair), (sum_text, n_text) = (_totals(values, g) for g in (token, pair, text))
    n, left = n_token[token] - n_pair[pair], sum_token[token] - sum_pair[pair]
    overall = (sum_text.sum(0) - sum_text)[text] / np.maximum(len(ids) - n_text, 1)[text][:, None]
    return np.where(n[:, None] > 0, left / np.maximum(n, 1)[:, None], overall)


def _totals(values: csr_matrix, groups: Int[np.ndarray, " places"]):
    """Sum of each column in each group `[groups, units]`, and the number of places in each."""
    n = len(groups)
    member = csr_matrix((np.ones(n), (groups, np.arange(n))), (groups.max() + 1, n))
    return (member @ values).toarray(), np.bincount(groups)


def token_ids(reading: Reading, places: pd.DataFrame) -> Int[np.ndarray, " places"]:
    """The model's own token at each common place."""
    return reading.matrix.table["token_id"].to_numpy()[places[reading.spec.name]]


def common_tokens(
    ids: Mapping[str, Int[np.ndarray, " places"]], places: pd.DataFrame, least: int
) -> Bool[np.ndarray, " places"]:
    """Places whose token stands in `least` other texts or more, under every tokenizer.

    >>> places = pd.DataFrame({"text": [0, 0, 1, 2]})
    >>> common_tokens({"a": np.array([7, 8, 7, 7]), "b": np.array([1, 1, 1, 2])}, places, 1).tolist()
    [True, False, True, False]

    Args:
        ids: model -> the token at each place.
    """
    held = [pd.Series(places["text"].to_numpy()).groupby(of).transform("nunique") > least for of in ids.values()]
    return np.logical_and.reduce(held)


def leaning(
    own: csr_matrix,
    seed: csr_matrix,
    ids: Int[np.ndarray, " places"],
    places: pd.DataFrame,
    least: int,
    bar: float,
    where: Bool[np.ndarray, " places"] | None = None,
) -> Partners:
    """How well the table of tokens predicts the features of `own` that another seed finds again.

    Args:
        own, seed: activations of the two SAEs at the common places, `[places, units]`.
        ids: the token at each place.
        least: a feature must fire at so many places in each half of the texts, see `testable`.
        bar: another seed finds a feature again if the partner there correlates more than this.
        where: the places that count, for `least` and for the judgement; all of them when not given.
    """
    counted = own if where is None else own.multiply(where[:, None]).tocsr()
    counted.eliminate_zeros()
    features = testable(counted, places, least)
    again = partners(own, seed, places, features).table["correlation"].to_numpy() > bar
    return guessed(own, ids, places, features[again], where)


def means(found: Mapping[str, Partners]) -> dict[str, float]:
    """The mean correlation of each, to two decimals."""
    return {name: round(float(one.table["correlation"].mean()), 2) for name, one in found.items()}
