"""Is an explanation true? Detection and fuzzing on held-out windows, hard negatives, and baselines that should fail.

Detection and fuzzing are those of delphi (Paulo et al. 2024, arXiv 2410.13928). *Detection*: does the unit fire in
this window? *Fuzzing*: one token of the window is marked; is it one that the unit fires on? All scores are balanced
accuracies, so that answering always the same gives one half however many windows of each kind there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from prism.analysis import confidence_interval
from prism.autointerp.examples import (
    FIRING,
    OUTSIDE,
    RADIUS,
    SAME_TOKEN,
    SILENT,
    Examples,
    Sizes,
    Windows,
    scorable_units,
)
from prism.autointerp.explainers import Explanation, TokenStatistics
from prism.features import FeatureMatrix

SCORES = ("detection", "detection_hard", "fuzzing", "fuzzing_hard")
TRAIN_SIZES = Sizes(firing=40, silent=40)  # windows that an explanation's cut is fitted on, as delphi shows 40
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


class AlwaysNo:
    """The judge that never reads and answers no."""

    def detect(self, explanation: Explanation, windows: Windows) -> Bool[np.ndarray, " windows"]:
        """False for every window."""
        return np.zeros(len(windows), dtype=bool)

    def fuzz(
        self, explanation: Explanation, windows: Windows, places: Int[np.ndarray, " windows"]
    ) -> Bool[np.ndarray, " windows"]:
        """False for every window."""
        return np.zeros(len(windows), dtype=bool)


def accuracy(said: Bool[np.ndarray, " windows"], truth: Bool[np.ndarray, " windows"]) -> float:
    """Share of right answers: the measure that rewards whoever knows which answer is common."""
    return float(np.mean(np.asarray(said) == np.asarray(truth)))


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


def score_units(explanations: Mapping[int, Explanation], examples: Examples) -> pd.DataFrame:
    """Every unit under its own explanation, and under that of another which fires about as often; the rules judge.

    Args:
        explanations: unit -> its explanation, from other texts.
        examples: of held-out texts.

    Returns:
        One row a unit: unit, density (in the held-out texts), the columns of `score`, and each of `SCORES` as
        `shuffled_…`.

    Raises:
        ValueError: fewer than two units, or a unit without windows of a kind.
    """
    units = np.array(sorted(explanations), dtype=np.int64)
    density = np.array([examples.fires(unit).mean() for unit in units])
    rows = []
    for unit, share, partner in zip(units.tolist(), density, units[density_partners(density)].tolist(), strict=True):
        own, other = (score(explanations[which], examples, unit) for which in (unit, partner))
        rows.append({"unit": unit, "density": share, **own, **{f"shuffled_{name}": other[name] for name in SCORES}})
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Study:
    """A sample of units, explained on some texts and scored on others.

    Attributes:
        explain: windows of the texts that the explanations come from.
        held: windows of the texts that they are scored on.
        explanations: unit -> its explanation.
        scores: from `score_units`.
    """

    explain: Examples
    held: Examples
    explanations: dict[int, Explanation]
    scores: pd.DataFrame


def study(
    matrix: FeatureMatrix,
    held: Bool[np.ndarray, " tokens"],
    n: int = 80,
    terms: int = 12,
    context: bool = True,
    radius: int = RADIUS,
    seed: int = 0,
) -> Study:
    """Explain a random sample of units by counting on some texts, and score the rules on the others.

    Args:
        matrix: of any units, on all texts.
        held: True on the tokens to score on; whole texts.
        n: units (fewer where fewer have windows enough in both parts).
        terms, context: of `TokenStatistics`.
        radius: of the windows.
        seed: of every draw.

    Raises:
        ValueError: fewer than two such units.
    """
    explain = Examples(matrix.select(~np.asarray(held)), radius, TRAIN_SIZES, seed)
    score_on = Examples(matrix.select(np.asarray(held)), radius, seed=seed)
    units = scorable_units(n, explain, score_on, seed=seed).tolist()
    if len(units) < 2:
        raise ValueError(
            f"{len(units)} units fire often and rarely enough to be scored; take more texts, or a smaller "
            "radius where units fire nearly everywhere"
        )
    counter = TokenStatistics(explain, terms, context)
    explanations = {unit: counter.explain(unit) for unit in units}
    return Study(explain, score_on, explanations, score_units(explanations, score_on))


def summarise(tables: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """The mean of every score in each population, with a 95 % interval over its units.

    Args:
        tables: population -> its table from `score_units`.
        seed: of the resamples.

    Returns:
        Columns population, score, units (that have it), mean, low, high, shuffled (mean under the other unit's
        explanation). A score that fewer than two units have is left out.
    """
    rows = []
    for population, table in tables.items():
        for name in SCORES:
            part = table.dropna(subset=[name])
            if len(part) > 1:
                low, high = confidence_interval(part[name].to_numpy(), seed=seed)
                rows.append(
                    (population, name, len(part), part[name].mean(), low, high, part[f"shuffled_{name}"].mean())
                )
    return pd.DataFrame(rows, columns=["population", "score", "units", "mean", "low", "high", "shuffled"])


def found_by_strength(explanations: Mapping[int, Explanation], examples: Examples) -> pd.DataFrame:
    """How many of the firing windows the rules detect, by how strongly the unit fires there.

    Returns:
        One row a unit and quantile: unit, quantile (0 the weakest), found (share).
    """
    parts = []
    for unit, explanation in explanations.items():
        drawn = examples.draw(unit).query("kind == @FIRING")
        said = RuleJudge().detect(explanation, examples.windows(unit, drawn["row"].to_numpy()))
        parts.append(drawn.assign(unit=unit, found=said).groupby(["unit", "quantile"])["found"].mean().reset_index())
    return pd.concat(parts, ignore_index=True)


def single_token(examples: Examples, units: Iterable[int], k: int = 20) -> Bool[np.ndarray, " units"]:
    """Whether a unit's strongest firings, each in another context, are all on one token (Heap et al. 2025).

    Args:
        examples: of any texts.
        units: columns of their matrix.
        k: firings looked at (all that there are, where there are fewer).
    """
    tokens = examples.matrix.table["token"].astype(str).to_numpy(dtype=object)
    seen = [{token.strip().lower() or token for token in tokens[examples.strongest(unit, k)]} for unit in units]
    return np.array([len(found) == 1 for found in seen], dtype=bool)
