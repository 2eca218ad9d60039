"""Exercises about meaning: a hypothesis about a feature meets a text that should set it off and one that should not."""

from __future__ import annotations

from collections.abc import Callable

from prism.exercises import progress


def try_hypothesis(phase: str, fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Read two texts of the reader's and say what happened; any outcome counts as done, for a surprise is a finding.

    Args:
        phase: whose exercise it is, such as '1'.
        fire: a text in which the hypothesis says that the feature fires; empty as long as nobody has written one.
        silent: one in which it says that the feature is silent.
        activation: text -> the feature's largest activation in it. A ValueError of its own is said in a sentence.
    """
    texts = {"should fire": fire, "should be silent": silent}
    if missing := [what for what, text in texts.items() if not isinstance(text, str) or not text.strip()]:
        print(f"… no text yet that {missing[0]}. Write both, and run this cell again.")
        return
    try:
        values = {what: activation(text) for what, text in texts.items()}
    except ValueError as error:
        print(f"✗ {error}")
        return
    for what, value in values.items():
        print(f"{what:<17}{value:6.1f}  {texts[what]!r}")
    fired, quiet = values["should fire"] > 0, not values["should be silent"] > 0
    if fired and quiet:
        print("Both as your hypothesis says: it stands, for now. Which text would be harder for it?")
    elif fired or quiet:
        wrong = "it fires where it should be silent" if fired else "it is silent where it should fire"
        print(f"A surprise: {wrong}. Which hypothesis would have said so?")
    else:
        print("The other way round: this hypothesis is refuted. What do the two texts not share?")
    progress.record(phase, "hypothesis", progress.SOLVED)
