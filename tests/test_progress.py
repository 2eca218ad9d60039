"""`outputs/progress.sqlite` keeps what was solved and tried through anything, and `prism progress` shows it."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest

from prism import cli
from prism.exercises import catalogue, progress
from prism.phases import phase_2
from prism.phases.phase_4 import exercises as phase_4
from prism.press.notebooks import find_notebooks, phase_of
from prism.press.running import run_notebook

ROOT = Path(__file__).resolve().parents[1]
EVERY = sum(map(len, catalogue.EXERCISES.values()))
SOME = ("2/p_value", "solved", "2026-01-02T03:04:05+00:00")


@pytest.fixture
def path(tmp_path, monkeypatch):
    place = tmp_path / "outputs" / "progress.sqlite"
    monkeypatch.setenv("PRISM_PROGRESS", str(place))
    return place


def keep(path, *mark):
    """Adds a mark, as any tool that knows SQLite can."""
    progress.record("2", "p_value", progress.TRIED)
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("INSERT INTO marks VALUES (?, ?, ?)", mark)


def stub(*arguments):
    return None  # your line here


def wrong(*arguments):
    return 12345


def right(observed, null):
    return (sum(value >= observed for value in null) + 1) / (len(null) + 1)


def line_of(name, capsys):
    """The table's line of one exercise, and its status."""
    status = cli.main(["progress"])
    out = capsys.readouterr().out
    return next(line for line in out.splitlines() if re.match(rf"  \d  {name} ", line)), out, status


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_an_untouched_stub_writes_nothing_and_takes_no_mark_away(path):
    phase_2.check_p_value(stub)
    phase_4.check_diagnosis(dict.fromkeys("ABCDEF"))
    assert not path.parent.exists()
    phase_2.check_p_value(right)
    before = path.read_bytes()
    phase_2.check_p_value(stub)
    phase_2.check_p_value(wrong)
    assert path.read_bytes() == before, "solved stays solved"


def test_tried_then_solved(path):
    phase_2.check_p_value(wrong)
    phase_2.check_p_value(lambda *_: 1 / 0)
    assert set(progress.load()["2/p_value"]) == {"tried"}
    phase_2.check_p_value(right)
    assert set(progress.load()["2/p_value"]) == {"tried", "solved"} and set(progress.load()) == {"2/p_value"}
    assert [p.name for p in path.parent.iterdir()] == ["progress.sqlite"], "no temporary file stays"


def test_the_diagnosis_is_kept_too(path, capsys):
    for answer, state in (({"A": phase_4.DEAD}, "tried"), (["A"], "tried"), (phase_4.KEY, "solved")):
        assert phase_4.check_diagnosis(answer) == phase_4.KEY
        assert f" {state} " in line_of("diagnosis", capsys)[0]


def test_an_exercise_with_two_checks_is_solved_when_both_are(path, capsys):
    phase_4.check_density(lambda f: phase_4.density(f))
    assert " tried " in line_of("firing_share", capsys)[0]
    phase_4.check_dead_share(lambda f: phase_4.dead_share(f))
    assert " solved " in line_of("firing_share", capsys)[0]


def test_the_reference_that_a_stub_fell_back_to_solves_nothing(path, capsys):
    going_on = phase_2.check_p_value(stub)
    assert phase_2.check_p_value(going_on) is phase_2.p_value and "✓" in capsys.readouterr().out
    assert not path.exists()


def test_a_notebook_keeps_what_was_solved_and_a_later_untouched_run_too(tmp_path, monkeypatch):
    """Kernels start in the notebook's folder; the file still lies in `outputs/` beside the data."""
    monkeypatch.delenv("PRISM_PROGRESS")
    kept = []
    for body in ("return None  # your line here", "return (1 + (null >= observed).sum()) / (1 + len(null))", "pass"):
        cell = f"def p(observed, null):\n    {body}\n\n\np = phase_2.check_p_value(p)"
        cells = map(nbformat.v4.new_code_cell, ("from prism.phases import phase_2", cell))
        path = tmp_path / "notebooks" / "phase_2_x.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
        assert run_notebook(path, {"PRISM_DATA": str(tmp_path / "data")}).error is None
        file = tmp_path / "outputs" / "progress.sqlite"
        kept.append(file.read_bytes() if file.exists() else None)
    assert kept[0] is None and kept[1] and kept[2] == kept[1]
    monkeypatch.setenv("PRISM_PROGRESS", str(file))
    assert set(progress.load()["2/p_value"]) == {"solved"}


