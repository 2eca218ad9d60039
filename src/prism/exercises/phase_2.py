"""Phase 2: specialist score, permutation p-value, Jaccard overlap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def specialist_score(fires: np.ndarray, inside: np.ndarray) -> int:
    """Texts inside the category that fire, minus texts outside it that fire."""
    return int((fires & inside).sum()) - int((fires & ~inside).sum())


def check_specialist_score(answer: Callable) -> Callable:
    """Check exercise 1."""
    fires = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    inside = np.arange(15) < 10
    mistakes = {
        "You counted only the texts inside; subtract those outside that fire.": lambda f, i: int((f & i).sum()),
        "You subtracted the silent texts inside; subtract the texts outside that fire.": (
            lambda f, i: int((f & i).sum()) - int((~f & i).sum())
        ),
        "The sign is the wrong way round: inside minus outside.": (
            lambda f, i: int((f & ~i).sum()) - int((f & i).sum())
        ),
        "You subtracted shares; the score counts texts.": lambda f, i: f[i].mean() - f[~i].mean(),
        "You counted all texts outside; count only those that fire.": (
            lambda f, i: int((f & i).sum()) - int((~i).sum())
        ),
    }
    return check(answer, specialist_score, [(fires, inside), (~fires, inside)], mistakes)


def p_value(observed: float, null: np.ndarray) -> float:
    """Permutation p-value with the observed labelling counted as one of the permutations."""
    return (1 + (np.asarray(null) >= observed).sum()) / (1 + len(null))


def check_p_value(answer: Callable) -> Callable:
    """Check exercise 2."""
    null = np.array([3, 4, 4, 5, 6, 6, 7, 5, 4])
    mistakes = {
        "This can be 0, which no permutation test can show; add 1 above and below.": (
            lambda o, n: (np.asarray(n) >= o).mean()
        ),
        "A shuffle that ties counts as well: use >=, not >.": lambda o, n: (1 + (n > o).sum()) / (1 + len(n)),
        "That is the share *below*; p is the share at least as large.": lambda o, n: (1 + (n < o).sum()) / (1 + len(n)),
        "Add 1 to the number of shuffles too.": lambda o, n: (1 + (n >= o).sum()) / len(n),
        "The test is one-sided: do not double it.": lambda o, n: 2 * (1 + (n >= o).sum()) / (1 + len(n)),
    }
    return check(answer, p_value, [(6, null), (8, null), (2, null)], mistakes)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Tokens on which both fire over tokens on which at least one fires; 0 if neither ever does."""
    both, either = ((a > 0) & (b > 0)).sum(), ((a > 0) | (b > 0)).sum()
    return both / either if either else 0.0


def check_jaccard(answer: Callable) -> Callable:
    """Check exercise 3."""
    a, b = np.array([0.0, 2, 0, 1, 3, 0.5, 0]), np.array([1.0, 0.2, 0, 0, 2, 0, 0])
    zero = np.zeros(7)
    mistakes = {
        "You divided by all tokens; divide by those on which at least one fires.": (
            lambda a, b: ((a > 0) & (b > 0)).mean()
        ),
        "You divided by the first feature's firings; that is a conditional share, and not symmetric.": (
            lambda a, b: ((a > 0) & (b > 0)).sum() / max((a > 0).sum(), 1)
        ),
        "You added the two counts without taking off the overlap; that is half of the Dice overlap.": (
            lambda a, b: ((a > 0) & (b > 0)).sum() / max((a > 0).sum() + (b > 0).sum(), 1)
        ),
        "That is a cosine of the activations; count tokens instead.": (
            lambda a, b: a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9)
        ),
        "Neither fires here: the answer is 0 by definition, not nan.": (
            lambda a, b: ((a > 0) & (b > 0)).sum() / np.float64(((a > 0) | (b > 0)).sum())
        ),
    }
    with np.errstate(invalid="ignore"):
        return check(answer, jaccard, [(a, b), (b, a), (a, zero), (zero, zero)], mistakes)
