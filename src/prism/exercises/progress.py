"""Which exercises are solved, tried or untouched: kept in `outputs/progress.sqlite`, shown by `prism progress`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from prism.exercises.catalogue import EXERCISES, NOTEBOOKS, Exercise
from prism.files import DamagedFile

TRIED, SOLVED, UNTOUCHED = "tried", "solved", "untouched"
PATIENCE = 5.0  # s to wait for another kernel that is writing, which takes milliseconds
Marks = dict[str, dict[str, str]]  # '<phase>/<check>' -> state -> when: the first right answer, the last wrong one
Look = Callable[[Exercise], tuple[str, str]]  # exercise -> its state, and when


def progress_file() -> Path:
    """`PRISM_PROGRESS`, else `outputs/progress.sqlite` beside the data (`prism.data`), wherever a kernel started."""
    if given := os.environ.get("PRISM_PROGRESS"):
        return Path(given)
    data = Path(os.environ.get("PRISM_DATA") or Path(__file__).resolve().parents[3] / "data")
    return data.parent / "outputs" / "progress.sqlite"


@contextmanager
def _table() -> Iterator[sqlite3.Connection]:
    """The file with the table `marks`, made if need be. A damaged one is set aside, so that nothing is lost."""
    path = progress_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is not a plain file")
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as base, base:
            base.execute(
                "CREATE TABLE IF NOT EXISTS marks (exercise TEXT, state TEXT, time TEXT, PRIMARY KEY (exercise, state))"
            )
            yield base
    except (OSError, sqlite3.OperationalError) as error:  # the latter: locked, or not to be opened
        raise OSError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except sqlite3.DatabaseError as error:
        number = 1
        while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
        raise DamagedFile(f"{path} is damaged ({error}): set aside as {aside.name}, starting anew") from None


def record(phase: str, name: str, state: str) -> None:
    """Keeps that an exercise was tried or solved, from now on; a solved one stays solved. Never raises.

    Args:
        phase: such as '6a'.
        name: the check's name without `check_`.
        state: `TRIED` or `SOLVED`.
    """
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    mark = {"exercise": f"{phase}/{name}", "state": state, "time": time, "solved": SOLVED}
    try:
        with _table() as base:
            base.execute(
                "INSERT OR REPLACE INTO marks SELECT :exercise, :state, :time WHERE NOT EXISTS "
                "(SELECT * FROM marks WHERE exercise = :exercise AND state = :solved)",
                mark,
            )
    except DamagedFile as error:
        print(f"  ({error})")
        record(phase, name, state)
    except OSError as error:
        print(f"  (progress is not kept: {error})")


def load() -> Marks:
    """What was kept; empty if nothing was.

    Raises:
        DamagedFile: it cannot be read as that; the file was set aside under another name.
        OSError: the file cannot be read, or a damaged one not set aside.
    """
    marks: Marks = {}
    if progress_file().exists():
        with _table() as base:
            for exercise, state, time in base.execute("SELECT exercise, state, time FROM marks"):
                marks.setdefault(exercise, {})[state] = time
    return marks


def reset(say: Callable[[str], None] = print) -> None:
    """Says what was kept, then removes it.

    Raises:
        DamagedFile, OSError: as in `load`, or the file cannot be removed.
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
    """A table phase by phase, the counts, and what to do next; what an earlier version kept is not read."""
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
    lines += ["", f"{len(every)} exercises: {counts}.", _next(look)]
    if (old := progress_file().with_name("progress.json")).exists():
        lines.append(f"{old} is of an earlier version and not read: run its exercises' cells again, then delete it.")
    return "\n".join(lines)


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
