"""Phase 3: what it compares and reads, splitting by hand, its figures, and whose exercise its hypothesis is."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled
from scipy.sparse import csr_matrix

from prism.data import CATEGORY_TITLES, TokenBatch, token_table, tokenize
from prism.exercises import progress
from prism.features import FeatureMatrix, encode_features
from prism.models import get_spec, load_family, load_sae
from prism.phases.phase_3 import exercises, figures, methods, splitting

TEXTS = ["The cat sat on the mat.", "def add(a, b):", "It rained all day, and nobody came."]


def test_one_sae_a_hook_is_compared_the_residual_streams_first():
    assert methods.to_compare(get_spec("mini")) == ["1-res", "2-res", "3-res", "2-mlp-out"]
    assert methods.to_compare(get_spec("smollm2")) == ["7-res", "15-res", "23-res", "15-mlp-out"]
    assert methods.to_compare(get_spec("mini"), most=1) == ["2-res"]


def test_widths_are_those_of_one_hook_the_narrowest_first():
    spec = get_spec("mini")
    member = load_family(spec, "batch_topk")
    widths = methods.of_one_hook(spec, {"batch_topk": member, "seed-1": member})
    sizes = [sae.cfg.d_sae for sae in widths.values()]
    assert set(widths) == {"2-res", "2-res-x4", "2-res-x32", "batch_topk"} and sizes == sorted(sizes)
    assert {sae.cfg.metadata.hook_name for sae in widths.values()} == {"blocks.2.hook_resid_pre"}
    assert list(methods.of_one_hook(get_spec("mini-small"), {})) == ["1-res"]


def test_one_pass_reads_what_a_pass_for_each_sae_reads(mini):
    spec = get_spec("mini")
    saes = {name: load_sae(spec, name) for name in ("1-res", "2-mlp-out")}
    batch = tokenize(TEXTS, mini.tokenizer, 64)
    table = token_table(batch, mini.tokenizer)
    readings = methods.read(dict.fromkeys(saes, mini), saes, batch, table)
    assert set(readings) == {sae.cfg.metadata.hook_name for sae in saes.values()}
    for sae in saes.values():
        alone = encode_features(mini, sae, batch, table)
        np.testing.assert_allclose(
            readings[sae.cfg.metadata.hook_name].encode(sae).values.toarray(), alone.values.toarray(), atol=1e-4
        )


def test_massive_tokens_are_told_by_the_residual_stream(mini):
    batch = tokenize(TEXTS, mini.tokenizer, 64)
    reading = methods.Reading(torch.ones(3, 4), torch.tensor([1.0, 9.0, 2.0]), token_table(batch, mini.tokenizer)[:3])
    limit = SimpleNamespace(cfg=SimpleNamespace(metadata=SimpleNamespace(massive_norm=5.0)))
    none = SimpleNamespace(cfg=SimpleNamespace(metadata=SimpleNamespace()))
    assert reading.ordinary(limit).tolist() == [True, False, True] and reading.ordinary(none).all()


def test_the_untrained_twin_is_measured_on_its_own_model(mini):
    spec = get_spec("mini")
    batch = tokenize(TEXTS, mini.tokenizer, 64)
    assert methods.untrained_twin(spec, {}, batch, batch) == {}
    both = methods.untrained_twin(spec, {"random-model": load_family(spec, "random-model")}, batch, batch)
    found, rival = both["random-model"], both["its PCA"]
    assert rival.delta_ce is None and rival.l0 == pytest.approx(round(found.l0))  # at the SAE's own L0
    trained = methods.measure({"a": mini}, {"a": load_family(spec, "random-model")}, batch, with_ce=False)["a"]
    assert found.delta_ce is None and found.explained_variance > trained.explained_variance + 0.1


def test_measures_come_in_the_order_of_the_saes(mini):
    spec = get_spec("mini")
    saes = {name: load_sae(spec, name) for name in ("2-mlp-out", "1-res")}
    batch = tokenize(TEXTS, mini.tokenizer, 64)
    found = methods.measure(dict.fromkeys(saes, mini), saes, TokenBatch(batch.tokens, batch.keep))
    assert list(found) == list(saes) and found["1-res"].delta_ce > found["2-mlp-out"].delta_ce


def test_the_last_token_is_read_and_no_other(mini):
    saes = {"2-res": load_sae(get_spec("mini"), "2-res")}
    batch = tokenize(TEXTS, mini.tokenizer, 64)
    table = token_table(batch, mini.tokenizer)
    whole = encode_features(mini, saes["2-res"], batch, table)
    last = table.groupby("text").tail(1).index
    feature = int(whole.values[last].sum(axis=0).argmax())
    read = methods.last_values(mini, saes, TEXTS, [("2-res", feature)], 64)
    assert list(read.index) == TEXTS and list(read.columns) == [f"2-res {feature}"]
    np.testing.assert_allclose(read.to_numpy()[:, 0], whole.column(feature)[last], atol=1e-4)
    assert read.to_numpy().max() > 0


def test_windows_show_one_place_a_text_the_strongest_first_and_stay_in_the_text():
    values = csr_matrix(np.array([[0.0], [2.0], [1.0], [0.0], [5.0], [0.0]], np.float32))
    table = pd.DataFrame({"text": [0, 0, 0, 1, 1, 2], "position": 1, "token_id": 0, "token": list("ab\ncde")})
    assert methods.windows(FeatureMatrix(values, table), 0) == ["cd▮ 5", "ab▮ 2"]


# --- splitting -------------------------------------------------------------------------------------------------------


def _pair(decoder_a, fires_a, decoder_b, fires_b) -> tuple:
    saes, matrices = [], []
    for decoder, fires in ((decoder_a, fires_a), (decoder_b, fires_b)):
        decoder, fires = torch.tensor(decoder, dtype=torch.float32), csr_matrix(np.array(fires, np.float32))
        cfg = SimpleNamespace(d_in=decoder.shape[1], metadata=SimpleNamespace(hook_name="blocks.0.hook_resid_pre"))
        saes.append(SimpleNamespace(W_dec=decoder, cfg=cfg))
        rows = np.arange(fires.shape[0])
        table = pd.DataFrame({"text": 0, "position": rows, "token_id": rows, "token": "a"})
        matrices.append(FeatureMatrix(fires, table))
    return *saes, *matrices


class TestSplitting:
    def test_by_hand(self):
        """Narrow feature 0 splits into wide 0 and 1, of three firings and one; wide 2 points alike but never fires
        with it; narrow feature 1 stays whole."""
        pair = _pair(
            [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            [[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 0]],
            [[3.0, 1.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.0, 0.1], [0.0, 1.0, 0.0]],
            [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
        )
        edges = splitting.splitting(*pair, cosine=0.5, share=0.1)
        seen = edges[edges["kind"] == "observed"]
        assert seen[["narrow", "wide"]].values.tolist() == [[0, 0], [0, 1], [1, 3]]
        assert seen["coactivation"].tolist() == [0.75, 0.25, 1.0] and seen["child_share"].tolist() == [1.0, 1.0, 1.0]
        assert seen["cosine"].iloc[0] == pytest.approx(3 / 10**0.5)
        assert seen["narrow_count"].tolist() == [4, 4, 1]
        assert splitting.children(edges, 2)["observed"].tolist()[:3] == [0, 1, 1]

    def test_controls_find_nothing_in_high_dimensions(self):
        rng = np.random.default_rng(1)  # not the controls' own seed
        narrow = rng.normal(size=(40, 200))
        wide = np.repeat(narrow, 2, axis=0) + 0.3 * rng.normal(size=(80, 200))
        fires = rng.random((400, 80)) < 0.05
        edges = splitting.splitting(*_pair(narrow, fires[:, ::2] | fires[:, 1::2], wide, fires), cosine=0.5, share=0.2)
        counts = splitting.children(edges, 40)
        assert counts.loc[2, "observed"] == 40
        assert counts.loc[0, "random directions"] == 40 and counts.loc[0, "shuffled rows"] >= 34
        assert (counts.sum() == 40).all()

    def test_what_cannot_be_compared_is_said(self):
        a, b, x, y = _pair(np.eye(2), np.eye(2), np.eye(2), np.eye(2))
        with pytest.raises(ValueError, match="different tokens"):
            splitting.splitting(a, b, x, x.select(np.array([True, False])))
        b.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
        with pytest.raises(ValueError, match="two of one hook"):
            splitting.splitting(a, b, x, y)


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fidelity():
    rows = {"a": (30.0, 0.9, 0.1), "<b>": (160.0, 0.8, np.nan)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["l0", "explained_variance", "delta_ce"])
    for name in list(table):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] * 0.9, table[name] * 1.2
    return table


def test_fidelity_figure_has_a_row_a_dictionary_with_its_interval(fidelity):
    fig = figures.fidelity_figure(fidelity, {"a": "ours", "<b>": "other"}, "a")
    titled(fig, "explained variance", "nats per token")
    assert [t.name for t in fig.data] == ["ours", "other"] * 2 and [t.showlegend for t in fig.data[2:]] == [False] * 2
    assert [list(t.x) for t in fig.data] == [[0.9], [0.8], [0.1], []]  # no ΔCE where none was measured, and it says so
    assert [(a.text, a.y) for a in fig.layout.annotations] == [("no model to harm", 1)]
    assert fig.data[2].error_x.array[0] == pytest.approx(0.02)
    assert fig.data[2].error_x.arrayminus[0] == pytest.approx(0.01)
    assert fig.data[1].text[0] == "&lt;b&gt;" and fig.layout.yaxis.ticktext == (
        "<b>a · L0 30</b>",
        "&lt;b&gt; · L0 160",
    )
    assert [line.x0 for line in fig.layout.shapes] == [0.9, 0.1] and fig.data[0].marker.symbol[0] == "star"
    assert fig.layout.xaxis2.type is None  # one ΔCE alone spans nothing


def test_fidelity_figure_has_a_log_axis_where_costs_are_far_apart_and_above_0(fidelity):
    fidelity.loc["<b>", ["delta_ce", "delta_ce_low", "delta_ce_high"]] = [2.0, 1.8, 2.2]
    groups = dict.fromkeys(fidelity.index, "SAE")
    assert figures.fidelity_figure(fidelity, groups, "a").layout.xaxis2.type == "log"
    fidelity["delta_ce_low"] = -0.1
    assert figures.fidelity_figure(fidelity, groups, "a").layout.xaxis2.type is None


def test_specialist_figure_fills_what_passed_and_shows_every_draw():
    def table(rates, passed):
        return pd.DataFrame({"rate_difference": rates, "passed": passed}, index=["math", "python"])

    twins = {"SAE": [table([0.2, np.nan], [False, False]), table([0.5, 0.1], [True, False])]}
    fig = figures.specialist_figure({"SAE": table([0.9, 0.3], [True, False])}, twins)
    titled(fig, "rate difference")
    drawn, sae = fig.data
    assert list(sae.y) == [CATEGORY_TITLES["math"], CATEGORY_TITLES["python"]]  # plotly's first row is the lowest
    assert list(sae.x) == pytest.approx([90, 30]) and list(sae.marker.symbol) == ["circle", "circle-open"]
    assert len(drawn.x) == 4 and list(drawn.marker.symbol).count("circle") == 1
    assert fig.layout.annotations[0].text == "<b>SAE</b>: 1 pass<br>twins: 0.5"


def test_nearest_figure_has_the_bar_and_shares_that_add_up():
    rivals = {"seed": np.array([0.1, 0.1, 0.9, 1.0]), "random": np.array([0.1, -0.2])}
    fig = titled(figures.nearest_figure(rivals, 0.7, {"a <b>": 0.9}), "cosine", "features")
    assert [sum(line.y) for line in fig.data] == pytest.approx([100, 100])
    assert fig.layout.shapes[0].x0 == 0.7 and fig.layout.annotations[0].text == "a &lt;b&gt;"


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"3/hypothesis"}
