"""Every check accepts right answers however they are written, names the mistake in wrong ones, and fails no notebook.

(Exercises about meaning, `hypothesis`, have no right and wrong answers: `test_hypothesis.py`.)

`pytest tests/test_exercises.py -k table -s` prints the table of exercises, with the answers accepted and refused.
"""

import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from exercise_answers import RIGHT, WRONG

from prism.exercises import catalogue, check
from prism.exercises.values import copies
from prism.phases.phase_4 import exercises as phase_4

CHECKS = [checker for checker in dict.fromkeys(entry[0] for entry in RIGHT)]


def name_of(checker):
    return f"{checker.__module__.rpartition('.phase_')[2].partition('.')[0]}/{checker.__name__.removeprefix('check_')}"


def reference_of(checker):
    return getattr(sys.modules[checker.__module__], checker.__name__.removeprefix("check_"))


def cases_of(checker, monkeypatch):
    """What the check tries an answer on."""
    seen, module = [], sys.modules[checker.__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "check", lambda answer, reference, cases, *rest: seen.extend(cases))
        checker(None)
    return seen


def numbered(entries):
    """A parameter for each entry, named after its exercise."""
    seen, parameters = Counter(), []
    for entry in entries:
        seen[entry[0]] += 1
        parameters.append(pytest.param(*entry, id=f"{name_of(entry[0])}-{seen[entry[0]]}"))
    return parameters


def each_check(function):
    return pytest.mark.parametrize("checker", CHECKS, ids=name_of)(function)


def kind(value):
    """What the notebook's next line can do with it."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.is_floating_point(), value.requires_grad
    if isinstance(value, np.ndarray):
        return np.ndarray, value.dtype.kind
    return (int,) if isinstance(value, int | np.integer) else (float,) if isinstance(value, float) else (list, tuple)


# --- the answers of exercise_answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("checker", "answer"), numbered(RIGHT))
def test_right_answers_are_accepted(checker, answer, capsys, monkeypatch):
    going_on = checker(answer)
    assert capsys.readouterr().out.startswith("✓")
    assert getattr(going_on, "__wrapped__", going_on) is answer
    for case in cases_of(checker, monkeypatch):
        got, wanted = going_on(*copies(case)), reference_of(checker)(*copies(case))
        assert check(lambda got=got: got, lambda wanted=wanted: wanted, [()]) and "✓" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize(("checker", "answer", "hint"), numbered(WRONG))
def test_wrong_answers_get_a_hint_and_the_reference(checker, answer, hint, capsys):
    assert checker(answer) is reference_of(checker)
    out = capsys.readouterr().out
    assert out.startswith("✗") and hint in out and "Going on with the reference answer" in out


def test_table_of_exercises(request, capsys):
    """Every exercise has three right answers beside the reference, and five wrong ones, four with a hint by name."""
    rows = []
    for checker in CHECKS:
        right = {answer for c, answer in RIGHT if c is checker and answer is not reference_of(checker)}
        wrong = {answer: hint for c, answer, hint in WRONG if c is checker}
        accepted = sum(checker(answer) is not reference_of(checker) for answer in right)
        capsys.readouterr()
        refused = sum(checker(answer) is reference_of(checker) for answer in wrong)
        hinted = sum("Your function returned" not in part for part in capsys.readouterr().out.split("✗")[1:])
        rows.append((name_of(checker), len(right), accepted, len(wrong), refused, hinted))
    if request.config.getoption("capture") == "no":
        with capsys.disabled():
            print(f"\n{'exercise':<22} right  accepted  wrong  refused  by name")
            for row in rows:
                print("{:<22} {:>5}  {:>8}  {:>5}  {:>7}  {:>7}".format(*row))
    for name, right, accepted, wrong, refused, hinted in rows:
        assert right == accepted >= 3 and wrong == refused >= 5 and hinted >= 4, name
    exercises = [e for es in catalogue.EXERCISES.values() for e in es if e.name != "hypothesis"]
    listed = {f"{e.phase}/{check}" for e in exercises for check in e.checks}
    assert {name for name, *_ in rows} == listed - {"4/diagnosis"}


# --- answers of every style ------------------------------------------------------------------------------------------


def as_lists(value):
    return value.tolist() if hasattr(value, "tolist") else value


def labelled(values):
    """A table whose labels are not its places."""
    labels = np.arange(len(values)) + 0.025
    return pd.Series(values, index=labels) if np.ndim(values) == 1 else pd.DataFrame(values, index=labels)


STYLES = {
    "lists": as_lists,
    "array": lambda value: np.asarray(as_lists(value)),
    "float32 array": lambda value: np.asarray(as_lists(value), dtype=np.float32),
    "tensor": lambda value: torch.tensor(as_lists(value)),
    "double tensor": lambda value: torch.tensor(as_lists(value), dtype=torch.float64),
    "tensor with a gradient": lambda value: torch.tensor(as_lists(value), dtype=torch.float64, requires_grad=True),
    "list of tensors": lambda value: [torch.tensor(v) for v in as_lists(value)] if np.shape(value) else value,
    "pandas": lambda value: labelled(as_lists(value)) if np.ndim(value) else value,
    "tuple of fractions": lambda value: tuple(map(Fraction, as_lists(value))) if np.ndim(value) == 1 else value,
}


@each_check
def test_a_right_answer_may_return_any_kind_of_number(checker, capsys, monkeypatch):
    """It is accepted, and what the notebook goes on with returns the kind that the lines below are written for."""
    reference, cases = reference_of(checker), cases_of(checker, monkeypatch)
    for name, style in STYLES.items():
        going_on = checker(lambda *case, style=style: style(reference(*case)))
        assert "✓" in capsys.readouterr().out, name
        for case in cases:
            got, wanted = going_on(*copies(case)), reference(*copies(case))
            if isinstance(wanted, list | tuple):
                places = range(-1, len(wanted))
                assert all(np.allclose(as_lists(got[i]), wanted[i]) for i in places), (name, got)
            else:
                assert kind(got) == kind(wanted), (name, got)


def spoil(value):
    """Changes an argument in place as far as that can be done."""
    if isinstance(value, np.ndarray | torch.Tensor):
        value[...] = 1
    elif isinstance(value, list):
        value.clear()


@each_check
def test_a_right_answer_may_change_its_input(checker, capsys, monkeypatch):
    """Neither the next case nor the reference sees that, nor, later, the notebook's own arrays."""
    reference = reference_of(checker)

    def spoiling(*arguments):
        result = as_lists(reference(*copies(arguments)))
        for argument in arguments:
            spoil(argument)
        return result

    going_on = checker(spoiling)
    assert "✓" in capsys.readouterr().out
    for case in cases_of(checker, monkeypatch):
        mine, before = copies(case), copies(case)
        going_on(*mine)
        for one, other in zip(mine, before, strict=True):
            assert callable(one) or np.array_equal(as_lists(one), as_lists(other))


