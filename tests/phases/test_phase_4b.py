"""Phase 4b: the learning rates' file, SAEs cut to one L0, the ultralow bound, kin of a feature, and its figures."""

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled

from prism.evaluation import held_out, measure
from prism.exercises import progress
from prism.models import FAMILY, get_spec, load_family, load_model
from prism.phases.phase_4b import exercises, figures, methods


@pytest.fixture(scope="module")
def measured():
    """Three of mini's family, and what was measured of them on a few tokens."""
    spec = get_spec("mini")
    held = held_out(spec, load_model(spec), (spec.sae().hook_name,), 1_500, 1e9)
    assert held.kept.all()
    x, text = held.x[spec.sae().hook_name], held.table["text"].to_numpy()
    family = {name: load_family(spec, name) for name in ("relu", "matryoshka", "seed-1")}
    return x, family, {name: measure(sae, x, text) for name, sae in family.items()}


def test_rates_are_those_of_the_recorded_file_and_none_elsewhere():
    rates = methods.learning_rates(get_spec("smollm2"))
    assert set(rates["architecture"]) == {name for name in FAMILY if "-" not in name}
    assert (rates.groupby("architecture")["lr"].nunique() == 3).all()
    none = methods.learning_rates(get_spec("mini"))
    assert not len(none) and list(none) == list(rates)
    fig = titled(figures.rates_figure(rates), "learning rate", "explained variance")
    assert len(fig.data) == 6 and list(fig.data[0].x) == [0.001, 0.003, 0.01]
    beside = {trace.name for trace in fig.data if trace.text is not None}
    assert beside == {FAMILY[name].title for name in figures.PENALISED}
    assert {trace.xaxis for trace in fig.data if trace.name in beside} == {"x2"}


class Axes:
    """Two features, along the axes: what is positive is kept as it is."""

    W_dec, b_dec = torch.eye(2), torch.zeros(2)

    def encode(self, x):
        return x.relu()

    def decode(self, f):
        return f @ self.W_dec


def test_cut_down_keeps_the_strongest_of_all_tokens():
    x = torch.tensor([[4.0, 1], [3, 2]])
    found = methods.cut_down(Axes(), x, [0.5, 1, 2, 9])
    total = 0.5 + 0.5
    assert found["l0"].tolist() == [0.5, 1, 2, 2]  # of two tokens: 4; 4 and 3; all four
    assert np.allclose(found["explained_variance"], [1 - (1 + 9 + 4) / total, 1 - (1 + 4) / total, 1, 1])
    with pytest.raises(ValueError, match="leaves nothing of 2 tokens"):
        methods.cut_down(Axes(), x, [0.4])


def test_cut_down_agrees_with_what_is_measured_where_nothing_is_cut(measured):
    x, family, found = measured
    for name, sae in family.items():
        whole = methods.cut_down(sae, x, [found[name].l0 / 2, found[name].l0])
        assert np.isclose(whole["l0"].iloc[1], found[name].l0)
        assert np.isclose(whole["explained_variance"].iloc[1], found[name].explained_variance, atol=1e-5)
        assert whole["explained_variance"].is_monotonic_increasing


def test_tradeoff_figure_names_the_best_and_the_worst_and_has_seeds_in_grey():
    curves = {
        name: pd.DataFrame({"l0": [2, 4], "explained_variance": [0.5, top]})
        for name, top in (("relu", 0.6), ("topk", 0.8), ("seed-1", 0.7))
    }
    fig = titled(figures.tradeoff_figure(curves), "L0 (active features a token)", "explained variance")
    assert [trace.y[-1] for trace in fig.data] == [0.8, 0.7, 0.6]
    assert fig.data[1].line.color == figures.GREY
    assert fig.layout.title.text == "ReLU + L1 explains least, TopK most"


def test_ultralow_bound_on_cases_by_hand():
    assert methods.ultralow_bound(0, 8_000) == 0  # one such feature fires here with a probability below 1 %
    assert methods.ultralow_bound(0, 3, density=0.5) == 22  # each is silent with 1/8: (7/8)^22 is above 5 %, ^23 below
    assert methods.ultralow_bound(7, 100, density=0) == 7  # all that never fire are silent
    assert methods.ultralow_bound(10, 8_000) == 11  # 10 or fewer of 11: 1 − 0.992^11, 8 %; of 12 below 1 %


def test_densities_figure_counts_every_feature_once(measured):
    _, _, found = measured
    fig = titled(figures.densities_figure(found), "features")
    assert len(fig.data) == 6
    for (firing, silent), one in zip(zip(fig.data[::2], fig.data[1::2], strict=True), found.values(), strict=True):
        assert silent.y[0] == one.dead and sum(firing.y) == one.d_sae - one.dead


class Rows:
    def __init__(self, rows):
        self.W_dec = torch.tensor(rows, dtype=torch.float32)


def test_kin_are_the_nearest_directions_the_home_feature_first():
    saes = {"other": Rows([[0.0, 5], [3, 3], [-1, 0]]), "home": Rows([[1.0, 0], [0, 2]])}
    near = methods.kin(saes, "home", 1)
    assert near["sae"].tolist() == ["home", "home", "other", "other"]
    assert near["feature"].tolist() == [1, 0, 0, 1]
    assert np.allclose(near["cosine"], [1, 0, 1, 0.5**0.5])
    assert methods.kin(saes, "home", 0, n=1)["feature"].tolist() == [0, 1]


def test_last_values_are_those_of_the_last_token():
    spec = get_spec("mini")
    model, sae = load_model(spec), load_family(spec, "batch_topk")
    texts = ["The cat sat on the", "The cat"]
    values = methods.last_values(model, {"a": sae}, texts, [("a", 3), ("a", 5)], spec.context)
    assert list(values.index) == texts and list(values.columns) == [("a", 3), ("a", 5)]
    alone = methods.last_values(model, {"a": sae}, texts[1:], [("a", 3)], spec.context)
    assert np.isclose(values["a", 3].iloc[1], alone["a", 3].iloc[0], atol=1e-3)


def test_signs_figure_counts_the_saes_with_one_feature_for_all():
    index = pd.MultiIndex.from_tuples([("relu", 1), ("relu", 2), ("topk", 3), ("topk", 4), ("gated", 5), ("gated", 6)])
    by_sign = pd.DataFrame([[4.0, 2], [0, 0], [4, 1.9], [0, 9], [0, 0], [3, 6]], index, ["×", "÷"])
    assert methods.keeps_all(by_sign).tolist() == [True, False, False, False, False, True]
    fig = figures.signs_figure(by_sign)
    assert fig.layout.title.text.startswith("In 2 of 3 SAEs") and fig.data[0].z.shape == (6, 2)
    assert fig.data[0].y[0] == "ReLU + L1 · 1"


def test_the_hypothesis_is_phase_4bs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a", "b", {"a": 1.0, "b": 0.0}.get)
    assert "it stands, for now" in capsys.readouterr().out and "4b/hypothesis" in progress.load()
