"""What phases 1 and 2 state of SmolLM2 is so, and no other feature's number would pass in its place.

Their cells run on the real model, where it has been fetched; that takes minutes. Cross-entropies are left out here,
since they would take as long as all the rest: `prism execute` asserts what is stated of them.
"""

import re
from functools import partial
from pathlib import Path

import nbformat
import pytest

from prism.evaluation import evaluate_all
from prism.models import get_spec

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# Lines that put another feature, token or SAE in a number's place -> what the text states and is no longer so.
OTHERS = {
    "phase_1_first_look": {
        "first = loudest": {"feature", "commas"},
        "answers = tried(loudest, *answers.index)": {"opening words"},
        "conditions, prose = (tried(duty, *part.index) for part in (conditions, prose))": {"conditions"},
        "hot = tried(joint, *hot.index)": {"too"},
        "first, loudest, joint, duty, idea = loudest, joint, duty, idea, first": {"features opened"},
        "f = sae.encode(x_one[0, 0]); active = f.nonzero()[:, 0]; x_hat = sae.decode(f)": {
            "features that fire",
            "unexplained",
        },
        "report = evaluate_all(model, {'': load_sae(spec, '23-res')}, documents[:4])['']": {
            "L0",
            "explained variance",
        },
        "told = {0: told[15], 7: told[0]}": {"L0 of blocks 0, 7", "EV"},
        "raw = raw[:, 1:]; norms = norms[:, 1:]": {"BOS, times the median", "features on BOS"},
        "of_text = of_token": {"features of a text, of its average"},
    },
    "phase_2_feature_exploration": {
        "order = order[::-1]": {"specialists"},
        "both, rates, naive = both[1:], rates[:3], naive[1:]": {
            "of them, pass both tests",
            "differences of rates",
            "winners of shuffled labels called significant",
        },
        "blocks = tried(int(order[1]), *blocks.index)": {"blocks"},
        "paths = tried(int(order[2]), *paths.index)": {"paths, results"},
        "verbs = tried(int(order[2]), *verbs.index)": {"small verbs"},
        "signs = tried(int(order[0]), *signs.index)": {"the sign"},
        "passive = tried(int(order[3]), *passive.index)": {"forms of be", "signed and green"},
        "searches = dict(reversed(searches.items())); low = -low": {"categories that pass, by source", "gap"},
        "number = int(candidates['feature'].iloc[1])": {"the concept's feature"},
        "fires = np.roll(fires, 1); flagged = fires & begins": {"digits on which it fires, numbers it precedes"},
    },
}


@pytest.fixture(scope="module", params=OTHERS)
def run(request, tmp_path_factory):
    """The notebook's name, its names after a run to the end, and the cells that state something."""
    if not (get_spec("smollm2").folder / "model.safetensors").is_file():
        pytest.skip("the real model has not been fetched")
    cells = [cell for cell in nbformat.read(NOTEBOOKS / f"{request.param}.ipynb", 4).cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISM_MODEL", "smollm2")
        for number, cell in enumerate(cells):
            if not re.search(r"ClaimCard\(.*delta_ce", cell.source, re.S):
                exec(compile(cell.source, request.param, "exec"), names)
            if number == 0:  # the imports
                names["DATA"] = tmp_path_factory.getbasetemp()  # what a reader keeps
                names["evaluate_all"] = partial(evaluate_all, with_ce=False)
            if "told_of=" in cell.source:
                guard, names["observed"] = names["observed"], sparing(names["observed"])
    names["observed"] = guard
    return request.param, names, [cell.source for cell in cells if "observed(" in cell.source]


def sparing(guard):
    """The guard, told of no cross-entropies."""
    return lambda told: guard(without_cross_entropies(told))


def without_cross_entropies(told) -> dict:
    """What a guard is told, as a dictionary."""
    return {name: one for name, one in (told() if callable(told) else told).items() if "ΔCE" not in name}


def stated(names: dict, lines: str, cells: list[str]) -> dict:
    """What the cells state, with what they compute after some lines."""
    found, names = {}, dict(names)
    exec(lines, names)
    names["observed"] = lambda told: found.update(without_cross_entropies(told))
    for cell in cells:
        exec(cell, names)
    return found


def test_what_the_text_states_is_so_and_of_no_other_feature(run):
    """The run itself asserts that it is so: the settings are the text's own."""
    notebook, names, cells = run
    with pytest.raises(AssertionError):
        names["observed"]({"one": (1, 2)})
    refused = set()
    for lines, wanted in OTHERS[notebook].items():
        found = stated(names, lines, cells)
        for name in wanted:
            with pytest.raises(AssertionError):
                names["observed"]({name: found[name]})
                pytest.fail(f"{name}: {found[name]} passes after '{lines}'")
        refused |= wanted
    assert refused == set(stated(names, "", cells))
