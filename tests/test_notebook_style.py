"""Every committed notebook keeps the house style, and every check here is shown to reject what it should."""

from __future__ import annotations

import ast
import copy
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from prism.analysis.claims import CARD
from prism.press.notebooks import MAX_BYTES, PLOTLY, WIDGET, find_notebooks, phase_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
PROMISES = ("What you'll do", "What you'll learn")
ENDINGS = ("What we learned", "What this does not show", "Try next")
MIME_TYPES = {"text/plain", "text/html", "text/markdown", "image/png", PLOTLY, WIDGET, CARD}
MAX_LINES, MEDIAN_LINES, ALL_LINES = 15, 6, 300  # of a code cell, of the median one, of all together
WORDS, CARDS = (1_200, 2_200), 3


def _paths() -> list[Path]:
    return find_notebooks(FOLDER) if list(FOLDER.glob("phase_*.ipynb")) else []


def _code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _markdown(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def _outputs(notebook) -> list[tuple[int, dict]]:
    """(number of the cell, output) for every output."""
    return [(n, out) for n, cell in enumerate(notebook.cells, 1) for out in cell.get("outputs", [])]


def _tree(cell) -> ast.Module:
    """The cell's syntax tree, IPython's magic lines left out."""
    lines = cell.source.split("\n")
    return ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines))


def _imports(cell) -> bool:
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(_tree(cell)))


def _prose(cell) -> str:
    """A Markdown cell without its fenced code."""
    return re.sub(r"```.*?```", "", cell.source, flags=re.S)


def _prose_words(notebook) -> int:
    """Words of prose: without code, and without exercises (to the end of their cell) and folded solutions."""
    cut = r"<details>.*?</details>|^\*\*Exercise \d.*"
    return sum(len(re.sub(cut, "", _prose(cell), flags=re.S | re.M).split()) for cell in _markdown(notebook))


def _text(output) -> str:
    data = output.get("data", {})
    parts = [output.get("text", ""), *(value for mime, value in data.items() if mime.startswith("text/"))]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


# --- the checks: (notebook, path) -> problems ------------------------------------------------------------------------


def check_title(notebook, path):
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        return ["the first cell does not open with a level-1 title"]
    if sum(bool(re.search(r"^# ", _prose(cell), re.M)) for cell in _markdown(notebook)) > 1:
        return ["more than one level-1 title"]
    phase = f"phase {phase_of(path)}"
    return [] if re.search(rf"\b{phase}\b", first.source, re.I) else [f"the first cell does not say '{phase}'"]


def check_neighbours(notebook, path):
    names = [other.name for other in find_notebooks(path.parent)]
    here = names.index(path.name)
    neighbours = names[max(here - 1, 0) : here] + names[here + 1 : here + 2]
    first = notebook.cells[0].source
    return [f"the first cell does not link {name}" for name in neighbours if f"({name})" not in first]


def check_links(notebook, path):
    problems = []
    for cell in _markdown(notebook):
        for target in re.findall(r"\]\(([^)\s]+)", cell.source):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target) or not name:
                continue
            file = path.parent / name
            if not file.exists():
                problems.append(f"broken link: {target}")
            elif anchor and file.suffix == ".md" and f'id="{anchor}"' not in file.read_text(encoding="utf-8"):
                problems.append(f"no such anchor: {target}")
    return problems


def check_headings(notebook, path):
    text = "\n".join(cell.source for cell in _markdown(notebook)).replace("’", "'")
    wanted = PROMISES + ENDINGS
    found = {h for h in wanted if re.search(rf"^(#+ |\*\*){re.escape(h)}", text, re.M | re.I)}
    return [f"no heading '{heading}'" for heading in wanted if heading not in found]


def check_import_cell(notebook, path):
    cells = _code(notebook)
    problems = [] if cells and _imports(cells[0]) else ["the first code cell imports nothing"]
    late = [cell.source.split("\n")[0] for cell in cells[1:] if _imports(cell)]
    return problems + [f"an import outside the first code cell, in the cell '{line}'" for line in late]


