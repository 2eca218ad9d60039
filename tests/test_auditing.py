"""Monitors against scikit-learn and by hand; counterfactual pairs by hand and on models that they should not move."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score, roc_curve

from prism import evaluation as ev
from prism import interventions as iv
from prism import visualization as viz
from prism.data import CATEGORIES, DATA, load_texts, tokenize
from prism.evaluation.metrics import bootstrap_counts
from prism.evaluation.probing import auc_draws
from prism.models import get_spec, kept_activations, load_model, load_sae

HOOK = "blocks.2.hook_resid_pre"


def sample(seed=0, n=60, ties=True):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    labels[:2] = True, False
    scores = rng.normal(size=n) + labels
    return (scores.round(1) if ties else scores), labels


class TestThreshold:
    @given(st.integers(0, 50), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
    def test_it_is_the_highest_that_finds_enough(self, seed, recall):
        scores, labels = sample(seed)
        limit = ev.threshold_at_recall(scores, labels, recall)
        assert ev.operating_point(scores, labels, limit)[0] >= recall - 1e-9
        assert ev.operating_point(scores, labels, np.nextafter(limit, np.inf))[0] < recall

    def test_a_product_that_rounds_up_asks_for_no_further_positive(self):
        scores, labels = np.arange(100.0), np.ones(100, dtype=bool)
        assert 0.55 * 100 > 55  # by a rounding error
        assert ev.threshold_at_recall(scores, labels, 0.55) == 45.0

    @given(st.integers(0, 50))
    def test_fpr_agrees_with_sklearn(self, seed):
        scores, labels = sample(seed)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert ev.fpr_at_recall(scores, labels, 0.95) == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-9)])

    @pytest.mark.parametrize("recall", [0, 1.2])
    def test_impossible_recall(self, recall):
        with pytest.raises(ValueError, match="recall in"):
            ev.threshold_at_recall(*sample(), recall)

    def test_no_positives(self):
        with pytest.raises(ValueError, match="0 positives"):
            ev.threshold_at_recall(np.ones(3), np.zeros(3, dtype=bool))


class TestMonitor:
    def data(self, sparse, seed=0, n=200):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 2 == 0
        values = rng.random((n, 12)) * (rng.random((n, 12)) < 0.5)
        values[:, 3] = rng.random(n) + labels * 0.8  # no ties
        return (csr_matrix(values) if sparse else values), labels, np.arange(n) % 4 < 2

    @pytest.mark.parametrize("sparse", [True, False])
    @pytest.mark.parametrize("k", [1, 5, None])
    def test_finds_the_column_and_keeps_its_recall_where_it_was_calibrated(self, sparse, k):
        values, labels, fit = self.data(sparse)
        monitor = ev.fit_monitor(values, labels, fit, k, recall=0.9)
        assert 3 in monitor.columns[:1] or k is None
        scores = monitor.scores(values)
        assert roc_auc_score(labels[~fit], scores[~fit]) > 0.8
        recall, _ = ev.operating_point(scores[~fit], labels[~fit], monitor.threshold)
        assert 0.9 <= recall < 0.95

    def test_it_reads_nothing_but_its_training_units(self):
        values, labels, fit = self.data(False)
        first = ev.fit_monitor(values, labels, fit, 3)
        again = ev.fit_monitor(values.copy(), labels, fit, 3)
        assert first.columns.tolist() == again.columns.tolist() and first.threshold == again.threshold
        moved = values.copy()
        moved[~fit, 7] += labels[~fit] * 100  # a column that tells all, among the calibrating units only
        assert 7 not in ev.fit_monitor(moved, labels, fit, 3).columns[:1]

    def test_noise_scores_as_noise(self):
        rng = np.random.default_rng(1)
        values, labels = rng.normal(size=(400, 10)), rng.random(400) < 0.5
        monitor = ev.fit_monitor(values[:200], labels[:200], np.arange(200) % 2 == 0)
        report = ev.monitor_report(monitor, values[200:], labels[200:], n=200)
        assert report.auc[1] < 0.5 < report.auc[2] and report.fpr_at_recall[0] > 0.6

    def test_a_shifted_source_breaks_the_promise_and_not_the_order(self):
        values, labels, fit = self.data(False, n=400)
        monitor = ev.fit_monitor(values, labels, fit)
        shifted = values - 0.5
        report = ev.monitor_report(monitor, shifted, labels, n=100)
        here = ev.monitor_report(monitor, values, labels, n=100)
        assert report.auc[0] == pytest.approx(here.auc[0]) and report.fpr_at_recall[0] == here.fpr_at_recall[0]
        assert report.recall[2] < here.recall[1]

    def test_report_intervals_hold_the_estimates(self):
        values, labels, fit = self.data(True)
        report = ev.monitor_report(ev.fit_monitor(values, labels, fit), values, labels, n=300)
        for value, low, high in (report.auc, report.fpr_at_recall, report.recall, report.fpr):
            assert low <= value <= high and 0 <= low and high <= 1

    def test_errors(self):
        values, labels, fit = self.data(False)
        with pytest.raises(ValueError, match="marks"):
            ev.fit_monitor(values, labels[:-1], fit)
        with pytest.raises(ValueError, match="calibrating"):
            ev.fit_monitor(values, labels, labels | fit)
        monitor = ev.fit_monitor(values, labels, fit)
        with pytest.raises(ValueError, match="documents that are not"):
            ev.monitor_report(monitor, values[labels], labels[labels])


class TestResampling:
    @given(st.integers(0, 30))
    def test_auc_of_resamples(self, seed):
        scores, labels = sample(seed, 30)
        counts = bootstrap_counts(30, 4, seed)
        for draw, row in zip(auc_draws(scores, labels, counts), counts, strict=True):
            y, s = np.repeat(labels, row), np.repeat(scores, row)
            assert draw == pytest.approx(roc_auc_score(y, s)) if y.any() and not y.all() else np.isnan(draw)

    def test_interval_is_that_of_auc_interval(self):
        scores, labels = sample(3)
        counts = bootstrap_counts(len(scores), 200, 0)
        low, high = np.quantile(auc_draws(scores, labels, counts), [0.025, 0.975])
        assert ev.auc_interval(scores, labels, n=200)[1:] == pytest.approx((low, high))

    def test_fpr_interval_is_that_of_a_loop(self):
        values, labels = sample(4)
        monitor = ev.LinearMonitor(np.array([0]), np.array([1.0]), 0.0, 0.0, 1.0)
        report = ev.monitor_report(monitor, values[:, None], labels, 0.9, n=100, seed=5)
        draws = [
            ev.fpr_at_recall(np.repeat(values, row), np.repeat(labels, row), 0.9)
            for row in bootstrap_counts(len(values), 100, 5)
        ]
        assert report.fpr_at_recall[1:] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))

    def test_a_monitor_is_not_ahead_of_itself(self):
        scores, labels = sample(0)
        assert ev.auc_difference(scores, scores, labels) == (0, 0, 0)

    def test_paired_over_classes(self):
        (a, y), (b, _) = sample(0), sample(9)
        value, low, high = ev.auc_difference(np.stack([a, a]), np.stack([b, a]), np.stack([y, y]), n=200)
        assert value == pytest.approx((roc_auc_score(y, a) - roc_auc_score(y, b)) / 2) and low <= value <= high
        with pytest.raises(ValueError, match="one shape"):
            ev.auc_difference(a, b[:-1], y)

    def test_roc_band_holds_the_curve(self):
        scores, labels = sample(2)
        band = ev.roc_band(scores, labels, points=21, n=100)
        assert (band["low"] <= band["high"]).all() and band["recall"].is_monotonic_increasing
        fpr, tpr, _ = roc_curve(labels, scores)
        for rate, recall in zip(band["fpr"], band["recall"], strict=True):
            assert recall == pytest.approx(tpr[fpr <= rate + 1e-9].max())


def test_silent_share_by_hand():
    values = csr_matrix(np.array([[1.0, 0, 0], [0, 0, 2.0], [0, 3.0, 0], [0, 0, 0]]))
    labels = np.array([True, True, False, True])
    assert ev.silent_share(values, labels, [0]) == pytest.approx(2 / 3)
    assert ev.silent_share(values, labels, [0, 2]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no unit"):
        ev.silent_share(values, np.zeros(4, dtype=bool), [0])


def test_monitor_inputs_row_by_row(mini):
    sae = load_sae(get_spec("mini"))
    texts = load_texts()["text"].tolist()[:3]
    batch = tokenize(texts, mini.tokenizer, 256)
    x = kept_activations(mini, HOOK, batch)
    found = ev.monitor_inputs(x, batch, mini.tokenizer, {"SAE": sae})
    one = x[: int(batch.keep[0].sum())]
    assert np.allclose(found["raw activation"][0], one.mean(0), atol=1e-4)
    assert np.allclose(found["SAE"][0].toarray(), sae.encode(one).amax(0), atol=1e-3)
    assert found["bag of words"][0].indices.tolist() == sorted(set(batch.tokens[0][batch.keep[0]].tolist()))


class TestPairs:
    def test_the_file(self):
        pairs = iv.load_counterfactuals()
        path = DATA / "texts" / "counterfactuals.jsonl"
        assert path.stat().st_size <= 30_000 and not pairs.isna().any().any()
        assert (pairs.groupby("kind")["template"].nunique() == 16).all() and pairs["kind"].nunique() == 6
        assert (pairs["text_a"] != pairs["text_b"]).all() and (pairs["target_a"] != pairs["target_b"]).all()
        assert not pairs[["text_a", "text_b"]].stack().str.contains(r"[{}]").any()
        assert pairs[["target_a", "target_b"]].stack().str.match(r" \S").all()

    def test_no_two_templates_of_a_kind_ask_for_the_same_words(self):
        """Else their effects would be one effect, and a random model would pass the test by sign flips."""
        one = iv.load_counterfactuals().drop_duplicates("template")
        assert not one[one["kind"] != "agreement"].duplicated(["kind", "target_a", "target_b"]).any()
        assert not one[one["kind"] == "agreement"].duplicated(["text_a"]).any()

    def test_swapping_the_sides_turns_the_sign(self, mini):
        pairs = iv.load_counterfactuals().iloc[:6]
        turned = pairs.rename(columns={"text_a": "text_b", "text_b": "text_a"})
        assert np.allclose(iv.swap_effects(mini, pairs), -iv.swap_effects(mini, turned), atol=1e-4)
        assert np.allclose(iv.swap_effects(mini, pairs.assign(text_b=pairs["text_a"])), 0, atol=1e-4)

    def test_templates_are_averaged(self):
        pairs = pd.DataFrame({"template": ["x", "x", "y"]})
        assert iv.by_template(np.array([1.0, 3.0, 5.0]), pairs).tolist() == [2.0, 5.0]

    def test_halves_split_each_kind_by_whole_templates(self):
        pairs = iv.load_counterfactuals()
        first = iv.halves(pairs)
        assert (pairs[first].groupby("kind")["template"].nunique() == 8).all()
        assert not set(pairs[first]["template"]) & set(pairs[~first]["template"])

    def test_missing_columns(self, mini):
        with pytest.raises(ValueError, match="target_b"):
            iv.swap_effects(mini, iv.load_counterfactuals().drop(columns="target_b"))
        with pytest.raises(ValueError, match="no pairs"):
            iv.swap_effects(mini, iv.load_counterfactuals().iloc[:0])


class TestLogprobs:
    def test_agrees_with_one_text_at_a_time(self, mini):
        prompts, targets = ["The", "Once upon a time there was"], [" little girl", " a"]
        for prompt, target, got in zip(prompts, targets, iv.target_logprobs(mini, prompts, targets), strict=True):
            ids = [mini.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, target)]
            tokens = torch.tensor([[mini.tokenizer.bos_token_id, *ids[0], *ids[1]]])
            logs = mini(tokens, return_type="logits").log_softmax(-1)[0]
            start = 1 + len(ids[0])
            assert got == pytest.approx(sum(logs[start + i - 1, t].item() for i, t in enumerate(ids[1])), abs=1e-3)

    def test_a_change_is_made_and_undone(self, mini):
        same = [iv.target_logprobs(mini, ["The cat"], [" sat"], HOOK, change) for change in (None, lambda x: x)]
        assert np.allclose(*same, atol=1e-4)
        assert abs(iv.target_logprobs(mini, ["The cat"], [" sat"], HOOK, torch.zeros_like) - same[0]) > 0.1
        assert np.allclose(iv.target_logprobs(mini, ["The cat"], [" sat"]), same[0], atol=1e-6)

    def test_errors(self, mini):
        with pytest.raises(ValueError, match="one for each"):
            iv.target_logprobs(mini, ["a"], [])
        with pytest.raises(ValueError, match="empty"):
            iv.target_logprobs(mini, ["a"], [""])
        with pytest.raises(ValueError, match="takes 255"):
            iv.target_logprobs(mini, ["word " * 300], [" x"])


class TestSignFlips:
    def test_small_cases_are_exact(self):
        assert iv.sign_flip_p(np.array([1.0, 1.0, 1.0])) == pytest.approx(1 / 8)
        assert iv.sign_flip_p(np.array([1.0, 2.0, -1.0])) == pytest.approx(3 / 8)  # 2 flips reach 2/3 beside its own

    def test_noise_is_rarely_significant(self):
        rng = np.random.default_rng(0)
        p = [iv.sign_flip_p(rng.normal(size=16), n=500) for _ in range(100)]
        assert 0 <= np.mean(np.array(p) < 0.05) < 0.12

    def test_one_template_is_too_few(self):
        with pytest.raises(ValueError, match="two"):
            iv.sign_flip_p(np.ones(1))


class TestFeatures:
    def test_the_most_moved_either_way(self):
        moved = np.array([[0.0, -3, 1, 9], [0, -3, 1, 0], [0, -3, 1, 0]])
        assert iv.pair_features(moved, 2).tolist() == [1, 2]  # the last moves once only, the first never
        assert iv.pair_features(csr_matrix(moved), 9).tolist() == [1, 2]
        assert iv.pair_features(np.zeros((3, 4))).tolist() == []

    def test_matched_sets(self):
        mass = np.exp(np.arange(100.0) / 10)
        mass[50] = 0
        sets = iv.matched_sets(mass, [10, 90], n=20, nearest=4)
        assert sets.shape == (20, 2) and not np.isin(sets, [10, 90, 50]).any()
        assert (np.abs(sets - [10, 90]) <= 3).all() and len(np.unique(sets[:, 0])) > 1
        assert all(len(set(row)) == 2 for row in iv.matched_sets(np.ones(5), [0, 1], n=30).tolist())
        with pytest.raises(ValueError, match="2 are needed"):
            iv.matched_sets(np.array([1.0, 1, 1]), [0, 1])

    def test_mean_difference_by_hand(self):
        x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        assert iv.mean_difference(x, np.array([True, True, False])).tolist() == [2.0, -4.0]
        with pytest.raises(ValueError, match="both sides"):
            iv.mean_difference(x, np.ones(3, dtype=bool))


def test_a_planted_bias_is_found_and_ablated(mini):
    """A direction added wherever the pronoun is female must be found by the pairs and removed by projecting it out."""
    direction = torch.zeros(192)
    direction[7] = 30.0
    x = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    inside = np.arange(40) % 2 == 0
    x[inside] += direction
    found = iv.mean_difference(x, inside)
    assert torch.cosine_similarity(found, direction, dim=0) > 0.95
    left = iv.mean_difference(iv.project_out(found, mean=x.mean(0))(x), inside)
    assert left.norm() < 0.2 * direction.norm()


class TestFigures:
    def test_every_figure_draws_its_data(self):
        scores, labels = sample()
        band, points = ev.roc_band(scores, labels, 11, 20), (0.9, 0.2)
        fig = viz.roc_figure({"home": {"a": band, "b": band}}, {"home": {"a": points, "b": points}})
        assert isinstance(fig, go.Figure) and len(fig.data) == 5 and "band (a)" in fig.layout.title.subtitle.text
        row = {"recall": 0.8, "recall_low": 0.6, "recall_high": 0.9, "fpr": 0.2, "fpr_low": 0.1, "fpr_high": 0.3}
        table = pd.DataFrame([{"input": n, "category": c} | row for n in "ab" for c in CATEGORIES[:3]])
        assert len(viz.promise_figure(table).data) == 4
        effects = {"x": np.array([0.1, -0.2]), "placebo": np.array([0.0, 0.1])}
        fig = viz.swap_figure(effects, dict.fromkeys(effects, (-0.2, 0.2)), {"placebo": "control"})
        assert fig.data[0].x.tolist() == pytest.approx([0.1, -0.2]) and "placebo (control)" in fig.layout.yaxis.ticktext
        names = ["change", "kind", "shrink", "low", "high", "cost", "cost_low", "cost_high"]
        rows = [("f", "features", 0.1, 0.0, 0.2, 0.01, 0.0, 0.02), ("d", "direction", 0.1, 0.0, 0.2, 0.01, 0.0, 0.02)]
        assert [trace.name for trace in viz.ablation_figure(pd.DataFrame(rows, columns=names)).data] == [
            "features",
            "direction",
        ]
        costs = pd.DataFrame(
            [("edit", c, 0.1, 0.0, 0.2) for c in CATEGORIES], columns=["change", "category", "cost", "low", "high"]
        )
        assert viz.edit_figure(costs, "math").layout.yaxis.ticktext[2].startswith("→")


def test_the_other_model_of_a_pair_is_untouched(mini):
    """`edited` hooks come off again: what an audit leaves behind must be the model that it found."""
    pairs = iv.load_counterfactuals().iloc[:4]
    before = iv.swap_effects(mini, pairs)
    iv.swap_effects(mini, pairs, HOOK, torch.zeros_like)
    assert np.allclose(before, iv.swap_effects(load_model(get_spec("mini")), pairs), atol=1e-6)
