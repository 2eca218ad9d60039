"""Documents made from the committed notebooks: their claim cards beside the papers' claims, and their exercises."""

from __future__ import annotations

import difflib
import html
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from nbformat import NotebookNode

from prism.files import read_json, write_text
from prism.press.notebooks import find_notebooks, outputs, phase_of, read, title_of

CARD = "application/vnd.prism.claim+json"  # `analysis.claims.CARD`, which a light command cannot import
BEGIN, END = "<!-- exercises: written by `prism docs` -->", "<!-- end of exercises -->"

ELSEWHERE = "verdicts.json"  # in docs/: model -> phase -> verdicts, in the order of the notebook's cards
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*")
_EXERCISE = re.compile(r"^\*\*Exercise (\d+)\*\* \(([\w ]+), (\d+) minutes\)\. +(.+?[.?!:)`*])$", re.M | re.S)


@dataclass(frozen=True)
class PaperClaim:
    """One claim of a paper and the card of ours that speaks to it; `docs/papers.toml` says what each part is."""

    paper: str
    says: str
    phase: str
    card: str
    supported: bool
    saw: str
    agrees: str
    why: str
    figure: str = ""


def paper_claims(path: Path) -> list[PaperClaim]:
    """The papers' claims in a TOML file.

    Raises:
        ValueError: the file is no TOML, or a part is missing or misspelt.
        OSError: it cannot be read.
    """
    try:
        papers = tomllib.loads(path.read_text(encoding="utf-8"))["papers"]
        return [PaperClaim(one["paper"], **claim.pop("ours"), **claim) for one in papers for claim in one["claims"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def cards_of(notebook: NotebookNode) -> dict[str, SimpleNamespace]:
    """The claim cards in an executed notebook's outputs, by their claim; the last of equal ones.

    Each has the parts of `analysis.ClaimCard`, escaped for Markdown.
    """
    found = [output.data[CARD] for _, output in outputs(notebook) if CARD in output.get("data", {})]
    shown = [{name: _cell(html.escape(text, quote=False)) for name, text in parts.items()} for parts in found]
    return {parts["claim"]: SimpleNamespace(**safe) for parts, safe in zip(found, shown, strict=True)}


def claims_page(folder: Path) -> str:
    """'What the papers claim and what we measured', from the claim cards of the notebooks in `folder`.

    Raises:
        ValueError: a notebook has no card, a paper's claim has none, a card's verdict is no longer the one that the
            sentence beside the paper's claim was written for, or the sentence has a number that the card has not.
        OSError: `docs/papers.toml` beside the folder cannot be read.
    """
    paths = {phase_of(path): path for path in find_notebooks(folder)}
    notebooks = {phase: read(path) for phase, path in paths.items()}
    cards = {phase: cards_of(notebook) for phase, notebook in notebooks.items()}
    if empty := [path.name for phase, path in paths.items() if not cards[phase]]:
        raise ValueError(f"no claim card in {', '.join(empty)}; run `prism execute` first")
    docs = folder.resolve().parent / "docs"
    claims = paper_claims(docs / "papers.toml")
    for entry in claims:
        _check(entry, cards)
    rows = [_paper_row(entry, paths[entry.phase]) for entry in claims]
    every = [card for found in cards.values() for card in found.values()]
    kept = read_json(docs / ELSEWHERE) if (docs / ELSEWHERE).is_file() else {}
    lists = []
    for phase, path in paths.items():
        said = {model: found.get(phase, []) for model, found in kept.items()}
        lists.append(_phase_list(title_of(notebooks[phase], path.stem), path, cards[phase], said))
    return _PAGE.format(
        rows="\n".join(rows),
        total=len(every),
        supported=sum(card.verdict == "supported" for card in every),
        lists="\n\n".join(lists),
    )


def _check(entry: PaperClaim, cards: dict[str, dict[str, SimpleNamespace]]) -> None:
    """That the entry's card exists, has its verdict, and shows every number of its sentence."""
    found = cards.get(entry.phase, {})
    if entry.card not in found:
        nearest = difflib.get_close_matches(entry.card, found, n=1, cutoff=0.0)
        raise ValueError(f"phase {entry.phase} has no card '{entry.card}'; nearest is {nearest or 'none'}")
    card = found[entry.card]
    if (card.verdict == "supported") != entry.supported:
        raise ValueError(f"the card '{entry.card}' is now {card.verdict}; mend its sentence in docs/papers.toml")
    on_card = set(_NUMBER.findall(" ".join((card.claim, card.effect, card.interval, card.control))))
    if strange := [number for number in _NUMBER.findall(entry.saw) if number not in on_card]:
        raise ValueError(f"the card '{entry.card}' has no {', '.join(strange)}; mend its sentence in docs/papers.toml")


def _paper_row(entry: PaperClaim, path: Path) -> str:
    says = f"{entry.paper}: {entry.says}" + (f" ({entry.figure})" if entry.figure else "")
    return _row(says, f"{entry.saw} ([phase {entry.phase}](../notebooks/{path.name}))", entry.agrees, entry.why)


def _phase_list(title: str, path: Path, cards: dict[str, SimpleNamespace], elsewhere: dict[str, list[str]]) -> str:
    """A phase's cards, with what each said on other models: a dash where the notebook had other cards then."""
    said = [verdicts if len(verdicts) == len(cards) else ["–"] * len(cards) for verdicts in elsewhere.values()]
    rows = [
        _row(card.claim, card.effect, card.interval, card.control, card.verdict, *verdicts)
        for card, *verdicts in zip(cards.values(), *said, strict=True)
    ]
    head = ("claim", "effect", "interval", "held against", "verdict", *(f"on {model}" for model in elsewhere))
    return "\n".join([f"### [{title}](../notebooks/{path.name})\n", _row(*head), _row(*[":--"] * len(head)), *rows])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """A Markdown text fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "&#124;")


_PAGE = """# What the papers claim and what we measured

<!-- Written by `prism docs` from the claim cards in the committed notebooks; edit docs/papers.toml instead. -->

We measured SmolLM2-135M-Instruct (30 layers of width 576), and every number stands on a
claim card of an executed notebook. The papers' models, corpora and budgets are mostly larger by orders of magnitude, so
compare directions and not sizes. Terms are in the [glossary](GLOSSARY.md).

| they say | we saw | agrees? | why |
|:--|:--|:--|:--|
{rows}

Not held against any card: how many features die at scale, whether features serve safety, sparse probes on many data
sets, the absorption of first letters, and every statement about large models as such.

## All claim cards

{total} cards, {supported} of them supported. *Supported* is a card's own verdict on its own claim, which may be
narrower or wider than a paper's; what would refute it stands in its notebook. Beside it stands what the same notebook
says on `mini` and on `mini` with random weights (a dash in phase 0, which loads no model). A claim that random weights
support too is about numbers or about a method, never about meaning.

{lists}
"""


# --- exercises -------------------------------------------------------------------------------------------------------


def exercise_table(folder: Path) -> str:
    """Every exercise of the notebooks in `folder`, as a Markdown table: phase, number, level, minutes, what it asks.

    Raises:
        ValueError: a notebook has no exercise that the table could show.
    """
    lines = ["| phase | exercise | level | minutes | it asks | reference answer |", "|:--|--:|:--|--:|:--|:--|"]
    for path in find_notebooks(folder):
        prose = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        exercises = _EXERCISE.findall(prose)
        if not exercises:
            raise ValueError(f"no '**Exercise 1** (easy, 5 minutes).' in {path.name}")
        phase = phase_of(path)
        notebook, answer = f"[{phase}](../notebooks/{path.name})", _answers(phase)
        for number, level, minutes, text in exercises:  # a formula on lines of its own becomes part of the sentence
            lines.append(_row(notebook, number, level, minutes, _cell(text.replace("$$", "$")), answer))
    return "\n".join(lines)


def _answers(phase: str) -> str:
    """A link to the file with a phase's reference answers."""
    room = f"phases/phase_{phase}"
    file = f"{room}/exercises.py" if (Path(__file__).parents[1] / room).is_dir() else f"{room}.py"
    return f"[{Path(file).name}](../src/prism/{file})"


def with_exercises(text: str, folder: Path) -> str:
    """The teachers' page `text` with the table of `folder`'s exercises between its two marks.

    Raises:
        ValueError: the marks are not both there, once and in order.
    """
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or not end:
        raise ValueError(f"the marks '{BEGIN}' and '{END}' are not both in the text, once and in order")
    return f"{before}{BEGIN}\n{exercise_table(folder)}\n{END}{after}"


def write(folder: Path) -> list[Path]:
    """Writes `docs/CLAIMS.md`, and the exercises of `docs/TEACHING.md`, beside the notebooks' `folder`.

    Returns:
        The files written.

    Raises:
        ValueError: see `claims_page` and `with_exercises`; then nothing is written.
        OSError: there is no `docs/TEACHING.md`, or one of the files cannot be written.
    """
    docs = folder.resolve().parent / "docs"
    teaching = docs / "TEACHING.md"
    texts = {docs / "CLAIMS.md": claims_page(folder)}
    texts[teaching] = with_exercises(teaching.read_text(encoding="utf-8"), folder)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)
