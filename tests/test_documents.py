"""The documents made from the notebooks are those of the committed notebooks, and every lack is an error."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import nbformat
import pytest

from prism import cli
from prism.analysis import ClaimCard
from prism.press import documents, verdicts
from prism.press.notebooks import read

ROOT = Path(__file__).resolve().parents[1]
CARD = ClaimCard("A > B & it's so", "+1 | +2", "[0, 3]", "C", "a lower end of 0", True)
EXERCISE = "## Your turn\n\n**Exercise 1** (easy, 5 minutes). Write `f(a | b)`: the sum.\n\nMore words."
ENTRY = documents.PaperClaim("P (2020)", "A beats B", "1", CARD.claim, True, "A leads by 1", "agrees", "since", "by 7")
PAPERS = ROOT / "docs" / "papers.toml"


def _notebook(path: Path, *cards: ClaimCard, prose: str = EXERCISE) -> Path:
    new = nbformat.v4
    outputs = [new.new_output("display_data", card._repr_mimebundle_()) for card in cards]
    cells = [new.new_markdown_cell("# A title"), new.new_code_cell("1", outputs=outputs), new.new_markdown_cell(prose)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new.new_notebook(cells=cells), path)
    return path.parent


def test_claims_page_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "CLAIMS.md").read_text(encoding="utf-8")
    assert committed == documents.claims_page(ROOT / "notebooks"), "run `prism docs`"
    for entry in documents.paper_claims(PAPERS):
        assert entry.why in committed and entry.says in committed


def test_table_of_exercises_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "TEACHING.md").read_text(encoding="utf-8")
    assert committed == documents.with_exercises(committed, ROOT / "notebooks"), "run `prism docs`"


def test_teaching_says_the_run_times_of_the_notebooks() -> None:
    """A row's time is the one of the notebook's first cell."""
    rows = re.findall(
        r"^\| \[[^\]]*, [^\]]*\]\(\.\./(notebooks/\w+\.ipynb)\) \| (.+?) \| \d",
        (ROOT / "docs" / "TEACHING.md").read_text(encoding="utf-8"),
        re.M,
    )
    assert {name for name, _ in rows} == {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("phase_*")}
    for name, time in rows:
        first = nbformat.read(ROOT / name, as_version=4).cells[0].source
        assert f"{time} on a laptop CPU" in first, name


def test_every_exercise_is_listed(tmp_path: Path) -> None:
    table = documents.exercise_table(ROOT / "notebooks")
    for path in (ROOT / "notebooks").glob("phase_*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        wanted = sum(cell.source.count("**Exercise ") for cell in cells if cell.cell_type == "markdown")
        assert table.count(f"notebooks/{path.name})") == wanted, path.name
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb")
    row = documents.exercise_table(folder).splitlines()[-1]
    assert "| 1 | easy | 5 | Write `f(a &#124; b)`: the sum. |" in row and "src/prism/phases/phase_1.py)" in row
    _notebook(tmp_path / "notebooks" / "phase_2_b.ipynb", prose="nothing")
    with pytest.raises(ValueError, match=r"phase_2_b\.ipynb"):
        documents.exercise_table(folder)


def test_exercise_is_told_to_the_end_of_its_sentence(tmp_path: Path) -> None:
    """A formula on lines of its own breaks a sentence off; what comes after the sentence's paragraph is left out."""
    parts = ("**Exercise 1** (easy, 5 minutes). The *size* is", "$$s = 2n,$$", "and 0 for none. Write `f(n)`.", "More.")
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", prose="\n\n".join(parts))
    row = documents.exercise_table(folder).splitlines()[-1]
    assert "| The *size* is $s = 2n,$ and 0 for none. Write `f(n)`. | [phase_1.py]" in row


def test_cards_are_read_as_they_were_shown(tmp_path: Path) -> None:
    other = dataclasses.replace(CARD, claim="Another", supported=False)
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD, other, CARD)
    cards = documents.cards_of(read(folder / "phase_1_a.ipynb"))
    assert list(cards) == [CARD.claim, "Another"]
    assert cards[CARD.claim].effect == "+1 &#124; +2" and cards["Another"].verdict == "not supported"


def test_row_of_a_paper(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "paper_claims", lambda path: [ENTRY])
    page = documents.claims_page(_notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD))
    saw = "A leads by 1 ([phase 1](../notebooks/phase_1_a.ipynb))"
    assert f"| P (2020): A beats B (by 7) | {saw} | agrees | since |" in page
    assert "| A &gt; B &amp; it's so | +1 &#124; +2 | [0, 3] | C | supported |" in page
    assert "1 cards, 1 of them supported" in page and "[A title](../notebooks/phase_1_a.ipynb)" in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"card": "A > B"}, "phase 1 has no card 'A > B'; nearest is .*it's so"),
        ({"phase": "9"}, "phase 9 has no card"),
        ({"supported": False}, "is now supported; mend its sentence"),
        ({"saw": "A leads by 1.5, at most 3"}, "has no 1.5; mend its sentence"),
    ],
)
def test_missing_or_changed_card_is_an_error(tmp_path: Path, monkeypatch, change: dict, says: str) -> None:
    monkeypatch.setattr(documents, "paper_claims", lambda path: [dataclasses.replace(ENTRY, **change)])
    with pytest.raises(ValueError, match=says):
        documents.claims_page(_notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("says = ", "say = ", "unexpected keyword argument 'say'"),
        ('agrees = "agrees"', "", "missing 1 required positional argument: 'agrees'"),
        ('phase = "0"', 'phase = "0', "at line"),
        ("ours = ", "theirs = ", "'ours'"),
        ("\npaper = ", "\nby = ", "'paper'"),
    ],
)
def test_paper_claims_that_cannot_be_read_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = PAPERS.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "papers.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=f"papers.toml: .*{says}"):
        documents.paper_claims(tmp_path / "papers.toml")


