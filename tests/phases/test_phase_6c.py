"""Phase 6c: SAEs of several depths, one pass for all, correlations text by text, its figure, whose exercise it has."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import titled
from scipy.sparse import csr_matrix

from prism.data import tokenize
from prism.exercises import progress
from prism.features import FeatureMatrix, peak_reader
from prism.models import get_spec, kept_activations, load_model
from prism.phases.phase_6c import exercises, figures, methods


def activations(tokens=300, units=6, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random((tokens, units)) * (rng.random((tokens, units)) < density)).astype(np.float32))


def test_the_ladder_goes_down_from_the_shallowest_residual_stream():
    saes = methods.ladder(get_spec("mini"))
    assert list(saes) == ["1-res", "2-res", "3-res"]
    assert [sae.cfg.metadata.hook_name for sae in saes.values()] == [f"blocks.{i}.hook_resid_pre" for i in (1, 2, 3)]
    assert list(methods.ladder(get_spec("mini"), most=2)) == ["1-res", "2-res"]


@pytest.mark.parametrize(
    ("n_layers", "hooks"),
    [
        (30, ["15.hook_resid_pre", "7.hook_resid_pre", "22.hook_resid_pre"]),
        (2, ["1.hook_resid_pre", "0.hook_resid_pre"]),
        (1, ["0.hook_resid_pre", "0.hook_resid_post"]),
    ],
)
def test_a_model_of_any_depth_has_two_rungs_or_more(n_layers, hooks):
    assert methods._depths(n_layers) == [f"blocks.{hook}" for hook in hooks]


def test_a_model_with_an_sae_at_one_depth_gets_small_ones_at_others(monkeypatch):
    trained = []
    monkeypatch.setattr(methods, "trained_here", lambda spec, one: trained.append(one.hook_name))
    monkeypatch.setattr(methods, "read_sae", lambda folder: "small")
    assert list(methods.ladder(get_spec("mini-llama")).values()).count("small") == 2
    assert trained == ["blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"]


def test_one_pass_reads_what_a_pass_for_each_hook_would():
    spec = get_spec("mini")
    model, hooks = load_model(spec), ["blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"]
    batch = tokenize([f"Text {i} says what it says." for i in range(11)], model.tokenizer, spec.context)
    for hook, x in methods.read(model, hooks, batch).items():
        np.testing.assert_allclose(x, kept_activations(model, hook, batch), rtol=1e-4, atol=1e-4)


def test_other_seeds_read_the_same_hook():
    spec = get_spec("mini")
    saes = methods.ladder(spec)
    assert list(methods.other_seeds(spec, saes["2-res"])) == ["seed-1", "seed-2"]
    assert methods.other_seeds(spec, saes["1-res"]) == {}


def test_comparable_tokens_occur_again_in_their_half_and_are_massive_nowhere():
    table = pd.DataFrame({"text": 0, "position": range(8), "token_id": [5, 5, 7, 5, 7, 7, 9, 9], "token": "x"})
    values, early = csr_matrix((8, 2), dtype=np.float32), np.arange(8) < 4
    plain = FeatureMatrix(values, table)
    assert methods.comparable({"a": plain}, early).tolist() == [True, True, False, True, True, True, True, True]
    strict = FeatureMatrix(values, table.assign(massive=[False] * 7 + [True]))
    assert methods.comparable({"a": plain, "b": strict}, early).tolist()[-2:] == [False, False]


def test_peaks_are_those_of_the_reader_that_knows_one_sae():
    spec = get_spec("mini")
    model, saes = load_model(spec), methods.ladder(spec)
    texts = ["The cat sat on the mat.", "x = 1"]
    found = methods.peaks(model, saes, {"1-res": 7, "3-res": 9}, texts, spec.context)
    assert list(found.columns) == ["1-res 7", "1-res on", "3-res 9", "3-res on"] and list(found.index) == texts
    for name, feature in (("1-res", 7), ("3-res", 9)):
        alone = peak_reader(model, saes[name], spec.context)(feature, *texts)
        np.testing.assert_allclose(found[f"{name} {feature}"], alone["activation"], atol=0.11)
        assert list(found[f"{name} on"]) == list(alone["on"])


def test_share_curves_count_what_lies_above():
    found = {"7": np.array([0.1, 0.6, 0.9]), "23": np.array([0.1, 0.2, 0.9])}
    token = {"7": np.array([0.0, 0.1, 0.3]), "23": np.array([0.0, 0.1, 0.8])}
    fig = titled(figures.share_curves(found, token, 0.5), "correlation", "features")
    at = list(fig.data[0].x).index(0.5)
    assert [round(float(trace.y[at]), 1) for trace in fig.data] == [0.0, 33.3, 66.7, 33.3]
    assert [trace.fill for trace in fig.data] == [None, "tonexty", None, None]


def test_correlations_are_numpys_on_all_texts_and_on_some():
    a, b, texts = activations(), activations(seed=1), np.repeat([3, 5, 9], 100)
    sums = methods.text_sums(a, b, texts)
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.toarray().T, b.toarray().T, strict=True)]
    np.testing.assert_allclose(methods.correlation(sums), expected, atol=1e-6)
    again = [*range(100), *range(200, 300), *range(200, 300)]  # the last text twice
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.toarray()[again].T, b.toarray()[again].T, strict=True)]
    np.testing.assert_allclose(methods.correlation(sums, [0, 2, 2]), expected, atol=1e-6)


def test_a_constant_column_correlates_with_nothing_and_other_shapes_are_refused():
    a = activations()
    same = csr_matrix(np.full(a.shape, 1e4, np.float32))
    assert (methods.correlation(methods.text_sums(a, same, np.zeros(300))) == 0).all()
    assert (methods.correlation(methods.text_sums(a, a * 0, np.zeros(300))) == 0).all()
    with pytest.raises(ValueError, match="pairs of columns"):
        methods.text_sums(a, a[:, :5], np.zeros(300))


def test_the_strip_shades_a_passage_by_each_features_own_strongest_activation():
    table = pd.DataFrame({"text": 0, "position": range(4), "token": ["a", " b", "<i>", "d"], "token_id": range(4)})
    one, two = (
        FeatureMatrix(csr_matrix(np.array(column, np.float32)[:, None]), table)
        for column in ([8, 2, 0, 4], [0, 0, 0, 5])
    )
    fig = figures.depth_strip({"7": one, "15": two}, {"7": 0, "15": 0}, slice(1, 4))
    np.testing.assert_allclose(fig.data[0].z, [[0.25, 0, 0.5], [0, 0, 1]])
    assert list(fig.data[0].y) == ["7, 0 ", "15, 0 "] and fig.data[0].text[0][1] == "&lt;i&gt;"


def test_the_match_figure_names_the_features_it_is_told_of():
    fig = titled(
        figures.match_figure(pd.Series({5: 0.9, 7: 0.2}), pd.Series({5: 0.4, 7: 0.1}), pd.Series({"urls": 7})),
        "corr",
        "corr",
    )
    assert [list(trace.text) for trace in fig.data] == [[""], ["urls 7"]]
    assert [[float(x) for x in trace.y] for trace in fig.data] == [[pytest.approx(0.9)], [pytest.approx(0.2)]]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"6c/hypothesis"}
