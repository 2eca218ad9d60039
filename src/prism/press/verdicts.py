"""The claim cards' verdicts on `mini` and on random weights, beside the notebooks' own in `docs/CLAIMS.md`."""

from __future__ import annotations

import json
from pathlib import Path

from prism.files import read_json, write_text
from prism.press.documents import ELSEWHERE, cards_of
from prism.press.notebooks import find_notebooks, phase_of
from prism.press.running import run_notebook


def random_twin(folder: Path) -> Path:
    """`mini` with random weights (seed 0) in a new folder, as `save_pretrained` writes it; the control of controls."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from prism.data import DATA

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DATA / "model")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / "model").save_pretrained(folder)
    return folder


def record(folder: Path, work: Path, only: list[str] | None = None) -> Path:
    """Runs the notebooks that load a model on both, and keeps their verdicts in `docs/verdicts.json` beside `folder`.

    A phase's verdicts are written as soon as it has run, so a run that was stopped goes on with --only.

    Args:
        folder: of the notebooks.
        work: where the random twin, and the SAE that is trained on it, are put.
        only: phases; by default all.

    Raises:
        ValueError: a notebook does not run to its end.
    """
    out = folder.resolve().parent / "docs" / ELSEWHERE
    kept = read_json(out) if out.is_file() else {}
    twin = work / "random_twin"
    models = {"mini": "mini", "random weights": str(twin if twin.is_dir() else random_twin(twin))}
    for path in find_notebooks(folder):
        asked = only is None or phase_of(path) in only
        with_model = "check_toy_parameters" not in path.read_text(encoding="utf-8")
        for name, model in models.items() if asked and with_model else ():
            print(f"{path.stem} on {name}", flush=True)
            done = run_notebook(path, {"PRISM_MODEL": model, "PRISM_CACHE": str(work / f"cache of {name}")})
            if done.error:
                raise ValueError(f"{path.name} on {name}: {done.error}")
            kept.setdefault(name, {})[phase_of(path)] = [card.verdict for card in cards_of(done.notebook).values()]
            write_text(out, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return out
