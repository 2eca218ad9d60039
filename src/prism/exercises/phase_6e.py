"""Phase 6e: bits per byte, the share of what an ablation destroys, tokens that end together, the best partner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check


def bits_per_byte(nats: np.ndarray, texts: list[str]) -> float:
    """Bits of all texts over bytes of all texts, from nats summed over each text's tokens."""
    return float(np.sum(nats) / np.log(2) / sum(len(text.encode("utf-8")) for text in texts))


def check_bits_per_byte(answer: Callable) -> Callable:
    """Check exercise 1."""

    def n_bytes(texts):
        return np.array([len(text.encode()) for text in texts])

    mistakes = {
        "Those are nats per byte; a bit is ln 2 nats.": lambda n, t: np.sum(n) / n_bytes(t).sum(),
        "You multiplied by ln 2; to turn nats into bits, divide by it.": (
            lambda n, t: np.sum(n) * np.log(2) / n_bytes(t).sum()
        ),
        "You counted characters; 'é' is one character and two bytes. Use `text.encode()`.": (
            lambda n, t: np.sum(n) / np.log(2) / sum(map(len, t))
        ),
        "You averaged the texts' own ratios, so a short text weighs as much as a long one; divide sum by sum.": (
            lambda n, t: np.mean(np.asarray(n) / np.log(2) / n_bytes(t))
        ),
        "That is bits per text; divide by all the bytes.": lambda n, t: np.mean(n) / np.log(2),
    }
    cases = [
        (np.array([8.0, 30.0]), ["ab", "a longer text"]),
        (np.array([12.0, 5.5]), ["déjà vu à Paris", "né"]),
        (np.array([7.0]), ["日本"]),
    ]
    return check(answer, bits_per_byte, cases, mistakes)


def relative_l0(l0: float, d_in: int, other_d_in: int) -> float:
    """The L0 at which another width's activation is described by the same share of its channels."""
    return l0 * other_d_in / d_in


def check_relative_l0(answer: Callable) -> Callable:
    """Check exercise 2."""
    mistakes = {
        "The share is the wrong way round: a narrower activation needs fewer features.": lambda a, d, o: a * d / o,
        "That is the same L0; keep the *share* of the channels.": lambda a, d, o: a,
        "That is the share itself; multiply it by the other model's channels.": lambda a, d, o: a / d,
        "That is a difference; L0 and channels go in proportion.": lambda a, d, o: a - (d - o),
        "Keep the fraction: L0 is a mean and needs not be whole.": lambda a, d, o: round(a * o / d),
    }
    return check(answer, relative_l0, [(31.5, 192, 128), (10.0, 768, 64), (80.25, 128, 2304)], mistakes)


def shared_ends(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (token of a, token of b) that end at the same character; both lists of ends rise strictly."""
    return [(i, int(np.flatnonzero(b == end)[0])) for i, end in enumerate(a) if end in b]


def check_shared_ends(answer: Callable) -> Callable:
    """Check exercise 3."""

    def starts(ends):
        return np.concatenate([[0], ends[:-1]])

    mistakes = {
        "Those are the ends themselves; return the tokens' numbers.": (
            lambda a, b: [(int(end), int(end)) for end in a if end in b]
        ),
        "The pairs are the wrong way round: first the token of a.": (
            lambda a, b: [(j, i) for i, j in shared_ends(a, b)]
        ),
        "You compared where tokens *begin*: two tokens that begin together may have read on differently far.": (
            lambda a, b: shared_ends(starts(a), starts(b))
        ),
        "You paired the tokens by their number; the third token of one may be the fifth of the other.": (
            lambda a, b: [(i, i) for i in range(min(len(a), len(b)))]
        ),
        "You paired tokens by number and kept those with equal ends; look the end up in the whole other list.": (
            lambda a, b: [(i, i) for i in range(min(len(a), len(b))) if a[i] == b[i]]
        ),
    }
    cases = [
        (np.array([2, 5, 9, 12]), np.array([1, 2, 7, 9, 12])),
        (np.array([3, 4, 8]), np.array([4, 6, 8, 11])),
        (np.array([1, 2, 3]), np.array([2, 3])),
    ]
    return check(answer, shared_ends, cases, mistakes)


def best_partner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each column of a the largest correlation with a column of b."""
    z_a, z_b = ((x - x.mean(0)) / x.std(0) for x in (a, b))
    return (z_a.T @ z_b / len(a)).max(axis=1)


def check_best_partner(answer: Callable) -> Callable:
    """Check exercise 4."""

    def correlations(a, b):
        return np.corrcoef(a, b, rowvar=False)[: a.shape[1], a.shape[1] :]

    def cosines(a, b):
        return (a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0))

    mistakes = {
        "That is one number for each column of b; take the maximum along the other axis.": (
            lambda a, b: correlations(a, b).max(axis=0)
        ),
        "That is a cosine: take each column's mean off first, or two units that often fire look alike.": (
            lambda a, b: cosines(a, b).max(axis=1)
        ),
        "The sign counts: a unit that fires when the other is silent is no partner.": (
            lambda a, b: np.abs(correlations(a, b)).max(axis=1)
        ),
        "That is the average over all columns of b; take the largest.": lambda a, b: correlations(a, b).mean(axis=1),
        "That is the partner's number; return its correlation.": lambda a, b: correlations(a, b).argmax(axis=1),
    }
    rng = np.random.default_rng(0)
    shared = rng.exponential(size=(60, 3))
    cases = [
        (shared @ rng.normal(size=(3, 4)), shared @ rng.normal(size=(3, 5)) + 0.3 * rng.normal(size=(60, 5))),
        (3 + rng.exponential(size=(30, 3)), 5 - rng.exponential(size=(30, 2))),
    ]
    return check(answer, best_partner, cases, mistakes)