def test_verdicts_on_other_models_stand_beside_a_card(tmp_path: Path, monkeypatch) -> None:
    """A dash where the notebook had other cards when they were recorded."""
    monkeypatch.setattr(documents, "paper_claims", lambda path: [])
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD, dataclasses.replace(CARD, claim="Another"))
    kept = {"mini": {"1": ["supported", "undecided"]}, "random weights": {"1": ["supported"]}}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / documents.ELSEWHERE).write_text(json.dumps(kept), encoding="utf-8")
    rows = [row for row in documents.claims_page(folder).splitlines() if row.startswith(("| claim", "| A"))]
    assert [row.split(" | ")[-3:] for row in rows] == [
        ["verdict", "on mini", "on random weights |"],
        ["supported", "supported", "– |"],
        ["supported", "undecided", "– |"],
    ]


def test_verdicts_are_recorded_from_runs_on_other_models(tmp_path: Path, capsys) -> None:
    """The random twin is a folder that the notebooks can load, and what was recorded before is kept."""
    new = nbformat.v4
    lines = (
        "import os, prism.models\nfrom prism.analysis import ClaimCard\nmodel = os.environ['PRISM_MODEL']",
        "ClaimCard(model, '', '', '', '', len(prism.models.load_model(prism.models.get_spec(model)).blocks) == 4)",
    )
    cells = [new.new_markdown_cell("# A title"), *map(new.new_code_cell, lines)]
    for phase in (1, 2):
        path = tmp_path / "notebooks" / f"phase_{phase}_a.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(new.new_notebook(cells=cells), path)
    out = verdicts.record(path.parent, tmp_path / "work", ["2"])
    both = {"mini": {"2": ["supported"]}, "random weights": {"2": ["supported"]}}
    assert json.loads(out.read_text(encoding="utf-8")) == both
    nbformat.write(new.new_notebook(cells=[*cells, new.new_code_cell("1 / 0")]), path)
    with pytest.raises(ValueError, match="phase_2_a.ipynb on mini: .*cell 4"):
        verdicts.record(path.parent, tmp_path / "work")
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert kept == {name: {"1": ["supported"], **found} for name, found in both.items()}


def test_notebook_without_cards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no claim card in phase_1_a\.ipynb"):
        documents.claims_page(_notebook(tmp_path / "notebooks" / "phase_1_a.ipynb"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"nbformat": 9}', "\udcff"])
def test_notebook_that_cannot_be_read_is_named(tmp_path: Path, capsys, text: str) -> None:
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD)
    (folder / "phase_2_b.ipynb").write_text(text, errors="surrogateescape", encoding="utf-8")
    assert cli.main(["docs", "--notebooks", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "prism: phase_2_b.ipynb is not a readable notebook: " in error and error.count("\nprism") == 0


@pytest.mark.parametrize("text", ["{0}{0}{1}", "{0}{1}{1}", "{1}{0}", "{0}", "{1}"])
def test_marks_must_be_there_once_and_in_order(tmp_path: Path, text: str) -> None:
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb")
    with pytest.raises(ValueError, match="once and in order"):
        documents.with_exercises(text.format(documents.BEGIN, documents.END), folder)


def test_command_writes_both_or_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(documents, "paper_claims", lambda path: [ENTRY])
    folder = _notebook(tmp_path / "notebooks" / "phase_1_a.ipynb", CARD)
    teaching = tmp_path / "docs" / "TEACHING.md"
    assert cli.main(["docs", "--notebooks", str(folder)]) == 1
    assert str(teaching) in capsys.readouterr().err and not teaching.parent.exists()
    teaching.parent.mkdir()
    teaching.write_text("no marks", encoding="utf-8")
    assert cli.main(["docs", "--notebooks", str(folder)]) == 2
    assert "are not both in the text" in capsys.readouterr().err and not (tmp_path / "docs" / "CLAIMS.md").exists()

    teaching.write_text(f"before\n{documents.BEGIN}\nold\n{documents.END}\nafter\n", encoding="utf-8")
    assert cli.main(["docs", "--notebooks", str(folder)]) == 0
    text = teaching.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "the sum" in text
    assert cli.main(["docs", "--notebooks", str(folder)]) == 0 and teaching.read_text(encoding="utf-8") == text
    assert "| since |" in (tmp_path / "docs" / "CLAIMS.md").read_text(encoding="utf-8")