@each_check
def test_keywords_and_prints_do_not_matter(checker, capsys):
    reference = reference_of(checker)

    def chatty(*other_names, **more):
        print("here", len(other_names))
        return reference(*other_names)

    assert checker(chatty) is chatty
    out = capsys.readouterr().out
    assert "here" in out and "✓ chatty" in out


# --- answers that are none -------------------------------------------------------------------------------------------


def docstring_only(*arguments):
    """To do."""


def dots(*arguments): ...


def not_implemented(*arguments):
    raise NotImplementedError


@each_check
@pytest.mark.parametrize("stub", [lambda *arguments: None, docstring_only, dots, not_implemented])
def test_an_untouched_stub_falls_back_and_says_so(checker, stub, capsys):
    assert checker(stub) is reference_of(checker)
    out = capsys.readouterr().out
    assert out.startswith("…") and "not written yet" in out


def test_what_torch_cannot_do_is_no_stub(capsys):
    """It raises NotImplementedError for a dtype that a function does not support."""
    assert phase_4.check_density(lambda f: (f > 0).median(0).values) is phase_4.density
    assert capsys.readouterr().out.startswith("✗ <lambda>: NotImplementedError on case 1: ")


@each_check
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda *arguments: [].append(1), "returned nothing (None)"),
        (lambda *arguments: 1 / 0, "ZeroDivisionError on case 1"),
        (lambda *arguments: sys.exit(3), "SystemExit on case 1"),
        (lambda: 1, "TypeError on case 1"),
        (7, "TypeError on case 1"),
        (lambda *arguments: "3", "Your function returned '3'"),
        (lambda *arguments: [[1, 2], [3]], "Your function returned [[1, 2], [3]]"),
        (lambda *arguments: (number for number in "12"), "Your function returned <generator"),
        (lambda *arguments: 1j, "Your function returned 1j"),
        (lambda *arguments: np.zeros((9, 9, 9)), "function returned shape (9, 9, 9)"),
    ],
)
def test_what_cannot_be_right_is_told_and_fails_nothing(checker, answer, says, capsys):
    assert checker(answer) is reference_of(checker)
    assert says in capsys.readouterr().out


