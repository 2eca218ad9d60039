"""Phase 6b: a weighted sign agreement, the share of the way that a patch goes, a hypothesis about a feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def restored(clean: float, corrupt: float, patched: float) -> float:
    """How much of the way from the corrupt to the clean run a patch goes: 0 nothing, 1 all of it."""
    return (patched - corrupt) / (clean - corrupt)


def check_restored(answer: Callable) -> Callable:
    """Check exercise 1."""
    mistakes = {
        "That is the share that is still missing; take it from 1.": lambda c, k, p: (c - p) / (c - k),
        "Count from the corrupt run, not from zero.": lambda c, k, p: p / c,
        "Divide by the whole way from corrupt to clean, not by the clean score.": lambda c, k, p: (p - k) / c,
        "A share has no unit: divide by the way from corrupt to clean.": lambda c, k, p: p - k,
        "The way is clean − corrupt; yours has the wrong sign.": lambda c, k, p: (p - k) / (k - c),
    }
    return check(answer, restored, [(3.0, -2.0, 1.0), (1.5, 0.5, 2.0), (-1.0, 4.0, 3.0)], mistakes)


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
