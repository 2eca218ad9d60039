"""Phase 6e: places that models share, partners tried on other texts, the table of tokens, its figures and exercises."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import titled
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prism.analysis import confidence_interval
from prism.data import load_texts, tokenize
from prism.exercises import progress
from prism.models import get_spec
from prism.phases.phase_6e import exercises, figures, methods, tables, yardsticks


@pytest.fixture(scope="module")
def by_byte():
    """A tokenizer that has a token for each byte."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class TestPlaces:
    def test_one_tokenizer_pairs_every_token_with_itself(self, mini):
        texts = load_texts("discover")["text"].tolist()
        ends = methods.token_ends(texts, mini.tokenizer)
        assert sum(map(len, ends)) == tokenize(texts, mini.tokenizer, 256).n_tokens
        places = methods.common_places({"a": ends, "b": ends})
        assert (places["a"] == places["b"]).all() and (places["a"].diff().dropna() > 0).all()
        assert len(places) == sum(len(np.unique(part)) for part in ends), "one row for each place in the text"

    def test_two_tokenizers_have_read_the_same_text_at_each_place(self, mini, by_byte):
        texts = ["Größe: 日本 🙂!", "x = 1\n", *load_texts("confirm")["text"][::9]]
        both = {"mini": mini.tokenizer, "bytes": by_byte}
        places = methods.common_places({name: methods.token_ends(texts, t) for name, t in both.items()})
        ids = {name: [t(text, add_special_tokens=False)["input_ids"] for text in texts] for name, t in both.items()}
        starts = {name: np.cumsum([0, *map(len, part)]) for name, part in ids.items()}
        assert len(places) > 500
        for place in places.iloc[::20].to_dict("records"):
            for name, tokenizer in both.items():
                read = ids[name][place["text"]][: place[name] - starts[name][place["text"]] + 1]
                assert tokenizer.decode(read) == texts[place["text"]][: place["end"]]

    def test_pieces_make_up_the_text(self, mini):
        assert "".join(methods.pieces(mini.tokenizer, "Größe 日本 🙂!")) == "Größe 日本 🙂!"

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="a 1, b 2"):
            methods.common_places({"a": [np.array([1])], "b": [np.array([1]), np.array([2])]})

        class Slow:
            is_fast = False

        with pytest.raises(ValueError, match="fast version"):
            methods.token_ends(["x"], Slow())


@pytest.fixture(scope="module")
def mini_reading():
    """The model `mini` on a few texts."""
    return methods.read(get_spec("mini"), load_texts("discover").iloc[::35].reset_index(drop=True))


