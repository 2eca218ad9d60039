"""Sparse probes: planted answers are found, and nothing is found where nothing was planted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from prism import evaluation as ev
from prism.evaluation.probing import top_columns


def _halves(n: int) -> np.ndarray:
    return np.arange(n) % 2 == 0


class TestAuc:
    def test_by_hand(self):
        labels = np.array([True, True, False, False])
        assert ev.auc_interval(np.array([3.0, 2.0, 1.0, 0.0]), labels)[0] == 1.0
        assert ev.auc_interval(np.array([1.0, 1.0, 1.0, 1.0]), labels)[0] == 0.5
        assert ev.auc_interval(np.array([2.0, 0.0, 1.0, 0.0]), labels)[0] == pytest.approx((2 + 0 + 0.5) / 4)

    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
    def test_equals_scikit_learn(self, rows):
        scores, labels = np.array([r[0] for r in rows], dtype=float), np.array([r[1] for r in rows])
        auc, low, high = ev.auc_interval(scores, labels, n=50)
        if labels.all() or not labels.any():
            assert np.isnan([auc, low, high]).all()
        else:
            assert auc == pytest.approx(roc_auc_score(labels, scores))
            assert 0 <= low <= high <= 1

    def test_groups_widen_the_interval(self):
        rng = np.random.default_rng(0)
        labels = np.repeat(rng.random(40) < 0.5, 25)  # 40 texts of 25 tokens, all tokens of a text alike
        scores = np.repeat(rng.normal(size=40), 25) + labels
        texts = np.repeat(np.arange(40), 25)
        narrow, wide = (ev.auc_interval(scores, labels, groups)[1:] for groups in (None, texts))
        assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


class TestSparseProbe:
    def test_a_separable_case_gives_1(self):
        labels = np.arange(40) % 4 < 2
        noise = np.random.default_rng(0).random((40, 6)) * 0.1
        noise[:, 3] += labels
        for values in (noise, csr_matrix(noise)):
            found = ev.sparse_probe_auc(values, labels, _halves(40), k=1)
            assert found.auc == found.low == found.high == 1.0 and found.columns.tolist() == [3]

    def test_noise_gives_a_half(self):
        rng = np.random.default_rng(0)
        values, labels = rng.normal(size=(600, 50)), rng.random(600) < 0.5
        found = ev.sparse_probe_auc(values, labels, _halves(600), k=5)
        assert found.low < 0.5 < found.high

    def test_the_choice_sees_only_the_train_half(self):
        """Column 0 tells the classes on the held-out half alone; a choice on all units would take it."""
        rng = np.random.default_rng(0)
        labels, train, values = rng.random(400) < 0.5, _halves(400), rng.normal(size=(400, 8)) * 0.1
        values[~train, 0] += 3 * labels[~train]
        values[:, 5] += 0.3 * labels
        assert ev.sparse_probe_auc(values, labels, train, k=1).columns.tolist() == [5]

    def test_five_see_what_one_cannot(self):
        rng = np.random.default_rng(0)
        part, labels = rng.integers(0, 5, 500), rng.random(500) < 0.5
        values = csr_matrix((np.eye(5)[part] * labels[:, None]).astype(np.float32))  # each column knows a fifth
        one, five = (ev.sparse_probe_auc(values, labels, _halves(500), k).auc for k in (1, 5))
        assert 0.55 < one < 0.65 and five == 1.0

    def test_dense_probe_reads_a_direction_that_no_column_shows(self):
        rng = np.random.default_rng(0)
        labels, direction = rng.random(600) < 0.5, np.ones(50) / 50**0.5
        values = rng.normal(size=(600, 50)) + 2 * labels[:, None] * direction
        one, dense = (ev.sparse_probe_auc(values, labels, _halves(600), k).auc for k in (1, None))
        assert dense > 0.85 > 0.7 > one

    def test_standardised_choice_does_not_take_the_loudest_column(self):
        rng = np.random.default_rng(0)
        labels, values = rng.random(300) < 0.5, rng.normal(size=(300, 2)) * [100, 0.1]
        values[:, 1] += labels
        assert top_columns(values, labels, 1).tolist() == [0]
        assert top_columns(values, labels, 1, standardise=True).tolist() == [1]

    def test_bad_input_is_named(self):
        values, labels = np.zeros((4, 2)), np.array([True, False, True, False])
        with pytest.raises(ValueError, match="4 units, 3 labels"):
            ev.sparse_probe_auc(values, labels[:3], np.ones(4, bool))
        with pytest.raises(ValueError, match="units without it"):
            ev.sparse_probe_auc(values, labels, labels)


def test_text_means():
    means = ev.text_means(np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]]), np.array([0, 0, 1]))
    assert means.tolist() == [[2.0, 3.0], [10.0, 0.0]]
