"""Phase 6b: a weighted sign agreement, the share of a way that a patch goes, a hypothesis about a feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def share_of_way(target: float, start: float, patched: float) -> float:
    """How much of the way from the start's score to the target's a patch goes: 0 nothing, 1 all of it."""
    return (patched - start) / (target - start)


def check_share_of_way(answer: Callable) -> Callable:
    """Check exercise 1."""
    mistakes = {
        "That is the share that is still missing; take it from 1.": lambda t, s, p: (t - p) / (t - s),
        "Count from the start, not from zero.": lambda t, s, p: p / t,
        "Divide by the whole way from start to target, not by the target's score.": lambda t, s, p: (p - s) / t,
        "A share has no unit: divide by the way from start to target.": lambda t, s, p: p - s,
        "The way is target − start; yours has the wrong sign.": lambda t, s, p: (p - s) / (s - t),
    }
    return check(answer, share_of_way, [(3.0, -2.0, 1.0), (1.5, 0.5, 2.0), (-1.0, 4.0, 3.0)], mistakes)


def sign_agreement(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Share of the total real effect that sits on nodes whose sign the estimate has right."""
    same = np.sign(estimate) == np.sign(exact)
    return float(np.abs(exact)[same].sum() / np.abs(exact).sum())


def check_sign_agreement(answer: Callable) -> Callable:
    """Check exercise 2."""
    exact = np.array([4.0, -1.0, 0.5, -0.25, 2.0])
    estimate = np.array([1.0, -3.0, -0.5, 0.25, -9.0])
    mistakes = {
        "That is the share of nodes; weigh each by the size of its real effect.": (
            lambda e, x: (np.sign(e) == np.sign(x)).mean()
        ),
        "You weighed by the size of the estimate; the real effects are the weights.": (
            lambda e, x: (np.abs(e) * (np.sign(e) == np.sign(x))).sum() / np.abs(e).sum()
        ),
        "That is the share that is *wrong*.": (
            lambda e, x: (np.abs(x) * (np.sign(e) != np.sign(x))).sum() / np.abs(x).sum()
        ),
        "Weigh by the size |effect|; with their signs, the weights cancel.": (
            lambda e, x: (x * (np.sign(e) == np.sign(x))).sum() / x.sum()
        ),
        "Give a share: divide by the sum of all sizes.": lambda e, x: (np.abs(x) * (np.sign(e) == np.sign(x))).sum(),
    }
    return check(answer, sign_agreement, [(estimate, exact), (exact, estimate), (-estimate, exact)], mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6b", fire, silent, activation)
