"""What an exercise's answer may return: numbers in any clothes, compared by value, put into the reference's kind."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np

LARGEST = float(np.finfo(float).max)


def copies(case: tuple) -> tuple:
    """The arguments in memory of their own: plain, contiguous arrays and tensors without gradients."""
    return tuple(_copy(value) for value in case)


def _copy(value: object) -> object:
    if isinstance(value, np.ndarray):
        return np.array(value, order="C")
    if _is_tensor(value):
        return value.detach().clone().contiguous()
    return copy.deepcopy(value)


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach") and hasattr(value, "tolist")  # without importing torch for exercises in NumPy


def numbers(value: object) -> np.ndarray | None:
    """A number, nested list, set, array or tensor of any numeric dtype as a float array; None for anything else."""
    try:
        array = np.asarray(_plain(value))
        try:
            return array.astype(float) if array.dtype.kind in "biufO" else None
        except OverflowError:  # a whole number or fraction beyond floats: the largest one
            return np.asarray(np.clip(array, -LARGEST, LARGEST), dtype=float)
    except Exception:  # an object may fail in any way when it is asked what it holds
        return None


def _plain(value: object) -> object:
    if _is_tensor(value):
        return value.detach().tolist()
    if isinstance(value, set | frozenset):  # where the order says nothing, as of rows or pairs
        return sorted(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def same(a: object, b: object, tolerance: float) -> bool:
    """Equal in shape and, within the tolerance, in value."""
    a, b = numbers(a), numbers(b)
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def in_kind_of(reference: Callable, answer: Callable, case: tuple) -> Callable:
    """A right answer that the notebook can go on with wherever it could with the reference.

    Args:
        reference: what the lines below the exercise are written for.
        answer: right on the case.
        case: arguments to try both on.

    Returns:
        `answer` if it returns the reference's kind (tensor, array, whole or other number; for a list or tuple, whatever
        is indexed by place, or a set) and leaves its input alone; else a function that gives it copies and converts its
        result.
    """
    given, wanted = copies(case), reference(*copies(case))
    if _converted(got := answer(*given), wanted) is got and all(map(_unchanged, given, case)):
        return answer

    @functools.wraps(answer)
    def going_on(*arguments: object) -> object:
        return _converted(answer(*copies(arguments)), wanted)

    return going_on


def _unchanged(given: object, original: object) -> bool:
    if numbers(original) is None:  # a text, a list of texts, a function
        try:
            return bool(given == original)
        except Exception:  # arrays in a dictionary have no one answer
            return False
    return same(given, original, 0.0)


def _converted(got: object, like: object) -> object:
    """A result as the kind that `like` is; the result itself if it is of that kind, or cannot be put into it."""
    if _alike(got, like) or (array := numbers(got)) is None:
        return got
    if _is_tensor(like):
        return like.new_tensor(array)
    if isinstance(like, np.ndarray):
        return array.astype(like.dtype)
    if isinstance(like, list | tuple):
        return type(like)(array.astype(np.asarray(like).dtype).tolist())
    if array.shape:
        return got
    return round(float(array)) if isinstance(like, int | np.integer) else float(array)


def _alike(got: object, like: object) -> bool:
    """Whether code written for the one can use the other."""
    if _is_tensor(like):
        return _is_tensor(got) and not got.requires_grad and got.is_floating_point() == like.is_floating_point()
    if isinstance(like, np.ndarray):
        return isinstance(got, np.ndarray) and got.dtype.kind == like.dtype.kind
    if isinstance(like, int | np.integer):
        return isinstance(got, int | np.integer)
    if isinstance(like, float | np.floating):
        return isinstance(got, int | float | np.number)
    if isinstance(like, list | tuple):  # a table of pandas is indexed by its labels
        return isinstance(got, list | tuple | set | frozenset | np.ndarray) or _is_tensor(got)
    return True
