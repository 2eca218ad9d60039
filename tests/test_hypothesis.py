"""Exercises about meaning: what is said of two texts of the reader's, and that any outcome counts as done."""

import pytest

from prism.exercises import progress
from prism.exercises.hypothesis import try_hypothesis

VALUES = {"loud": 11.25, "still": 0.0}


def strength(text):
    if text not in VALUES:
        raise ValueError("the text has 300 tokens; at most 255 are read")
    return VALUES[text]


@pytest.fixture(autouse=True)
def _kept_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))


@pytest.mark.parametrize(
    ("fire", "silent", "says"),
    [
        ("loud", "still", "Both as your hypothesis says"),
        ("loud", "loud", "it fires where it should be silent"),
        ("still", "still", "it is silent where it should fire"),
        ("still", "loud", "the other way round"),
    ],
)
def test_every_outcome_is_told_and_counts(fire, silent, says, capsys):
    try_hypothesis("1", fire, silent, strength)
    said = capsys.readouterr().out
    assert says.lower() in said.lower() and f"{strength(fire):6.1f}  '{fire}'" in said
    assert progress.SOLVED in progress.load()["1/hypothesis"]


@pytest.mark.parametrize(("fire", "silent"), [("", ""), ("loud", " "), (None, "still"), ("loud", 3)])
def test_nothing_is_read_before_both_texts_are_there(fire, silent, capsys):
    try_hypothesis("1", fire, silent, strength)
    assert "no text yet" in capsys.readouterr().out and progress.load() == {}


def test_a_text_that_cannot_be_read_is_a_sentence(capsys):
    try_hypothesis("1", "loud", "far too long", strength)
    assert capsys.readouterr().out == "✗ the text has 300 tokens; at most 255 are read\n" and progress.load() == {}
