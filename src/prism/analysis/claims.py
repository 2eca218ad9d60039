"""Intervals, and the card that states one finding with what it was held against."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def bootstrap_interval(
    values: Float[np.ndarray, "samples ..."],
    statistic: Callable = np.mean,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron 1979): resample the rows, take the middle `level`.

    Args:
        values: independent samples along the first axis: texts or sequences, not the tokens within one.
        statistic: takes an array like `values`, returns a number.
        n: resamples.
        level: coverage, between 0 and 1.
        seed: of the resamples.

    Raises:
        ValueError: no samples, NaN among them, or a level that is not between 0 and 1.
    """
    values = np.asarray(values)
    if not len(values) or np.isnan(values).any():
        raise ValueError("bootstrap_interval needs at least one sample and no NaN; drop the missing ones first")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a share between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    estimates = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(n)]
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(
    a: Float[np.ndarray, " samples_a"],
    b: Float[np.ndarray, " samples_b"],
    statistic: str = "median",
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of statistic(a) − statistic(b), two independent samples resampled each by itself.

    Args:
        a: independent samples of one group.
        b: of the other.
        statistic: 'median' or 'mean'.
        n: resamples.
        level: coverage, between 0 and 1.
        seed: of the resamples.

    Raises:
        ValueError: an unknown statistic, an empty group, NaN, or a level that is not between 0 and 1.
    """
    if statistic not in ("median", "mean"):
        raise ValueError(f"statistic is '{statistic}'; choose 'median' or 'mean'")
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("difference_interval needs at least one sample of each group and no NaN")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a share between 0 and 1, such as 0.95")
    rng, middle = np.random.default_rng(seed), getattr(np, statistic)
    estimates = [middle(x[rng.integers(len(x), size=(n, len(x)))], axis=1) for x in (a, b)]
    low, high = np.quantile(estimates[0] - estimates[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


CARD = "application/vnd.prism.claim+json"  # a card's parts in a notebook's outputs, for documents made from them
UNMEASURED = re.compile(r"""(?<![\w'"])[+-]?nan%?(?![\w'"])""")


@dataclass(frozen=True)
class ClaimCard:
    """One finding, with what it was held against. A number that could not be measured (NaN) is shown as a dash.

    Attributes:
        claim: the finding, in a sentence.
        effect: its size, with the unit.
        interval: of the effect, and of what kind.
        control: what it was compared with, and the control's value.
        refuted_by: what result would refute the claim.
        supported: the verdict, as computed.
    """

    claim: str
    effect: str
    interval: str
    control: str
    refuted_by: str
    supported: bool

    def __post_init__(self) -> None:
        if not isinstance(self.supported, (bool, np.bool_)):
            raise TypeError(f"supported is {self.supported!r}; compute it as True or False")
        for name in ("effect", "interval", "control"):
            object.__setattr__(self, name, UNMEASURED.sub("–", str(getattr(self, name))))

    @property
    def verdict(self) -> str:
        """'supported' or 'not supported'."""
        return "supported" if self.supported else "not supported"

    def _parts(self) -> dict[str, str]:
        names = ("claim", "effect", "interval", "control", "refuted_by", "verdict")
        return {name: str(getattr(self, name)) for name in names}

    def _rows(self) -> list[tuple[str, str]]:
        return [(name.replace("_", " "), text) for name, text in self._parts().items()][1:]

    def __str__(self) -> str:
        lines = textwrap.wrap(str(self.claim), 76) + ["─" * 76]
        for name, text in self._rows():
            lines += textwrap.wrap(text, 76, initial_indent=f"{name:<12}", subsequent_indent=" " * 12)
        body = [f"│ {line:<76} │" for line in lines]
        return "\n".join(["┌" + "─" * 78 + "┐", *body, "└" + "─" * 78 + "┘"])

    def _repr_markdown_(self) -> str:
        def safe(text: str) -> str:
            return html.escape(" ".join(text.split())).replace("|", "&#124;")

        rows = "\n".join(f"| {name} | {safe(text)} |" for name, text in self._rows())
        return f"| claim | {safe(str(self.claim))} |\n|:--|:--|\n{rows}"

    def _repr_mimebundle_(self, **which: object) -> dict[str, dict[str, str]]:
        """What a notebook keeps beside the printed card."""
        return {CARD: self._parts()}

    def print(self) -> None:
        """Print the card as plain text."""
        print(self)
