"""Rankings, specialists and their controls, concepts: by hand, and against dense arithmetic."""

import itertools
import json
import math
import pkgutil
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix, random_array
from scipy.stats import binom, fisher_exact, norm, ttest_1samp, ttest_ind

from prism import analysis
from prism.analysis import (
    ClaimCard,
    confidence_interval,
    confirm,
    difference_interval,
    find_features_for_concept,
    most_frequent,
    permutation_null,
    specialists,
    strongest,
    survivors,
)
from prism.analysis.claims import CARD
from prism.analysis.concepts import composite_score
from prism.analysis.rankings import most_selective
from prism.analysis.specialist_search import Null, holm, specialist_scores
from prism.data import CATEGORIES
from prism.features import FeatureMatrix


def make(values, categories=None, tokens=1) -> FeatureMatrix:
    """A matrix from dense or sparse `[tokens, d_sae]`, `tokens` to a text, with a category for each text."""
    values = csr_matrix(values, dtype=np.float32)
    rows = np.arange(values.shape[0])
    table = pd.DataFrame(
        {"text": rows // tokens, "position": rows % tokens + 1, "token_id": rows, "token": [f" t{row}" for row in rows]}
    )
    if categories is not None:
        table["category"] = pd.Categorical(np.asarray(categories)[rows // tokens], categories=sorted(set(categories)))
    return FeatureMatrix(values, table)


SEVENTY = np.repeat(CATEGORIES, 10)


def planted(seed=0, d_sae=300):
    """70 texts: feature 0 fires on 7 of the Python texts and one other, 1 on all mathematics; the rest at random."""
    rng = np.random.default_rng(seed)
    dense = rng.random((70, d_sae)) * (rng.random((70, d_sae)) < 0.04)
    dense[:, :2] = 0
    dense[:7, 0] = dense[69, 0] = 5
    dense[20:30, 1] = 4
    dense[:, 2] = 0  # never fires
    return dense


@st.composite
def labelled(draw):
    """Dense text activations, one category a text: of 1 to 14 texts."""
    shape = st.tuples(st.integers(1, 14), st.integers(1, 5))
    values = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5])
    dense = draw(hnp.arrays(np.float32, shape, elements=values))
    names = draw(st.lists(st.sampled_from(["math", "python", "zebra"]), min_size=len(dense), max_size=len(dense)))
    return dense, names


# rankings


def test_strongest_says_where():
    matrix = make([[1, 0, 0], [0, 0, 7], [3, 0, 0], [0, 0, 2]], ["math", "python"], tokens=2)
    frame = strongest(matrix)
    assert frame["feature"].tolist() == [2, 0] and frame["max_activation"].tolist() == [7, 3]
    assert frame["density"].tolist() == [0.5, 0.5] and frame["texts"].tolist() == [2, 2]
    assert frame["token"].tolist() == [" t1", " t2"] and frame["category"].tolist() == ["math", "python"]
    assert strongest(matrix, k=1)["feature"].tolist() == [2]
    assert "category" not in strongest(make([[1.0]]))


def test_most_frequent_counts_texts_or_tokens():
    matrix = make([[1, 1], [0, 1], [2, 0], [0, 0], [3, 0], [0, 0]], tokens=2)
    by_text, by_token = most_frequent(matrix), most_frequent(matrix, by="token", k=1)
    assert by_text["feature"].tolist() == [0, 1] and by_text["share"].tolist() == pytest.approx([1, 1 / 3])
    assert by_token["feature"].tolist() == [0] and by_token["share"].tolist() == [0.5]
    with pytest.raises(ValueError, match="choose 'text' or 'token'"):
        most_frequent(matrix, by="word")


def test_most_selective_by_hand():
    dense = np.zeros((8, 4))
    dense[:4, 0] = [2, 2, 2, 2]  # only in the first category: 1
    dense[:, 1] = 1  # everywhere alike: 1/2
    dense[4:, 2] = [3, 3, 3, 0]  # 9/4 against 3/4: 3/4
    dense[0, 2] = 3
    dense[0, 3] = 9  # on one text only: left out
    frame = most_selective(make(dense, ["math"] * 4 + ["python"] * 4))
    assert frame["feature"].tolist() == [0, 2, 1]
    assert frame["selectivity"].tolist() == pytest.approx([1, 0.75, 0.5])
    assert frame["category"].tolist()[:2] == ["math", "python"]
    assert frame["mean_inside"].tolist() == pytest.approx([2, 9 / 4, 1])
    assert 3 in most_selective(make(dense, ["math"] * 4 + ["python"] * 4), min_texts=1)["feature"].tolist()


@given(labelled())
def test_selectivity_lies_between_an_even_share_and_one(case):
    frame = most_selective(make(*case), min_texts=1)
    assert frame["selectivity"].between(1 / len(set(case[1])) - 1e-6, 1 + 1e-6).all()
    assert frame["selectivity"].round(6).is_monotonic_decreasing


def test_nothing_fires():
    matrix = make(np.zeros((4, 3)), ["math", "math", "python", "python"])
    for frame in (
        strongest(matrix),
        most_frequent(matrix),
        most_selective(matrix),
        specialists(matrix),
        find_features_for_concept(matrix),
    ):
        assert len(frame) == 0
    assert permutation_null(matrix, 5).scores.tolist() == [[0, 0]] * 5
    assert len(survivors(specialists(matrix), permutation_null(matrix, 5))) == 0
    assert len(confirm(specialists(matrix), matrix)) == 0


def test_one_text():
    matrix = make([[2.0, 0.0]], ["math"])
    assert specialists(matrix)[["feature", "score"]].values.tolist() == [[0, 1]]
    assert permutation_null(matrix, 3).scores.tolist() == [[1]] * 3
    assert confirm(specialists(matrix), matrix)[["rate_difference", "fisher_p"]].values.tolist() == [[1, 1]]


# specialists


def test_seven_inside_and_one_outside_score_six():
    found = specialists(make(planted(), SEVENTY))
    python = found[found["category"] == "python"].iloc[0]
    assert (python["feature"], python["inside"], python["outside"], python["score"]) == (0, 7, 1, 6)
    assert python["mean_inside"] == pytest.approx(7 * 5 / 10)
    assert python["rate_difference"] == pytest.approx(7 / 10 - 1 / 60)
    assert found.groupby("category", observed=True).size().max() == 5
    assert list(dict.fromkeys(found["category"])) == [c for c in CATEGORIES if c in set(found["category"])]
    best = specialists(make(planted(), SEVENTY), k=1)
    assert not best["category"].duplicated().any() and 0 in best["feature"].tolist()


def test_above_the_threshold_means_strictly():
    matrix = make([[0.3], [0.5], [0.0]], ["python", "python", "math"])  # 0.3 is stored as 0.30000001
    inside = [int(specialist_scores(matrix, t)["inside"].iloc[0]) for t in (0, 0.2999, 0.3, 0.4999, 0.5)]
    assert inside == [2, 2, 1, 1, 0]
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="give 0 or more"):
            specialist_scores(matrix, bad)