def test_the_file_lies_beside_the_data_wherever_the_kernel_started(monkeypatch, tmp_path):
    from prism.data import CACHE, DATA

    monkeypatch.delenv("PRISM_PROGRESS")
    monkeypatch.chdir(tmp_path)
    assert progress.progress_file() == DATA.parent / "outputs" / "progress.sqlite" == CACHE.parent / "progress.sqlite"
    monkeypatch.setenv("PRISM_DATA", str(tmp_path / "data"))
    assert progress.progress_file() == tmp_path / "outputs" / "progress.sqlite"


def test_a_folder_that_cannot_be_written_is_one_line_and_no_failure(monkeypatch, tmp_path, capsys):
    (tmp_path / "outputs").touch()  # a file where the folder should be: nobody can write below it, root included
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "outputs" / "progress.sqlite"))
    phase_2.check_p_value(stub)
    assert "progress" not in capsys.readouterr().out
    assert phase_2.check_p_value(right) is right
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 and "✓" in shown[0] and "progress is not kept" in shown[1]


def test_two_kernels_that_write_at_once_lose_nothing(path):
    code = "import sys\nfrom prism.exercises import progress\n"
    code += "for i in range(40): progress.record(sys.argv[1], str(i), progress.SOLVED)"
    kernels = [subprocess.Popen([sys.executable, "-c", code, phase]) for phase in "12"]
    assert [kernel.wait() for kernel in kernels] == [0, 0]
    assert set(progress.load()) == {f"{phase}/{i}" for phase in "12" for i in range(40)}
    assert [p.name for p in path.parent.iterdir()] == ["progress.sqlite"], "no lock stays"


