"""The notebooks on other models than `mini`: a Llama-style folder, and GPT-2's files with random weights.

On random weights the notebooks are their own negative control: they must run to their end and find next to nothing.
"""

import re
from pathlib import Path

import pytest

from prism import notebooks

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


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_llama_style_folder(path, llama, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "llama-cache"  # its SAE is trained once
    seen = verdicts(run(path, PRISM_MODEL=llama, PRISM_CACHE=cache))
    assert seen and not any("specialist" in claim for claim, verdict in seen.items() if verdict == "supported")
