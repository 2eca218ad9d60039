"""Examples, purity, intruders, comparisons and matching: by hand, as properties, and against their controls."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix, random_array

from prism.analysis import compare_units, difference_interval, match_activations, score_differences
from prism.analysis.examples import example_rows, match_density, random_rows, sample_units, windows
from prism.analysis.intruder import embedding_vectors, intruder_score, ngram_vectors
from prism.analysis.matching import swap_within
from prism.analysis.monosemanticity import purity
from prism.data import corpus_batch, corpus_documents, load_corpus, token_table, tokenize
from prism.features import FeatureMatrix, encode_features
from prism.features.encoding import neuron_features
from prism.models import get_spec, load_sae

SCRIPT = "<script>alert(1)</script>"


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
    return make(mixed, **where), make(clear, **where), rng.normal(size=(60, 16)) + 3 * np.repeat(np.eye(16)[:3], 20, 0)


# examples


def test_examples_are_the_strongest_and_one_a_text():
    matrix = make([[1, 0], [5, 0], [4, 1], [3, 0], [2, 0], [0, 0]], texts=[0, 0, 0, 1, 2, 3])
    assert example_rows(matrix, [0], k=3).tolist() == [[1, 3, 4]]
    assert windows(matrix.table, np.array([[1, 3]])).tolist() == [[" w0 w1 w2", " w3"]]


def test_the_same_left_context_counts_once():
    """Texts 0 and 1 begin alike up to their second token, whatever follows: a causal model gives the same again."""
    matrix = make([[0], [9], [0], [0], [9], [0], [8]], texts=[0, 0, 0, 1, 1, 1, 2], ids=[1, 2, 3, 1, 2, 7, 2])
    assert example_rows(matrix, [0], k=2).tolist() == [[1, 6]]  # text 2 has the same token after nothing
    with pytest.raises(ValueError, match="unit 0 has 2 examples from different texts, fewer than the 3"):
        example_rows(matrix, [0], k=3)


@given(st.integers(0, 2**31), st.sampled_from(["top", "any"]))
def test_examples_fire_come_from_different_texts_and_depend_on_the_seed_alone(seed, which):
    _, matrix, _ = world(seed=seed % 100)
    rows = example_rows(matrix, [3, 4], k=10, which=which, seed=seed)
    assert np.array_equal(rows[1], example_rows(matrix, [4], k=10, which=which, seed=seed)[0])
    for unit, found in zip((3, 4), rows, strict=True):
        assert (matrix.column(unit)[found] > 0).all()
        assert len(set(matrix.table["text"].iloc[found])) == 10


def test_units_are_sampled_among_those_with_enough_examples():
    dense = np.zeros((30, 5))
    dense[:10, 1] = dense[:9, 2] = dense[:, 4] = 1
    assert sample_units(make(dense), n=9, k=10).tolist() == [1, 4]
    assert len(sample_units(make(dense), n=1, k=10)) == 1
    assert len(sample_units(make(dense), n=5, k=31)) == 0


def test_random_tokens_come_from_different_texts():
    _, matrix, _ = world()
    rows = random_rows(matrix.table, n=5, k=60, seed=1)
    assert (np.sort(matrix.table["text"].to_numpy()[rows], axis=1) == np.arange(60)).all()
    assert np.array_equal(rows, random_rows(matrix.table, n=5, k=60, seed=1))
    with pytest.raises(ValueError, match="there are 60 texts"):
        random_rows(matrix.table, n=5, k=61)


@pytest.mark.parametrize("k, which, message", [(0, "top", "at least 1"), (2, "best", "'top' or 'any'")])
def test_bad_choices_of_examples(k, which, message):
    for call in (example_rows, sample_units):
        with pytest.raises(ValueError, match=message):
            call(make([[1.0], [1.0]]), [0] if call is example_rows else 1, k=k, which=which)
    with pytest.raises(IndexError, match="choose from 0 to 0"):
        example_rows(make([[1.0]]), [1], k=1)


def test_windows_stop_at_the_text():
    table = make(np.ones((6, 1)), texts=[0, 0, 0, 1, 1, 1], tokens=list("abcdef")).table
    assert windows(table, np.array([[0, 2], [3, 4]]), radius=1).tolist() == [["ab", "bc"], ["de", "def"]]


def test_density_is_matched_by_silencing_the_weakest():
    matrix = make([[1, 4], [2, 3], [3, 0], [4, 0]])
    thin = match_density(matrix, [0.25])
    assert thin.values.toarray().tolist() == [[0, 4], [0, 0], [0, 0], [4, 0]]
    assert match_density(matrix, [1.0]).values.nnz == matrix.values.nnz == 6  # it cannot fire more than it does
    with pytest.raises(ValueError, match="each from 0 to 1"):
        match_density(matrix, [2.0])


def test_neurons_fire_where_they_are_positive(mini):
    from prism.models import harvest

    batch = tokenize(["def f(x):\n    return x", "Once upon a time"], mini.tokenizer, 256)
    hook = "blocks.2.mlp.hook_post"
    matrix = neuron_features(mini, hook, batch, token_table(batch, mini.tokenizer))
    x = torch.cat(list(harvest(mini, batch.tokens, hook)))[batch.keep]
    assert x.min() < 0 and np.array_equal(matrix.values.toarray(), x.clamp_min(0).numpy())


# purity


def test_purity_by_hand():
    tokens = [" The", "the", "THE ", " a", "\n", " ", "b", "c"]
    table = make(np.ones((8, 1)), tokens=tokens, categories=list("ppppqqqr")).table
    frame = purity(np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), table)
    assert frame["category"].tolist() == ["p", "q"] and frame["category_purity"].tolist() == [1, 0.75]
    assert frame["category_entropy"].tolist() == pytest.approx([0, 0.811278], abs=1e-6)
    assert frame["token"].tolist() == ["the", "\n"] and frame["token_purity"].tolist() == [0.75, 0.25]
    assert frame["token_entropy"].tolist() == pytest.approx([0.811278, 2], abs=1e-6)


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.integers(0, 19)))
def test_purity_keeps_its_bounds_and_entropy_is_zero_only_for_the_pure(rows):
    table = make(np.ones((20, 1)), tokens=list("aabbbcdefghijklmnopq"), categories=list("xyz" * 6 + "xy")).table
    frame, k = purity(rows, table), rows.shape[1]
    for name in ("category", "token"):
        share, entropy = frame[f"{name}_purity"], frame[f"{name}_entropy"]
        assert share.between(1 / k - 1e-9, 1).all() and entropy.between(0, np.log2(k) + 1e-9).all()
        assert ((share == 1) == (entropy == 0)).all()
        assert (entropy >= -np.log2(share) - 1e-9).all()  # min-entropy bounds it from below
        for row, best, part in zip(rows, frame[name], share, strict=True):
            values = table[name].astype(str).to_numpy()[row]
            assert (values == best).mean() == pytest.approx(part)


def test_purity_needs_categories():
    for categories in (None, ["only"] * 2):
        with pytest.raises(ValueError, match="two or more categories"):
            purity(np.array([[0, 1]]), make(np.ones((2, 1)), categories=categories).table)


# intruders


def intruder_case(units=8, k=6, groups=None, seed=0):
    """`k` windows a unit: words of an alphabet of its own, or of all alphabets alike."""
    rng = np.random.default_rng(seed)
    alphabets = ["".join(chr(97 + (3 * u + i) % 26) for i in range(3)) for u in range(units)]
    letters = [list("".join(alphabets) if groups is None else alphabets[u]) for u in range(units) for _ in range(k)]
    return np.array([" ".join("".join(rng.choice(word, 3)) for _ in range(8)) for word in letters], dtype=object)


def test_intruders_of_clear_units_are_found_and_shuffled_ones_are_not():
    clear = ngram_vectors(intruder_case(groups=True))
    assert intruder_score(clear, k=6).min() > 0.9
    rng = np.random.default_rng(0)
    shuffled = [intruder_score(clear[rng.permutation(48)], k=6, seed=seed).mean() for seed in range(30)]
    assert np.mean(shuffled) == pytest.approx(0.2, abs=0.03)


def test_windows_without_structure_are_at_chance():
    scores = intruder_score(ngram_vectors(intruder_case(units=60, k=20)), k=20, draws=200)
    assert scores.mean() == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize("shown", [3, 5])
def test_equal_windows_give_exactly_chance(shown):
    same = ngram_vectors(np.array(["the same"] * 12, dtype=object))
    assert intruder_score(same, k=4, shown=shown) == pytest.approx([1 / shown] * 3)


def test_intruders_are_found_by_embedding_as_well():
    vectors = np.repeat(np.eye(3), 4, axis=0)  # three units, four windows each, all alike within a unit
    assert intruder_score(vectors, k=4).tolist() == [1, 1, 1]
    assert np.array_equal(intruder_score(vectors, k=4, seed=1), intruder_score(csr_matrix(vectors), k=4, seed=1))


def test_embedding_vectors_by_hand():
    table = make(np.ones((4, 1)), texts=[0, 0, 1, 1], ids=[0, 1, 2, 2]).table
    vectors = embedding_vectors(table, np.array([[0, 2]]), np.array([[2.0, 0], [0, 2], [3, 3]]), radius=1)
    assert vectors == pytest.approx(np.array([[-1, -1], [1, 1]]) / np.sqrt(2))  # (1, 1) and (3, 3), less their mean


def test_intruder_test_refuses_bad_input():
    vectors = np.eye(6)
    for k, shown, message in (
        (6, 5, "two or more units"),
        (4, 5, "two or more units"),
        (3, 5, "from 3 to 4"),
        (3, 2, "from 3 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            intruder_score(vectors, k=k, shown=shown)
    with pytest.raises(ValueError, match="nothing but white space"):
        ngram_vectors(np.array([" ", "\n"], dtype=object))


# the comparison


@pytest.fixture(scope="module")
def compared():
    mixed, clear, embedding = world(texts=120)
    return compare_units(mixed, clear, n=10, k=12, embedding=embedding, draws=50)


def test_comparison_is_tidy_and_tells_clear_from_mixed(compared):
    assert compared["kind"].value_counts().to_dict() == {"neuron": 10, "feature": 10, "random tokens": 10}
    medians = compared.groupby("kind", observed=True)[["category_purity", "intruder", "intruder_embedding"]].median()
    assert medians.loc["feature", "category_purity"] == 1 and (medians.loc["feature"] > 0.7).all()
    assert (medians.loc[["neuron", "random tokens"], ["intruder", "intruder_embedding"]] < 0.4).all(axis=None)
    assert compared["density"].isna().sum() == 10
    frame = score_differences(compared).set_index("score")
    assert frame.loc[["category_purity", "category_entropy", "intruder"], "purer"].tolist() == ["feature"] * 3
    assert (frame["low"] <= frame["high"]).all()
    assert frame["difference"].to_numpy() == pytest.approx((frame["feature"] - frame["neuron"]).to_numpy())
    assert score_differences(compared, "mean")["difference"].iloc[0] > 0.3


def test_a_unit_of_the_wrong_kind_is_named():
    mixed, clear, _ = world(texts=120)
    swapped = compare_units(clear, mixed, n=10, k=12, draws=50)
    frame = score_differences(swapped).set_index("score")
    assert frame.loc["category_purity", "purer"] == "neuron" and "intruder_embedding" not in frame.index
    same = compare_units(mixed, mixed, n=12, k=12, draws=50)
    assert set(score_differences(same)["purer"]) == {"neither"}


def test_comparison_refuses_what_cannot_be_compared():
    mixed, clear, _ = world()
    with pytest.raises(ValueError, match="different tokens .480 and 320 rows"):
        compare_units(mixed, world(texts=40)[1], n=5, k=5)
    with pytest.raises(ValueError, match="different tokens"):
        compare_units(mixed, world(seed=1)[1], n=5, k=5)
    with pytest.raises(ValueError, match="0 features have 30 examples"):
        compare_units(mixed, clear, n=5, k=30)


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


def test_real_units_differ_from_random_tokens(mini):
    """On a little of the embedded corpus: documents keep their kinds, and both kinds of unit beat the control."""
    spec = get_spec("mini")
    sae = load_sae(spec, "2-mlp-post")
    documents = corpus_documents(load_corpus("mini"), mini.tokenizer, spec.context, 8_000)
    batch = corpus_batch(documents, mini.tokenizer, spec.context)
    table = token_table(batch, mini.tokenizer, documents["kind"])
    assert len(batch) == len(documents) and batch.n_tokens >= 8_000
    neurons = neuron_features(mini, sae.cfg.metadata.hook_name, batch, table)
    frame = compare_units(neurons, encode_features(mini, sae, batch, table), n=40, k=8, draws=40)
    means = frame.groupby("kind", observed=True)["token_purity"].mean()
    assert means["random tokens"] < means["neuron"] and means["random tokens"] < means["feature"]
    assert frame.loc[frame["kind"] == "random tokens", "intruder"].mean() == pytest.approx(0.2, abs=0.05)


# matching


def activations(units=30, tokens=3000, seed=0):
    return csr_matrix(random_array((tokens, units), density=0.02, format="csr", rng=np.random.default_rng(seed)))


def test_a_permuted_copy_is_matched_and_a_shuffled_one_is_not():
    a, order = activations(), np.random.default_rng(1).permutation(30)
    frame = match_activations(a, a[:, order])
    assert frame["correlation"].to_numpy() == pytest.approx(np.ones(30))
    assert order[frame["partner"]].tolist() == list(range(30))
    assert (frame["control"] < 0.25).all()
    other = match_activations(a, a[np.random.default_rng(2).permutation(3000)])
    assert (other["correlation"] < 0.25).all() and abs(other["correlation"] - other["control"]).mean() < 0.08


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


def test_a_control_within_tokens_keeps_what_the_token_explains():
    rng = np.random.default_rng(0)
    ids = rng.integers(20, size=2000)
    a = (ids[:, None] == np.arange(5)).astype(float)  # units that know one token each, and no more
    frame = match_activations(csr_matrix(a), csr_matrix(a), groups=ids)
    assert frame["control"].to_numpy() == pytest.approx(np.ones(5))
    assert (match_activations(csr_matrix(a), csr_matrix(a))["control"] < 0.2).all()


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
    frame = match_activations(first, first, groups=ids)
    assert frame["correlation"].item() == pytest.approx(1) and frame["control"].item() == pytest.approx(-1)
    assert (swap_within(np.zeros(9)) != np.arange(9)).all()


def test_matching_refuses_other_tokens():
    a = activations(tokens=20)
    with pytest.raises(ValueError, match="20 tokens against 10"):
        match_activations(a, a[:10])
    with pytest.raises(ValueError, match="at least two tokens"):
        match_activations(a[:1], a[:1])
    with pytest.raises(ValueError, match="one for each"):
        match_activations(a, a, groups=np.zeros(3))


# figures
