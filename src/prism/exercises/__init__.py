"""Exercises: a check for each that answers at once, and the reference answer that an untouched stub falls back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def check(
    answer: Callable,
    reference: Callable,
    cases: Sequence[tuple],
    mistakes: dict[str, Callable] | None = None,
    tolerance: float = 1e-4,
) -> Callable:
    """Try an answer on cases, say how it did, and return a function that the notebook can go on with.

    Args:
        answer: the reader's function; one that returns None counts as untouched.
        reference: the right answer.
        cases: argument tuples to try it on.
        mistakes: hint -> a function that makes this typical mistake; a wrong answer that agrees with one of them
            gets its hint.
        tolerance: largest difference that still counts as equal (absolute and relative).

    Returns:
        `answer` if it is right on every case, else `reference`.
    """
    name = getattr(answer, "__name__", "answer")
    for number, case in enumerate(cases, start=1):
        try:
            got = answer(*case)
        except Exception as error:  # the reader's code may fail in any way; the notebook goes on
            print(f"✗ {name}: {type(error).__name__} on case {number}: {error}. Going on with the reference answer.")
            return reference
        if got is None:
            print(f"… {name} is not written yet. Going on with the reference answer.")
            return reference
        if not _same(got, reference(*case), tolerance):
            print(f"✗ {name}: wrong on case {number}. {_hint(got, case, mistakes or {}, tolerance)}")
            print("  Going on with the reference answer.")
            return reference
    print(f"✓ {name} is right on {len(cases)} cases.")
    return answer


def _hint(got: object, case: tuple, mistakes: dict[str, Callable], tolerance: float) -> str:
    """The hint of the mistake that gives the same answer, else what kind of thing came back."""
    for hint, mistaken in mistakes.items():
        if _same(got, mistaken(*case), tolerance):
            return hint
    shape = tuple(np.shape(got))
    return f"Your function returned {'shape ' + str(shape) if shape else repr(got)}."


def _same(a: object, b: object, tolerance: float) -> bool:
    """Equal in shape and, within the tolerance, in value; numbers, lists, arrays and tensors alike."""
    try:
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))