@given(labelled(), st.sampled_from([0.0, 0.5, 0.7]))
def test_scores_equal_the_dense_ones_and_keep_their_bounds(case, threshold):
    dense, names = case
    names, frame = np.array(names), specialist_scores(make(*case), threshold)
    assert len(frame) == dense.shape[1] * len(set(names))
    for row in frame.itertuples():
        fires, here = dense[:, row.feature] > threshold, names == row.category
        assert (row.inside, row.outside) == ((fires & here).sum(), (fires & ~here).sum())
        assert -(~here).sum() <= row.score == row.inside - row.outside <= here.sum()
        assert row.mean_inside == pytest.approx(dense[here, row.feature].mean())
        outside = fires[~here].mean() if (~here).any() else 0
        assert -1 <= row.rate_difference == pytest.approx(fires[here].mean() - outside)
    found = specialists(make(*case), 2, threshold)
    assert not found["feature"].duplicated().any() and (found["score"] > 0).all()


def test_labels_are_needed():
    for call in (specialist_scores, permutation_null, most_selective):
        with pytest.raises(ValueError, match="no categories"):
            call(make([[1.0]]))


# the permutation null


def test_null_covers_every_labelling_of_a_small_case():
    """Four texts in two pairs: the six labellings and their best scores can be written down."""
    dense = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    every = []
    for here in itertools.combinations(range(4), 2):
        label = np.isin(np.arange(4), here)
        every.append([(2 * dense[rows].sum(0) - dense.sum(0)).max() for rows in (label, ~label)])
    null = permutation_null(make(dense, ["math", "math", "python", "python"]), n=3000, seed=1)
    seen, counts = np.unique(null.scores, axis=0, return_counts=True)
    expected, shares = np.unique(every, axis=0, return_counts=True)
    assert seen.tolist() == expected.tolist()
    assert counts / 3000 == pytest.approx(shares / 6, abs=0.04)


