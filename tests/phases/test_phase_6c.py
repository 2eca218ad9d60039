"""Features across layers: pairs, assignments, chains and their controls, on cases whose answer is known."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

from prism.analysis import match_activations
from prism.analysis.matching import swap_within
from prism.phases.phase_6c import figures, methods
from prism.phases.phase_6c.methods import (
    activation_pairs,
    bar_same_index,
    best_partners,
    chains,
    decoder_pairs,
    direct_ranks,
    fates,
    following_tokens,
    one_to_one,
    pairs_by_measure,
    persistence,
    random_like,
    tilted,
)

RNG = np.random.default_rng(0)


def activations(tokens=400, units=12, density=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random((tokens, units)) * (rng.random((tokens, units)) < density)).astype(np.float32))


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class TestPairs:
    def test_cosines_are_those_of_the_rows_whatever_their_length(self):
        a, b = RNG.normal(size=(7, 5)), RNG.normal(size=(9, 5))
        expected = unit_rows(a) @ unit_rows(b).T
        found = decoder_pairs(3 * a, 0.1 * b, floor=0.3).toarray()
        np.testing.assert_allclose(found, np.where(expected > 0.3, expected, 0), atol=1e-6)

    def test_blocks_do_not_change_the_cosines(self, monkeypatch):
        a, b = RNG.normal(size=(7, 5)), RNG.normal(size=(9, 5))
        whole = decoder_pairs(a, b).toarray()
        monkeypatch.setattr(methods, "BLOCK", 20)
        np.testing.assert_allclose(decoder_pairs(a, b).toarray(), whole, atol=1e-6)

    def test_correlations_are_numpys(self):
        a, b = activations(seed=1), activations(units=9, seed=2)
        expected = np.corrcoef(a.toarray().T, b.toarray().T)[:12, 12:]
        found = activation_pairs(a, b, floor=0.0).toarray()
        np.testing.assert_allclose(found, np.where(expected > 0, expected, 0), atol=1e-5)

    def test_a_feature_that_never_fires_has_no_pair(self):
        a = activations()
        a = csr_matrix(a.toarray() * (np.arange(12) != 3))
        found = activation_pairs(a, a, floor=0.0)
        assert found[3].nnz == 0 and found[:, 3].nnz == 0 and np.allclose(np.delete(found.diagonal(), 3), 1)

    def test_the_best_partner_is_that_of_match_activations(self):
        a = activations()
        b = csr_matrix(a.toarray()[:, ::-1] + 0.3 * activations(seed=5).toarray())
        matched = match_activations(a, b)
        pairs = activation_pairs(a, b, floor=0.0)
        assert best_partners(pairs).tolist() == matched["partner"].tolist() == list(range(11, -1, -1))
        np.testing.assert_allclose(pairs.max(axis=1).toarray().ravel(), matched["correlation"], atol=1e-5)

    def test_both_measures_together_are_the_smaller_of_the_two(self):
        rows, values = RNG.normal(size=(12, 4)), activations()
        found = pairs_by_measure(rows, values, rows[::-1], values[:, ::-1])
        cosines, correlations, both = (found[name].toarray() for name in ("decoder cosine", "correlation", "both"))
        np.testing.assert_allclose(both, np.minimum(cosines, correlations))
        assert (both > 0).sum() < (cosines > 0).sum() and best_partners(found["both"]).tolist() == list(
            range(11, -1, -1)
        )

    def test_pairs_of_one_index_can_be_barred(self):
        pairs = csr_matrix([[0.9, 0.3], [0.5, 0.8]])
        assert bar_same_index(pairs, [4, 7], [4, 9]).toarray().tolist() == [[0, 0.3], [0.5, 0.8]]
        assert bar_same_index(pairs, [4, 7], [7, 4]).toarray().tolist() == [[0.9, 0], [0, 0.8]]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: decoder_pairs(np.ones((2, 3)), np.ones((2, 4))), "the same residual stream"),
            (lambda: decoder_pairs(np.ones((2, 3)), np.ones((2, 3)), floor=-0.1), "give 0 or more"),
            (lambda: decoder_pairs(np.ones((0, 3)), np.ones((2, 3))), "no features to match"),
            (lambda: activation_pairs(activations(5), activations(6)), "the same tokens"),
            (lambda: activation_pairs(activations()[:, :0], activations()), "at least one feature"),
        ],
    )
    def test_what_cannot_be_matched_is_refused(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestOneToOne:
    @settings(max_examples=60)
    @given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.9), st.integers(0, 10**6))
    def test_it_is_the_assignment_of_the_whole_matrix(self, rows, columns, least, seed):
        likeness = np.random.default_rng(seed).random((rows, columns))
        likeness[likeness < 0.5 * np.random.default_rng(seed + 1).random()] = 0
        found = one_to_one(csr_matrix(likeness), least)
        used = found[found >= 0]
        assert len(set(used)) == len(used) and (likeness[found >= 0, used] > least).all()
        kept = np.where(likeness > least, likeness, 0)
        assert np.isclose(kept[found >= 0, used].sum(), kept[linear_sum_assignment(kept, maximize=True)].sum())

    def test_a_permuted_copy_is_found(self):
        rows, order = RNG.normal(size=(40, 16)), RNG.permutation(40)
        assert one_to_one(decoder_pairs(rows, rows[order]), 0.9).tolist() == np.argsort(order).tolist()

    def test_nothing_above_the_bar_is_nobody(self):
        assert one_to_one(csr_matrix((3, 4)), 0.5).tolist() == [-1] * 3 == best_partners(csr_matrix((3, 4))).tolist()
        assert one_to_one(csr_matrix([[0.5]]), 0.5).tolist() == [-1] == best_partners(csr_matrix([[0.5]]), 0.5).tolist()

    def test_persistence_counts_shared_claims(self):
        pairs = csr_matrix([[0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.7, 0.0, 0.6], [0.0, 0.0, 0.0]])
        found = persistence(pairs, [0.5, 0.75]).set_index("threshold")
        assert found.loc[0.5].tolist() == [0.75, 0.5, 1.0]  # three claim the first; two can be served
        assert found.loc[0.75].tolist() == [0.5, 0.25, 1.0]
        assert persistence(pairs, [0.95]).iloc[0].tolist() == [0.95, 0, 0, 0]


class TestChains:
    PARTNERS = (np.array([1, -1, 0]), np.array([-1, 2, 0, -1]))

    def test_each_feature_stands_in_one_chain(self):
        table = chains(self.PARTNERS, 3)
        for layer, size in enumerate((3, 4, 3)):
            assert sorted(table[:, layer][table[:, layer] >= 0]) == list(range(size))
        assert [0, 1, 2] in table.tolist() and [2, 0, -1] in table.tolist() and [-1, 2, 0] in table.tolist()

    def test_fates_add_up(self):
        found = fates(chains(self.PARTNERS, 3))
        rows = set(found.itertuples(index=False, name=None))
        assert rows == {(0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1), (2, 2, 1)}
        assert (found["features"] * (found["last"] - found["born"] + 1)).sum() == 3 + 4 + 3

    @pytest.mark.parametrize("step", [np.array([0, 0]), np.array([0, 5])])
    def test_shared_or_missing_partners_are_refused(self, step):
        with pytest.raises(ValueError, match="one_to_one"):
            chains([step], 2)


class TestControls:
    def test_a_swap_keeps_what_the_token_explains_and_breaks_the_rest(self):
        rng = np.random.default_rng(2)
        ids = rng.integers(0, 10, 4000)
        word, context = (ids == 3).astype(np.float32), (rng.random(4000) < 0.1).astype(np.float32)
        x = csr_matrix(np.stack([word, context], axis=1))
        after = activation_pairs(x, x[swap_within(ids)], floor=0.0).diagonal()
        assert after[0] > 0.99 and after[1] < 0.1

    def test_random_like_has_the_crowds_mean_and_covariance_but_no_row(self):
        rows = np.random.default_rng(3).normal(size=(4000, 6)) * [3, 1, 1, 1, 0.5, 0.1] + [1, 0, 0, 0, 0, 0]
        unit, noise = unit_rows(rows), random_like(5 * rows, seed=1)
        np.testing.assert_allclose(noise.mean(0), unit.mean(0), atol=0.05)
        np.testing.assert_allclose(np.cov(noise.T), np.cov(unit.T), atol=0.05)
        assert not np.allclose(noise, unit, atol=0.1)

    def test_tilted_rows_have_the_cosines_that_were_asked_for(self):
        rows = 4 * np.random.default_rng(4).normal(size=(300, 32))
        found = tilted(rows, np.array([0.2, 0.8]), seed=1)
        cosine = (unit_rows(rows) * found).sum(1)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert np.allclose(np.minimum(abs(cosine - 0.2), abs(cosine - 0.8)), 0, atol=1e-5)
        assert 0.3 < (cosine > 0.5).mean() < 0.7


class TestDirectRanks:
    def test_following_tokens_stop_at_the_end_of_a_text(self):
        table = pd.DataFrame({"text": [0, 0, 0, 1, 1], "token_id": [5, 6, 7, 8, 9]})
        assert following_tokens(table).tolist() == [6, 7, -1, 9, -1]

    def test_ranks_by_hand(self):
        logits = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        values = csr_matrix([[1.0, 0, 0], [1.0, 0, 1.0], [0, 1.0, 0]])
        found = direct_ranks(logits, values, np.array([2, 1, -1]))
        assert found["firings"].tolist() == [2, 0, 1]
        assert found["own"][0] == 0.75 and found["others"][0] == pytest.approx((0.25 + 0.75) / 2)
        assert found["own"][2] == 1 and found["others"][2] == 0.5 and np.isnan(found["own"][1])

    def test_random_logits_have_no_advantage_and_right_ones_have(self):
        rng = np.random.default_rng(0)
        ids, values = rng.integers(0, 40, 3000), activations(3000, 20, seed=7)
        random = direct_ranks(rng.normal(size=(20, 40)), values, ids)
        assert abs((random["own"] - random["others"]).mean()) < 0.05
        words = csr_matrix((ids[:, None] == np.arange(20)).astype(np.float32))
        knowing = direct_ranks(np.eye(20, 40) + 0.01 * rng.normal(size=(20, 40)), words, ids)
        assert (knowing["own"] == 1).all() and knowing["others"].mean() < 0.6

    @pytest.mark.parametrize(("units", "tokens"), [(3, 4), (2, 5), (1, 4)])
    def test_what_does_not_fit_is_refused(self, units, tokens):
        with pytest.raises(ValueError, match="two features or more"):
            direct_ranks(np.zeros((units, 6)), csr_matrix((4, 2 if units > 1 else 1)), np.zeros(tokens, int))


class TestFigures:
    def test_the_sankey_conserves_features(self):
        found = fates(chains(TestChains.PARTNERS, 3))
        fig = figures.depth_sankey(found, ["1-res", "2-res", "3-res"])
        link, labels = fig.data[0].link, list(fig.data[0].node.label)
        into, out = (np.bincount(ends, link.value, minlength=len(labels)) for ends in (link.target, link.source))
        assert labels[:3] == ["1-res: 3", "2-res: 4", "3-res: 3"]
        assert into[1] == out[1] == 4 and out[0] == 3 and into[2] == 3
        assert labels[3:5] == ["no ancestor: 2", "no ancestor: 1"] and labels[5:] == ["no heir: 1", "no heir: 2"]

    def test_a_river_in_which_all_die_can_be_drawn(self):
        fig = figures.depth_sankey(fates(chains([np.array([-1, -1])], 1)), ["a", "b"])
        assert sum(fig.data[0].link.value) == 3

    def test_each_line_and_panel_is_there(self):
        points = [(s, m, line, t, 0.5) for s in "ab" for m in ("cosine", "both") for line in "xy" for t in (0.3, 0.5)]
        curves = pd.DataFrame(points, columns=["step", "measure", "line", "threshold", "one_to_one"])
        fig = figures.persistence_curves(curves, 0.5)
        assert len(fig.data) == 8 and sum(bool(trace.showlegend) for trace in fig.data) == 2
        assert {note.text for note in fig.layout.annotations} >= {"a: cosine", "b: both"}

    def test_lines_of_agreement_and_of_the_lens(self):
        bins = pd.DataFrame(
            {"line": ["x", "x", "y"], "cosine": [0.3, 0.5, 0.3], "agreement": [0.1, 0.9, 0.0], "features": [20, 30, 40]}
        )
        assert [trace.name for trace in figures.agreement_lines(bins).data] == ["x", "y"]
        lens = pd.DataFrame(
            {
                "layer": ["1", "2"] * 2,
                "token": ["here"] * 2 + ["next"] * 2,
                "low": -0.1,
                "high": 0.3,
                "advantage": [0.1, 0.0, 0.2, 0.1],
            }
        )
        fig = figures.lens_lines(lens)
        assert isinstance(fig, go.Figure) and np.allclose(fig.data[0].error_y.array, [0.2, 0.3])


def test_the_package_exports_what_the_notebook_uses():
    assert methods.decoder_pairs is decoder_pairs and methods.tilted is tilted