def test_a_lock_that_is_not_given_up_is_one_line_and_no_failure(path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("BEGIN EXCLUSIVE")
        assert phase_2.check_p_value(right) is right
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 and "progress is not kept" in shown[1] and "progress.sqlite: database is locked" in shown[1]
    assert progress.load() == {}


def test_what_is_no_plain_file_stays_as_it_is(monkeypatch, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
    for place in (pipe, tmp_path) if pipe.exists() else (tmp_path,):
        monkeypatch.setenv("PRISM_PROGRESS", str(place))
        phase_2.check_p_value(right)
        assert "not a plain file" in capsys.readouterr().out
        assert cli.main(["progress"]) == cli.main(["progress", "--reset"]) == 1
    assert tmp_path.is_dir() and pipe.is_fifo() == hasattr(os, "mkfifo")


def test_an_exercise_of_another_version_is_kept(path):
    keep(path, "9/later", "solved", "2026-01-02T03:04:05+00:00")
    phase_2.check_p_value(right)
    assert set(progress.load()) == {"9/later", "2/p_value"}


BROKEN = [
    b"\xff\xfe",
    b"[1]",
    b'{"2/p_value": {"solved": "2026-01-02T03:04:05+00:00"}}',
    b"[" * 100_000,
    b"SQLite format 3\0",
    b"SQLite format 3\0" + bytes(5_000),
]


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: content[:40].decode(errors="replace"))
def test_a_damaged_file_is_set_aside(path, content, capsys):
    path.parent.mkdir()
    path.write_bytes(content)
    assert cli.main(["progress"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is damaged" in error and "progress.damaged-1.sqlite" in error
    assert path.with_name("progress.damaged-1.sqlite").read_bytes() == content and not path.exists()
    assert cli.main(["progress"]) == 0
    path.write_bytes(content)
    assert phase_2.check_p_value(right) is right
    assert "set aside as progress.damaged-2.sqlite" in capsys.readouterr().out
    assert path.with_name("progress.damaged-1.sqlite").read_bytes() == content, "the first one is not overwritten"
    assert set(progress.load()) == {"2/p_value"}


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_table_counts_and_says_what_is_next(path, capsys):
    line, out, status = line_of("p_value", capsys)
    assert status == 0 and line.endswith("untouched") and not path.exists()
    assert f"{EVERY} exercises: 0 solved, 0 tried, {EVERY} untouched." in out
    assert "Next: exercise 1 of notebooks/phase_0_superposition.ipynb, `collision` (easy, 4 minutes)." in out
    keep(path, *SOME)
    phase_2.check_specialist_score(wrong)
    line, out, _ = line_of("p_value", capsys)
    assert line == "  2  p_value                medium   6 min  solved    2026-01-02 03:04"
    assert "Phase 2  phase_2_feature_exploration  1 of 3 solved" in out
    assert f"{EVERY} exercises: 1 solved, 1 tried, {EVERY - 2} untouched." in out
    place = "exercise 1 of notebooks/phase_2_feature_exploration.ipynb"
    assert f"Next: {place}, `specialist_score`" in out, "a tried one first"


def test_nothing_is_left_when_all_is_solved(path, capsys):
    for exercise in (e for exercises in catalogue.EXERCISES.values() for e in exercises):
        for check in exercise.checks:
            progress.record(exercise.phase, check, progress.SOLVED)
    _, out, _ = line_of("ev", capsys)
    assert f"{EVERY} solved, 0 tried, 0 untouched" in out and "nothing is left" in out


def test_reset_says_what_it_removes(path, capsys):
    assert cli.main(["progress", "--reset"]) == 0
    assert "Nothing to remove" in capsys.readouterr().out
    keep(path, *SOME)
    assert cli.main(["progress", "--reset"]) == 0
    assert capsys.readouterr().out == f"Removing {path}: 1 solved, 0 tried.\n"
    assert not path.exists()


def test_the_table_comes_at_once_and_in_any_encoding(path):
    """Without the libraries that take seconds, and on a terminal that knows ASCII only."""
    code = "import sys\nfor n in ('torch', 'pandas', 'scipy'): sys.modules[n] = None\n"
    code += "from prism.cli import main\nsys.exit(main(['progress']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and f"{EVERY} exercises" in run.stdout, run.stderr


# --- the list of exercises -------------------------------------------------------------------------------------------


def test_the_catalogue_says_what_the_notebooks_say():
    """Name, level, minutes, number and checks of every exercise, from the notebooks; none is missing or made up."""
    found = {}
    for path in find_notebooks(ROOT / "notebooks"):
        cells = nbformat.read(path, as_version=4).cells
        for place, source in enumerate(cell.source for cell in cells):
            for number, level, minutes in re.findall(r"\*\*Exercise (\d)\*\* \(([\w ]+), (\d+) minutes\)", source):
                below = takewhile(lambda cell: cell.cell_type == "code", cells[place + 1 :])
                code = "\n".join(cell.source for cell in below)
                checks = re.findall(rf"(?:phase_{phase_of(path)}|exercises)\.check_(\w+)\(", code)
                name = re.search(r"^(?:def )?(\w+)", code).group(1)
                if level == "about meaning":  # two texts and one check; counted as of medium difficulty
                    name, level = "hypothesis", "medium"
                found.setdefault(phase_of(path), []).append((int(number), name, level, int(minutes), tuple(checks)))
    listed = {
        phase: [(e.number, e.name, e.level, e.minutes, e.checks) for e in exercises]
        for phase, exercises in catalogue.EXERCISES.items()
    }
    assert listed == found
    assert catalogue.NOTEBOOKS == {phase_of(path): path.stem for path in find_notebooks(ROOT / "notebooks")}
    assert all(3 <= len(exercises) <= 5 for exercises in found.values())


def test_marks_are_a_table_that_other_tools_read(path):
    phase_2.check_p_value(right)
    with closing(sqlite3.connect(path)) as base:
        [(name, state, time)] = base.execute("SELECT exercise, state, time FROM marks").fetchall()
    assert (name, state) == ("2/p_value", "solved")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", time)


def test_what_an_earlier_version_kept_is_told_of_and_left(path, capsys):
    old = path.with_name("progress.json")
    old.parent.mkdir()
    old.write_text("{}", encoding="utf-8")
    assert cli.main(["progress"]) == 0
    assert f"\n{old} is of an earlier version and not read" in capsys.readouterr().out
    assert old.read_text(encoding="utf-8") == "{}" and not path.exists()