def test_null_depends_on_the_seed_alone(monkeypatch):
    matrix = make(planted(), SEVENTY)
    first = permutation_null(matrix, 50, seed=3).scores
    assert np.array_equal(first, permutation_null(matrix, 50, seed=3).scores)
    assert not np.array_equal(first, permutation_null(matrix, 50, seed=4).scores)
    monkeypatch.setattr("prism.analysis.specialist_search.NULL_BYTES", 1)  # one permutation at a time
    assert np.array_equal(first, permutation_null(matrix, 50, seed=3).scores)


def test_planted_specialists_survive_and_chance_ones_do_not():
    matrix = make(planted(), SEVENTY)
    frame = survivors(specialists(matrix), permutation_null(matrix, 500)).set_index("feature")
    assert frame.loc[1, "survives"] and frame.loc[1, "p_value"] == pytest.approx(1 / 501)
    assert set(frame.index[frame["survives"]]) <= {0, 1}


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-5, 5)), st.integers(-7, 7))
def test_p_values_are_never_zero_and_count_ties(scores, score):
    null = Null(scores, ("a", "b"))
    for category, column in (("a", scores[:, 0]), ("b", scores[:, 1]), (None, scores.max(1))):
        p = null.p_value(category, score)
        assert p == (1 + (column >= score).sum()) / (1 + len(scores)) and 0 < p <= 1
    assert null.p_value(None, score) >= max(null.p_value("a", score), null.p_value("b", score))


def test_null_answers_for_arrays_quantiles_and_unknown_categories():
    null = Null(np.arange(100)[:, None] * np.array([1, 2]), ("a", "b"))
    assert null.p_value("a", np.array([0, 99, 1000])).tolist() == [1, 2 / 101, 1 / 101]
    assert null.quantile(0.95).to_dict() == {"a": 95, "b": 190}
    with pytest.raises(ValueError, match="choose from a, b"):
        null.p_value("c", 1)
    with pytest.raises(ValueError, match="at least 1"):
        permutation_null(make([[1.0]], ["a"]), 0)


def test_type_one_error_on_data_without_labels_is_at_most_alpha():
    """On 200 random data sets whose labels mean nothing, some feature survives in about 5 % of them, not more."""
    false = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.random((28, 1)) * 0.6  # texts differ in how much fires: features are correlated
        matrix = make(rng.random((28, 40)) < shared, np.repeat(list("abcd"), 7))
        frame = survivors(specialists(matrix, k=1), permutation_null(matrix, 99, seed=seed))
        false += bool(frame["survives"].any())
    assert false <= binom.ppf(0.999, 200, 0.05)


def test_the_null_of_a_full_size_search_takes_seconds():
    sparse = random_array((70, 24_576), density=0.06, format="csr", rng=np.random.default_rng(0))
    matrix = make(csr_matrix(sparse), SEVENTY)
    start = time.process_time()
    null = permutation_null(matrix, 100)
    assert null.scores.shape == (100, 7) and time.process_time() - start < 3


