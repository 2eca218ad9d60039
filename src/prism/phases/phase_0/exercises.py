"""Exercises of phase 0: collisions, where superposition pays, directions recovered, a hypothesis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def collision(n: int, p: float) -> float:
    """Chance that at least two of `n` features are active, each independently with chance `p`."""
    return 1 - (1 - p) ** n - n * p * (1 - p) ** (n - 1)


def check_collision(answer: Callable) -> Callable:
    """Check exercise 1."""
    mistakes = {
        "That is the chance of at least *one* active feature; take off the cases with exactly one.": (
            lambda n, p: 1 - (1 - p) ** n
        ),
        "There are n ways to have exactly one active feature, not one.": (
            lambda n, p: 1 - (1 - p) ** n - p * (1 - p) ** (n - 1)
        ),
        "That is the chance of exactly two; three or more collide as well.": (
            lambda n, p: n * (n - 1) / 2 * p**2 * (1 - p) ** (n - 2)
        ),
        "That is the expected number of colliding pairs, not a chance; it can exceed 1.": (
            lambda n, p: n * (n - 1) / 2 * p**2
        ),
        "That is the chance for one given pair; here any two of the n may collide.": lambda n, p: p**2,
        "That is the chance that *no* two are active together; take it from 1.": (
            lambda n, p: (1 - p) ** n + n * p * (1 - p) ** (n - 1)
        ),
    }
    return check(answer, collision, [(5, 0.3), (20, 0.02), (5, 1.0), (2, 0.5)], mistakes)


def critical_density(r: float) -> float:
    """The chance `p` below which opposite ends of one axis cost less than leaving out the less important feature."""
    less = min(1.0, r)
    return 4 * less / (2 * (1 + r) + 3 * less)


def check_critical_density(answer: Callable) -> Callable:
    """Check exercise 2."""
    mistakes = {
        "Right for r up to 1; above that, feature 1 is the less important one, with importance 1.": (
            lambda r: 4 * r / (2 * (1 + r) + 3 * r)
        ),
        "Left out is the *less* important feature: multiply its variance by the smaller of 1 and r.": (
            lambda r: 4 * max(1.0, r) / (2 * (1 + r) + 3 * max(1.0, r))
        ),
        "A feature left out is answered with its mean, so it costs its variance p/3 − p²/4, not p/3.": (
            lambda r: 2 * min(1.0, r) / (1 + r)
        ),
        "A collision hurts both features: the importances add up to 1 + r.": (
            lambda r: 4 * min(1.0, r) / (2 + 3 * min(1.0, r))
        ),
    }
    return check(answer, critical_density, [(0.25,), (1.0,), (4.0,)], mistakes)


def recovered(decoder: torch.Tensor, directions: torch.Tensor, threshold: float) -> float:
    """Share of the true directions that have a decoder row at a cosine of at least the threshold."""
    rows, truth = (x / x.norm(dim=1, keepdim=True) for x in (decoder, directions))
    return ((rows @ truth.T).amax(0) >= threshold).float().mean().item()


def check_recovered(answer: Callable) -> Callable:
    """Check exercise 3."""

    def cosines(decoder: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return torch.cosine_similarity(decoder[:, None], directions[None], dim=-1)

    mistakes = {
        "Divide both by their lengths first: a cosine compares directions only.": (
            lambda d, t, c: ((d @ t.T).amax(0) >= c).float().mean()
        ),
        "That is the share of decoder rows that found something; count the true directions that were found.": (
            lambda d, t, c: (cosines(d, t).amax(1) >= c).float().mean()
        ),
        "The sign counts: a row that points the opposite way did not find the direction.": (
            lambda d, t, c: (cosines(d, t).abs().amax(0) >= c).float().mean()
        ),
        "That is a number of directions; divide by how many there are.": (
            lambda d, t, c: (cosines(d, t).amax(0) >= c).sum().float()
        ),
        "That is a mean cosine; count those that reach the threshold.": (lambda d, t, c: cosines(d, t).amax(0).mean()),
        "You counted pairs; a direction needs only one row that is near enough.": (
            lambda d, t, c: (cosines(d, t) >= c).float().mean()
        ),
    }
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
    decoder = torch.tensor([[0.5, 0.02, 0], [0, -2, 0], [0.1, 0, 3], [0.3, 0.1, 3], [0, 0.2, 4], [0.3, 0.38, 0.02]])
    return check(answer, recovered, [(decoder, directions, 0.9), (decoder, directions, 0.995)], mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 4, about meaning: reads the reader's two inputs and says what happened (`try_hypothesis`)."""
    try_hypothesis("0", fire, silent, activation)
