"""Exercises of phase 6f: a threshold for a recall, precision at a base rate, the effect of a swap, a hypothesis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def threshold(scores: np.ndarray, labels: np.ndarray, recall: float) -> float:
    """The highest threshold at which at least `recall` of the positives score as much or more."""
    positives = np.sort(scores[labels])[::-1]
    return float(positives[max(int(np.ceil(recall * len(positives) - 1e-9)), 1) - 1])


def check_threshold(answer: Callable) -> Callable:
    """Check exercise 1."""

    def at(positives: np.ndarray, recall: float) -> float:
        return float(np.sort(positives)[::-1][max(int(np.ceil(recall * len(positives) - 1e-9)), 1) - 1])

    mistakes = {
        "Recall counts the positives alone: take `scores[labels]`.": lambda s, y, r: at(s, r),
        "You took the negatives; recall is about the positives.": lambda s, y, r: at(s[~y], r),
        "You sorted upwards: that threshold finds the share that should be *missed*.": lambda s, y, r: -at(-s[y], r),
        "One positive short: round the number of positives up, so that at least `recall` of them are found.": (
            lambda s, y, r: float(np.sort(s[y])[::-1][max(int(r * y.sum()), 1) - 1])
        ),
        "One positive too many: the first of `n` sorted positives has index 0.": (
            lambda s, y, r: float(np.sort(s[y])[::-1][min(int(np.ceil(r * y.sum() - 1e-9)), y.sum() - 1)])
        ),
        "A quantile interpolates between two scores; take the score of a document.": (
            lambda s, y, r: float(np.quantile(s[y], 1 - r))
        ),
    }
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=40).round(3), np.arange(40) % 3 == 0
    # the last two recalls are a whole number of positives: 3 of 12, and all of them
    cases = [
        (scores, labels, 0.95),
        (scores, labels, 0.6),
        (scores + labels, labels, 0.7),
        (scores[:34], labels[:34], 0.25),
        (scores, labels, 1.0),
    ]
    return check(answer, threshold, cases, mistakes)


def precision(recall: float, fpr: float, share: float) -> float:
    """Share of alarms that are right, where `share` of all documents are of the class."""
    return recall * share / (recall * share + fpr * (1 - share))


def check_precision(answer: Callable) -> Callable:
    """Check exercise 2."""
    mistakes = {
        "You left out how rare the class is: weigh recall by `share` and the rate by `1 - share`.": (
            lambda r, f, p: r / (r + f)
        ),
        "That is the share of *false* alarms; take it from 1.": lambda r, f, p: f * (1 - p) / (r * p + f * (1 - p)),
        "`fpr` is a share of the negatives, not of all documents: weigh it by `1 - share`.": (
            lambda r, f, p: r * p / (r * p + f)
        ),
        "That is the share of all documents that are found; divide by the share that raises the alarm.": (
            lambda r, f, p: r * p
        ),
        "1 − fpr is the specificity, not the precision.": lambda r, f, p: 1 - f,
    }
    return check(answer, precision, [(0.9, 0.05, 0.01), (0.8, 0.1, 0.5), (1.0, 0.3, 0.001)], mistakes)


def swap_effect(aa: float, ab: float, ba: float, bb: float) -> float:
    """Effect of a swap from log-probabilities: first letter the text, second the target."""
    return (aa - ab) - (ba - bb)


def check_swap_effect(answer: Callable) -> Callable:
    """Check exercise 3."""
    mistakes = {
        "That is the gap after text a alone; a frequent word wins it without any bias. Subtract the gap after b.": (
            lambda aa, ab, ba, bb: aa - ab
        ),
        "You compared one target in two texts: a text that makes every word likely wins. Use both targets.": (
            lambda aa, ab, ba, bb: aa - ba
        ),
        "The gap after b has the wrong sign: target a minus target b in both texts, then a minus b.": (
            lambda aa, ab, ba, bb: (aa - ab) - (bb - ba)
        ),
        "The sign is the wrong way round: text a minus text b.": lambda aa, ab, ba, bb: (ba - bb) - (aa - ab),
        "Gaps of log-probabilities need no exponential.": (
            lambda aa, ab, ba, bb: (np.exp(aa) - np.exp(ab)) - (np.exp(ba) - np.exp(bb))
        ),
    }
    return check(
        answer, swap_effect, [(-2.0, -4.0, -3.0, -3.5), (-1.0, -1.0, -6.0, -2.0), (-5.0, -3.0, -1.0, -2.5)], mistakes
    )


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 4, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6f", fire, silent, activation)
