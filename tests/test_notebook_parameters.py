"""The parameter cell of each notebook and the check right below it, run by themselves: no model is loaded for that.

What may stand there, the extremes included, passes; anything else is one sentence that names the parameter.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import nbformat
import numpy as np
import pytest

from prism.analysis import ClaimCard
from prism.models import get_spec
from prism.phases.phase_6f.monitor import random_parts
from prism.press.notebooks import find_notebooks, phase_of

NOTEBOOKS = {phase_of(path): path for path in find_notebooks(Path(__file__).resolve().parents[1] / "notebooks")}
PHASES = list(NOTEBOOKS)
OF_ITS_OWN = {"MODEL", "SAE", "SAE_NAME", "SEED"}  # checked without a rule in the notebook
NOTHING = {("1", "CORPUS_DOCUMENTS"), ("3", "DOCUMENTS")}  # None is one of their values
JUNK = (
    None,
    True,
    -1,
    0.5,
    10**400,
    float("nan"),
    float("inf"),
    1j,
    "",
    " ",
    "nonsense",
    "\ud83d",
    b"x",
    (),
    ("x", "x"),
    [[1]],
    {"a": 1},
    {1},
    object(),
)

GOOD = {
    "0": [
        "PICTURES, SWEEP, CHANCES = (1, 0.001), [0.001, 0.0012], ()",
        "FEATURES, HIDDEN, RUNS = 1, 100, 2",
        "FEATURES, RUNS, SWEEP = 100, 20, (1, 0.5)",
        "PENALTY, STEPS = 0, 1",
        "DIRECTIONS, WIDTH, CHANCE = 2, 2, 0.001",
        "DIRECTIONS, WIDTH, CHANCE = 500, 250, 1",
    ],
    "1": [
        "PROMPT = '東京'",
        "PROMPT = 'the ' * 200",
        "READ, CORPUS_DOCUMENTS = [69, 0, 1], 4",
        "READ, CORPUS_DOCUMENTS = tuple(range(10)), 1_000",
    ],
    "2": [
        "THRESHOLD, PERMUTATIONS = 229.5, 79",
        "THRESHOLD, PERMUTATIONS = 1e9, 100_000",
        "CONCEPT, OTHER = ['one'], ['two', 'two']",
    ],
    "3": [
        "DOCUMENTS, LENGTH, PERMUTATIONS, TWINS = 8, 16, 19, 1",
        "DOCUMENTS, LENGTH, PERMUTATIONS, TWINS = 1_000, 255, 100_000, 20",
        "CATEGORY, COSINE, SHARE, BAR = 'conversational', 0, 0, 0",
        "CATEGORY, COSINE, SHARE, BAR = 'python', 1, 1, 1",
    ],
    "4": [
        "D_SAE, K, L1 = 512, 1, 0",
        "D_SAE, K = 512, 256",
        "D_SAE, K, L1 = 8_192, 256, 1_000",
        "TOKENS, SEEN, SHORT, HELD_OUT, FEW, UNITS = 4_096, 2_048, 2_048, 4_000, 2_048, 2",
    ],
    "4b": [
        "HELD_OUT, K, WIDTH, FEATURE, READ = 2_000, 1, 64, 0, [0, 1, 2]",
        "HELD_OUT, K, WIDTH, FEATURE = 200_000, 64, 8_192, 10**6",
    ],
    "5": [
        "SENTENCE, DOUBTED, SHARED, TOP = 'Hi <b>there</b>, 東京!', '東', 'absent', 1",
        "SENTENCE, KIND, OUTSIDE, PER_KIND = '\\n ?? \\n', ['Tea', 'green tea', '東京'], ('Tea',), 2",
        "TOP, PER_KIND = 100, 20",
    ],
    "6a": [
        "TARGET, NEW_TOKENS, DOSES = 'digits', 8, (2.0,)",
        "TARGET, CANDIDATES, DIRECTIONS, COST = 'question marks', 1, 19, 20",
        "NEW_TOKENS, COST, TOPICS = 100, 0.01, ['the Middle Ages', '東京']",
        "DOSES, TARGET, CANDIDATES = [4, 0.5], 'quotation marks', 50",
    ],
    "6b": [
        "N_NOUNS, N_PAIRS, K, EDIT, DRAWS = 6, 2, 1, 1, 1",
        "N_NOUNS, N_PAIRS, K, EDIT, DRAWS = 42, 21, 50, 50, 50",
    ],
    "6c": [
        "CATEGORY, LEAST, BAR, RESAMPLES = 'python', 2, 0, 100",
        "CATEGORY, LEAST, BAR, RESAMPLES = 'nonenglish', 50, 1, 10_000",
    ],
    "6d": [
        "EXPLAIN_DOCUMENTS, SCORE_DOCUMENTS, UNITS, TERMS, RADIUS = 50, 50, 5, 1, 64",
        "UNITS, TERMS, RADIUS, OPENED = 300, 200, 1, [0, 1, 2, 3, 10**9]",
    ],
    "6e": [
        "COMPARE, MIN_FIRINGS, BAR = ('mini-llama',), 2, 0",
        "COMPARE, MIN_FIRINGS, BAR = ['gemma-2-2b', 'mini-small'], 100, 0.9",
        "COMMON, FIRES = 1, 0",
        "COMMON, FIRES = 20, 0.9",
    ],
    "6f": [
        "CLASS, RECALL, WINDOW, DOCUMENTS, LEAST = 'python', 0.01, 8, 8, 1",
        "RECALL, WINDOW, DOCUMENTS, LEAST = 1, 255, 70, 10",
        "SWAP, CONCEPT, FEATURES, DOSES, RANDOM_SETS = 'name', 'nonenglish', 100, (1_000, 1), 20",
    ],
}

BAD = {
    "0": [
        ("SWEEP = (0.5, 0)", "a value in SWEEP is 0; .* from 0.001 to 1"),
        ("SWEEP = (0.5,)", "number of values in SWEEP is 1"),
        ("PICTURES = 0.5", "PICTURES is 0.5; it must be several values"),
        ("WIDTH = 1", "WIDTH is 1; .* from 2"),
        ("PENALTY = -0.1", "PENALTY is -0.1"),
        ("RUNS = 1", "RUNS is 1; .* from 2 to 20: the spread"),
    ],
    "1": [
        ("PROMPT = 'the ' * 240", "PROMPT holds a text of 24. tokens.*mini takes 1 to 225 here, for 30 more"),
        ("CORPUS_DOCUMENTS = 0", "CORPUS_DOCUMENTS is 0; .* from 4 to 1,000"),
        ("READ = (3, 52)", "number of values in READ is 2; .* from 3 to 10"),
        ("READ = (3, 52, 70)", "a value in READ is 70; .* from 0 to 69"),
        ("PROMPT = 'half \\ud83d'", "PROMPT has half of a character"),
    ],
    "2": [
        ("PERMUTATIONS = 20", "PERMUTATIONS is 20; .* from 79 to 100,000: with fewer shuffles no p"),
        ("THRESHOLD = -0.1", "THRESHOLD is -0.1"),
        ("PERMUTATIONS = 1e3", "PERMUTATIONS is 1000.0; .* a whole number"),
        ("CONCEPT = 'It cost 45 dollars.'", "CONCEPT is .* it must be several values"),
        ("OTHER = ['word ' * 300]", "OTHER holds a text of .* mini takes 1 to 255 here"),
        ("SAE_NAME = '2-rse'", "did you mean '2-res'"),
    ],
    "3": [
        ("DOCUMENTS = 7", "DOCUMENTS is 7; .* from 8 to 1,000: intervals"),
        ("LENGTH = 15", "LENGTH is 15; .* from 16 to 255"),
        ("PERMUTATIONS = 18", "PERMUTATIONS is 18; .* from 19"),
        ("TWINS = 0", "TWINS is 0; .* from 1 to 20"),
        ("CATEGORY = 'maths'", "CATEGORY is 'maths'.*did you mean 'math'"),
        ("COSINE = 1.5", "COSINE is 1.5"),
        ("BAR = -0.1", "BAR is -0.1"),
    ],
    "4": [
        ("K = 257", "K is 257; .* from 1 to 256: at most half"),
        ("K = 0", "K is 0; .* from 1 to 256"),
        ("D_SAE = 511", "D_SAE is 511; .* from 512"),
        ("LR = 0", "LR is 0"),
        ("READ = (1, 2)", "number of values in READ is 2; .* from 5 to 5"),
        ("L1 = -1", "L1 is -1"),
        ("HELD_OUT = 3_999", "HELD_OUT is 3999; .* from 4,000 .*: a unit is judged"),
        ("SEEN = 2_047", "SEEN is 2047; .* from 2,048 .*: the least is two batches"),
    ],
    "4b": [
        ("HELD_OUT = 1_999", "HELD_OUT is 1999; .* from 2,000 .*: intervals"),
        ("K = 65", "K is 65; .* from 1 to 64: the narrowest"),
        ("WIDTH = 32", "WIDTH is 32; .* from 64"),
        ("FEATURE = -1", "FEATURE is -1"),
    ],
    "5": [
        ("SENTENCE = 'the'", "SENTENCE holds a text of 1 tokens.*mini takes 2 to 255"),
        ("SENTENCE = 'a ' * 501", "SENTENCE may have 1,000 characters, not 1,002"),
        ("KIND = 'coffee'", "KIND is 'coffee'; it must be several values"),
        ("KIND = ('tea', 'tea')", "the same value stands there twice"),
        ("KIND = ['x' * 25]", "a word in KIND or OUTSIDE may have 24 characters"),
        ("OUTSIDE = ()", "number of values in OUTSIDE is 0"),
        ("KIND = [str(i) for i in range(21)]", "number of values in KIND is 21; .* from 1 to 20"),
        ("SHARED = ' '", "SHARED is ' '"),
        ("PER_KIND = 21", "PER_KIND is 21; .* from 2 to 20: a text is held against"),
        ("SAE = '2-rse'", "did you mean '2-res'|named '2-rse'"),
    ],
    "6a": [
        ("NEW_TOKENS = 7", "NEW_TOKENS is 7; .* from 8 to 100"),
        ("DOSES = (1.0, 0)", "a value in DOSES is 0"),
        ("DOSES = 1.0", "DOSES is 1.0; it must be several values"),
        ("DIRECTIONS = 18", "DIRECTIONS is 18; .* no p can fall"),
        ("TARGET = 'emojis'", "TARGET is 'emojis'; choose .*did you mean 'emoji'"),
        ("COST = 0", "COST is 0; .* from 0.01 to 20"),
        ("TOPICS = ('cats',)", "number of values in TOPICS is 1; .* from 2 to 20"),
        ("TOPICS = ('cats', 'x' * 41)", "a topic may have 40 characters"),
        ("SAE = '2-rez'", "no SAE for 'mini' named '2-rez'"),
    ],
    "6b": [
        ("N_NOUNS = 5", "N_NOUNS is 5; .* from 6 to 42: each half"),
        ("N_NOUNS, N_PAIRS = 8, 5", "N_PAIRS is 5; it may be half of N_NOUNS at most, 4"),
        ("N_PAIRS = 1", "N_PAIRS is 1; .* from 2 to 21: an interval"),
        ("K = 0", "K is 0; .* from 1 to 50"),
        ("EDIT = 51", "EDIT is 51"),
        ("SAE = '2-rse'", "did you mean '2-res'|named '2-rse'"),
    ],
    "6c": [
        ("CATEGORY = 'legal'", "CATEGORY is 'legal'; choose"),
        ("LEAST = 1", "LEAST is 1; .* from 2 to 50: rarer features"),
        ("BAR = 1.1", "BAR is 1.1"),
        ("RESAMPLES = 50", "RESAMPLES is 50; .* from 100"),
    ],
    "6d": [
        ("UNITS = 4", "UNITS is 4; .* from 5 to 300"),
        ("RADIUS = 0", "RADIUS is 0; .* from 1 to 64"),
        ("OPENED = (1, 2, 3, 4)", "the number of values in OPENED is 4"),
        ("OPENED = (1, 2, 3, 4, 4)", "OPENED is .* the same value stands there twice"),
        ("SCORE_DOCUMENTS = 10", "SCORE_DOCUMENTS is 10"),
    ],
    "6e": [
        ("COMPARE = ('mini', 'minni-small')", "did you mean 'mini-small'"),
        ("COMPARE = 'mini'", "COMPARE is 'mini'; it must be several values"),
        ("COMPARE = ('mini', None)", "a value in COMPARE is None"),
        ("MODEL, COMPARE = 'mini', ('mini',)", "COMPARE holds mini alone"),
        ("MIN_FIRINGS = 1", "MIN_FIRINGS is 1; .* from 2 to 100: a correlation needs firings"),
        ("BAR = 1.1", "BAR is 1.1"),
        ("COMMON = 0", "COMMON is 0; .* from 1 to 20"),
        ("FIRES = 1", "FIRES is 1; .* from 0"),
    ],
    "6f": [
        ("CLASS = 'Social'", "CLASS is 'Social'.*did you mean 'social'"),
        ("CONCEPT = 'emoji'", "CONCEPT is 'emoji'; choose from"),
        ("SWAP = 'placebo'", "SWAP is 'placebo'; choose from agreement"),
        ("RECALL = 0", "RECALL is 0; .* from"),
        ("WINDOW = 256", "WINDOW is 256; .* from 8 to 255"),
        ("DOCUMENTS = 7", "DOCUMENTS is 7"),
        ("DOCUMENTS, WINDOW = 200, 101", "WINDOW is 101; .* from 8 to 100"),
        ("DOSES = ()", "values in DOSES is 0"),
    ],
}


def cells(phase: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(NOTEBOOKS[phase], 4).cells if cell.cell_type == "code"]


def parameters(phase: str) -> set[str]:
    return bound(cells(phase)[1].source)


def bound(source: str) -> set[str]:
    """Names that a cell binds for the cells after it."""
    inner = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

    def names(node: ast.AST) -> set[str]:
        if isinstance(node, inner):
            return {node.name} if isinstance(node, ast.FunctionDef) else set()
        own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
        return own.union(*(names(child) for child in ast.iter_child_nodes(node)))

    return names(ast.parse(source))


def used(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


@functools.cache
def imported(phase: str) -> dict:
    names: dict = {}
    exec(cells(phase)[0].source, names)
    return names


@functools.cache
def compiled(phase: str):
    return [compile(cell.source, f"phase {phase}", "exec") for cell in cells(phase)[1:3]]


@pytest.fixture
def check(monkeypatch):
    """Runs a notebook's parameter cell, a line of changes, and the check."""
    monkeypatch.setenv("PRISM_MODEL", "mini")

    def run(phase: str, change: str = "", **values: object) -> dict:
        names = dict(imported(phase))
        given, checked = compiled(phase)
        exec(given, names)
        exec(change, names)
        names.update(values)
        exec(checked, names)
        return names

    return run


