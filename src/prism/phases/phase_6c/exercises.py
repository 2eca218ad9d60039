"""Phase 6c: mutual partners, survival of chains, greedy matching."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def mutual_share(forward: np.ndarray, backward: np.ndarray) -> float:
    """Share of the features with a partner whose partner's own partner they are."""
    chosen = np.flatnonzero(forward >= 0)
    return float((backward[forward[chosen]] == chosen).mean())


def check_mutual_share(answer: Callable) -> Callable:
    """Check exercise 1."""
    cases = [
        (np.array([1, 0, 2, 2, -1]), np.array([1, 0, 4])),
        (np.array([0, 0, -1, 1]), np.array([1, -1, 0])),
        (np.array([2, -1, 1, 0]), np.array([3, 2, -1, 1])),
    ]
    mistakes = {
        "You divided by all features; divide by those that have a partner.": (
            lambda f, b: np.mean([x >= 0 and b[x] == i for i, x in enumerate(f)])
        ),
        "A partner of −1 means none; `backward[-1]` is the last entry, and then features without one count too.": (
            lambda f, b: (b[f] == np.arange(len(f))).mean()
        ),
        "That is the number of mutual features; give their share.": (
            lambda f, b: sum(x >= 0 and b[x] == i for i, x in enumerate(f))
        ),
        "That is the share of features that have a partner; ask the partner back.": lambda f, b: (f >= 0).mean(),
        "That is the share of partners that nobody else claims; a partner's own choice is in `backward`.": (
            lambda f, b: np.mean([np.sum(f == x) == 1 for x in f[f >= 0]])
        ),
    }
    return check(answer, mutual_share, cases, mistakes)


def survival(table: np.ndarray) -> np.ndarray:
    """Of the chains that are there at the first layer, the share still there at each layer."""
    return (table[table[:, 0] >= 0] >= 0).mean(axis=0)


def check_survival(answer: Callable) -> Callable:
    """Check exercise 2."""
    first = np.array([[0, 1, 0], [1, 0, -1], [2, -1, -1], [-1, 2, 1], [-1, -1, 2], [3, 3, 3]])
    cases = [(first,), (first[[0, 2, 3, 4]],), (first[:, :2],)]
    mistakes = {
        "Chains that are born later count too in yours; keep those with the first column at 0 or above.": (
            lambda t: (t >= 0).mean(0)
        ),
        "You divided the later chains' features by the first layer's as well: drop rows that begin with −1 first.": (
            lambda t: (t >= 0).sum(0) / (t[:, 0] >= 0).sum()
        ),
        "That is how many are left; give shares.": lambda t: (t[t[:, 0] >= 0] >= 0).sum(0),
        "Feature 0 is a feature like any other: use `>= 0`, not `> 0`.": (lambda t: (t[t[:, 0] >= 0] > 0).mean(0)),
        "That is the share that has died by each layer; take it from 1.": lambda t: (t[t[:, 0] >= 0] < 0).mean(0),
        "Average over the chains (axis 0), not over the layers.": lambda t: (t[t[:, 0] >= 0] >= 0).mean(1),
    }
    return check(answer, survival, cases, mistakes)


def greedy_total(likeness: np.ndarray) -> float:
    """Total likeness of the pairs taken one after the other, the most alike first, no feature twice."""
    left, total = np.array(likeness, dtype=float), 0.0
    for _ in range(min(left.shape)):
        i, j = np.unravel_index(left.argmax(), left.shape)
        total += left[i, j]
        left[i], left[:, j] = -np.inf, -np.inf
    return float(total)


def _rows_in_turn(likeness: np.ndarray) -> float:
    left, total = np.array(likeness, dtype=float), 0.0
    for row in range(min(left.shape)):
        j = left[row].argmax()
        total += left[row, j]
        left[:, j] = -np.inf
    return total


def _struck_with_zeros(likeness: np.ndarray) -> float:
    left, total = np.array(likeness, dtype=float), 0.0
    for _ in range(min(left.shape)):
        i, j = np.unravel_index(left.argmax(), left.shape)
        total += left[i, j]
        left[i], left[:, j] = 0, 0
    return total


def _best_total(likeness: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment

    return np.asarray(likeness)[linear_sum_assignment(likeness, maximize=True)].sum()


def check_greedy_total(answer: Callable) -> Callable:
    """Check exercise 3."""
    rng = np.random.default_rng(0)
    cases = [
        (np.array([[0.8, 0.75, 0.1], [0.9, 0.1, 0.3], [0.3, 0.85, 0.7]]),),
        (rng.random((5, 5)),),
        (rng.random((4, 6)),),
        (rng.normal(size=(5, 5)) - 1,),
    ]
    mistakes = {
        "You took the rows in turn; take the most alike pair of the whole matrix each time.": _rows_in_turn,
        "A partner serves twice in yours (each row's best, whatever else took it): strike out the column too.": (
            lambda m: np.sort(m.max(1))[::-1][: min(m.shape)].sum()
        ),
        "A feature is matched twice in yours (each column's best): strike out the row too.": (
            lambda m: np.sort(m.max(0))[::-1][: min(m.shape)].sum()
        ),
        "That is the best assignment; greedy takes the most alike pair first and never takes it back.": _best_total,
        "A struck-out place must never win again: use −inf, not 0; a likeness may be negative.": _struck_with_zeros,
        "That is the mean likeness of the pairs; give the total.": lambda m: greedy_total(m) / min(m.shape),
    }
    return check(answer, greedy_total, cases, mistakes)
