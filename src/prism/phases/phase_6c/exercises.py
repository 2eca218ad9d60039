"""Phase 6c's exercises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def lost_twice(there: np.ndarray, at_home: np.ndarray, bar: float) -> float:
    """Of the features without a partner above the bar there, the share without one at home; 0 where none is lost."""
    lost = there <= bar
    return float(np.count_nonzero(at_home[lost] <= bar) / max(np.count_nonzero(lost), 1))


def check_lost_twice(answer: Callable) -> Callable:
    """Check exercise 2."""
    cases = [
        (np.array([0.1, 0.2, 0.9, 0.4, 0.8]), np.array([0.3, 0.9, 0.1, 0.2, 0.9]), 0.5),
        (np.array([0.7, 0.3, 0.6, 0.1]), np.array([0.2, 0.65, 0.4, 0.1]), 0.5),
        (np.array([0.1, 0.7, 0.2, 0.3, 0.9, 0.3]), np.array([0.1, 0.2, 0.8, 0.2, 0.1, 0.6]), 0.25),
    ]
    mistakes = {
        "You divided by all features; divide by those that are lost there.": (
            lambda t, h, bar: np.mean((t <= bar) & (h <= bar))
        ),
        "The other way round: of those lost *there*, how many are lost at home?": (
            lambda t, h, bar: np.mean(t[h <= bar] <= bar)
        ),
        "That is the share that *has* a partner at home; lost is what lies at the bar or below.": (
            lambda t, h, bar: np.mean(h[t <= bar] > bar)
        ),
        "That is the number of features; give their share.": lambda t, h, bar: np.sum((t <= bar) & (h <= bar)),
        "That is the share lost at home of *all* features; take those that are lost there.": (
            lambda t, h, bar: np.mean(h <= bar)
        ),
    }
    return check(answer, lost_twice, cases, mistakes)


def of_the_token(column: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Each token's mean activation on the *other* occurrences of the same token; every token occurs twice or more."""
    codes = np.unique(ids, return_inverse=True)[1]
    sums, counts = np.bincount(codes, column), np.bincount(codes)
    return (sums[codes] - column) / (counts[codes] - 1)


def _means(column: np.ndarray, ids: np.ndarray, own: bool) -> np.ndarray:
    """Means over each token's occurrences, with or without (`own`) the token itself."""
    kept = [(ids == i) & (own | (np.arange(len(ids)) != row)) for row, i in enumerate(ids)]
    return np.array([column[mask].mean() for mask in kept])


def check_of_the_token(answer: Callable) -> Callable:
    """Check exercise 1."""
    cases = [
        (np.array([4.0, 0.0, 2.0, 6.0, 0.0]), np.array([7, 7, 3, 3, 3])),
        (np.array([1.0, 5.0, 0.0, 0.0, 3.0, 0.5]), np.array([2, 9, 2, 9, 9, 2])),
    ]
    mistakes = {
        "Leave the token itself out: its own activation must not help to predict it.": lambda c, i: _means(c, i, True),
        "Leave the token itself out of the count, too: divide by one less.": (
            lambda c, i: np.array([(c[i == x].sum() - y) / (i == x).sum() for y, x in zip(c, i, strict=True)])
        ),
        "That is the sum over the other occurrences; give their mean.": (
            lambda c, i: np.array([c[i == x].sum() - y for y, x in zip(c, i, strict=True)])
        ),
        "You took the mean over all other tokens; take those with the same id.": (
            lambda c, i: (c.sum() - c) / (len(c) - 1)
        ),
        "One number a token, in the tokens' order, not one an id.": (
            lambda c, i: np.array([c[i == x].mean() for x in np.unique(i)])
        ),
    }
    return check(answer, of_the_token, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6c", fire, silent, activation)
