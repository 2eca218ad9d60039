"""Phase 3: CE recovered, a paired interval, a hypothesis about a child."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def recovered(clean: float, sae: float, ablated: float) -> float:
    """Share of what the ablation destroys that the SAE keeps."""
    return (ablated - sae) / (ablated - clean)


def check_recovered(answer: Callable) -> Callable:
    """Check exercise 1."""
    mistakes = {
        "That is the share that is *lost*; take it from 1.": lambda c, s, a: (s - c) / (a - c),
        "You divided by the ablated loss; divide by what the ablation costs.": lambda c, s, a: (a - s) / a,
        "You divided by the cost of the SAE; divide by what the ablation costs.": lambda c, s, a: (a - s) / (s - c),
        "The sign is the wrong way round: less loss with the SAE means more is kept.": (
            lambda c, s, a: (s - a) / (a - c)
        ),
        "That is what the SAE keeps in nats; divide by what the ablation costs.": lambda c, s, a: a - s,
    }
    return check(answer, recovered, [(4.694, 4.714, 13.08), (3.0, 3.5, 5.0), (2.0, 4.0, 3.0)], mistakes)


def paired_interval(a: np.ndarray, b: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean difference, the same sequences drawn for both."""
    return tuple(np.quantile((a - b)[draws].mean(axis=1), [0.025, 0.975]))


def check_paired_interval(answer: Callable) -> Callable:
    """Check exercise 2."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(3, 1, 40)
    a, b = difficulty + 0.2 + 0.02 * rng.normal(size=40), difficulty + 0.02 * rng.normal(size=40)
    draws = rng.integers(40, size=(500, 40))
    mistakes = {
        "You drew sequences for `b` in another order: use the same row of `draws` for both.": (
            lambda a, b, d: tuple(np.quantile(a[d].mean(1) - b[d[::-1]].mean(1), [0.025, 0.975]))
        ),
        "You took the spread of single sequences; average each row of `draws` first.": (
            lambda a, b, d: tuple(np.quantile((a - b)[d], [0.025, 0.975]))
        ),
        "Average over the sequences of a draw (axis 1), not over the draws.": (
            lambda a, b, d: tuple(np.quantile((a - b)[d].mean(0), [0.025, 0.975]))
        ),
        "That is a 90 % interval; 95 % leaves 2.5 % on each side.": (
            lambda a, b, d: tuple(np.quantile((a - b)[d].mean(1), [0.05, 0.95]))
        ),
        "The sign is the wrong way round: a minus b.": (
            lambda a, b, d: tuple(np.quantile((b - a)[d].mean(1), [0.025, 0.975]))
        ),
    }
    return check(answer, paired_interval, [(a, b, draws), (b, a**2, draws)], mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("3", fire, silent, activation)
