"""Phase 4b: the learning rates' file, its figures, kin of a feature, and whose exercise its hypothesis is."""

import numpy as np
import pandas as pd
import torch
from figure_checks import titled

from prism.exercises import progress
from prism.models import FAMILY, get_spec, load_family, load_model
from prism.phases import phase_4b
from prism.phases.phase_4 import methods


def test_rates_are_those_of_the_recorded_file_and_none_elsewhere():
    rates = phase_4b.learning_rates(get_spec("smollm2"))
    assert set(rates["architecture"]) == {name for name in FAMILY if "-" not in name}
    assert (rates.groupby("architecture")["lr"].nunique() == 3).all()
    none = phase_4b.learning_rates(get_spec("mini"))
    assert not len(none) and list(none) == list(rates)
    fig = titled(phase_4b.rates_figure(rates), "learning rate", "explained variance")
    assert len(fig.data) == 6 and list(fig.data[0].x) == [0.001, 0.003, 0.01]


def test_fidelity_figure_puts_the_best_on_top_and_seeds_in_grey():
    spec = get_spec("mini")
    held = methods.held_out(spec, load_model(spec), (spec.sae().hook_name,), 1_500, 1e9)
    assert held.kept.all()
    x, text = held.x[spec.sae().hook_name], held.table["text"].to_numpy()
    found = {name: methods.measure(load_family(spec, name), x, text) for name in ("relu", "topk", "seed-1")}
    fig = titled(phase_4b.fidelity_figure(found), "explained variance (95 % intervals over documents)")
    values = [trace.x[0] for trace in fig.data]
    assert values == sorted(values) and len(values) == 3
    seed = next(trace for trace in fig.data if trace.y[0] == FAMILY["seed-1"].title)
    assert seed.marker.color == phase_4b.GREY


class Rows:
    def __init__(self, rows):
        self.W_dec = torch.tensor(rows, dtype=torch.float32)


def test_kin_is_the_nearest_direction_and_the_home_feature_itself():
    saes = {"other": Rows([[0.0, 5], [3, 3]]), "home": Rows([[1.0, 0], [0, 2]])}
    near = phase_4b.kin(saes, "home", 1)
    assert near["feature"].to_dict() == {"home": 1, "other": 0} and np.allclose(near["cosine"], 1)
    near = phase_4b.kin(saes, "home", 0)
    assert near.loc["other", "feature"] == 1 and np.isclose(near.loc["other", "cosine"], 0.5**0.5)


def test_last_values_are_those_of_the_last_token():
    spec = get_spec("mini")
    model, sae = load_model(spec), load_family(spec, "batch_topk")
    texts = ["The cat sat on the", "The cat"]
    values = phase_4b.last_values(model, {"a": sae}, texts, {"a": 3}, spec.context)
    assert list(values.index) == texts and isinstance(values, pd.DataFrame)
    alone = phase_4b.last_values(model, {"a": sae}, texts[1:], {"a": 3}, spec.context)
    assert np.isclose(values["a"].iloc[1], alone["a"].iloc[0], atol=1e-3)


def test_the_hypothesis_is_phase_4bs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_4b.check_hypothesis("a", "b", {"a": 1.0, "b": 0.0}.get)
    assert "it stands, for now" in capsys.readouterr().out and "4b/hypothesis" in progress.load()