@pytest.mark.parametrize("phase", PHASES)
def test_the_check_stands_below_the_parameters_and_knows_all_of_them(phase):
    notebook, (_, given, checked, *rest) = nbformat.read(NOTEBOOKS[phase], 4), cells(phase)
    places = [cell.id for cell in notebook.cells]
    assert places.index(checked.id) == places.index(given.id) + 1 and not checked.outputs
    check = "check_parameters" if "MODEL" in parameters(phase) else "check_toy_parameters"
    assert f"{check}(\n    globals()," in checked.source
    assert parameters(phase) - OF_ITS_OWN <= {word for word in used(checked.source)} | {
        keyword.arg
        for node in ast.walk(ast.parse(checked.source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    needed = parameters(phase) | used(checked.source) - {"main", "spec"}
    again = {name: cell.id for cell in rest for name in bound(cell.source) & needed}
    assert again == {}, "a later cell gives these names another meaning, so the check could not be run again"


@pytest.mark.parametrize("phase", PHASES)
def test_defaults_every_sae_and_every_seed_pass(phase, check):
    found = check(phase)
    if "MODEL" in parameters(phase):
        assert (found.get("spec") or found["main"]).name == "mini"
    for seed in (0, 1, 2**31 - 1):
        check(phase, SEED=seed)
    for name in {"SAE", "SAE_NAME"} & parameters(phase):
        for sae in (None, *get_spec("mini").saes):
            check(phase, **{name: sae})


@pytest.mark.parametrize("phase", PHASES)
def test_the_guard_of_the_text_knows_every_parameter(phase, check, monkeypatch):
    """It asserts at the defaults on the model that the text tells of, and not after a tweak."""
    names = check(phase)
    observed = names["observed"]
    assert parameters(phase) <= {*observed.parameters} | OF_ITS_OWN
    monkeypatch.setenv("PRISM_MODEL", "smollm2")
    with pytest.raises(AssertionError):
        check(phase)["observed"]({"one": (1, 2)})
    assert observed.told_of.split()[:-1] == (["smollm2"] if "MODEL" in parameters(phase) else [])


@pytest.mark.parametrize(("phase", "change"), [(phase, one) for phase in PHASES for one in GOOD[phase]])
def test_what_may_be_passes(phase, change, check):
    assert bound(change) <= parameters(phase) | {"name"}
    check(phase, change)


@pytest.mark.parametrize(("phase", "change", "says"), [(phase, *one) for phase in PHASES for one in BAD[phase]])
def test_what_may_not_be_is_one_sentence(phase, change, says, check):
    assert bound(change) <= parameters(phase)
    with pytest.raises(ValueError, match=says) as told:
        check(phase, change)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("phase", PHASES)
def test_junk_is_refused_by_the_name_of_the_parameter(phase, check):
    for name in parameters(phase):
        refused = 0
        for value in JUNK:
            try:
                check(phase, **{name: value})
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
                assert name in str(error) or name in OF_ITS_OWN, (name, value, error)
        assert refused >= len(JUNK) / 2, name


@pytest.mark.parametrize("phase", PHASES)
def test_none_is_refused_where_it_means_nothing(phase, check):
    for name in parameters(phase) - OF_ITS_OWN | {"SEED"}:
        if (phase, name) in NOTHING:
            check(phase, **{name: None})
        else:
            with pytest.raises(ValueError, match=name):
                check(phase, **{name: None})


@pytest.mark.parametrize("phase", PHASES)
def test_a_parameter_that_was_deleted_is_missed(phase, check):
    names = dict(imported(phase))
    given, checked = compiled(phase)
    exec(given, names)
    for name in sorted(parameters(phase) - {"SAE", "SAE_NAME"}):
        without = {key: value for key, value in names.items() if key != name}
        try:
            exec(checked, without)
        except ValueError as error:
            assert name in str(error)
        except NameError as error:  # the rules of these look at the others
            assert name in str(error)
        else:
            raise AssertionError(name)


# --- what makes a notebook's cells survive such values ---------------------------------------------------------------


def test_a_card_shows_a_dash_for_what_could_not_be_measured():
    nan = float("nan")
    effect, interval = f"{nan:+.2f} nats, {nan:.1%}; 'nan'", f"[{nan:.2f}, {nan:.2f}]"
    card = ClaimCard("nan stays here", effect, interval, "nanotubes", "", False)
    assert (card.effect, card.interval, card.control) == ("– nats, –; 'nan'", "[–, –]", "nanotubes")
    assert card.claim == "nan stays here"


def test_every_kind_is_in_every_part():
    many = np.array(["a"] * 300 + ["b"] * 202)
    parts = random_parts(many, seed=3)
    assert [np.bincount(parts[many == kind]).tolist() for kind in "ab"] == [[75] * 4, [51, 51, 50, 50]]
    for seed in range(12):
        few = np.random.default_rng(seed).permutation(["a"] * 40 + ["b"] * 4 + ["c"] * 5)
        parts = random_parts(few, seed=seed)
        assert all({*parts[few == kind]} == {0, 1, 2, 3} for kind in "abc")
