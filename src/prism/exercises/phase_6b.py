"""Phase 6b: attribution against a baseline, integrated gradients, a weighted sign agreement, the share restored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def attribution(value: np.ndarray, off: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """First-order effect of switching each node from its value to `off`."""
    return (value - off) * gradient


def check_attribution(answer: Callable) -> Callable:
    """Check exercise 1."""
    value, off, gradient = np.array([2.0, 0.5, 3.0]), np.array([0.5, 1.0, 0.0]), np.array([1.0, 2.0, -0.3])
    mistakes = {
        "That is the effect against zero; the nodes go to `off`.": lambda v, o, g: v * g,
        "The sign is the wrong way round: the effect is score as it is − score when off.": lambda v, o, g: (o - v) * g,
        "That is the gradient alone; how far each node moves counts too.": lambda v, o, g: g,
        "Keep the sign: a node may speak against the answer.": lambda v, o, g: np.abs((v - o) * g),
        "That is the sum; give one number for each node.": lambda v, o, g: ((v - o) * g).sum(),
    }
    return check(answer, attribution, [(value, off, gradient), (gradient, value, off)], mistakes)


def path_attribution(
    gradient: Callable[[np.ndarray], np.ndarray], value: np.ndarray, off: np.ndarray, steps: int
) -> np.ndarray:
    """Integrated gradients by the midpoint rule."""
    along = (np.arange(steps) + 0.5) / steps
    return (value - off) * np.mean([gradient(off + a * (value - off)) for a in along], axis=0)


def check_path_attribution(answer: Callable) -> Callable:
    """Check exercise 2."""

    def product(f: np.ndarray) -> np.ndarray:  # gradient of f0 · f1 + f2 ** 2
        return np.array([f[1], f[0], 2 * f[2]])

    def saturating(f: np.ndarray) -> np.ndarray:  # gradient of tanh(Σ f)
        return np.full(len(f), 1 - np.tanh(f.sum()) ** 2)

    value, off = np.array([2.0, 1.0, -1.5]), np.array([0.5, 0.0, 0.2])

    def with_points(points: Callable[[int], np.ndarray]) -> Callable:
        return lambda g, v, o, s: (v - o) * np.mean([g(o + a * (v - o)) for a in points(s)], axis=0)

    mistakes = {
        "That is gradient × activation: take the gradient all along the path, not at its end.": (
            lambda g, v, o, s: (v - o) * g(v)
        ),
        "Average the gradients over the steps; you summed them.": (
            lambda g, v, o, s: (v - o) * np.sum([g(o + a * (v - o)) for a in (np.arange(s) + 0.5) / s], axis=0)
        ),
        "The path starts at `off`, not at zero.": (
            lambda g, v, o, s: (v - o) * np.mean([g(a * v) for a in (np.arange(s) + 0.5) / s], axis=0)
        ),
        "Multiply the mean gradient by how far each node moves.": (
            lambda g, v, o, s: np.mean([g(o + a * (v - o)) for a in (np.arange(s) + 0.5) / s], axis=0)
        ),
        "Take the middle of each step: (i + ½) / steps. Its left end misses the end of the path.": with_points(
            lambda s: np.arange(s) / s
        ),
        "Take the middle of each step: (i + ½) / steps. Its right end misses the start of the path.": with_points(
            lambda s: (np.arange(s) + 1) / s
        ),
    }
    cases = [(product, value, off, 4), (saturating, value, off, 8), (product, off, value, 1)]
    return check(answer, path_attribution, cases, mistakes)


def sign_agreement(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Share of the total real effect that sits on nodes whose sign the estimate has right."""
    same = np.sign(estimate) == np.sign(exact)
    return float(np.abs(exact)[same].sum() / np.abs(exact).sum())


def check_sign_agreement(answer: Callable) -> Callable:
    """Check exercise 3."""
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


def restored(clean: float, corrupt: float, patched: float) -> float:
    """How much of the way from the corrupt to the clean run a patch goes: 0 nothing, 1 all of it."""
    return (patched - corrupt) / (clean - corrupt)


def check_restored(answer: Callable) -> Callable:
    """Check exercise 4."""
    mistakes = {
        "That is the share that is still missing; take it from 1.": lambda c, k, p: (c - p) / (c - k),
        "Count from the corrupt run, not from zero.": lambda c, k, p: p / c,
        "Divide by the whole way from corrupt to clean, not by the clean score.": lambda c, k, p: (p - k) / c,
        "A share has no unit: divide by the way from corrupt to clean.": lambda c, k, p: p - k,
        "The way is clean − corrupt; yours has the wrong sign.": lambda c, k, p: (p - k) / (k - c),
    }
    return check(answer, restored, [(3.0, -2.0, 1.0), (1.5, 0.5, 2.0), (-1.0, 4.0, 3.0)], mistakes)
