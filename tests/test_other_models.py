"""The notebooks on other models than `mini`: a Llama-style folder, and GPT-2's files with random weights.

On random weights the notebooks are their own negative control: they must run to their end and find next to nothing.
"""

import re
from pathlib import Path

import pytest
from hub_fixture import make_hub_cache

from prism import notebooks
from prism.data import load_corpus

NEED_NO_LEARNING = (  # claims of phases 6a to 6f about plumbing, calculus and training: true of random weights too
    "with and without a KV cache", "ranks single ablations by strength", "Effects do not add up",
    "sums of integrated gradients", "start from the same random numbers", "Explanations are about their own unit",
)  # fmt: skip
PATHS = notebooks.find_notebooks(Path(__file__).resolve().parents[1] / "notebooks")


def run(path, **environment):
    """The executed notebook, which must have run to its end."""
    done = notebooks.run_notebook(path, {name: str(value) for name, value in environment.items()})
    assert done.error is None, done.error
    return done.notebook


def verdicts(notebook) -> dict[str, str]:
    """Claim -> verdict, from the claim cards that a notebook shows."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = (output.get("data") or {}).get("text/markdown", "")
            card = dict(re.findall(r"\| ([\w ]+) \| (.*) \|", text))
            if "verdict" in card:
                found[card["claim"]] = card["verdict"]
    return found


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


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_gpt2_with_random_weights_from_the_cache(path, gpt2):
    seen = verdicts(run(path, **gpt2))
    supported = [claim for claim, verdict in seen.items() if verdict == "supported"]
    assert not any("specialist" in claim.lower() for claim in supported), supported
    assert not any("order of tokens" in claim or "fits this model" in claim for claim in supported), supported
    if notebooks.phase_of(path) == "4":  # how architectures compare does not need a model that has learned something
        meaning = ("interpretable", "survives", "seeds find")
        assert not any(word in claim for claim in supported for word in meaning), supported
    elif notebooks.phase_of(path).startswith("6"):
        assert not [claim for claim in supported if not any(words in claim for words in NEED_NO_LEARNING)], supported
    elif notebooks.phase_of(path) == "0":  # toy data, on which the model has no say, and neurons that learnt nothing
        assert len(seen) - 1 <= len(supported), supported
    else:
        assert len(supported) <= len(seen) / 2, supported


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_llama_style_folder(path, llama, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "llama-cache"  # its SAE is trained once
    seen = verdicts(run(path, PRISM_MODEL=llama, PRISM_CACHE=cache))
    assert seen and not any("specialist" in claim.lower() for claim, v in seen.items() if v == "supported")
