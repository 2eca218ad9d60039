"""Which exercises are solved, tried or untouched: kept in `outputs/progress.json`, shown by `prism progress`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from filelock import SoftFileLock  # removes its file, and one that a dead process left

from prism.exercises.catalogue import EXERCISES, NOTEBOOKS, Exercise
from prism.files import write_text

TRIED, SOLVED, UNTOUCHED = "tried", "solved", "untouched"
PATIENCE = 5.0  # s to wait for another kernel that is writing, which takes milliseconds
Marks = dict[str, dict[str, str]]  # '<phase>/<check>' -> state -> when: the first right answer, the last wrong one
Look = Callable[[Exercise], tuple[str, str]]  # exercise -> its state, and when


class DamagedProgress(ValueError):
    """The file does not hold what was kept there; the message says where it was set aside."""


def progress_file() -> Path:
    """`PRISM_PROGRESS`, else `outputs/progress.json` beside the data (see `prism.data`), wherever a kernel started."""
    if given := os.environ.get("PRISM_PROGRESS"):
        return Path(given)
    data = Path(os.environ.get("PRISM_DATA") or Path(__file__).resolve().parents[3] / "data")
    return data.parent / "outputs" / "progress.json"


def record(phase: str, name: str, state: str) -> None:
    """Keeps that an exercise was tried or solved, from now on; a solved one stays solved. Never raises.

    Args:
        phase: such as '6a'.
        name: the check's name without `check_`.
        state: `TRIED` or `SOLVED`.
    """
    try:
        with SoftFileLock(f"{progress_file()}.lock", timeout=PATIENCE):  # another kernel may read and write it too
            if marks := _marked(f"{phase}/{name}", state):
                write_text(progress_file(), json.dumps(marks, indent=1, sort_keys=True) + "\n")
    except OSError as error:  # filelock's Timeout is one
        print(f"  (progress is not kept: {progress_file()}: {error.strerror or error})")


def _marked(exercise: str, state: str) -> Marks | None:
    """What is kept, with this beside it; None if it was solved before."""
    try:
        marks = load()
    except DamagedProgress as error:
        print(f"  ({error})")
        marks = {}
    mark = marks.setdefault(exercise, {})
    if SOLVED in mark:
        return None
    mark[state] = datetime.now().astimezone().isoformat(timespec="seconds")
    return marks


def load() -> Marks:
    """What was kept; empty if nothing was.

    Raises:
        DamagedProgress: it cannot be read as that; the file is set aside under another name, so that nothing is lost.
        OSError: the file cannot be read, or a damaged one not set aside.
    """
    path = progress_file()
    if not path.exists():
        return {}
    if not path.is_file():
        raise OSError("it is not a plain file")
    try:
        return _valid(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        aside = _set_aside(path)
        raise DamagedProgress(f"{path} is damaged ({error}): set aside as {aside.name}, starting anew") from None


def _valid(marks: object) -> Marks:
    """The marks, if they are such; an exercise that this version does not know is kept all the same."""
    if not isinstance(marks, dict) or not all(isinstance(mark, dict) for mark in marks.values()):
        raise ValueError("no table of exercises")
    for name, mark in marks.items():
        for when in mark.values():
            if not isinstance(when, str):
                raise ValueError(f"'{name}' has no time")
            datetime.fromisoformat(when)
    return marks


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    os.rename(path, aside)
    return aside


def reset(say: Callable[[str], None] = print) -> None:
    """Says what was kept, then removes it.

    Raises:
        DamagedProgress, OSError: as in `load`, or the file cannot be removed.
    """
    states = [state for state, _ in map(_of(load()), _all())]
    path = progress_file()
    if path.exists():
        say(f"Removing {path}: {states.count(SOLVED)} solved, {states.count(TRIED)} tried.")
        path.unlink()
    else:
        say(f"Nothing to remove: there is no {path}.")


# --- the table -------------------------------------------------------------------------------------------------------


def summary(marks: Marks) -> str:
    """A table phase by phase, the counts, and what to do next."""
    look = _of(marks)
    lines, every = [], []
    for phase, exercises in EXERCISES.items():
        states = [look(exercise) for exercise in exercises]
        every += [state for state, _ in states]
        solved = sum(state == SOLVED for state, _ in states)
        lines.append(f"Phase {phase}  {NOTEBOOKS[phase]}  {solved} of {len(exercises)} solved")
        for exercise, (state, when) in zip(exercises, states, strict=True):
            cost = f"{exercise.level:<7}{exercise.minutes:>3} min"
            lines.append(f"  {exercise.number}  {exercise.name:<22} {cost}  {state:<9} {when}".rstrip())
    counts = ", ".join(f"{every.count(state)} {state}" for state in (SOLVED, TRIED, UNTOUCHED))
    return "\n".join([*lines, "", f"{len(every)} exercises: {counts}.", _next(look)])


def _next(look: Look) -> str:
    """The exercise to do next: one that was tried, else the first untouched one."""
    for wanted in (TRIED, UNTOUCHED):
        left = [exercise for exercise in _all() if look(exercise)[0] == wanted]
        if left:
            one = left[0]
            place = f"exercise {one.number} of notebooks/{NOTEBOOKS[one.phase]}.ipynb"
            return f"Next: {place}, `{one.name}` ({one.level}, {one.minutes} minutes)."
    return "Next: nothing is left; the section 'Try next' of each notebook goes on from here."


def _all() -> list[Exercise]:
    return [exercise for exercises in EXERCISES.values() for exercise in exercises]


def _of(marks: Marks) -> Look:
    """A function from an exercise to its state and the time of it; one with two checks is solved when both are."""

    def look(exercise: Exercise) -> tuple[str, str]:
        parts = [marks.get(f"{exercise.phase}/{check}", {}) for check in exercise.checks]
        whole = all(SOLVED in part for part in parts)
        times = [when for part in parts for state, when in part.items() if state == SOLVED or not whole]
        if not times:
            return UNTOUCHED, ""
        return SOLVED if whole else TRIED, max(times)[:16].replace("T", " ")

    return look
