"""Phase 5: share of the maximum, F1 of a token, examples across the range, a search's margin on other texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def share_of_maximum(activations: np.ndarray, maxima: np.ndarray) -> np.ndarray:
    """Each feature's activation as a share of its own maximum; 0 for one whose maximum is 0."""
    return np.where(maxima > 0, activations / np.where(maxima > 0, maxima, 1), 0.0)


def check_share_of_maximum(answer: Callable) -> Callable:
    """Check exercise 1."""
    cases = [
        (np.array([5.0, 0.0, 3.0, 12.0]), np.array([10.0, 4.0, 4.0, 10.0])),
        (np.array([5.0, 2.0, 0.0, 1.5]), np.array([10.0, 0.0, 0.0, 2.0])),
    ]
    mistakes = {
        "You divided by the largest activation of this text; divide by each feature's own maximum.": (
            lambda a, m: a / a.max()
        ),
        "You divided by the largest maximum of all; each feature has its own.": lambda a, m: a / m.max(),
        "That is the maximum as a share of the activation; turn the fraction round.": lambda a, m: m / a,
        "That is how far each is from its maximum; divide, do not subtract.": lambda a, m: m - a,
        "A feature whose maximum is 0 gives nan or inf in yours; its share is 0 by definition.": lambda a, m: a / m,
        "You cut shares at 1; an activation above the sample's maximum is worth knowing, leave it.": (
            lambda a, m: np.minimum(share_of_maximum(a, m), 1)
        ),
    }
    with np.errstate(all="ignore"):
        return check(answer, share_of_maximum, cases, mistakes)


def token_f1(fires: np.ndarray, is_token: np.ndarray) -> float:
    """Harmonic mean of precision and recall of 'fires' for 'is the token'; 0 where they never meet."""
    return float(2 * (fires & is_token).sum() / max(fires.sum() + is_token.sum(), 1))


def check_token_f1(answer: Callable) -> Callable:
    """Check exercise 2."""
    fires = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    is_token = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0], dtype=bool)
    nothing = np.zeros(12, dtype=bool)
    mistakes = {
        "It never fires on the token here: F1 is 0 by definition, not nan.": lambda f, t: np.nan,
        "That is precision alone; a feature that fires once, and right, would win.": (
            lambda f, t: (f & t).sum() / f.sum()
        ),
        "That is recall alone; a feature that fires always would win.": lambda f, t: (f & t).sum() / t.sum(),
        "That is the plain mean of precision and recall; take the harmonic one, 2·p·r / (p + r).": (
            lambda f, t: ((f & t).sum() / f.sum() + (f & t).sum() / t.sum()) / 2
        ),
        "That is accuracy; with a rare token, a feature that never fires would score nearly 1.": (
            lambda f, t: (f == t).mean()
        ),
        "That is the Jaccard overlap, both over either; F1 is twice both over the sum of the counts.": (
            lambda f, t: (f & t).sum() / max((f | t).sum(), 1)
        ),
        "Half of it is missing: F1 is *twice* what they share over the sum of the counts.": (
            lambda f, t: (f & t).sum() / max(f.sum() + t.sum(), 1)
        ),
    }
    with np.errstate(all="ignore"):
        return check(answer, token_f1, [(fires, is_token), (~fires, is_token), (nothing, is_token)], mistakes)


def quantile_rows(column: np.ndarray, groups: int) -> np.ndarray:
    """Row of the strongest token of each of some equally large groups of firings, strongest group first."""
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    return np.array([part[0] for part in np.array_split(order, groups)])


def _equal_ranges(column: np.ndarray, groups: int) -> list[int]:
    edges = np.linspace(column.max(), 0, groups + 1)
    rows = []
    for high, low in zip(edges[:-1], edges[1:], strict=True):
        inside = np.flatnonzero((column > low) & (column <= high))
        rows.append(int(inside[column[inside].argmax()]))
    return rows


def check_quantile_rows(answer: Callable) -> Callable:
    """Check exercise 3."""
    column = np.array([0, 4.0, 0, 9.0, 0.4, 0, 7.5, 0.2, 1.6, 0, 0.9, 0])
    cases = [(column, 3), (column, 2), (np.concatenate([column[::-1], [20.0, 0.1]]), 4)]
    mistakes = {
        "Your groups hold silent tokens, too: take those with an activation above 0.": (
            lambda c, n: [part[0] for part in np.array_split(np.argsort(-c, kind="stable"), n)]
        ),
        "Yours run from the weakest to the strongest: turn the order round.": lambda c, n: quantile_rows(c, n)[::-1],
        "That is the weakest token of each group; take the strongest.": (
            lambda c, n: [part[-1] for part in np.array_split(np.argsort(-c)[: (c > 0).sum()], n)]
        ),
        "Your groups cover equal ranges of activation; make them equal in how many tokens they hold.": _equal_ranges,
        "Those are activations; return the rows where they stand.": lambda c, n: c[quantile_rows(c, n)],
        "Those are places among the tokens that fire; return rows of the whole column.": (
            lambda c, n: np.searchsorted(np.flatnonzero(c > 0), quantile_rows(c, n))
        ),
        "Those are the strongest tokens of all, from the top group only.": lambda c, n: np.argsort(-c)[:n],
    }
    return check(answer, quantile_rows, cases, mistakes)


def held_out_margin(fires: np.ndarray, inside: np.ndarray, asked: np.ndarray) -> float:
    """Of the texts not asked with: share of those inside that fire, minus share of those outside."""
    return float(fires[inside & ~asked].mean() - fires[~inside & ~asked].mean())


def check_held_out_margin(answer: Callable) -> Callable:
    """Check exercise 4."""
    inside = np.arange(14) < 6
    asked = np.isin(np.arange(14), [0, 1, 2, 12])
    fires = np.isin(np.arange(14), [0, 1, 2, 3, 5, 8, 12])
    other = np.isin(np.arange(14), [1, 4, 7, 9, 10, 12, 13])
    mistakes = {
        "The texts that the search was asked with count in yours; they chose the feature, so leave them out.": (
            lambda f, i, a: f[i].mean() - f[~i].mean()
        ),
        "You left out the texts asked with inside the kind only; leave them out on both sides.": (
            lambda f, i, a: f[i & ~a].mean() - f[~i].mean()
        ),
        "You kept only the texts asked with; keep the others.": lambda f, i, a: f[i & a].mean() - f[~i & a].mean(),
        "You counted texts; the groups differ in size, so take shares.": (
            lambda f, i, a: (f & i & ~a).sum() - (f & ~i & ~a).sum()
        ),
        "You divided both counts by all texts left; divide each by the size of its own group.": (
            lambda f, i, a: ((f & i & ~a).sum() - (f & ~i & ~a).sum()) / (~a).sum()
        ),
        "The sign is the wrong way round: inside minus outside.": lambda f, i, a: -held_out_margin(f, i, a),
        "That is the share inside alone; a feature that fires everywhere would get 1. Subtract the share outside.": (
            lambda f, i, a: f[i & ~a].mean()
        ),
    }
    with np.errstate(all="ignore"):
        return check(answer, held_out_margin, [(fires, inside, asked), (other, inside, asked)], mistakes)