def check_parameter_cell(notebook, path):
    tagged = [n for n, cell in enumerate(_code(notebook)) if "parameters" in cell.metadata.get("tags", [])]
    return [] if tagged == [1] else [f"the second code cell alone is tagged 'parameters'; here: {tagged} (from 0)"]


def check_execution(notebook, path):
    counts = [cell.execution_count for cell in _code(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def check_errors(notebook, path):
    return [f"cell {n}: {out.ename}" for n, out in _outputs(notebook) if out.output_type == "error"]


def check_observed(notebook, path):
    """What the text states was asserted in the run that is kept."""
    return [f"cell {n}: {_text(out)}" for n, out in _outputs(notebook) if "Your settings differ" in _text(out)]


def check_mime_types(notebook, path):
    found = {(n, mime) for n, out in _outputs(notebook) for mime in out.get("data", {})}
    return [f"cell {n}: output of type {mime}" for n, mime in sorted(found) if mime not in MIME_TYPES]


def check_png(notebook, path):
    figures = [(n, out.data) for n, out in _outputs(notebook) if PLOTLY in out.get("data", {})]
    return [f"cell {n}: a figure without PNG" for n, data in figures if "image/png" not in data]


def check_alt(notebook, path):
    pictures = [(n, out) for n, out in _outputs(notebook) if "image/png" in out.get("data", {})]
    alts = [(n, out.metadata.get("image/png", {}).get("alt", "")) for n, out in pictures]
    return [f"cell {n}: a picture without alt text" for n, alt in alts if len(alt) < 20]


def check_size(notebook, path):
    size = len(nbformat.writes(notebook).encode())
    return [] if size < MAX_BYTES else [f"{size} bytes"]


def check_paths(notebook, path):
    in_source = r"(?<![\w.:/])/(?:home|root|work|Users|tmp)/|\bC:\\"
    in_output = rf"site-packages|/\.venv/|{re.escape(str(ROOT))}"
    problems = [f"path in '{c.source.strip()[:40]}…'" for c in notebook.cells if re.search(in_source, c.source)]
    outputs = [n for n, output in _outputs(notebook) if re.search(in_output, _text(output))]
    return problems + [f"cell {n}: path in its output" for n in outputs]


def check_shell(notebook, path):
    pattern = r"^\s*(!|%pip|%conda|%%bash|%%sh)|sys\.path"
    return [f"'{c.source[:40]}'" for c in _code(notebook) if re.search(pattern, c.source, re.M)]


def check_cell_lengths(notebook, path):
    lines = [len(cell.source.strip().split("\n")) for cell in _code(notebook)]
    problems = [f"code cell {n} has {count} lines" for n, count in enumerate(lines, 1) if count > MAX_LINES]
    median = statistics.median(lines) if lines else 0
    problems += [f"the median code cell has {median} lines"] if median > MEDIAN_LINES else []
    return problems + ([f"{sum(lines)} lines of code"] if sum(lines) > ALL_LINES else [])


def check_words(notebook, path):
    words, (least, most) = _prose_words(notebook), WORDS
    return [] if least <= words <= most else [f"{words} words of prose, not {least:,} to {most:,}"]


def check_cards(notebook, path):
    calls = [node for cell in _code(notebook) for node in ast.walk(_tree(cell)) if isinstance(node, ast.Call)]
    made = sum(getattr(call.func, "id", getattr(call.func, "attr", "")) == "ClaimCard" for call in calls)
    cards = max(made, sum(CARD in out.get("data", {}) for _, out in _outputs(notebook)))
    return [f"{cards} claim cards"] if cards > CARDS else []


def check_prose(notebook, path):
    prose_words = sum(len(_prose(cell).split()) for cell in _markdown(notebook))
    code_words = sum(len(cell.source.split()) for cell in _code(notebook))
    return [] if prose_words >= code_words else [f"{prose_words} words of prose for {code_words} of code"]


CHECKS = {name.removeprefix("check_"): check for name, check in globals().copy().items() if name.startswith("check_")}


def repeated_functions(notebooks: dict[str, nbformat.NotebookNode]) -> list[str]:
    """Functions that two notebooks define; they belong into `src`."""
    seen: dict[str, str] = {}
    problems = []
    for name, notebook in notebooks.items():
        nodes = [node for cell in _code(notebook) for node in ast.walk(_tree(cell))]
        for function in sorted({n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}):
            if seen.setdefault(function, name) != name:
                problems.append(f"{function} is defined in {seen[function]} and {name}")
    return problems


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("path", _paths(), ids=lambda path: path.stem)
def test_notebook(path: Path, check: str) -> None:
    assert CHECKS[check](nbformat.read(path, as_version=4), path) == []


def test_no_function_is_defined_twice() -> None:
    assert repeated_functions({path.name: nbformat.read(path, as_version=4) for path in _paths()}) == []


# --- the checks, checked ---------------------------------------------------------------------------------------------


def _good_notebook():
    """A small notebook that keeps every rule; it lives in a folder beside `phase_2_b.ipynb` and `terms.md`."""
    new = nbformat.v4
    figure = new.new_output(
        "display_data",
        {PLOTLY: {"data": [], "layout": {}}, "image/png": "iVBORw0KGgo="},
        metadata={"image/png": {"alt": "What a thing is. Chart: bars."}},
    )
    cells = [
        new.new_markdown_cell("# See a thing\nPhase 1 · [next](phase_2_b.ipynb) · a minute"),
        new.new_markdown_cell("## What you'll do\nSee.\n\n**What you'll learn**: [a term](terms.md#term)."),
        new.new_code_cell("import math", execution_count=1),
        new.new_code_cell("seed = 0", execution_count=2, metadata={"tags": ["parameters"]}),
        new.new_code_cell("math.pi + seed", execution_count=3, outputs=[figure]),
        *(new.new_markdown_cell(f"## {heading}\nSome words in plain prose.") for heading in ENDINGS),
        new.new_markdown_cell("word " * WORDS[0]),
    ]
    return new.new_notebook(cells=cells)


def _set(cell: int, **fields):
    return lambda notebook: notebook.cells[cell].update(fields)


def _output(**data):
    return _set(4, outputs=[nbformat.v4.new_output("display_data", data)])


def _drop(*cells: int):
    return lambda notebook: notebook.update(cells=[c for n, c in enumerate(notebook.cells) if n not in cells])


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
STREAM = nbformat.v4.new_output("stream", name="stderr", text="lib/python3.11/site-packages/x.py: a warning")

# (check, what is wrong, how to make it so)
BAD = [
    ("title", "level-2 title", _set(0, source="## See\nPhase 1 [next](phase_2_b.ipynb)")),
    ("title", "no phase", _set(0, source="# See\n[next](phase_2_b.ipynb)")),
    ("title", "another phase", _set(0, source="# See\nPhase 12 [next](phase_2_b.ipynb)")),
    ("title", "two titles", _set(5, source="# What we learned")),
    ("neighbours", "no link to the next", _set(0, source="# See\nPhase 1")),
    ("links", "missing file", _set(5, source="## Try next\n[x](phase_9_z.ipynb)")),
    ("links", "missing anchor", _set(5, source="## Try next\n[x](terms.md#trem)")),
    *(("headings", h, lambda nb, n=n: _drop(n)(nb)) for n, h in enumerate(ENDINGS, 5)),
    ("headings", "what you'll do", _set(1, source="**What you'll learn**: x")),
    ("headings", "what you'll learn", _set(1, source="## What you'll do")),
    ("import_cell", "late import", _set(4, source="import re")),
    ("import_cell", "import in a function", _set(4, source="def f():\n    from re import match")),
    ("import_cell", "no import", _set(2, source="x = 1")),
    ("parameter_cell", "untagged", _set(3, metadata=nbformat.from_dict({}))),
    ("parameter_cell", "wrong cell", _set(4, metadata=nbformat.from_dict({"tags": ["parameters"]}))),
    ("execution", "not run", _set(4, execution_count=None)),
    ("execution", "out of order", _set(4, execution_count=7)),
    ("errors", "error output", _set(4, outputs=[ERROR])),
    (
        "observed",
        "other settings",
        _set(4, outputs=[nbformat.v4.new_output("stream", text="Your settings differ (…)")]),
    ),
    ("mime_types", "script", _output(**{"application/javascript": "1"})),
    ("mime_types", "svg", _output(**{"image/svg+xml": "<svg/>"})),
    ("png", "figure alone", _output(**{PLOTLY: {"data": []}})),
    ("alt", "no words", _output(**{PLOTLY: {"data": []}, "image/png": "iVBORw0KGgo="})),
    ("size", "too large", _output(**{"text/plain": "x" * MAX_BYTES})),
    ("paths", "home", _set(4, source="open('/home/me/x')")),
    ("paths", "Windows", _set(4, source=r"open('C:\x')")),
    ("paths", "in prose", _set(5, source="## Try next\nSee /root/x for more.")),
    ("paths", "in a warning", _set(4, outputs=[STREAM])),
    ("shell", "pip", _set(4, source="%pip install x")),
    ("shell", "shell", _set(4, source="x = 1\n!ls")),
    ("shell", "sys.path", _set(2, source="import sys\nsys.path.append('..')")),
    ("cell_lengths", "one long cell", _set(4, source="\n".join("x = 1" for _ in range(MAX_LINES + 1)))),
    ("cell_lengths", "long median", lambda nb: [_set(n, source="x = 1\n" * (MEDIAN_LINES + 1))(nb) for n in (2, 3, 4)]),
    ("cell_lengths", "much code", lambda nb: nb.cells.extend([nbformat.v4.new_code_cell("x = 1")] * (ALL_LINES - 2))),
    ("words", "too few", _set(-1, source="word " * (WORDS[0] - 99))),
    ("words", "too many", _set(-1, source="word " * (WORDS[1] + 1))),
    ("words", "exercises as prose", _set(-1, source="**Exercise 1** (easy, 5 minutes). " + "word " * WORDS[0])),
    ("words", "solutions as prose", _set(-1, source=f"<details>{'word ' * WORDS[0]}</details>")),
    ("words", "code as prose", _set(-1, source=f"```\n{'word ' * WORDS[0]}\n```")),
    ("cards", "four", _set(4, source="ClaimCard()\n" * (CARDS + 1))),
    ("cards", "of a module", _set(4, source="analysis.ClaimCard()\n" * (CARDS + 1))),
    (
        "cards",
        "one cell shows four",
        _set(4, outputs=[nbformat.v4.new_output("display_data", {CARD: {}})] * (CARDS + 1)),
    ),
    ("prose", "mostly code", _set(4, source=" ".join(["x"] + ["+ x"] * 1_000))),
    (
        "prose",
        "code as prose",
        lambda nb: (
            _drop(1)(nb),
            _set(3, source="a, b = 1, 2\n" * 9)(nb),
            _set(-1, source="```\n" + "word " * 99 + "```")(nb),
        ),
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "terms.md").write_text('<a id="term"></a>\n', encoding="utf-8")
    for name in ("phase_1_a.ipynb", "phase_2_b.ipynb"):
        (tmp_path / name).touch()
    return tmp_path


def test_good_notebook_passes(folder: Path) -> None:
    for name, check in CHECKS.items():
        assert check(_good_notebook(), folder / "phase_1_a.ipynb") == [], name


@pytest.mark.parametrize(("check", "wrong", "change"), BAD, ids=[f"{check}: {wrong}" for check, wrong, _ in BAD])
def test_bad_notebook_is_rejected(folder: Path, check: str, wrong: str, change) -> None:
    notebook = copy.deepcopy(_good_notebook())
    change(notebook)
    assert CHECKS[check](notebook, folder / "phase_1_a.ipynb")


def test_every_check_is_checked() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS)


def test_repeated_function_is_rejected() -> None:
    one, other = _good_notebook(), _good_notebook()
    for notebook in (one, other):
        notebook.cells[4].source = "def twice(x):\n    return 2 * x"
    assert repeated_functions({"a": one, "b": other}) == ["twice is defined in a and b"]
    assert repeated_functions({"a": one, "b": _good_notebook()}) == []


def test_notebooks_are_there():
    assert len(_paths()) >= 2
