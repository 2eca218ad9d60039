"""Is an explanation true? Detection and fuzzing on held-out windows, hard negatives, and baselines that should fail.

Detection and fuzzing are those of delphi (Paulo et al. 2024, arXiv 2410.13928). *Detection*: does the unit fire in
this window? *Fuzzing*: one token of the window is marked; is it one that the unit fires on? All scores are balanced
accuracies, so that answering always the same gives one half however many windows of each kind there are.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from prism.autointerp.examples import FIRING, OUTSIDE, SAME_TOKEN, SILENT, Examples, Windows
from prism.autointerp.explainers import Explanation

SCORES = ("detection", "detection_hard", "fuzzing", "fuzzing_hard")
LEAST_PAIRS = 5  # same-token pairs, fewer give no score


class Judge(Protocol):
    """Whoever reads an explanation and answers: a rule, or a language model."""

    def detect(self, explanation: Explanation, windows: Windows) -> Bool[np.ndarray, " windows"]:
        """For each window, whether the unit fires in it."""

    def fuzz(
        self, explanation: Explanation, windows: Windows, places: Int[np.ndarray, " windows"]
    ) -> Bool[np.ndarray, " windows"]:
        """For each window, whether the unit fires on the token at one place."""


class RuleJudge:
    """Applies the rule behind an explanation: no language model."""

    def detect(self, explanation: Explanation, windows: Windows) -> Bool[np.ndarray, " windows"]:
        """True where some token of the window is above the rule's cut."""
        return explanation.rates(windows).max(1, initial=0.0) > explanation.cut

    def fuzz(
        self, explanation: Explanation, windows: Windows, places: Int[np.ndarray, " windows"]
    ) -> Bool[np.ndarray, " windows"]:
        """True where the marked token is above the rule's cut."""
        return explanation.rates(windows)[np.arange(len(windows)), places] > explanation.cut


def balanced_accuracy(said: Bool[np.ndarray, " windows"], truth: Bool[np.ndarray, " windows"]) -> float:
    """Mean of the share of true cases that are found and the share of false ones that are left alone.

    >>> balanced_accuracy(np.zeros(14, bool), np.arange(14) < 4)
    0.5

    Raises:
        ValueError: no true case, or no false one.
    """
    said, truth = np.asarray(said, dtype=bool), np.asarray(truth, dtype=bool)
    if truth.all() or not truth.any():
        raise ValueError(f"{truth.sum()} true of {len(truth)} cases; balanced accuracy needs some of each")
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def score(explanation: Explanation, examples: Examples, unit: int, judge: Judge | None = None) -> dict[str, float]:
    """How well an explanation tells where a unit fires, on windows drawn from `examples`.

    Args:
        explanation: of this unit, or, as a baseline, of another.
        examples: of held-out texts.
        unit: whose windows are judged.
        judge: who answers; by default the explanation's own rule.

    Returns:
        detection and fuzzing (against silent windows and other tokens), detection_hard and fuzzing_hard (against
        same-token windows; NaN with fewer than `LEAST_PAIRS`), found (share of firing windows detected), firing,
        silent and pairs (windows of each kind).

    Raises:
        ValueError: no firing or no silent window.
    """
    judge, drawn = judge or RuleJudge(), examples.draw(unit)
    windows = {kind: examples.windows(unit, part["row"].to_numpy()) for kind, part in drawn.groupby("kind")}
    firing, silent = windows.get(FIRING), windows.get(SILENT)
    if firing is None or silent is None:
        raise ValueError(f"unit {unit} has no {'silent' if silent is None else 'firing'} window; see Examples.scorable")
    paired = drawn.loc[drawn["kind"] == SAME_TOKEN, "pair"].to_numpy()
    hard = windows.get(SAME_TOKEN, firing[:0])
    detected, marked = judge.detect(explanation, firing), judge.fuzz(explanation, firing, _centres(firing))
    others, places = other_places(firing, np.random.default_rng((examples.seed, unit)))
    enough = len(paired) >= LEAST_PAIRS
    return {
        "detection": _balanced(detected, judge.detect(explanation, silent)),
        "detection_hard": _balanced(detected[paired], judge.detect(explanation, hard)) if enough else np.nan,
        "fuzzing": _balanced(marked, judge.fuzz(explanation, others, places)),
        "fuzzing_hard": _balanced(marked[paired], judge.fuzz(explanation, hard, _centres(hard))) if enough else np.nan,
        "found": float(np.mean(detected)),
        "firing": len(firing),
        "silent": len(silent),
        "pairs": len(paired),
    }


def _centres(windows: Windows) -> Int[np.ndarray, " windows"]:
    return np.full(len(windows), windows.centre)


def _balanced(on_true: np.ndarray, on_false: np.ndarray) -> float:
    """Balanced accuracy of the answers to true cases and to false ones; NaN without false ones."""
    if not len(on_false):
        return float("nan")
    truth = np.arange(len(on_true) + len(on_false)) < len(on_true)
    return balanced_accuracy(np.concatenate([on_true, on_false]), truth)


def other_places(windows: Windows, rng: np.random.Generator) -> tuple[Windows, Int[np.ndarray, " windows"]]:
    """The windows that have a token on which the unit is silent, and for each a random place of such a token."""
    silent = (windows.ids != OUTSIDE) & ~windows.fires
    keep = silent.any(1)
    return windows[keep], np.where(silent[keep], rng.random(silent[keep].shape), -1).argmax(1)


def density_partners(density: Float[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
    """For each unit another one that fires about as often: the next in the order of density (for the last, the first
    before it). Its explanation is the baseline that knows how often, and not where.

    >>> density_partners(np.array([0.3, 0.1, 0.2])).tolist()
    [2, 2, 0]

    Raises:
        ValueError: fewer than two units.
    """
    if len(density) < 2:
        raise ValueError(f"{len(density)} unit; shuffling explanations needs at least two")
    order = np.argsort(density, kind="stable")
    partner = np.empty(len(density), dtype=np.int64)
    partner[order[:-1]], partner[order[-1]] = order[1:], order[-2]
    return partner
