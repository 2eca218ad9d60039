"""Phase 6a: a norm-matched random direction, repetition, the gain at a given cost, the output score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def matched(noise: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Noise rows at the length of a direction."""
    return noise / np.linalg.norm(noise, axis=1, keepdims=True) * np.linalg.norm(direction)


def check_matched(answer: Callable) -> Callable:
    """Check exercise 1."""
    rng = np.random.default_rng(0)
    noise, direction = rng.normal(size=(5, 8)), 3 * rng.normal(size=8)
    mistakes = {
        "Those have length 1; multiply by the direction's length.": (
            lambda n, d: n / np.linalg.norm(n, axis=1, keepdims=True)
        ),
        "Divide each row by its own length first.": lambda n, d: n * np.linalg.norm(d),
        "You divided by the length of the whole array; each row has its own (axis=1, keepdims=True).": (
            lambda n, d: n / np.linalg.norm(n) * np.linalg.norm(d)
        ),
        "You divided each column by its length; a direction is a row (axis=1).": (
            lambda n, d: n / np.linalg.norm(n, axis=0) * np.linalg.norm(d)
        ),
        "The length is the square root of the sum of squares, not the sum of squares.": (
            lambda n, d: n / (n**2).sum(1, keepdims=True) * (d**2).sum()
        ),
    }
    return check(answer, matched, [(noise, direction), (noise[:2] ** 3, direction / 7)], mistakes)


def repeated(tokens: list[int], n: int) -> float:
    """Share of the n-grams that stood in the sequence before."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def check_repeated(answer: Callable) -> Callable:
    """Check exercise 2."""

    def grams(t: list[int], n: int, last: int = 1) -> list[tuple]:
        return [tuple(t[i : i + n]) for i in range(len(t) - n + last)]

    mistakes = {
        "That is the share of *different* n-grams; take it from 1.": lambda t, n: (
            len(set(grams(t, n))) / len(grams(t, n))
        ),
        "You left out the last n-gram: there are len(tokens) - n + 1 of them.": (
            lambda t, n: 1 - len(set(grams(t, n, 0))) / max(len(grams(t, n, 0)), 1)
        ),
        "You counted single tokens; count runs of n.": lambda t, n: 1 - len(set(t)) / len(t),
        "Divide by the number of n-grams, not of tokens.": lambda t, n: (
            (len(grams(t, n)) - len(set(grams(t, n)))) / len(t)
        ),
        "n-grams overlap: start one at every token, not at every n-th.": (
            lambda t, n: (
                1 - len({tuple(t[i : i + n]) for i in range(0, len(t) - n + 1, n)}) / len(range(0, len(t) - n + 1, n))
            )
        ),
    }
    cases = [([1, 2, 1, 2, 1, 2, 3], 2), ([5, 5, 5, 5, 6, 5, 5], 3), ([1, 2, 3, 4, 1, 2, 3, 1], 2)]
    return check(answer, repeated, cases, mistakes)


def at_level(gain: list[float], cost: list[float], level: float) -> float:
    """Gain where the cost reaches a level, on straight lines from (0, 0)."""
    return float(np.interp(level, [0.0, *cost], [0.0, *gain]))


def check_at_level(answer: Callable) -> Callable:
    """Check exercise 3."""

    def nearest(g: list, c: list, level: float) -> float:
        return g[int(np.abs(np.subtract(c, level)).argmin())]

    mistakes = {
        "Start both lists with 0: no dose brings nothing and costs nothing.": lambda g, c, v: float(np.interp(v, c, g)),
        "You swapped gain and cost: the cost is what you look along.": (
            lambda g, c, v: float(np.interp(v, [0.0, *g], [0.0, *c]))
        ),
        "That is the nearest dose; draw a line between the two around the level.": nearest,
        "That is the first dose that costs enough; go back along the line to the level.": (
            lambda g, c, v: g[int(np.argmax(np.asarray(c) >= v))]
        ),
        "That is one straight line to the last dose; use the two doses around the level.": (
            lambda g, c, v: v * g[-1] / c[-1]
        ),
    }
    cases = [
        ([0.1, 0.4, 0.5], [0.2, 0.6, 2.0], 0.3),
        ([0.1, 0.4, 0.5], [0.2, 0.6, 2.0], 0.1),
        ([0.3, 0.2], [0.5, 1.5], 0.9),
    ]
    return check(answer, at_level, cases, mistakes)


def output_score(probabilities: np.ndarray, lens: np.ndarray) -> float:
    """`(1 − r / d_vocab) · p` of the lens tokens' best rank and probability."""
    best = probabilities[lens].max()
    return float((1 - (probabilities > best).sum() / len(probabilities)) * best)


def check_output_score(answer: Callable) -> Callable:
    """Check exercise 4."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(12) / 2)
    low = np.argsort(p)[:4]
    mistakes = {
        "That is the largest probability alone; weigh it by the rank.": lambda p, t: p[t].max(),
        "That is the rank's part alone; multiply by the probability.": lambda p, t: 1 - (p > p[t].max()).sum() / len(p),
        "Ranks count from 0 for the likeliest token.": lambda p, t: (1 - (p >= p[t].max()).sum() / len(p)) * p[t].max(),
        "Take the largest of the lens tokens' probabilities, not their sum.": (
            lambda p, t: (1 - (p > p[t].max()).sum() / len(p)) * p[t].sum()
        ),
        "Rank among the whole vocabulary, not among the lens tokens.": (
            lambda p, t: (1 - (p[t] > p[t].max()).sum() / len(t)) * p[t].max() if len(t) else 0.0
        ),
        "Divide the rank by the size of the vocabulary, not by the number of lens tokens.": (
            lambda p, t: (1 - (p > p[t].max()).sum() / len(t)) * p[t].max()
        ),
    }
    return check(answer, output_score, [(p, low), (p, np.array([3, 7])), (p[::-1], low[:2])], mistakes, 1e-6)
