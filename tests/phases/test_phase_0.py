"""Phase 0: its figures, matches with known directions, the toys of two features, and the exercise about meaning."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, mean_correlation_coefficient

from prism.exercises import progress
from prism.phases.phase_0 import exercises, figures, methods
from prism.sae import SaeConfig
from prism.training import TrainConfig, train

# --- figures ---------------------------------------------------------------------------------------------------------


def test_direction_arrows_end_at_the_columns():
    W = np.array([[[1.0, 0.0], [0.0, 0.01]], [[0.6, -0.6], [0.8, -0.8]]])
    fig = titled(figures.direction_arrows(W, ["<b>one</b>", "two"]), "dimension 1", "dimension 2")
    arrows = [t for t in fig.data if t.mode == "lines+markers"]
    ends = [(1.0, 0.0), (0.6, 0.8), (-0.6, -0.8)]
    assert np.allclose([(t.x[1], t.y[1]) for t in arrows], ends)
    words = [t.text[0] for t in fig.data if t.mode == "text"]
    assert words == ["<b>1</b>", "given up: 2", "<b>1</b>", "<b>2</b>"]  # the second of panel one is too short to point
    assert fig.layout.annotations[0].text == "&lt;b&gt;one&lt;/b&gt;"
    with pytest.raises(ValueError, match="need .models, 2, features."):
        figures.direction_arrows(np.zeros((1, 3, 2)), ["three dimensions"])


def test_gram_heatmaps_show_what_comes_back():
    fig = titled(figures.gram_heatmaps(torch.tensor([[[1.0, -0.5]]]), ["pair"]), "feature in", "feature out")
    assert np.asarray(fig.data[0].z).tolist() == [[1.0, -0.5], [-0.5, 0.25]]
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax == -1


def test_sweep_lines_show_mean_and_extremes():
    frame = pd.DataFrame({"model": ["a", "a", "b"], "p": [0.1, 0.1, 0.5], "features_per_dimension": [0.2, 0.6, 0.5]})
    fig = titled(figures.sweep_lines(frame, "The rarer, the more"), "per dimension", "chance")
    assert [t.name for t in fig.data] == ["a", "b"]
    first = fig.data[0]
    assert first.y[0] == pytest.approx(0.4)
    assert [first.error_y.array[0], first.error_y.arrayminus[0]] == pytest.approx([0.2, 0.2])
    assert fig.layout.xaxis.type == "log" and list(fig.layout.xaxis.ticktext) == ["0.1", "0.5"]


def test_phase_diagram_draws_the_border_of_the_prediction_over_what_was_measured():
    measured, predicted = np.array([[0, 1], [1, 2]]), np.array([[0, 1], [1, 1]])
    chances, ratios = np.array([1.0, 0.1]), np.array([0.1, 10.0])
    fig = titled(figures.phase_diagram(measured, predicted, chances, ratios), "importance")
    assert np.array_equal(fig.data[0].z, measured)
    border = fig.data[-1]
    assert border.name == "border on paper"
    assert list(border.x) == [0, 0, None, -2, 0, None] and list(border.y) == [0.5, -0.5, None, -0.5, -0.5, None]
    assert not any("none" in (t.name or "") for t in fig.data)  # only the phases that occur are named
    own = figures.phase_diagram(measured, predicted, torch.tensor(chances), torch.tensor(ratios), curve=[0.1, 1.0])
    assert own.data[-1].name == "your border" and np.allclose(own.data[-1].y, [-1, 0])
    single = figures.phase_diagram(measured[:1, :1], predicted[:1, :1], chances[:1], ratios[:1])
    assert list(single.data[-1].x) == []
    with pytest.raises(ValueError, match="3 chances and 2 ratios"):
        figures.phase_diagram(measured, predicted, np.ones(3), np.ones(2))


def test_every_column_of_the_matched_cosines_is_one_direction():
    cosines = {"SAE": np.array([0.2, 1.0]), "random": np.array([0.1, -0.3])}
    fig = titled(figures.matched_cosines_figure(cosines, np.array([0.9, 1.0])), "cosine", "true")
    assert [t.name for t in fig.data] == ["SAE: nearest row", "SAE: partner, mean 0.60", "random: partner, mean -0.10"]
    assert np.allclose([t.y for t in fig.data], [[1, 0.9], [1, 0.2], [-0.3, 0.1]])
    assert fig.data[0].customdata.tolist() == [1, 0] and fig.layout.yaxis.range[0] < -0.3


def test_start_lines_go_from_the_short_training_to_the_long():
    rows = [(p, s, w, n, w / 2 + n / 100) for p in (0.4, 0.1) for s in "ab" for w in (0, 1) for n in (10, 40)]
    fig = titled(
        figures.start_lines(pd.DataFrame(rows, columns=["p", "start", "world", "steps", "mcc"])), "MCC", "steps"
    )
    assert [a.text for a in fig.layout.annotations] == ["p = 0.1", "p = 0.4"] and len(fig.data) == 8
    assert list(fig.data[1].x) == ["10", "40"] and np.allclose(fig.data[1].y, [0.6, 0.9])
    assert [t.name for t in fig.data if t.showlegend] == ["a", "b"]


# --- known directions ------------------------------------------------------------------------------------------------


def _directions(seed: int, n: int = 6, d: int = 4) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


class TestMcc:
    def test_by_hand(self):
        truth = torch.eye(2)
        assert methods.mcc(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), truth) == pytest.approx((0.6 + 1) / 2)
        assert (
            methods.mcc(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), truth) == 0.5
        )  # one row cannot stand for two directions
        greedy_fails = torch.tensor([[1.0, 0.0], [0.9, -0.1]])  # the sum is largest if the best single pair gives way
        truth = torch.tensor([[0.9, 0.1], [1.0, 0.0]])
        cosines = methods.matched_cosines(greedy_fails, truth)
        assert cosines.sum() >= torch.cosine_similarity(greedy_fails, truth.flip(0)).sum() - 1e-6

    def test_the_sign_counts(self):
        assert methods.mcc(-torch.eye(2), torch.eye(2)) == 0.0
        assert methods.mcc(torch.cat([-torch.eye(2), torch.eye(2)]), torch.eye(2)) == 1.0

    def test_directions_left_without_a_row_count_zero(self):
        assert methods.matched_cosines(torch.tensor([[0.0, 2.0]]), torch.eye(2)).tolist() == [0.0, 1.0]
        assert methods.mcc(torch.tensor([[0.0, 2.0]]), torch.eye(2)) == 0.5

    @pytest.mark.parametrize(
        "decoder, words",
        [
            (torch.eye(3), "one width"),
            (torch.zeros(0, 2), "one width"),
            (torch.zeros(1, 2), "no direction"),
            (torch.tensor([[1.0, float("nan")]]), "no direction"),
        ],
    )
    def test_bad_input_is_named(self, decoder, words):
        with pytest.raises(ValueError, match=words):
            methods.mcc(decoder, torch.eye(2))

    @given(seed=st.integers(0, 10_000), n=st.integers(1, 9))
    def test_a_permuted_and_scaled_copy_gives_1(self, seed, n):
        truth = _directions(seed, n)
        generator = torch.Generator().manual_seed(seed)
        copy = truth[torch.randperm(n, generator=generator)] * (0.1 + torch.rand(n, 1, generator=generator))
        assert methods.mcc(copy, truth) == pytest.approx(1)

    @given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), n=st.integers(1, 9))
    def test_order_does_not_matter_and_more_rows_never_hurt(self, seed, rows, n):
        decoder, truth = _directions(seed, rows), _directions(seed + 1, n)
        score = methods.mcc(decoder, truth)
        assert methods.mcc(decoder.flip(0), truth.flip(0)) == pytest.approx(score)
        assert -1 <= score <= 1 + 1e-9
        bound = (torch.nn.functional.normalize(decoder) @ torch.nn.functional.normalize(truth).T).amax(0).clamp_min(0)
        assert score <= bound.mean() + 1e-9
        if rows >= n:
            assert methods.mcc(torch.cat([decoder, _directions(seed + 2, 2)]), truth) >= score - 1e-9

    @given(seed=st.integers(0, 10_000), extra=st.integers(0, 3))
    def test_equals_sae_lens_where_no_cosine_is_negative(self, seed, extra):
        decoder, truth = _directions(seed, 5 + extra).abs(), _directions(seed + 1, 5).abs()
        theirs = mean_correlation_coefficient(decoder.float(), truth.float())
        assert methods.mcc(decoder, truth) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_our_saes_recover_the_directions_of_sae_lens_synthetic_data(architecture):
    dictionary = FeatureDictionary(num_features=24, hidden_dim=24, seed=0)  # nearly orthogonal: an easy setting
    torch.manual_seed(0)
    x = dictionary(ActivationGenerator(24, 0.08, std_firing_magnitudes=0.2).sample(40_000)).detach().numpy()
    truth = dictionary.feature_vectors.detach()
    settings = TrainConfig(tokens=300_000, batch=512, lr=1e-2, dead_after=20_000)
    sae = train(x, SaeConfig(24, 24, architecture=architecture, k=2), settings)
    random = np.random.default_rng(0).normal(size=(24, 24))
    found = methods.mcc(sae.W_dec, truth)
    assert found >= 0.9 > 0.6 > methods.mcc(random, truth)
    assert found == pytest.approx(mean_correlation_coefficient(sae.W_dec.detach(), truth), abs=0.02)


def test_rivals_are_as_many_as_they_can_be_and_stand_either_way_round():
    x = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 2, 0], [0, 1, 1], [1, 0, 3]]
    )
    found = methods.rivals(x, 5, seed=0)
    assert {name: rows.shape for name, rows in found.items()} == {"PCA": (6, 3), "ICA": (6, 3), "random": (5, 3)}
    assert np.allclose(found["PCA"][:3], -found["PCA"][3:]) and np.allclose(np.linalg.norm(found["random"], axis=1), 1)
    assert methods.mcc(found["PCA"], found["PCA"][3:]) == pytest.approx(1)


def test_the_sae_written_by_hand_is_the_one_of_the_library():
    rows, a = methods.random_rows(2, 5, 3, seed=0), torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    b_enc, b_dec = 0.1 * rows[:, :, :1].mT, 0.1 * rows[:, :1]
    sae = SimpleNamespace(W_enc=2 * rows.mT, W_dec=rows, b_enc=b_enc, b_dec=b_dec)
    library = methods.library_sae(sae, 0.3)
    f = ((a - b_dec[0]) @ sae.W_enc[0] + b_enc[0]).relu()
    a_hat = f @ rows[0] + b_dec[0]
    torch.testing.assert_close(library.encode(a), f)
    torch.testing.assert_close(library.decode(f), a_hat)
    torch.testing.assert_close(library.loss(a), ((a - a_hat).pow(2).sum(1) + 0.3 * f.sum(1)).mean())


# --- two features, one dimension -------------------------------------------------------------------------------------


def test_the_listed_cases_give_the_loss_of_a_model_that_says_zero_or_everything():
    p, r = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([2.0, 0.5, 1.0])
    silent = methods.expected_loss(torch.zeros(3, 2), torch.zeros(3, 2), p, r)
    square = ((torch.arange(8) + 0.5) / 8).pow(2).mean()  # of an active feature, about 1/3
    assert torch.allclose(silent, p * (1 + r) * square) and abs(square - 1 / 3) < 0.01
    one = methods.expected_loss(torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.zeros(3, 2), p, r)
    assert torch.allclose(one, p * r * square)


def test_the_listed_cases_come_close_to_the_formula_of_opposite_ends():
    p, r = torch.tensor([0.02, 0.5, 1.0]), torch.tensor([0.1, 1.0, 10.0])
    listed = methods.expected_loss(torch.tensor([1.0, -1.0]).expand(3, 2), torch.zeros(3, 2), p, r)
    torch.testing.assert_close(listed, (1 + r) * p**2 / 6, rtol=0.01, atol=0)  # eight levels stand for a continuum


def test_what_became_of_the_second_feature():
    W = torch.tensor([[1.0, 0.1], [0.9, -0.9], [0.0, -1.0], [0.9, 0.9], [0.1, 0.1]])
    assert methods.outcome(W).tolist() == [0, 1, 2, 3, 3] and len(figures.PHASES) == 4


# --- the exercise about meaning --------------------------------------------------------------------------------------


def test_an_input_in_words_is_a_sum_of_directions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    activation = methods.input_reader(torch.eye(3), lambda x: (x - 0.5).relu()[None])
    assert [activation(text, 1) for text in ("1", "0, 2", " 1 1 0 ")] == [0.5, 0.0, 1.5]
    for text in ("3", "one", "-1", "1.5"):
        with pytest.raises(ValueError, match=f"'{text}' is no true feature; write numbers from 0 to 2, as"):
            activation(f"0 {text}", 1)
    exercises.check_hypothesis("1", "0 2", lambda text: activation(text, 1))
    assert "Both as your hypothesis says" in capsys.readouterr().out and set(progress.load()) == {"0/hypothesis"}
    exercises.check_hypothesis("9", "0", lambda text: activation(text, 1))
    assert capsys.readouterr().out.startswith("✗ '9' is no true feature")
