"""The check below a parameter cell: what may stand there passes, anything else is one sentence that names it.

And the guard of what a text states: it asserts at the text's own settings, and never elsewhere.
"""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism.models import get_spec
from prism.parameters import (
    check_lengths,
    check_parameters,
    check_toy_parameters,
    each,
    model,
    number,
    one_of,
    optional,
    require,
    share,
    text,
    whole,
)

CELL = {"MODEL": "mini", "SAE": None, "SEED": 0}


def check(value, rule):
    return check_parameters({**CELL, "N": value}, N=rule)[0]


def test_the_defaults_pass_and_give_the_model():
    assert check_parameters(CELL)[0].name == "mini"
    assert check_parameters({"MODEL": "mini-llama", "SEED": 2**31 - 1})[0].name == "mini-llama"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"MODEL": "minni"}, "did you mean 'mini'"),
        ({"MODEL": 3}, "MODEL is 3; it must be a name in quotes, or None for the default"),
        ({"MODEL": ""}, "MODEL is ''; it must be a name"),
        ({"SAE": "2-ress"}, "did you mean '2-res'"),
        ({"SAE": ["2-res"]}, "SAE is .*; it must be a name in quotes"),
        ({"SEED": -1}, "SEED is -1; it must be a whole number from 0 to 2,147,483,647"),
        ({"SEED": 2**31}, "SEED is 2147483648; it must be"),
        ({"SEED": 0.5}, "SEED is 0.5; it must be a whole number"),
        ({"SEED": True}, "SEED is True; it must be a whole number"),
        ({"SEED": None}, "SEED is None; it must be a whole number"),
    ],
)
def test_model_sae_and_seed_need_no_rule(cell, says):
    with pytest.raises(ValueError, match=says):
        check_parameters(CELL | cell)


