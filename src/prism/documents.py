"""Documents made from the committed notebooks: their claim cards beside the papers' claims, and their exercises."""

from __future__ import annotations

import difflib
import html
import re
from dataclasses import dataclass
from pathlib import Path

from prism.files import write_text
from prism.notebooks import default_model, find_notebooks, phase_of, read, title_of
from prism.papers import PAPER_CLAIMS, PaperClaim

BEGIN, END = "<!-- exercises: written by `prism docs` -->", "<!-- end of exercises -->"

_ROW = re.compile(r"^\| ([a-z ]+) \| (.*) \|$", re.M)
_EXERCISE = re.compile(r"^\*\*Exercise (\d+)\*\* \(([\w ]+), (\d+) minutes\)\. +(.+?[.?!:)`*])$", re.M | re.S)


@dataclass(frozen=True)
class Card:
    """A claim card as a notebook shows it, each part escaped for Markdown; see `analysis.ClaimCard`."""

    claim: str
    effect: str
    interval: str
    control: str
    verdict: str


def cards_of(path: Path) -> dict[str, Card]:
    """The claim cards in an executed notebook's outputs, by their claim as plain text; the last of equal ones."""
    cards = {}
    for cell in read(path).cells:
        for output in cell.get("outputs", []):
            rows = dict(_ROW.findall(output.get("data", {}).get("text/markdown", "")))
            if {"claim", "verdict"} <= set(rows):
                card = Card(*(rows[name] for name in ("claim", "effect", "interval", "control", "verdict")))
                cards[html.unescape(card.claim)] = card
    return cards


def claims_page(folder: Path) -> str:
    """'What the papers claim and what we measured', from the claim cards of the notebooks in `folder`.

    Raises:
        ValueError: a notebook has no card, a paper's claim has none, or a card's verdict is no longer the one that
            the reason beside the paper's claim was written for.
    """
    paths = {phase_of(path): path for path in find_notebooks(folder)}
    cards = {phase: cards_of(path) for phase, path in paths.items()}
    empty = [path.name for phase, path in paths.items() if not cards[phase]]
    if empty:
        raise ValueError(f"no claim card in {', '.join(empty)}; run `prism execute` first")
    rows = [_paper_row(entry, _card_for(entry, cards), paths[entry.phase]) for entry in PAPER_CLAIMS]
    total = sum(map(len, cards.values()))
    supported = sum(card.verdict == "supported" for found in cards.values() for card in found.values())
    lists = "\n\n".join(_phase_list(path, cards[phase]) for phase, path in paths.items())
    names = sorted({name for path in paths.values() if (name := default_model(path))})
    models = " and ".join(_ABOUT.get(name, f"`{name}`") for name in names)
    return _PAGE.format(rows="\n".join(rows), lists=lists, total=total, supported=supported, models=models)


def _card_for(entry: PaperClaim, cards: dict[str, dict[str, Card]]) -> Card:
    found = cards.get(entry.phase, {})
    if entry.card not in found:
        nearest = difflib.get_close_matches(entry.card, found, n=1, cutoff=0.0)
        raise ValueError(f"phase {entry.phase} has no card '{entry.card}'; nearest is {nearest or 'none'}")
    card = found[entry.card]
    if (card.verdict == "supported") != entry.supported:
        raise ValueError(f"the card '{entry.card}' is now {card.verdict}; mend its reason in prism/papers.py")
    return card


def _paper_row(entry: PaperClaim, card: Card, path: Path) -> str:
    link = f"[phase {entry.phase}](../notebooks/{path.name})"
    ours = f"{card.effect}; {card.interval} ({link})"
    parts = (entry.paper, entry.says, entry.figure, ours, card.verdict, entry.same, entry.why)
    return f"| {' | '.join(parts)} |"


def _phase_list(path: Path, cards: dict[str, Card]) -> str:
    title = title_of(read(path), path.stem)
    rows = [f"| {c.claim} | {c.effect} | {c.interval} | {c.control} | {c.verdict} |" for c in cards.values()]
    head = "| claim | effect | interval | held against | verdict |\n|:--|:--|:--|:--|:--|"
    return "\n".join([f"### [{title}](../notebooks/{path.name})\n", head, *rows])


_ABOUT = {  # models that notebooks name as their own
    "mini": "`mini`, a language model with 4 layers of width 192",
    "smollm2": "`smollm2` (SmolLM2-135M-Instruct, 30 layers of width 576)",
}
_PAGE = """# What the papers claim and what we measured

<!-- Written by `prism docs` from the claim cards in the committed notebooks; edit src/prism/papers.py instead. -->

Our figures are of {models}, and are read from the claim cards of the
executed notebooks. The papers' models, corpora and budgets are others, mostly larger by orders of magnitude, so the
sizes of two figures cannot be compared; their directions can. *Supported* is a card's own verdict on its own claim,
which may be narrower or wider than the paper's. Terms are in the [glossary](GLOSSARY.md).

| paper | its claim | its figure | ours | verdict | same direction? | why |
|:--|:--|:--|:--|:--|:--|:--|
{rows}

Not held against any card: how many features die at scale, whether features serve safety, and every statement about
large models as such.

## All claim cards

{total} cards, {supported} of them supported. What would refute each of them stands in its notebook.

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
        cells = read(path).cells
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        exercises = _EXERCISE.findall(prose)
        if not exercises:
            raise ValueError(f"no '**Exercise 1** (easy, 5 minutes).' in {path.name}")
        phase = phase_of(path)
        notebook, own = f"[{phase}](../notebooks/{path.name})", f"phases/phase_{phase}/exercises.py"
        answer = own if (Path(__file__).parent / own).is_file() else f"exercises/phase_{phase}.py"
        where = f"[{Path(answer).name}](../src/prism/{answer})"
        for number, level, minutes, text in exercises:
            lines.append(f"| {notebook} | {number} | {level} | {minutes} | {_in_one_line(text)} | {where} |")
    return "\n".join(lines)


def _in_one_line(text: str) -> str:
    """What an exercise asks, fit for a cell of a table: formulas on lines of their own become part of the sentence."""
    return " ".join(text.replace("$$", "$").split()).replace("|", "&#124;")


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
