"""Phase 6f: monitors against scikit-learn and by hand, pairs by hand and on changes that must (not) move them."""

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from prism import interventions as iv
from prism.data import CATEGORIES, DATA, load_texts, tokenize
from prism.evaluation.metrics import bootstrap_counts
from prism.exercises import progress
from prism.interventions import project_out
from prism.interventions.changes import change_cost
from prism.models import get_spec, kept_activations, load_sae
from prism.phases.phase_6f import audit, exercises, figures, monitor

HOOK = "blocks.2.hook_resid_pre"


def sample(seed=0, n=60):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    labels[:2] = True, False
    return (rng.normal(size=n) + labels).round(1), labels


class TestThreshold:
    @given(st.integers(0, 50), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
    def test_it_is_the_highest_that_finds_enough(self, seed, recall):
        scores, labels = sample(seed)
        limit = monitor.threshold_at_recall(scores, labels, recall)
        assert (scores[labels] >= limit).mean() >= recall - 1e-9
        assert (scores[labels] > limit).mean() < recall
        assert limit == exercises.threshold(scores, labels, recall)

    def test_a_product_that_rounds_up_asks_for_no_further_positive(self):
        assert 0.55 * 100 > 55  # by a rounding error
        assert monitor.threshold_at_recall(np.arange(100.0), np.ones(100, dtype=bool), 0.55) == 45.0


class TestMonitor:
    def data(self, sparse, n=200):
        rng = np.random.default_rng(0)
        labels = np.arange(n) % 2 == 0
        values = rng.random((n, 12)) * (rng.random((n, 12)) < 0.5)
        values[:, 3] = rng.random(n) + labels * 0.8  # no ties
        return (csr_matrix(values) if sparse else values), labels, np.arange(n) % 4 < 2

    @pytest.mark.parametrize("sparse", [True, False])
    def test_finds_the_column_and_keeps_its_recall_where_it_was_calibrated(self, sparse):
        values, labels, fit = self.data(sparse)
        one = monitor.fit_monitor(values, labels, fit, recall=0.9)
        assert np.argmax(one.weights) == 3
        assert roc_auc_score(labels[~fit], one.scores(values)[~fit]) > 0.8
        assert 0.9 <= one.alarms(values)[~fit & labels].mean() < 0.95

    def test_the_calibrating_units_do_not_fit(self):
        values, labels, fit = self.data(False)
        values[~fit, 7] += labels[~fit] * 100  # a column that tells all, among the calibrating units only
        assert np.argmax(monitor.fit_monitor(values, labels, fit).weights) == 3

    def test_a_shifted_source_breaks_the_promise_and_not_the_order(self):
        values, labels, fit = self.data(False, n=400)
        one = monitor.fit_monitor(values, labels, fit)
        here, there = one.scores(values), one.scores(values - 0.5)
        assert roc_auc_score(labels, here) == pytest.approx(roc_auc_score(labels, there))
        assert (there[labels] >= one.threshold).mean() < (here[labels] >= one.threshold).mean() - 0.1

    def test_reasons_add_up_to_the_score(self):
        values, labels, fit = self.data(True)
        one = monitor.fit_monitor(values, labels, fit)
        why = one.leading(values, np.array([4, 9]))
        assert why["score"].tolist() == pytest.approx(one.scores(values)[[4, 9]].tolist())
        added = values[4].toarray()[0] * one.weights
        assert why["feature"][4] == added.argmax() and why["adds"][4] == pytest.approx(added.max())
        assert one.leading(values, np.array([], dtype=int)).empty

    def test_columns_that_are_rare_where_it_is_fitted_are_left_out(self):
        values = np.array([[1.0, 0, 2, 0], [3, 0, 0, 0], [1, 1, 1, 0]])
        for some in (values, csr_matrix(values)):
            assert monitor.frequent_columns(some, 2).tolist() == [0, 2]
            assert monitor.frequent_columns(some, 9).tolist() == [0]  # none is in nine: those that are in most

    def test_summary_by_hand(self):
        own = np.array([[True, False, False], [False, True, False]])
        alarms = np.array([[True, True, False], [False, False, False]])
        found = monitor.summary(alarms + 0.0, alarms, own)
        assert found == pytest.approx({"AUC": 0.625, "found": 0.5, "false alarms": 0.25})
        recall, false = monitor.promises({"x": np.tile(alarms[0], (7, 1))}, np.tile(own[0], (7, 1)))
        assert recall.loc["math", "x"] == 1.0 and false.loc["math", "x"] == 0.5

    def test_errors(self):
        values, labels, fit = self.data(False)
        with pytest.raises(ValueError, match="marks"):
            monitor.fit_monitor(values, labels[:-1], fit)
        with pytest.raises(ValueError, match="calibrating"):
            monitor.fit_monitor(values, labels, labels | fit)

    def test_parts_hold_every_kind(self):
        kinds = np.array(["a"] * 40 + ["b"] * 4)
        parts = monitor.random_parts(kinds)
        assert pd.crosstab(kinds, parts).to_numpy().tolist() == [[10] * 4, [1] * 4]
        assert not np.array_equal(parts, monitor.random_parts(kinds, seed=1))


class TestAuc:
    @given(st.integers(0, 30))
    def test_of_resamples(self, seed):
        scores, labels = sample(seed, 30)
        counts = bootstrap_counts(30, 4, seed)
        for draw, row in zip(monitor.auc_draws(scores, labels, counts), counts, strict=True):
            y, s = np.repeat(labels, row), np.repeat(scores, row)
            assert draw == pytest.approx(roc_auc_score(y, s)) if y.any() and not y.all() else np.isnan(draw)

    def test_a_monitor_is_not_ahead_of_itself(self):
        scores, labels = (part[None] for part in sample(0))
        assert monitor.mean_auc(scores, labels, scores) == (0, 0, 0)

    def test_paired_over_classes(self):
        (a, y), (b, _) = sample(0), sample(9)
        value, low, high = monitor.mean_auc(np.stack([a, a]), np.stack([y, y]), np.stack([b, a]), n=200)
        assert value == pytest.approx((roc_auc_score(y, a) - roc_auc_score(y, b)) / 2) and low <= value <= high
        assert monitor.mean_auc(a[None], y[None])[0] == pytest.approx(roc_auc_score(y, a))


def test_monitor_inputs_row_by_row(mini):
    sae = load_sae(get_spec("mini"))
    batch = tokenize(load_texts()["text"].tolist()[:3], mini.tokenizer, 256)
    x = kept_activations(mini, HOOK, batch)
    found, matrix = monitor.monitor_inputs(x, batch, mini.tokenizer, {"SAE": sae})
    one = x[: int(batch.keep[0].sum())]
    assert np.allclose(found["raw activation"][0], one.mean(0), atol=1e-4)
    assert np.allclose(found["SAE"][0].toarray(), sae.encode(one).amax(0), atol=1e-3)
    assert found["bag of words"][0].indices.tolist() == sorted(set(batch.tokens[0][batch.keep[0]].tolist()))
    assert np.allclose(matrix.values[: len(one)].max(0).toarray(), found["SAE"][0].toarray())


class TestPairs:
    def test_the_file(self):
        pairs = audit.load_counterfactuals()
        path = DATA / "texts" / "counterfactuals.jsonl"
        assert path.stat().st_size <= 30_000 and not pairs.isna().any().any()
        assert (pairs.groupby("kind")["template"].nunique() == 16).all() and pairs["kind"].nunique() == 6
        assert (pairs["text_a"] != pairs["text_b"]).all() and (pairs["target_a"] != pairs["target_b"]).all()
        assert not pairs[["text_a", "text_b"]].stack().str.contains(r"[{}]").any()
        assert pairs[["target_a", "target_b"]].stack().str.match(r" \S").all()

    def test_no_two_templates_of_a_kind_ask_for_the_same_words(self):
        """Else their effects would be one effect, and a random model would pass the test by sign flips."""
        one = audit.load_counterfactuals().drop_duplicates("template")
        assert not one[one["kind"] != "agreement"].duplicated(["kind", "target_a", "target_b"]).any()
        assert not one[one["kind"] == "agreement"].duplicated(["text_a"]).any()

    def test_gaps_agree_with_one_text_at_a_time(self, mini):
        pairs = audit.load_counterfactuals().iloc[[0, 20, 90]]
        gaps = audit.swap_gaps(mini, pairs, HOOK)["clean"]
        ids = audit.first_tokens(pairs, mini.tokenizer)
        for row, (a, b), (_, pair) in zip(gaps, ids, pairs.iterrows(), strict=True):
            for gap, text in zip(row, (pair["text_a"], pair["text_b"]), strict=True):
                logs = mini(tokenize([text], mini.tokenizer, 256).tokens, return_type="logits")[0, -1].log_softmax(-1)
                assert gap == pytest.approx((logs[a] - logs[b]).item(), abs=1e-3)

    def test_swapping_the_sides_turns_the_sign(self, mini):
        pairs = audit.load_counterfactuals().iloc[:6]
        turned = pairs.rename(columns={"text_a": "text_b", "text_b": "text_a"})
        one, other = (audit.swap_gaps(mini, some, HOOK)["clean"] for some in (pairs, turned))
        assert np.allclose(one, other[:, ::-1], atol=1e-4)

    def test_a_change_is_made_and_undone(self, mini):
        pairs = audit.load_counterfactuals().iloc[:4]
        found = audit.swap_gaps(mini, pairs, HOOK, {"same": lambda x: x, "nothing": torch.zeros_like})
        assert np.allclose(found["clean"], found["same"], atol=1e-4)
        assert np.abs(found["clean"] - found["nothing"]).max() > 0.1
        assert np.allclose(found["clean"], audit.swap_gaps(mini, pairs, HOOK)["clean"], atol=1e-6)

    def test_templates_are_averaged(self):
        pairs = pd.DataFrame({"template": ["x", "x", "y"]})
        assert audit.by_template(np.array([1.0, 3.0, 5.0]), pairs).tolist() == [2.0, 5.0]

    def test_terms_of_one_side_and_of_two(self):
        pairs = pd.DataFrame({"template": ["x", "x", "y", "y"]})
        gaps = np.array([[1.0, 5.0], [2.0, 8.0], [0.0, 0.0], [0.0, 0.0]])
        same, other = audit.same_side(gaps, pairs)
        assert same.tolist() == [2.0, 0.0]  # |1 − 2| and |5 − 8|
        assert other.tolist() == [5.0, 0.0]  # 4, 7, 3 and 6

    def test_halves_split_each_kind_by_whole_templates(self):
        pairs = audit.load_counterfactuals()
        first = audit.halves(pairs)
        assert (pairs[first].groupby("kind")["template"].nunique() == 8).all()
        assert not set(pairs[first]["template"]) & set(pairs[~first]["template"])


class TestPermutations:
    def test_small_cases_are_exact(self):
        assert audit.sign_flip_p(np.array([1.0, 1.0, 1.0])) == pytest.approx(2 / 8)
        assert audit.sign_flip_p(np.array([-1.0, -1.0, -1.0])) == pytest.approx(2 / 8)
        assert audit.larger_p(np.array([3.0, -3.0]), np.array([1.0, -1.0])) == pytest.approx(2 / 6)

    def test_the_sign_of_a_placebo_does_not_matter(self):
        """It was subtracted once: three swaps without a direction, turned round, made a bias appear or vanish."""
        rng = np.random.default_rng(0)
        effects, placebo = rng.normal(2, 1, 16), rng.normal(0, 1, 16)
        turned = placebo * rng.choice([-1, 1], 16)
        assert audit.larger_p(effects, placebo) == audit.larger_p(effects, turned) < 0.01

    def test_a_placebo_larger_than_the_effects_is_noticed_too(self):
        rng = np.random.default_rng(1)
        assert audit.larger_p(rng.normal(0, 1, 16), rng.normal(0, 5, 16)) < 0.05

    def test_noise_is_rarely_significant(self):
        rng = np.random.default_rng(0)
        flips = [audit.sign_flip_p(rng.normal(size=16), n=500) for _ in range(100)]
        sizes = [audit.larger_p(*rng.normal(size=(2, 16)), n=500) for _ in range(100)]
        assert all(0 <= np.mean(np.array(p) < 0.05) < 0.12 for p in (flips, sizes))


class TestFeatures:
    def test_the_most_moved_either_way(self):
        moved = np.array([[0.0, -3, 1, 9], [0, -3, 1, 0], [0, -3, 1, 0]])
        assert audit.pair_features(moved, 2).tolist() == [1, 2]  # the last moves once only, the first never
        assert audit.pair_features(np.zeros((3, 4))).tolist() == []

    def test_matched_sets(self):
        mass = np.exp(np.arange(100.0) / 10)
        mass[50] = 0
        sets = iv.matched_sets(mass, [10, 90], n=20, nearest=4)
        assert sets.shape == (20, 2) and not np.isin(sets, [10, 90, 50]).any()
        assert (np.abs(sets - [10, 90]) <= 3).all() and len(np.unique(sets[:, 0])) > 1
        assert all(len(set(row)) == 2 for row in iv.matched_sets(np.ones(5), [0, 1], n=30).tolist())
        with pytest.raises(ValueError, match="2 are needed"):
            iv.matched_sets(np.array([1.0, 1, 1]), [0, 1])


def test_edit_costs_are_those_of_change_cost(mini):
    batch = tokenize(load_texts()["text"].tolist()[:18], mini.tokenizer, 256)
    costs = audit.edit_costs(mini, batch, HOOK, {"same": lambda x: x, "nothing": torch.zeros_like})
    wanted = change_cost(mini, batch, HOOK, torch.zeros_like)
    assert np.allclose(costs["nothing"], (wanted["changed"] - wanted["clean"]) / wanted["tokens"], atol=1e-3)
    assert np.allclose(costs["same"], 0, atol=1e-4) and len(costs) == 18


def test_edit_costs_of_some_tokens_and_of_the_others_make_up_the_whole(mini):
    batch = tokenize(["A café 🎉 in the rain", "No such thing here"], mini.tokenizer, 256)
    odd = audit.beyond_ascii(batch, mini.tokenizer)
    assert odd[0].any() and not odd[0].all() and not (odd & batch.keep)[1].any()
    edit = {"nothing": torch.zeros_like}
    whole, some, rest = (audit.edit_costs(mini, batch, HOOK, edit, x)["nothing"] for x in (None, odd, ~odd))
    n, m = ((x & batch.keep)[0, 1:].sum().item() for x in (odd, ~odd))
    n, m = n - int(odd[0, 1] and not batch.keep[0, 0]), m - int(not odd[0, 1] and not batch.keep[0, 0])
    assert whole[0] == pytest.approx((n * some[0] + m * rest[0]) / (n + m), abs=1e-4)
    assert np.isnan(some[1]) and rest[1] == pytest.approx(whole[1])


def test_apart_by_hand():
    own = np.arange(20) < 10
    found = audit.apart(pd.DataFrame({"x": own + np.tile([0.0, 0.2], 10)}), own).loc["x"]
    assert found[["its texts", "other texts", "difference"]].tolist() == pytest.approx([1.1, 0.1, 1.0])
    assert found["from"] < 1 < found["to"]


def test_the_sources_row_by_row(mini):
    frames, batches = monitor.load_sources(mini.tokenizer, 3, 9)
    assert (frames["known"]["kind"].value_counts() <= 3).all() and "urls" in set(frames["known"]["kind"])
    assert frames["new"]["half"].tolist() == ["discover"] * 70 + ["confirm"] * 70
    assert (frames["new"].groupby(["half", "kind"]).size() == 10).all()
    for name, frame in frames.items():
        row, ids = len(frame) - 1, mini.tokenizer(frame["text"].iloc[-1], add_special_tokens=False)["input_ids"][:8]
        assert batches[name].tokens[row][batches[name].keep[row]].tolist() == ids and len(batches[name]) == len(frame)


def test_mean_difference_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert audit.mean_difference(x, np.array([True, True, False])).tolist() == [2.0, -4.0]
    with pytest.raises(ValueError, match="both sides"):
        audit.mean_difference(x, np.ones(3, dtype=bool))


def test_a_planted_direction_is_found_and_taken_out():
    direction = torch.zeros(192)
    direction[7] = 30.0
    x = torch.randn(40, 192, generator=torch.Generator().manual_seed(0)) + 5
    inside = np.arange(40) % 2 == 0
    x[inside] += direction
    found = audit.mean_difference(x, inside)
    assert torch.cosine_similarity(found, direction, dim=0) > 0.95
    changed = project_out(found, mean=x.mean(0))(x)
    assert audit.mean_difference(changed, inside).norm() < 0.2 * direction.norm()
    assert torch.allclose(changed.mean(0), x.mean(0), atol=1e-3)  # the mean stays where it was


def test_figures_draw_their_data():
    table = pd.DataFrame({"a": 0.8, "b": 0.5}, index=list(CATEGORIES))
    table.loc["math", "a"] = 1.0
    fig = figures.promise_figure(table, 1 - table, 0.95, (20, 120))
    assert len(fig.data) == 4 and fig.data[3].x.tolist() == pytest.approx([0.5] * 7) and titled(fig)
    assert fig.layout.title.text.startswith("On the new source 13 of 14 monitors find less than the 95%")
    assert fig.data[2].error_x.array[0] == pytest.approx(figures.wilson(0.5, 20)[1] - 0.5)
    effects = {"x": np.array([0.1, -0.2]), "y": np.array([1.0, 2.0]), "placebo": np.array([0.0, 0.1])}
    fig = figures.swap_figure(effects, {"x": (-0.3, 0.2), "y": (0.5, 2.5), "placebo": (0.01, 0.09)}, ["placebo"])
    assert fig.data[0].x.tolist() == pytest.approx([0.1, -0.2]) and fig.data[5].x[0] == pytest.approx(0.05)
    assert titled(fig) and fig.layout.title.text.endswith(": y")  # x reaches 0, and a placebo does not count


def test_wilsons_interval_by_hand():
    z = 1.959964
    low, high = figures.wilson(0.5, 20)
    assert high - 0.5 == pytest.approx(0.5 - low) == pytest.approx(z / 2 / np.sqrt(20 + z**2))
    assert figures.wilson(0.0, 20) == pytest.approx((0, z**2 / (20 + z**2)))


def test_the_hypothesis_is_this_phases_exercise(monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(progress, "record", lambda *what: kept.append(what))
    exercises.check_hypothesis("She slept.", "He slept.", lambda text: float("She" in text))
    assert kept == [("6f", "hypothesis", progress.SOLVED)] and "it stands" in capsys.readouterr().out