@pytest.mark.parametrize(
    ("value", "rule", "says"),
    [
        (18, whole(19, because="p cannot fall under 5 %"), "N is 18; .* at least 19: p cannot fall under 5 %"),
        ("20", whole(1), "N is '20'; it must be a whole number of at least 1"),
        (10**400, whole(1, 100), "it must be a whole number from 1 to 100"),
        ("x" * 9_999, number(0), r"N is 'x+\.\.\.x+'; it must be a number"),
        (float("nan"), number(0), "N is nan; it must be a number of at least 0"),
        (float("inf"), number(0), "N is inf; it must be a number of at least 0"),
        (1j, number(0), "N is 1j; it must be a number"),
        (1.5, share(), "N is 1.5; it must be a number from 0.0 to 1.0"),
        ("pyton", one_of(("python", "urls")), "choose from python, urls .did you mean 'python'"),
        (" ", text, "N is ' '; it must be a text"),
        ("half \ud83d", text, "N has half of a character"),
        ("minni", model, "N: no model named 'minni'; did you mean 'mini'"),
        (None, model, "N is None; it must be a name in quotes"),
        (5, each(whole(1)), "N is 5; it must be several values"),
        ("abc", each(text), "N is 'abc'; it must be several values"),
        ((), each(whole(1)), "number of values in N is 0"),
        ((1, 0), each(whole(1)), "a value in N is 0; it must be a whole number of at least 1"),
        ((2, 2), each(whole(1)), "the same value stands there twice"),
        (0, optional(whole(1)), "N is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_may_not_be_is_one_sentence(value, rule, says):
    with pytest.raises(ValueError, match=says) as told:
        check(value, rule)
    assert str(told.value).count("\n") == 0


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (19, whole(19)),
        (None, optional(whole(1))),
        (0.5, share()),
        (1, number(0)),
        ("a", text),
        ([3, 1], each(whole(1))),
        ((0.1, 1), each(share(), least=2)),
        ("urls", one_of(("python", "urls"))),
        ("mini", model),
    ],
)
def test_what_may_be_passes(value, rule):
    assert check(value, rule).name == "mini"


def test_numpy_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert check(numpy.int64(3), whole(1)) and check(numpy.float32(0.5), share())


ANYTHING = (st.none, st.integers, st.floats, st.text, st.binary, st.complex_numbers, lambda: st.lists(st.integers()))


@given(st.one_of(kind() for kind in ANYTHING))
def test_nothing_but_a_value_error_comes_of_any_value(value):
    for rule in (whole(1, 9), number(0, 1), one_of(("a", "b")), text, each(whole(1)), optional(share())):
        try:
            rule("N", value)
        except ValueError:
            pass


def test_what_must_fit_together():
    require(True, "never said")
    with pytest.raises(ValueError, match="FIT_TOKENS must not exceed"):
        require(False, "FIT_TOKENS must not exceed N_TOKENS")


def test_a_parameter_that_is_missing_is_named():
    for name in ("MODEL", "SEED", "N"):
        cell = {key: value for key, value in (CELL | {"N": 1}).items() if key != name}
        with pytest.raises(ValueError, match=f"{name} is missing from the parameter cell"):
            check_parameters(cell, N=whole(0))


def test_a_class_of_the_name_is_no_sae():
    assert check_parameters(CELL | {"SAE": dict})[0].name == "mini"


def test_a_parameter_that_is_checked_further_down_must_still_be_there():
    assert check_parameters(CELL | {"N": "anything"}, N=None)[0].name == "mini"
    with pytest.raises(ValueError, match="N is missing from the parameter cell"):
        check_parameters(CELL, N=None)


def test_texts_must_fit_the_model():
    spec = get_spec("mini")
    check_lengths(spec, PROMPT="Once upon a time", TEXTS=["one", "two"])
    check_lengths(get_spec("gpt2-small"), PROMPT="the " * 999)  # not on this disk: it says so itself
    for least, room, texts, says in (
        (1, 0, "the " * 300, "PROMPT holds a text of 30. tokens, 'the the .*; mini takes 1 to 255 here$"),
        (1, 30, ["fine", "the " * 240], "mini takes 1 to 225 here, for 30 more are written behind them"),
        (2, 0, "the", "PROMPT holds a text of 1 tokens, 'the'; mini takes 2 to 255 here$"),
    ):
        with pytest.raises(ValueError, match=says):
            check_lengths(spec, least, room, PROMPT=texts)


# --- what the text states --------------------------------------------------------------------------------------------

DEFAULTS = CELL | {"MODEL": None, "K": 5, "WORDS": ("one", "two")}
RULES = {"K": whole(1), "WORDS": each(text)}


def guard(told_of="mini", **changes):
    """The guard of a notebook that was written at `DEFAULTS`, and whose parameters were changed since."""
    with pytest.raises(ValueError, match="write told_of=") as told:
        check_parameters(DEFAULTS, told_of, **RULES)[1]({})
    mark = re.search(r'told_of="(.*)"', str(told.value))[1]
    return check_parameters(DEFAULTS | changes, mark, **RULES)[1]


@pytest.fixture(autouse=True)
def _on_mini(monkeypatch):
    monkeypatch.setenv("PRISM_MODEL", "mini")
    monkeypatch.delenv("PRISM_DTYPE", raising=False)


NAN = float("nan")
SAME = [
    (10, 10),
    (np.int64(10), 10.0),
    (torch.tensor(2876), 2876),
    (0.5333, 0.53, 0.005),
    (np.float32(-0.5333), -0.53, 0.005),
    (" the", " the"),
    (None, None),
    (True, True),
    ([2876, 12], (2876, 12)),
    (np.array(["math", "python"]), ["math", "python"]),
    (np.array([0.11, 0.22]), [0.1, 0.2], 0.03),
    (NAN, NAN),
    (NAN, NAN, 0.1),
]
OTHER = [
    (7, 10),
    (10.4, 10),
    (0.5333, 0.53),
    (0.536, 0.53, 0.005),
    (" The", " the"),
    ("10 texts", 10),
    (None, 10),
    ([12, 2876], [2876, 12]),
    ([1, 1], 1),
    ([], [1]),
    (["math"], ["math", "python"]),
    ([0.1, 0.24], [0.1, 0.2], 0.03),
    (NAN, 10),
    (NAN, 0.5, 0.1),
    (0.5, NAN),
    (float("inf"), 10, 0.1),
]


@pytest.mark.parametrize("entry", SAME)
def test_what_is_as_stated_passes_without_a_word(entry, capsys):
    guard()({"it": entry})
    guard()(lambda: {"it": entry, "that": (1, 1)})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("entry", OTHER)
def test_another_number_fails_at_the_defaults(entry):
    with pytest.raises(AssertionError, match="^it is stated as .*, computed as "):
        guard()({"that": (1, 1), "it": entry})


def test_the_message_has_every_number_that_is_not_as_stated():
    stated = {"texts inside": (7, 10), "texts outside": (3, 3), "explained variance": (0.9123, 0.93, 0.005)}
    with pytest.raises(AssertionError) as told:
        guard()(stated)
    assert str(told.value).split("\n") == [
        "texts inside is stated as 10, computed as 7",
        "explained variance is stated as 0.93 (within 0.005), computed as 0.9123",
        "These are the settings of the text: if no code or data changed, mend the sentence and its guard.",
    ]


def impossible():
    raise KeyError("a feature that another SAE has not")


@pytest.mark.parametrize(
    ("changes", "environment", "why"),
    [
        ({"K": 6}, {}, "a parameter was changed"),
        ({"WORDS": ("one", "three")}, {}, "a parameter was changed"),
        ({"SEED": 1}, {}, "a parameter was changed"),
        ({"SAE": "1-res"}, {}, "a parameter was changed"),
        ({"MODEL": "mini-llama"}, {}, "the model is mini-llama"),
        ({}, {"PRISM_MODEL": "mini-small"}, "the model is mini-small"),
        ({}, {"PRISM_DTYPE": "bfloat16"}, "PRISM_DTYPE is bfloat16"),
    ],
)
def test_after_a_tweak_it_says_one_line_and_asserts_nothing(changes, environment, why, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    observed = guard(**changes)
    for entry in SAME + OTHER:
        observed({"it": entry, "that": (1, 2)})
        assert (
            capsys.readouterr().out
            == f"Your settings differ ({why}); the text tells of mini at the notebook's defaults.\n"
        )
    observed(impossible)


def test_a_change_after_the_check_counts_and_on_a_gpu_nothing_is_asserted(monkeypatch, capsys):
    with pytest.raises(AssertionError):
        guard()({"it": (1, 2)})
    cell = dict(DEFAULTS)
    observed = check_parameters(cell, guard().told_of, **RULES)[1]
    cell["K"] = 6
    observed({"it": (1, 2)})
    monkeypatch.setattr("prism.parameters.device", lambda: torch.device("cuda"))
    guard()({"it": (1, 2)})
    assert "a parameter was changed" in (said := capsys.readouterr().out) and "the device is cuda" in said


def test_the_defaults_may_be_named(monkeypatch):
    monkeypatch.setenv("PRISM_DTYPE", "float32")
    for changes in ({"MODEL": "mini"}, {"SAE": "2-res"}):
        with pytest.raises(AssertionError):
            guard(**changes)({"it": (1, 2)})


def test_a_model_folder_of_that_name_is_another_model(llama, tmp_path, monkeypatch, capsys):
    (tmp_path / "mini").symlink_to(llama)
    monkeypatch.setattr("prism.models.registry.local_spec", lambda folder: get_spec("mini-llama"))
    guard(MODEL=str(tmp_path / "mini"))({"it": (1, 2)})
    assert "the model is" in capsys.readouterr().out


def test_who_forgot_the_mark_is_told_it():
    with pytest.raises(ValueError, match='behind globals.., .* write told_of="mini [0-9a-f]{6}"'):
        check_parameters(DEFAULTS, **RULES)[1]({"it": (1, 1)})
    with pytest.raises(ValueError, match="did you mean 'smollm2'"):
        check_parameters(DEFAULTS, "smollm 123456", **RULES)[1]({"it": (1, 1)})


# --- a notebook without a model --------------------------------------------------------------------------------------

TOY = {"K": 5, "SEED": 0}


def toy_guard(**changes):
    with pytest.raises(ValueError, match='write told_of="[0-9a-f]{6}"$') as told:
        check_toy_parameters(TOY, K=whole(1))({})
    return check_toy_parameters(TOY | changes, re.search(r'told_of="(.*)"', str(told.value))[1], K=whole(1))


def test_without_a_model_the_guard_asserts_on_every_model(monkeypatch):
    monkeypatch.setattr("prism.parameters.device", lambda: torch.device("cuda"))
    monkeypatch.setenv("PRISM_DTYPE", "bfloat16")
    for name in ("mini", "mini-llama", "smollm2", "a model that is not there"):
        monkeypatch.setenv("PRISM_MODEL", name)
        toy_guard()({"it": (1, 1)})
        with pytest.raises(AssertionError, match="it is stated as 2, computed as 1"):
            toy_guard()({"it": (1, 2)})


@pytest.mark.parametrize("changes", [{"K": 6}, {"SEED": 1}])
def test_without_a_model_a_tweak_is_one_line(changes, capsys):
    toy_guard(**changes)({"it": (1, 2)})
    said = "Your settings differ (a parameter was changed); the text tells of the notebook's defaults.\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"K": 5}, "SEED is missing from the parameter cell"),
        ({"SEED": 0}, "K is missing from the parameter cell"),
        (TOY | {"K": 0}, "K is 0; it must be a whole number of at least 1"),
        (TOY | {"SEED": -1}, "SEED is -1"),
    ],
)
def test_without_a_model_the_rules_are_the_same(cell, says):
    with pytest.raises(ValueError, match=says):
        check_toy_parameters(cell, K=whole(1))