def hostile(way: str, error: BaseException) -> object:
    """An object that fails in one way when it is looked at."""

    def fails(*_, **__):
        raise error

    return type(f"Hostile{way}", (), {way: fails, "__hash__": object.__hash__})()


def endless():
    inside = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (10**400, "returned 1.79769e+308; that is not right here"),
        (-(10**5000), "returned -1.79769e+308; that is not right here"),
        (Fraction(10**400), "returned 1.79769e+308; that is not right here"),
        ([10**400, 1], "returned shape (2,); one number is wanted"),
        ({"a": np.ones(2)}, "returned {'a': array([1., 1.])}; one number is wanted"),
        ([10**5000, "a"], "ValueError when it was tried again, or what it returned was looked at; return plain"),
        (hostile("__array__", KeyError("k")), "one number is wanted"),
        (hostile("__array__", OverflowError()), "one number is wanted"),
        (hostile("__array__", NotImplementedError()), "one number is wanted"),
        (hostile("__array__", SystemExit(3)), "SystemExit when it was tried again"),
        (hostile("__getattr__", LookupError()), "one number is wanted"),
        (hostile("__repr__", KeyError("r")), "one number is wanted"),
        (hostile("__eq__", ValueError("e")), "one number is wanted"),
        (endless(), "one number is wanted"),
        ("\ud83d", r"returned '\ud83d'; one number is wanted"),
        (pd.NA, "one number is wanted"),
        (pd.NaT, "one number is wanted"),
        (torch.empty(2, device="meta"), "one number is wanted"),
        (np.zeros(2, dtype=[("a", int)]), "one number is wanted"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_fails_when_it_is_looked_at_fails_no_notebook(value, says, capsys):
    assert check(lambda x: value, returns_two, [(1,)]) is returns_two
    out = capsys.readouterr().out
    assert out.startswith("✗") and says in out and "Going on with the reference answer" in out


def returns_two(x):
    return 2.0


def test_errors_that_cannot_be_said_fail_no_notebook(capsys):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    def silent(x):
        raise Silent

    def half(x):
        raise ValueError("\ud83d")

    for answer in (silent, half):
        assert check(answer, returns_two, [(1,)]) is returns_two
    assert capsys.readouterr().out.encode().count(b"Going on with the reference") == 2


def test_an_answer_that_is_right_once_only(capsys):
    left = iter([1])
    assert check(lambda x: next(left), abs, [(1,)]) is abs
    assert "✗ <lambda>: StopIteration when it was tried again" in capsys.readouterr().out


def test_arrays_in_dictionaries_are_arguments_like_others(capsys):
    going_on = check(lambda d: d["a"].sum(), lambda d: float(d["a"].sum()), [({"a": np.ones(3)},)])
    assert "✓" in capsys.readouterr().out and going_on({"a": np.ones(2)}) == 2


def test_every_case_counts(capsys):
    answer = check(lambda x: abs(x), lambda x: x, [(1,), (-1,)])
    assert answer(-1) == -1 and "wrong on case 2" in capsys.readouterr().out


def test_a_single_wrong_number_is_shown(capsys):
    check(lambda x: np.float64(x), lambda x: x + 1, [(0.10945273631840796,)])
    assert "Your function returned 0.109453; that is not right here." in capsys.readouterr().out


def test_a_wrong_shape_and_a_wrong_place_are_named(capsys):
    cases = [(np.arange(4.0),)]
    check(lambda x: x[:, None], lambda x: x, cases)
    assert "The numbers are right, their shape is not" in (out := capsys.readouterr().out) and "(4, 1)" in out
    check(lambda x: np.where(x == 2, 9, x), lambda x: x, cases)
    assert "the number at [2] is the first wrong one" in capsys.readouterr().out
    check(lambda x: x, lambda x: x.sum(), cases)
    assert "shape (4,); one number is wanted" in capsys.readouterr().out


def test_a_mistake_that_fails_on_a_case_is_passed_over(capsys):
    check(lambda x: x + 1, lambda x: x, [(1,)], {"first": lambda x: 1 / 0, "second": lambda x: x + 1})
    assert "second" in capsys.readouterr().out


def test_views_and_expanded_inputs_come_as_plain_memory():
    row = torch.ones(3)
    expanded, reversed_view = copies((row.expand(2, 3), np.arange(3.0)[::-1]))
    expanded += 1  # fails on memory that several numbers share
    assert row.tolist() == [1, 1, 1] and torch.from_numpy(reversed_view).tolist() == [2, 1, 0]
