"""The notebooks on other models than `mini`: a Llama-style folder, and GPT-2's files with random weights.

On random weights the notebooks are their own negative control: they must run to their end and find next to nothing.
"""

import re
from pathlib import Path

import nbformat
import pytest
from hub_fixture import make_hub_cache

from prism.data import load_corpus
from prism.press.documents import cards_of
from prism.press.notebooks import find_notebooks, phase_of
from prism.press.running import run_notebook

NEED_NO_LEARNING = (  # claims of phases 6a to 6f about plumbing, calculus and training: true of random weights too
    "with and without a KV cache",
    "start from the same random numbers",
    "Explanations by counting are about their own feature",
)
# A reader may change any parameter: on the Llama-style folder all notebooks run with others, most of them smaller.
CHANGED = {
    "0": "RUNS, SWEEP, CHANCES, STEPS = 3, (1.0, 0.3, 0.05), (0.3,), 500",
    "1": "READ, CORPUS_DOCUMENTS, PROMPT = (0, 33, 69), 24, 'The <b>law</b>'",
    "2": "THRESHOLD, PERMUTATIONS = 0.01, 200",
    "3": "DOCUMENTS, LENGTH, PERMUTATIONS, TWINS, CATEGORY = 20, 48, 100, 1, 'python'",
    "4": "D_SAE, K, TOKENS, SEEN, SHORT, UNITS = 512, 16, 8_000, 24_000, 6_000, 60",
    "4b": "HELD_OUT, K, WIDTH = 6_000, 8, 256",
    "5": "SENTENCE, DOUBTED, SHARED, TOP, PER_KIND = 'Hi <b>there</b>, 東京!', '東', 'absent', 5, 6",
    "6a": "TARGET, DOSES, DIRECTIONS, CANDIDATES, NEW_TOKENS = 'digits', (1.0, 2.0), 20, 3, 10",
    "6b": "N_NOUNS, N_PAIRS, K, EDIT, DRAWS = 6, 3, 1, 4, 2",
    "6c": "CATEGORY, LEAST, BAR, RESAMPLES = 'python', 5, 0.3, 100",
    "6d": "EXPLAIN_DOCUMENTS, SCORE_DOCUMENTS, UNITS, RADIUS, OPENED = 100, 60, 12, 5, (1, 2, 3, 4, 5)",
    "6e": "COMPARE, MIN_FIRINGS, BAR, COMMON, FIRES = ('mini-small', 'mini'), 5, 0.4, 2, 0.1",
    "6f": "CLASS, DOCUMENTS, RANDOM_SETS, DOSES = 'python', 24, 1, (5, 20)",
}
LARGE = {name: CHANGED[name] for name in ("6a", "6b", "6f")} | {  # with 24,576 features: less data
    "3": "DOCUMENTS, TWINS = 12, 1",
    "4": "TOKENS, SEEN, SHORT, FEW = 8_000, 24_000, 6_000, 4_000",
}
PATHS = find_notebooks(Path(__file__).resolve().parents[1] / "notebooks")


def run(path, **environment):
    """The executed notebook, which must have run to its end."""
    done = run_notebook(path, {name: str(value) for name, value in environment.items()})
    assert done.error is None, done.error
    return done.notebook


def verdicts(notebook) -> dict[str, str]:
    """Claim -> verdict, from the claim cards that a notebook shows."""
    return {claim: card.verdict for claim, card in cards_of(notebook).items()}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> dict[str, object]:
    """Environment in which everything of `gpt2-small` is cached, and the hub's address answers nothing."""
    folder = tmp_path_factory.mktemp("gpt2")
    make_hub_cache(folder / "hub")
    corpora = folder / "cache" / "corpora"
    corpora.mkdir(parents=True)
    texts = load_corpus("mini").query("kind in ('stories', 'encyclopedic')")[["kind", "text"]]
    texts.to_parquet(corpora / "tinystories.parquet")
    nobody = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    return {"PRISM_MODEL": "gpt2-small", "HF_HUB_CACHE": folder / "hub", "PRISM_CACHE": folder / "cache"} | nobody


@pytest.mark.parametrize("path", [path for path in PATHS if phase_of(path) != "0"], ids=lambda path: path.stem)
def test_gpt2_with_random_weights_from_the_cache(path, gpt2, tmp_path):
    seen = verdicts(run(changed(path, tmp_path, LARGE), **gpt2))
    supported = [claim for claim, verdict in seen.items() if verdict == "supported"]
    assert not any("specialist" in claim.lower() for claim in supported), supported
    assert not any("order of tokens" in claim or "fits this model" in claim for claim in supported), supported
    if phase_of(path) in ("4", "4b"):  # how dictionaries compare does not need a model that has learned something
        assert not any("purer" in claim for claim in supported), supported
    elif phase_of(path).startswith("6"):
        assert not [claim for claim in supported if not any(words in claim for words in NEED_NO_LEARNING)], supported
    else:
        assert len(supported) <= len(seen) / 2, supported


def changed(path: Path, folder: Path, lines: dict[str, str]) -> Path:
    """A copy of a notebook with other parameters, each of which it has; the notebook itself where there are none."""
    if phase_of(path) not in lines:
        return path
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    line = lines[phase_of(path)]
    for name in line.partition(" = ")[0].split(", "):
        assert re.search(rf"(^|, ){name}\b.*=", cell.source, re.M), name
    cell.source += f"\n{line}\n"
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_llama_style_folder_with_other_parameters(path, llama, tmp_path, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "llama-cache"  # its SAE is trained once
    seen = verdicts(run(changed(path, tmp_path, CHANGED), PRISM_MODEL=llama, PRISM_CACHE=cache))
    assert seen and not any("specialist" in claim.lower() for claim, v in seen.items() if v == "supported")
