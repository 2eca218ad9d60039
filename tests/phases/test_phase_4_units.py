"""Examples, purity and the comparison of many units: by hand, as properties, and against their controls."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix

from prism.data import corpus_batch, corpus_documents, load_corpus, token_table
from prism.features import FeatureMatrix, encode_features
from prism.models import get_spec, load_sae
from prism.phases.phase_4.units import compare_units, example_rows, purity, random_rows, score_differences


def make(values, texts=None, tokens=None, categories=None, ids=None) -> FeatureMatrix:
    """A matrix from `[tokens, units]`; by default each token is a text and a word of its own."""
    values = csr_matrix(np.asarray(values, dtype=np.float32))
    rows = np.arange(values.shape[0])
    table = pd.DataFrame(
        {
            "text": rows if texts is None else texts,
            "position": rows + 1,
            "token_id": rows if ids is None else ids,
            "token": [f" w{row}" for row in rows] if tokens is None else tokens,
        }
    )
    if categories is not None:
        table["category"] = pd.Categorical(categories)
    return FeatureMatrix(values, table)


def world(texts=60, length=8, seed=0):
    """Texts of three languages of their own: `clear` units each know one language, `mixed` ones fire anywhere."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(texts) % 3, length)
    ids = 20 * kind + rng.integers(20, size=texts * length)
    words = np.array([f" {'abc'[i // 20] * 3}{i}" for i in range(60)])
    where = dict(
        texts=np.repeat(np.arange(texts), length),
        tokens=words[ids],
        ids=ids,
        categories=np.array(["kind a", "kind b", "kind c"])[kind],
    )
    clear = rng.random((len(ids), 12)) * (kind[:, None] == np.arange(12) % 3)
    mixed = rng.random((len(ids), 12))
    return make(mixed, **where), make(clear, **where)


def test_examples_are_the_strongest_and_one_a_text():
    matrix = make([[1, 0], [5, 0], [4, 1], [3, 0], [2, 0], [0, 0]], texts=[0, 0, 0, 1, 2, 3])
    assert {unit: rows.tolist() for unit, rows in example_rows(matrix, 2, 3, 0).items()} == {0: [1, 3, 4]}


def test_the_same_left_context_counts_once():
    """Texts 0 and 1 begin alike up to their second token, whatever follows: a causal model gives the same again."""
    matrix = make([[0], [9], [0], [0], [9], [0], [8]], texts=[0, 0, 0, 1, 1, 1, 2], ids=[1, 2, 3, 1, 2, 7, 2])
    assert example_rows(matrix, 1, 2, 0)[0].tolist() == [1, 6]  # text 2 has the same token after nothing
    assert example_rows(matrix, 1, 3, 0) == {}


@given(st.integers(0, 2**31))
def test_examples_fire_and_come_from_different_texts(seed):
    _, matrix = world(seed=seed % 100)
    found = example_rows(matrix, 4, 10, seed)
    assert len(found) == 4 and list(found) == sorted(found)
    for unit, rows in found.items():
        assert (np.diff(matrix.column(unit)[rows]) <= 0).all() and (matrix.column(unit)[rows] > 0).all()
        assert len(set(matrix.table["text"].iloc[rows])) == 10
    again = example_rows(matrix, 4, 10, seed)
    assert all(np.array_equal(again[unit], rows) for unit, rows in found.items())


def test_units_are_sampled_among_those_with_enough_examples():
    dense = np.zeros((30, 5))
    dense[:10, 1] = dense[:9, 2] = dense[:, 4] = 1
    assert list(example_rows(make(dense), 9, 10, 0)) == [1, 4]
    assert len(example_rows(make(dense), 1, 10, 0)) == 1
    assert len(example_rows(make(dense), 5, 31, 0)) == 0
    with pytest.raises(ValueError, match="at least 1 of both"):
        example_rows(make(dense), 5, 0, 0)


def test_random_tokens_come_from_different_texts():
    _, matrix = world()
    rows = random_rows(matrix.table, 5, 60, 1)
    assert (np.sort(matrix.table["text"].to_numpy()[rows], axis=1) == np.arange(60)).all()
    assert np.array_equal(rows, random_rows(matrix.table, 5, 60, 1))
    with pytest.raises(ValueError, match="there are 60 texts"):
        random_rows(matrix.table, 5, 61, 1)


def test_purity_by_hand():
    tokens = [" The", "the", "THE ", " a", "\n", " ", "b", "c"]
    table = make(np.ones((8, 1)), tokens=tokens, categories=list("ppppqqqr")).table
    frame = purity(np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), table)
    assert frame["category_purity"].tolist() == [1, 0.75] and frame["token_purity"].tolist() == [0.75, 0.25]


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.integers(0, 19)))
def test_purity_is_the_share_of_the_most_common(rows):
    table = make(np.ones((20, 1)), tokens=list("aabbbcdefghijklmnopq"), categories=list("xyz" * 6 + "xy")).table
    frame = purity(rows, table)
    for name in ("category", "token"):
        for row, share in zip(rows, frame[f"{name}_purity"], strict=True):
            assert table[name].iloc[row].value_counts(normalize=True).max() == pytest.approx(share)


def test_purity_needs_categories():
    for categories in (None, ["only"] * 2):
        with pytest.raises(ValueError, match="two or more categories"):
            purity(np.array([[0, 1]]), make(np.ones((2, 1)), categories=categories).table)


def test_comparison_is_tidy_and_tells_clear_from_mixed():
    mixed, clear = world(texts=120)
    compared = compare_units(mixed, clear, n=10, k=12)
    assert compared["kind"].value_counts().to_dict() == {"neuron": 10, "feature": 10, "random tokens": 10}
    assert compared.groupby("kind")["category_purity"].median()["feature"] == 1
    assert compared["density"].isna().sum() == 10
    frame = score_differences(compared)
    assert frame.loc["category_purity", "low"] > 0.3 and (frame["low"] <= frame["high"]).all()
    assert frame["difference"].to_numpy() == pytest.approx((frame["feature"] - frame["neuron"]).to_numpy())
    swapped = score_differences(compare_units(clear, mixed, n=10, k=12))
    assert swapped.loc["category_purity", "high"] < -0.3
    same = score_differences(compare_units(mixed, mixed, n=12, k=12))
    assert ((same["low"] <= 0) & (same["high"] >= 0)).all()


def test_comparison_refuses_what_cannot_be_compared():
    mixed, clear = world()
    for other in (world(texts=40)[1], world(seed=1)[1]):
        with pytest.raises(ValueError, match="different tokens"):
            compare_units(mixed, other, n=5, k=5)
    with pytest.raises(ValueError, match="0 features have 30 examples"):
        compare_units(mixed, clear, n=5, k=30)


def test_real_units_differ_from_random_tokens(mini):
    """On a little of the embedded corpus: documents keep their kinds, and features beat the control."""
    spec = get_spec("mini")
    sae = load_sae(spec, "2-mlp-post")
    documents = corpus_documents(load_corpus("mini"), mini.tokenizer, spec.context, 8_000)
    batch = corpus_batch(documents, mini.tokenizer, spec.context)
    table = token_table(batch, mini.tokenizer, documents["kind"])
    assert len(batch) == len(documents) and batch.n_tokens >= 8_000
    features = encode_features(mini, sae, batch, table)
    frame = compare_units(features, features, n=40, k=8)
    means = frame.groupby("kind")["token_purity"].mean()
    assert means["random tokens"] < means["neuron"] == means["feature"]
