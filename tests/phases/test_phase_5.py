"""Phase 5: its figure, the places of words, halves of texts, and whose exercise its hypothesis is."""

import numpy as np
import pandas as pd
import pytest
from figure_checks import titled
from IPython.display import HTML
from scipy.sparse import csr_matrix

from prism.exercises import progress
from prism.explorer import Explorer
from prism.explorer.rows import ordered
from prism.explorer.sample import CORPUS
from prism.features import FeatureMatrix
from prism.phases import phase_5

SCRIPT = "<script>alert(1)</script>"


def test_sentence_heatmap_shows_tokens_as_text():
    shares = np.array([[0.0, 0.25, 1.0]])
    fig = titled(phase_5.sentence_heatmap(shares, [SCRIPT, ' "cat"', "\n"], ["7 · <b>"]))
    assert fig.data[0].z.tolist() == [[0.0, 0.25, 1.0]] and (fig.data[0].zmin, fig.data[0].zmax) == (0, 1)
    assert list(map(list, fig.data[0].text)) == [["", "0.2", "1.0"]]
    assert phase_5.sentence_heatmap(shares * 2.5, ["a", "b", "c"], ["x"]).data[0].zmax == 2.5, "above 1 as it is"
    assert phase_5.sentence_heatmap(np.ones((1, 46)), ["a"] * 46, ["x"]).data[0].texttemplate == "", "too narrow for it"
    assert fig.layout.xaxis.ticktext == ("&lt;script&gt;alert(1)&lt;/script&gt;", '·"cat"', "↵")
    assert fig.layout.yaxis.ticktext == ("7 · &lt;b&gt;",)
    for tokens, labels in ((["a"], ["x"]), (["a", "b", "c"], ["x", "y"])):
        with pytest.raises(ValueError, match=r"\(features, tokens\)"):
            phase_5.sentence_heatmap(np.ones((1, 3)), tokens, labels)


def test_views_stand_side_by_side():
    both = phase_5.side_by_side(HTML("<p>one</p>"), HTML("<p>two</p>")).data
    assert both.index("<p>one</p>") < both.index("<p>two</p>") and both.count("<div") == both.count("</div") == 3


@pytest.mark.parametrize(("word", "row"), [("Do", 0), ("No", 3), ("o,", 3), (",", 4), (" you", 1), ("absent", 4)])
def test_a_word_is_found_by_the_token_in_which_it_begins(word, row):
    tokens = ["Do", " you", "? ", "No", ","]
    assert phase_5.place_of(tokens, "".join(tokens), word) == slice(row, row + 1)


def test_halves_cut_between_words_where_they_can():
    assert phase_5.halves("one two three") == ("one two", " three")
    assert phase_5.halves("one twothree") == ("one tw", "othree") and "".join(phase_5.halves("x")) == "x"


def test_firing_rates_by_hand():
    values = csr_matrix(np.array([[1.0, 0, 0], [1, 2, 0], [0, 2, 0], [0, 0, 3]]))  # two texts of two tokens
    every = np.ones((3, 4), bool)
    rates = phase_5.firing_rates(values, [0, 0, 1, 1], [[0], [0, 1], []], every)
    assert rates.tolist() == [[1, 0], [0.75, 0.25], [0, 0]]
    few = every.copy()
    few[0], few[1] = [True, False, False, False], [False, True, True, False]
    rates = phase_5.firing_rates(values, [0, 0, 1, 1], [[0], [0, 1], [2]], few)
    assert rates.tolist() == [[1, 0], [1, 0.5], [0, 0.5]]


def test_others_as_rare_are_the_nearest_each_taken_once():
    wanted = pd.DataFrame({"density": [0.001, 0.001, 0.1]})
    rest = pd.DataFrame({"feature": [7, 8, 9, 10], "density": [0.02, 0.002, 0.0, 0.0011]})
    assert phase_5.as_rare(wanted, rest)["feature"].tolist() == [10, 8, 7]
    assert phase_5.as_rare(wanted, rest.head(1))["feature"].tolist() == [7] and phase_5.as_rare(wanted, rest[:0]).empty


def matrix_of(tokens, texts, values):
    table = pd.DataFrame({"token": tokens, "text": texts, "position": 1, "token_id": 0})
    return FeatureMatrix(csr_matrix(np.array(values, dtype=np.float32)), table)


def test_tokens_that_a_first_half_lacks():
    half_1 = matrix_of(["Tea", " is", "x"], [0, 0, 1], [[1.0]] * 3)
    half_2 = matrix_of([" tea", "y", "X", "is"], [0, 0, 1, 1], [[1.0]] * 4)
    assert phase_5.unseen(half_1, half_2).tolist() == [[False, True, True, False], [True, True, False, True]]


def test_lists_by_four_rules_with_maxima_of_the_documents_alone():
    reading = Explorer("mini").reading()
    known = phase_5.of_category(reading, CORPUS)
    assert set(known.matrix.table["category"]) == {CORPUS} and known.matrix.n_texts + 140 == reading.matrix.n_texts
    assert (known.statistics.maxima <= reading.statistics.maxima).all()
    half = phase_5.read(reading, ["The court shall hear", " the claim of the tenant"], 256)
    lists = phase_5.lists_of(known, half, ordered)
    assert tuple(lists) == phase_5.RULES and {len(some) for of in lists.values() for some in of} == {phase_5.LISTED}
    for text, (start, end) in enumerate(phase_5.bounds(half.table["text"])):
        firing = known.firing(half, slice(start, end))
        pool = ordered(known, firing, "special", True)[0]["feature"].tolist()
        special, rare, filtered, strongest = (lists[rule][text] for rule in phase_5.RULES)
        assert special == pool[:10] and set(rare) <= set(pool[10:]) and strongest == firing["feature"].tolist()[:10]
        assert filtered == [feature for feature in firing["feature"] if feature in pool][:10]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_5.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"5/hypothesis"}