# confirmation


def test_confirm_holds_the_planted_and_drops_the_lucky():
    discover, held_out = make(planted(0), SEVENTY), make(planted(1), SEVENTY)
    found = specialists(discover)
    frame = confirm(found, held_out)
    assert frame["feature"].tolist() == found["feature"].tolist()
    assert frame["found_score"].tolist() == found["score"].tolist()
    assert set(frame["feature"][frame["held"]]) == {0, 1}
    assert (frame["p_holm"] >= frame["fisher_p"]).all()


@given(labelled())
def test_confirm_is_fishers_exact_test(case):
    dense, names = case
    names, matrix = np.array(names), make(*case)
    for frame in (confirm(specialist_scores(matrix), matrix), specialists(matrix)):
        for row in frame.itertuples():
            table = [
                [row.inside, (names == row.category).sum() - row.inside],
                [row.outside, (names != row.category).sum() - row.outside],
            ]
            assert 0 < row.fisher_p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    frame = confirm(specialist_scores(matrix), matrix)
    assert (frame["held"] == (holm(frame["fisher_p"]) < 0.05)).all() and (
        frame["rate_difference"][frame["held"]] > 0
    ).all()


def test_seven_of_ten_inside_hold_against_ten_of_sixty_outside():
    """The score says −3, for it ignores that sixty texts are outside; the rates do not."""
    dense = np.zeros((70, 1))
    dense[:7] = dense[10::6] = 1
    row = confirm(pd.DataFrame({"feature": [0], "category": ["python"]}), make(dense, SEVENTY)).iloc[0]
    assert (row["inside"], row["outside"], row["score"]) == (7, 10, -3)
    assert row["rate_difference"] == pytest.approx(0.7 - 10 / 60)
    chance = sum(math.comb(10, k) * math.comb(60, 17 - k) for k in (7, 8, 9, 10)) / math.comb(70, 17)
    assert row["fisher_p"] == row["p_holm"] == pytest.approx(chance) == pytest.approx(0.0012, abs=5e-5) and row["held"]
    assert specialists(make(dense, SEVENTY)).empty


def test_confirm_refuses_what_the_held_out_matrix_has_not():
    matrix = make([[1.0], [0.0]], ["math", "python"])
    with pytest.raises(IndexError, match="choose from 0 to 0"):
        confirm(pd.DataFrame({"feature": [1], "category": ["math"]}), matrix)
    with pytest.raises(ValueError, match="no held-out text of category 'urls'"):
        confirm(pd.DataFrame({"feature": [0], "category": ["urls"]}), matrix)
    frame = confirm(pd.DataFrame({"feature": [0], "category": ["math"]}), matrix)
    assert "found_score" not in frame and frame["fisher_p"].tolist() == [0.5]


