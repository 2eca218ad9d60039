"""Exercises of phase 6a: one about meaning, a length, luck in a search, and the gain at a cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.phases.phase_6a.methods import by_luck


def matched(noise: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Noise rows at the length of a direction."""
    return noise / np.linalg.norm(noise, axis=1, keepdims=True) * np.linalg.norm(direction)


def check_matched(answer: Callable) -> Callable:
    """Check exercise 2."""
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


def luck(tried: int, directions: int) -> float:
    """Chance that the best of `tried` leads `directions` others, if all are alike."""
    return by_luck(tried, directions)


def check_luck(answer: Callable) -> Callable:
    """Check exercise 3."""
    mistakes = {
        "That is for one feature; you tried several, and any of them may lead.": lambda k, n: 1 / (n + 1),
        "The features are in the ranking, too: there are tried + directions in all.": lambda k, n: k / n,
        "That is the chance that a random direction leads; take the other one.": lambda k, n: n / (k + n),
        "You took it apart into independent races, but all run in the same one: who is first of all?": (
            lambda k, n: 1 - (n / (n + 1)) ** k
        ),
        "That is a whole number, for a chance: did you divide with //?": lambda k, n: k // (k + n),
    }
    return check(answer, luck, [(6, 120), (1, 19), (10, 40)], mistakes)


def at_level(gain: list[float], cost: list[float], level: float) -> float:
    """Gain where the cost reaches a level, on straight lines from (0, 0)."""
    return float(np.interp(level, [0.0, *cost], [0.0, *gain]))


def check_at_level(answer: Callable) -> Callable:
    """Check exercise 4."""

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


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 1, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6a", fire, silent, activation)