@pytest.fixture(scope="module")
def made():
    """Activations of four features at 40 places of each of 10 texts, and the places."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(400, 4)) * (rng.random((400, 4)) < 0.3)
    places = pd.DataFrame({"text": np.repeat(np.arange(10), 40), "end": np.tile(np.arange(40), 10)})
    return values, places


class TestPartners:
    def test_a_shuffled_copy_is_found_and_judged_on_the_second_half(self, made):
        values, places = made
        other = values[:, [2, 0, 3, 1]].copy()
        other[200:, 0] = values[200:, 2] + 5 * (values[200:, 1] > 0)  # feature 2's partner goes astray later
        found = methods.partners(csr_matrix(values), csr_matrix(other), places, np.arange(4))
        assert found.table["partner"].tolist() == [1, 3, 0, 2]
        assert np.allclose(found.table["found"], 1) and np.allclose(found.table["correlation"][[0, 1, 3]], 1)
        wanted = np.corrcoef(values[200:, 2], other[200:, 0])[0, 1]
        assert found.table["correlation"][2] == pytest.approx(wanted) and wanted < 0.8
        assert found.without.shape == (5, 4) and np.allclose(found.without[:, 0], 1)
        assert found.without[:, 2].min() < wanted < found.without[:, 2].max()

    def test_without_one_text_is_the_correlation_of_the_others(self, made):
        values, places = made
        x, y, text = values[200:, :1], values[200:, 1:2] + values[200:, :1], places["text"].to_numpy()[200:]
        _, without = methods.correlations(x, y, text)
        rows = text != 7
        assert without[2, 0] == pytest.approx(np.corrcoef(x[rows, 0], y[rows, 0])[0, 1])

    def test_the_jackknife_of_a_mean_is_its_t_interval(self):
        values = np.random.default_rng(0).normal(size=12)
        without = (values.sum() - values) / 11
        wanted = confidence_interval(values)
        assert methods.jackknife(values.mean(), without) == pytest.approx(wanted)

    def test_the_halves_change_places(self):
        places = pd.DataFrame({"text": [0, 0, 1, 2, 2, 3, 4], "end": range(7)})
        order, turned = methods.second_half_first(places)
        assert order.tolist() == [3, 4, 5, 6, 0, 1, 2] and turned["text"].tolist() == [0, 0, 1, 2, 3, 3, 4]
        assert turned["end"].tolist() == order.tolist()

    def test_another_seed_that_a_model_does_not_have_is_a_gap_in_the_table(self, made):
        values, places = made
        rivals = {"mini": methods.partners(csr_matrix(values), csr_matrix(values), places, np.arange(4))}
        found = methods.compared(rivals, np.arange(4))
        shares = methods.share_above(found, 0.5)
        assert list(found) == ["another seed", "mini"] and np.isnan(shares["another seed"]) and shares["mini"] == 1

    def test_a_lead_is_the_difference_of_two_means(self):
        a, b = (
            methods.Partners(pd.DataFrame({"correlation": of}), np.tile(of, (5, 1)))
            for of in ([0.5, 0.7, 0.9], [0.1, 0.3])
        )
        assert methods.lead(a, b) == pytest.approx((0.5, 0.5, 0.5)), "no text moves it"

    def test_silence_has_no_partner_and_correlates_zero(self, made):
        values, places = made
        silent = np.zeros_like(values)
        found = methods.partners(csr_matrix(values), csr_matrix(silent), places, np.arange(4))
        assert (found.table["partner"] == -1).all() and (found.table["correlation"] == 0).all()

    def test_testable_asks_for_firings_in_both_halves(self, made):
        values, places = made
        late = values.copy()
        late[:200, 1] = 0
        assert methods.testable(csr_matrix(late), places, 10).tolist() == [0, 2, 3]
        assert [len(half) for half in methods.halves(places)] == [200, 200]


class TestTable:
    def test_it_answers_with_the_mean_of_other_texts(self):
        values = csr_matrix(np.array([[1.0], [3.0], [5.0], [0.0], [9.0]]))
        ids, text = np.array([7, 7, 7, 8, 7]), np.array([0, 0, 1, 1, 2])
        guess = tables.token_guess(values, ids, text).ravel()
        assert guess[:3].tolist() == [7, 7, pytest.approx(13 / 3)] and guess[4] == 3
        assert guess[3] == pytest.approx(13 / 3), "a token of one text gets the mean over all others"

    def test_it_predicts_a_feature_of_one_token_and_not_one_of_places(self, made):
        _, places = made
        ids = np.random.default_rng(1).integers(20, size=400)
        values = np.column_stack([ids == 3, (places["end"] % 10) == 0]).astype(float)
        found = tables.guessed(csr_matrix(values), ids, places, np.arange(2))
        assert found.table["correlation"][0] == pytest.approx(1) and abs(found.table["correlation"][1]) < 0.3

    def test_it_may_be_judged_at_some_places_and_still_knows_all(self, made):
        values, places = made
        ids, where = np.random.default_rng(1).integers(20, size=400), places["end"].to_numpy() % 2 == 0
        found = tables.guessed(csr_matrix(values), ids, places, np.arange(4), where)
        guess = tables.token_guess(csr_matrix(values), ids, places["text"].to_numpy())
        rows = np.flatnonzero(where & (places["text"] >= 5).to_numpy())
        assert found.table["correlation"][2] == pytest.approx(np.corrcoef(values[rows, 2], guess[rows, 2])[0, 1])

    def test_a_token_is_common_if_enough_other_texts_have_it_under_both_tokenizers(self):
        places = pd.DataFrame({"text": [0, 0, 1, 2, 2]})
        ids = {"a": np.array([7, 7, 7, 7, 8]), "b": np.array([1, 1, 1, 1, 1])}
        assert tables.common_tokens(ids, places, 2).tolist() == [True, True, True, True, False]
        assert not tables.common_tokens(ids, places, 3).any(), "its own text does not count"

    def test_leaning_counts_what_another_seed_finds_and_what_fires_there(self, made):
        values, places = made
        ids = np.random.default_rng(1).integers(20, size=400)
        seed = values.copy()
        seed[:, 3] = np.random.default_rng(2).random(400)
        own = csr_matrix(values)
        found = tables.leaning(own, csr_matrix(seed), ids, places, 10, 0.5)
        assert found.table["feature"].tolist() == [0, 1, 2]
        where = (values[:, 1] == 0) & (values[:, 0] > 0)
        found = tables.leaning(own, csr_matrix(seed), ids, places, 5, 0.5, where)
        assert found.table["feature"].tolist() == [0, 2], "feature 1 is silent at those places"
        assert own.nnz == (values > 0).sum(), "what was given is left as it was"


class TestYardsticks:
    def test_a_gap_is_bits_over_bytes_and_its_interval_that_of_pairs(self):
        large = pd.DataFrame({"bits": [10.0, 30.0, 22.0], "bytes": [10, 20, 10]})
        small = large.assign(bits=[20.0, 50.0, 32.0])
        gap, low, high = yardsticks.bits_gap(large, small)
        assert gap == pytest.approx(1) and (low, high) == pytest.approx((1, 1)), "each text pays one bit a byte more"

    def test_kinds_are_sorted_by_their_gap(self):
        large = pd.DataFrame({"bits": [10.0, 30.0, 22.0, 20.0], "bytes": [10, 20, 10, 10]})
        small = large.assign(bits=[11.0, 32.0, 42.0, 40.0])
        kinds = {"near": [0, 1], "far": [2, 3]}
        found = yardsticks.gaps(large, small, kinds)
        assert found["bits fewer"].to_dict() == pytest.approx({"far": 2, "near": 0.1})
        both = yardsticks.by_kind({"large": large, "small": small}, kinds)
        assert both["value"].tolist() == pytest.approx([40 / 30, 2.1, 43 / 30, 4.1])

    def test_a_model_is_described(self, mini_reading):
        told = yardsticks.describe(mini_reading)
        assert told["SAE in block"] == "2 of 4" and told["features"] == 1536 and told["parameters"] == 3_008_640


class TestReading:
    def test_two_models_are_read_and_missing_ones_left_out(self, capsys):
        texts = load_texts("discover").iloc[::20].reset_index(drop=True)
        found = methods.read_all(get_spec("mini"), ("mini", "mini-llama", "gpt2-small"), texts)
        assert list(found) == ["mini", "mini-llama"] and "left out: " in capsys.readouterr().out
        assert found["mini"].seed is not None and found["mini-llama"].seed is None
        assert yardsticks.size(found["mini"]) == 3_008_640
        for one in found.values():
            assert len(one.matrix.table) == sum(map(len, one.ends)) and one.matrix.l0() > 5
        with pytest.raises(ValueError, match="no model to compare mini with"):
            methods.read_all(get_spec("mini"), ("mini",), texts)

    def test_what_the_text_tells_of_is_opened_on_its_model_alone(self):
        named, spec = {9: "the dot", 7: "time"}, get_spec("smollm2")
        assert methods.to_open(spec, [], [5, 9, 7], named) == named
        assert methods.to_open(spec, [3], [3, 5, 7], named) == {3: "feature 3", 5: "feature 5"}
        assert methods.to_open(get_spec("mini"), [9], [5, 9, 7], named) == {9: "feature 9", 5: "feature 5"}


def test_rivals_figure_colours_what_another_seed_has():
    table, partner, found = np.array([0.1, 0.9]), np.array([0.2, 0.8]), np.array([False, True])
    fig = titled(
        figures.rivals_figure(table, partner, found, ~found, {"the": (0.9, 0.8)}, "mini", "Both"),
        "correlation with what a table of tokens predicts",
        "correlation with the best partner in mini",
    )
    assert [list(trace.x) for trace in fig.data[1:]] == [[0.1], [0.9], [], [0.9]]
    assert fig.data[-1].name == "the"


def test_histograms_leave_out_what_was_not_measured():
    values = {"a": np.array([-0.2, 0.01, 0.52, np.nan]), "nothing": np.full(3, np.nan), "b": np.array([1.0])}
    fig = titled(figures.histograms(values, "correlation", "% of features", "How much", 0.5, step=0.5), "correlation")
    assert [list(trace.y) for trace in fig.data] == [[pytest.approx(200 / 3), pytest.approx(100 / 3)], [0, 100]]
    assert {note.text for note in fig.layout.annotations} == {"a", "b"}


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a b c", "d", lambda text: (len(text), text[-1]), 2)
    said = capsys.readouterr().out
    assert "5.0 at 'c'" in said and "  5.0  'a b c'" in said and set(progress.load()) == {"6e/hypothesis"}
    assert "1.0 at 'd', below 2.0: counts as silent" in said and "it stands, for now" in said
