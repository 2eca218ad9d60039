"""Matching of features by their activations, its control, and the interval of a difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix, random_array

from prism.analysis import difference_interval, match_activations
from prism.analysis.matching import swap_within


def test_difference_interval_matches_the_normal_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 300), rng.normal(1, 2, 200)
    half = 1.96 * np.sqrt(a.var() / 300 + b.var() / 200)
    middle = a.mean() - b.mean()
    assert difference_interval(a, b, "mean") == pytest.approx((middle - half, middle + half), abs=0.05)
    assert difference_interval(a, b) == difference_interval(a, b) != difference_interval(a, b, seed=1)
    assert np.isnan(difference_interval([2.0], [1.0, 3.0])).all()
    for bad in (([], [1.0]), ([1.0], [np.nan]), ([1.0], [1.0], "mode"), ([1.0], [1.0], "mean", 10, 95)):
        with pytest.raises(ValueError, match="at least one sample|choose 'median'|between 0 and 1"):
            difference_interval(*bad)


# matching


def activations(units=30, tokens=3000, seed=0):
    return csr_matrix(random_array((tokens, units), density=0.02, format="csr", rng=np.random.default_rng(seed)))


def test_a_permuted_copy_is_matched_and_a_shuffled_one_is_not():
    a, order = activations(), np.random.default_rng(1).permutation(30)
    frame = match_activations(a, a[:, order])
    assert frame["correlation"].to_numpy() == pytest.approx(np.ones(30))
    assert order[frame["partner"]].tolist() == list(range(30))
    other = match_activations(a, a[np.random.default_rng(2).permutation(3000)])
    assert (other["correlation"] < 0.25).all()


@pytest.mark.parametrize("form", [csr_matrix, np.asarray])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_matching_equals_numpys_correlation(monkeypatch, form, density):
    monkeypatch.setattr("prism.analysis.matching.BLOCK_BYTES", 8 * 9 * 2)  # two units of a at a time
    monkeypatch.setattr("prism.analysis.matching.CHUNK", 70)
    rng = np.random.default_rng(3)
    a, b = (rng.random((500, n)) * (rng.random((500, n)) < density) for n in (7, 9))
    expected = np.corrcoef(a.T, b.T)[:7, 7:]
    frame = match_activations(form(a), form(b))
    assert frame["correlation"].to_numpy() == pytest.approx(expected.max(1))
    assert frame["partner"].tolist() == expected.argmax(1).tolist()


def test_constant_units_have_no_partner():
    a = np.array([[1.0, 5, 0], [2, 5, 0], [3, 5, 0]])
    for form in (np.asarray, csr_matrix):
        frame = match_activations(form(a), form(a))
        assert frame["partner"].tolist() == [0, -1, -1]
        assert frame["correlation"].isna().tolist() == [False, True, True]
        assert match_activations(form(a), form(a[:, 1:]))["correlation"].isna().all()


def test_a_swap_within_tokens_keeps_what_the_token_explains():
    rng = np.random.default_rng(0)
    ids = rng.integers(20, size=2000)
    a = csr_matrix((ids[:, None] == np.arange(5)).astype(float))  # units that know one token each, and no more
    assert match_activations(a, a[swap_within(ids)])["correlation"].to_numpy() == pytest.approx(np.ones(5))
    assert (match_activations(a, a[swap_within(np.zeros(2000))])["correlation"] < 0.2).all()


@given(hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 12)), st.integers(0, 5))
def test_a_swap_moves_every_token_that_is_not_alone_in_its_group(groups, seed):
    order, alone = swap_within(groups, seed), np.bincount(groups, minlength=13)[groups] == 1
    assert sorted(order) == list(range(len(groups))) and (groups[order] == groups).all()
    assert ((order == np.arange(len(groups))) == alone).all()


def test_a_swap_follows_its_seed_and_the_control_leaves_no_occurrence_in_place(monkeypatch):
    """Two units that fire on the same one of each word's two occurrences: nothing is left of that in the control."""
    assert (swap_within(np.arange(500) % 30) != swap_within(np.arange(500) % 30, 1)).any()
    ids = np.repeat(np.arange(200), 2)
    first = csr_matrix((np.arange(400) % 2 == 0).astype(float)[:, None])
    assert match_activations(first, first)["correlation"].item() == pytest.approx(1)
    assert match_activations(first, first[swap_within(ids)])["correlation"].item() == pytest.approx(-1)
    assert (swap_within(np.zeros(9)) != np.arange(9)).all()


def test_matching_refuses_other_tokens():
    a = activations(tokens=20)
    with pytest.raises(ValueError, match="20 tokens against 10"):
        match_activations(a, a[:10])
    with pytest.raises(ValueError, match="at least two tokens"):
        match_activations(a[:1], a[:1])