@given(hnp.arrays(np.float64, st.integers(0, 12), elements=st.floats(0, 1)))
def test_holm_is_between_the_p_value_and_bonferroni(p):
    corrected = holm(p)
    assert (corrected >= p).all() and (corrected <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


# concepts


def test_composite_score_worked_example():
    assert composite_score([9.92, 9.92]) == pytest.approx(992)
    assert composite_score([9.0, 10.84], threshold=9.0) == pytest.approx(496)  # 9.0 is not above 9.0
    assert composite_score([0.0, 0.0]) == 0
    with pytest.raises(ValueError, match="at least one text"):
        composite_score([])


@given(labelled(), st.sampled_from([0.0, 0.5]))
def test_concept_search_is_composite_score_on_every_feature(case, threshold):
    dense, _ = case
    frame = find_features_for_concept(make(dense), make(dense[:1]), threshold, k=99)
    expected = np.array([composite_score(column, threshold) for column in dense.T])
    assert frame["composite_score"].tolist() == pytest.approx(sorted(expected[expected > 0], reverse=True))
    assert frame["composite_score"].to_numpy() == pytest.approx(expected[frame["feature"]])
    assert frame["share"].to_numpy() == pytest.approx((dense > threshold).mean(0)[frame["feature"]])
    assert frame["background_share"].tolist() == (dense[0] > threshold)[frame["feature"]].tolist()


def test_a_background_shows_up_what_fires_everywhere():
    concept, background = make([[5, 1], [5, 1]]), make([[5, 0], [5, 0]])
    assert find_features_for_concept(concept)["feature"].tolist() == [0, 1]
    assert "background_share" not in find_features_for_concept(concept)
    assert find_features_for_concept(concept, background)["background_share"].tolist() == [1, 0]
    assert find_features_for_concept(concept, background, max_background=0.5)["feature"].tolist() == [1]
    with pytest.raises(ValueError, match="use one SAE"):
        find_features_for_concept(concept, make([[1.0]]))
    with pytest.raises(ValueError, match="no texts"):
        find_features_for_concept(make(np.zeros((0, 2))))


# intervals and claims


def test_an_interval_of_many_samples_matches_the_normal_one_and_its_seed():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = confidence_interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (low, high) == confidence_interval(values) != confidence_interval(values, seed=1)
    narrow = confidence_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    paired = confidence_interval(np.stack([values, values + 1], 1), lambda x: (x[:, 1] - x[:, 0]).mean())
    assert paired == pytest.approx((1, 1))


def test_a_mean_of_few_samples_has_a_t_interval():
    """Of 1, 2, 3: the mean 2, the standard error 1/√3, and t = 4.303 at two degrees of freedom."""
    assert confidence_interval([1, 2, 3]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    values = np.random.default_rng(1).exponential(size=19)
    assert confidence_interval(values, level=0.9) == pytest.approx(ttest_1samp(values, 0).confidence_interval(0.9))
    assert confidence_interval(values) == confidence_interval(values, seed=1)
    assert confidence_interval([2.0, 2.0]) == (2, 2) and np.isnan(confidence_interval([2.0])).all()


def test_a_difference_of_means_of_few_samples_has_welchs_interval():
    rng = np.random.default_rng(2)
    for few, many in ((2, 2), (5, 7), (19, 300), (300, 3)):
        a, b = rng.normal(1, 3, few), rng.exponential(size=many)
        welch = ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
        assert difference_interval(a, b, "mean", level=0.9) == pytest.approx(welch)
    assert difference_interval([3.0, 3.0], [1.0, 1.0], "mean") == (2, 2)
    assert difference_interval([3.0, 3.0], [1.0, 3.0], "mean")[0] == pytest.approx(1 - 12.7062, abs=1e-4)  # t at 1


@pytest.mark.parametrize("size", [5, 7, 10, 15])
def test_few_samples_are_covered_as_often_as_is_said(size):
    """2,000 draws of normal data: 93 % or more, where the plain percentile interval covers 83, 88, 89 and 91 %."""
    rng, covered, apart = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        a, b = rng.normal(3, 2, size), rng.normal(1, 1, size)
        low, high = confidence_interval(a)
        covered += low <= 3 <= high
        low, high = difference_interval(a, b, "mean")
        apart += low <= 2 <= high
    assert 0.93 <= covered / 2000 <= 0.97 and 0.93 <= apart / 2000 <= 0.97


def test_other_statistics_of_few_samples_reach_further_out():
    """At 10 samples t is 2.262, and the ends are the quantiles Φ(∓2.262 √(10/9)) = 0.0085 and 0.9915."""
    x, rng = np.random.default_rng(3).normal(size=(10, 2)), np.random.default_rng(0)
    drawn = [np.median(x[rng.integers(10, size=10)]) for _ in range(2000)]
    ends = np.quantile(drawn, [norm.cdf(-2.26216 * (10 / 9) ** 0.5), norm.cdf(2.26216 * (10 / 9) ** 0.5)])
    assert confidence_interval(x, np.median) == pytest.approx(ends, abs=1e-3)


def test_a_ratio_of_few_samples_is_covered_nearly_as_often():
    """150 draws of 7: about 92 % (2,000 draws: 92.7), where the plain percentile interval covers 86 %."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        weight = rng.uniform(5, 15, 7)
        rows = np.stack([weight * (1 + 0.3 * rng.normal(size=7)), weight], 1)
        low, high = confidence_interval(rows, lambda r: r[:, 0].sum() / r[:, 1].sum(), n=200)
        covered += low <= 1 <= high
    assert covered / 150 >= 0.88


@settings(max_examples=30)
@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e3, 1e3)))
def test_intervals_hold_their_mean_and_a_bootstrap_stays_within_the_data(values):
    low, high = confidence_interval(values, np.median, n=50)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    low, high = confidence_interval(values[:19])
    assert low - 1e-9 <= values[:19].mean() <= high + 1e-9
    low, high = difference_interval(values, values[:2], "mean", n=50)
    assert np.isfinite([low, high]).all() and low <= high


@pytest.mark.parametrize("values, level", [([], 0.95), ([1, np.nan], 0.95), ([1.0], 1.0), ([1.0], 95)])
def test_an_interval_refuses_bad_input(values, level):
    with pytest.raises(ValueError, match="needs at least one|between 0 and 1"):
        confidence_interval(values, level=level)


def test_claim_card_prints_and_escapes(capsys):
    card = ClaimCard(
        "Features <b>specialise</b>",
        "6 | texts",
        "[4, 7], 95 %",
        "shuffled labels: 3 " * 12,
        "no survivors",
        np.bool_(True),
    )
    lines = str(card).splitlines()
    assert len({len(line) for line in lines}) == 1 and "supported" in lines[-2]
    markdown = card._repr_markdown_()
    assert "<b>" not in markdown and "6 &#124; texts" in markdown
    assert all(line.count("|") == 3 for line in markdown.splitlines())
    parts = {
        "claim": "Features <b>specialise</b>",
        "effect": "6 | texts",
        "interval": "[4, 7], 95 %",
        "control": "shuffled labels: 3 " * 12,
        "refuted_by": "no survivors",
        "verdict": "supported",
    }
    shown = card._repr_mimebundle_(include=None, exclude=None)
    assert shown == {CARD: parts} == json.loads(json.dumps(shown))
    card.print()
    assert capsys.readouterr().out == str(card) + "\n"
    assert "not supported" in str(ClaimCard("c", "e", "i", "n", "r", supported=False))
    assert "undecided" in str(ClaimCard("c", "e", "i", "n", "r", supported=None))
    with pytest.raises(TypeError, match="True or False"):
        ClaimCard("c", "e", "i", "n", "r", supported="False")


def test_the_package_offers_the_functions_and_no_module_hides_one():
    public = {name for name in vars(analysis) if not name.startswith("_")}
    modules = {module.name for module in pkgutil.iter_modules(analysis.__path__)}
    assert {"specialists", "strongest", "ClaimCard"} <= public - modules


def test_a_category_without_a_specialist_keeps_its_best_if_asked():
    """Two texts of each of two kinds; feature 0 fires in both of the first kind and one of the second."""
    values = csr_matrix(np.array([[1.0, 0], [2, 0], [3, 1], [0, 0]], dtype=np.float32))
    table = pd.DataFrame({"text": range(4), "position": 1, "token_id": 0, "token": "x"})
    matrix = FeatureMatrix(values, table.assign(category=pd.Categorical(["a", "a", "b", "b"])))
    assert specialists(matrix, 1)[["category", "feature"]].values.tolist() == [["a", 0], ["b", 1]]
    loud = specialists(matrix, 1, threshold=1.5)
    assert loud[["category", "feature", "score"]].values.tolist() == []
    kept = specialists(matrix, 1, threshold=1.5, positive=False)
    assert kept[["category", "feature", "score"]].values.tolist() == [["a", 0, 0], ["b", 0, 0]]
