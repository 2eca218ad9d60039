"""Exercises: a check for each that answers at once, and the reference answer that an untouched stub falls back to."""

from __future__ import annotations

import dis
import re
import reprlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from prism.exercises import progress
from prism.exercises.values import copies, in_kind_of, numbers, same

# The instructions of a body that does nothing.
_EMPTY = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "COPY_FREE_VARS"}


def check(
    answer: Callable,
    reference: Callable,
    cases: Sequence[tuple],
    mistakes: dict[str, Callable] | None = None,
    tolerance: float = 1e-4,
) -> Callable:
    """Try an answer on cases, say how it did, and return a function that the notebook can go on with.

    A right and a wrong answer are kept for `prism progress`; an untouched stub leaves what is kept as it is. Every
    call gets copies of its case, so that an answer may change its input in place.

    Args:
        answer: the reader's function; one whose body is empty (or says `raise NotImplementedError`) counts as
            untouched.
        reference: the right answer; its name and its phase's module (`phase_1` and so on) say which exercise it is.
        cases: argument tuples to try it on.
        mistakes: hint -> a function that makes this typical mistake; a wrong answer that agrees with one of them
            gets its hint.
        tolerance: largest difference that still counts as equal (absolute and relative).

    Returns:
        If the answer is right on every case, `answer`, wrapped where the notebook could not go on with it as it is: it
        returns another kind of thing than the reference (say, a list for a tensor) or changes its input. Else
        `reference`.
    """
    name, going_on = getattr(answer, "__name__", "answer"), None
    try:
        problems = (
            _problem(answer, reference, case, number, mistakes or {}, tolerance)
            for number, case in enumerate(cases, start=1)
        )
        if not (problem := next(filter(None, problems), None)):
            going_on = in_kind_of(reference, answer, cases[0])
    except _Untouched:
        print(f"… {name} is not written yet. Going on with the reference answer.")
        return reference
    except (Exception, SystemExit) as error:  # of an object that is none of ours; the notebook goes on
        problem = (
            f"{type(error).__name__} when it was tried again, or what it returned was looked at; "
            "return plain numbers, in a list, an array or a tensor."
        )
    if problem:
        words = f"✗ {name}: {problem}\n  Going on with the reference answer."
        print(words.encode(errors="backslashreplace").decode())  # half of a character cannot be printed
        _record(reference, progress.TRIED)
        return reference
    print(f"✓ {name} is right on {len(cases)} cases.")
    if answer is not reference:  # which an earlier check gave to an untouched stub
        _record(reference, progress.SOLVED)
    return going_on


class _Untouched(Exception):
    """The answer is a stub that nobody has touched."""


def _record(reference: Callable, state: str) -> None:
    """Keeps how an exercise of a phase went; a check of anything else is none of it."""
    if phase := re.match(r"prism\.\w+\.phase_(\w+)", reference.__module__):
        progress.record(phase[1], reference.__name__, state)


def _problem(
    answer: Callable, reference: Callable, case: tuple, number: int, mistakes: dict[str, Callable], tolerance: float
) -> str | None:
    """What is wrong with the answer on one case; None if it is right.

    Raises:
        _Untouched: the answer is an untouched stub.
    """
    try:
        got = answer(*copies(case))
    except (Exception, SystemExit) as error:  # the reader's code may fail in any way; the notebook goes on
        if isinstance(error, NotImplementedError) and _says_not_implemented(answer):
            raise _Untouched from None
        return f"{type(error).__name__} on case {number}: {error}."
    if got is None and _is_empty(answer):
        raise _Untouched
    wanted = reference(*copies(case))
    return (
        None
        if same(got, wanted, tolerance)
        else (f"wrong on case {number}. {_hint(got, wanted, case, mistakes, tolerance)}")
    )


def _is_empty(answer: Callable) -> bool:
    """Whether nothing stands in a function's body but `return None`, `pass`, `...` or a docstring."""
    code = getattr(answer, "__code__", None)
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= _EMPTY


def _says_not_implemented(answer: Callable) -> bool:
    """Whether a function names the exception itself; torch raises it too, for a dtype that it does not support."""
    return "NotImplementedError" in getattr(getattr(answer, "__code__", None), "co_names", ())


def _hint(got: object, wanted: object, case: tuple, mistakes: dict[str, Callable], tolerance: float) -> str:
    """The hint of the mistake that gives the same answer, else what kind of thing came back."""
    if got is None:
        return "It returned nothing (None): does every way through it end in `return`?"
    for hint, mistaken in mistakes.items():
        if _makes(mistaken, got, case, tolerance):
            return hint
    array, right = numbers(got), numbers(wanted)
    if array is None:
        return f"Your function returned {reprlib.repr(got)}; {_shape(right)} is wanted."
    if array.shape != right.shape:
        same_numbers = array.size == right.size and same(array.reshape(right.shape), right, tolerance)
        start = "The numbers are right, their shape is not: your" if same_numbers else "Your"
        return f"{start} function returned {_shape(array)}; {_shape(right)} is wanted."
    if not array.shape:
        return f"Your function returned {float(array):.6g}; that is not right here."
    place = np.argwhere(~np.isclose(array, right, rtol=tolerance, atol=tolerance, equal_nan=True))[0].tolist()
    return f"Your function returned the right shape, {array.shape}; the number at {place} is the first wrong one."


def _makes(mistaken: Callable, got: object, case: tuple, tolerance: float) -> bool:
    """Whether a mistaken function gives the same; one that fails on this case does not."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return same(got, mistaken(*copies(case)), tolerance)
        except Exception:
            return False


def _shape(array: np.ndarray) -> str:
    return f"shape {array.shape}" if array.shape else "one number"
