"""Phase 6d: balanced accuracy, hard negatives, a list read strictly, a hypothesis about a feature."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis

OUR_TRY = (  # at exercise 4: three that fire as our phrase says, two that are silent, and two that refute it
    "It was so dark that we left.",
    "He is tall enough to reach it.",
    "It is too hot to eat.",
    "We want to eat.",
    "I am so happy.",
    "He could barely see.",
    "It was the very best day.",
)


def balanced(said: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the share of true cases found and the share of false cases left alone."""
    said, truth = np.asarray(said, dtype=bool), np.asarray(truth, dtype=bool)
    return (said[truth].mean() + (~said[~truth]).mean()) / 2


def check_balanced(answer: Callable) -> Callable:
    """Check exercise 1."""
    rng = np.random.default_rng(0)
    truth = np.arange(14) < 4
    cases = [(rng.random(14) < 0.4, truth), (np.zeros(14, bool), truth), (rng.random(30) < 0.5, rng.random(30) < 0.2)]
    mistakes = {
        "That is plain accuracy; take each kind's share by itself, then their mean.": lambda s, t: (s == t).mean(),
        "You took the share of true cases found; the false ones that are left alone count as much.": (
            lambda s, t: s[t].mean()
        ),
        "The second share is of false cases that are *left alone*, not of those that are called true.": (
            lambda s, t: (s[t].mean() + s[~t].mean()) / 2
        ),
        "Divide the sum of both shares by 2.": lambda s, t: s[t].mean() + (~s[~t]).mean(),
        "You averaged over the answers (precision); average over the true cases and over the false ones.": (
            lambda s, t: (t[s].mean() + (~t[~s]).mean()) / 2 if s.any() and not s.all() else (~t).mean() / 2
        ),
    }
    return check(answer, balanced, cases, mistakes)


def hard_negatives(fires: np.ndarray, ids: np.ndarray, row: int, radius: int) -> np.ndarray:
    """Rows with the same token as `row` around which the unit is silent."""
    fires, ids = np.asarray(fires, dtype=bool), np.asarray(ids)
    quiet = [not fires[max(0, i - radius) : i + radius + 1].any() for i in range(len(ids))]
    return np.flatnonzero((ids == ids[row]) & np.array(quiet))


def check_hard_negatives(answer: Callable) -> Callable:
    """Check exercise 2."""
    places = np.arange(24)
    ids = np.where(places % 5 == 1, 7, places % 3)  # the token 7 stands at 1, 6, 11, 16 and 21
    fires, other = np.isin(places, [1, 5, 13, 17]), np.isin(places, [6, 12])

    def quiet(f: np.ndarray, r: int) -> np.ndarray:
        return np.array([not f[max(0, i - r) : i + r + 1].any() for i in range(len(f))])

    mistakes = {
        "The unit must be silent in the whole window, not on the middle token alone.": (
            lambda f, i, row, r: np.flatnonzero((i == i[row]) & ~f)
        ),
        "You forgot that the token must be the same.": lambda f, i, row, r: np.flatnonzero(quiet(f, r)),
        "You returned True and False; return the rows.": lambda f, i, row, r: (i == i[row]) & quiet(f, r),
        "The window reaches `radius` tokens to the right as well.": (
            lambda f, i, row, r: np.flatnonzero(
                (i == i[row]) & np.array([not f[max(0, j - r) : j + 1].any() for j in range(len(f))])
            )
        ),
        "Python's slice leaves out its end: the window goes to i + radius + 1.": (
            lambda f, i, row, r: np.flatnonzero(
                (i == i[row]) & np.array([not f[max(0, j - r) : j + r].any() for j in range(len(f))])
            )
        ),
    }
    return check(answer, hard_negatives, [(fires, ids, 1, 2), (fires, ids, 1, 1), (other, ids, 6, 3)], mistakes)


def read_list(answer: str, n: int) -> np.ndarray:
    """Exactly `n` zeros and ones in one pair of brackets; −1 everywhere for any other answer."""
    lists = re.findall(r"\[([^\[\]]*)\]", answer)
    items = [item.strip() for item in lists[0].split(",")] if len(lists) == 1 else []
    readable = len(items) == n and set(items) <= {"0", "1"}
    return np.array([int(item) for item in items]) if readable else np.full(n, -1)


def check_read_list(answer: Callable) -> Callable:
    """Check exercise 3."""

    def digits(text: str, n: int) -> np.ndarray:
        return np.array([int(c) for c in text if c in "01"][:n])

    def lenient(text: str, n: int, keep: Callable, fill: bool = False) -> np.ndarray:
        lists = re.findall(r"\[([^\[\]]*)\]", text)
        items = [item.strip() for item in (lists[-1].split(",") if lists else [])]
        numbers = [int(item) for item in items if item.lstrip("-").isdigit()]
        numbers = [*numbers, *[0] * (n - len(numbers))][:n] if fill else numbers
        return np.array(numbers) if keep(lists, items, numbers) else np.full(n, -1)

    cases = [
        ("I give 1 to the first text and 0 to the rest", 3),
        ("The answer is [1, 0, 1].", 3),
        ("[1, 0]", 3),
        ("[1, 2, 0]", 3),
        ("[1, 0, 1] or [0, 0, 1]", 3),
        ("[yes, no, 1]", 3),
        ("[]", 3),
    ]
    mistakes = {
        "A list of another length is not an answer: give −1 everywhere, do not fill it up.": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and set(x) <= {0, 1}, fill=True)
        ),
        "A list of another length is not an answer: give −1 `n` times.": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and set(x) <= {0, 1})
        ),
        "Only 0 and 1 are answers; what would 2 mean?": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and len(x) == n)
        ),
        "Two lists contradict each other: which one did you believe?": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(items) == n and set(items) <= {"0", "1"})
        ),
        "You took digits from anywhere in the answer; only a list in brackets counts.": digits,
    }
    return check(answer, read_list, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 4, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6d", fire, silent, activation)
