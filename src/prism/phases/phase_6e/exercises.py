"""Phase 6e: bits per byte, tokens that end together, a hypothesis about a feature that the small model lacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


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


def shared_ends(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (token of a, token of b) that end at the same character; both lists of ends rise strictly."""
    return [(i, int(np.flatnonzero(b == end)[0])) for i, end in enumerate(a) if end in b]


def check_shared_ends(answer: Callable) -> Callable:
    """Check exercise 2."""

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


def check_hypothesis(fire: str, silent: str, strongest: Callable[[str], tuple[float, str]], bar: float) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`).

    A feature that fires weakly on a tenth of all tokens does so in nearly every sentence, so what lies below `bar`
    counts as silent.

    Args:
        fire: a text in which the hypothesis says that the feature fires; silent: one in which it says it is silent.
        strongest: text -> the feature's largest activation in it, and the token that has it.
        bar: an activation counts as firing from here on.
    """

    def heard(text: str) -> float:
        value, on = strongest(text)
        low = 0 < value < bar
        print(f"{value:.1f} at {on!r}" + (f", below {bar:.1f}: counts as silent" if low else "") if value else "silent")
        return 0.0 if low else value

    try_hypothesis("6e", fire, silent, heard)
