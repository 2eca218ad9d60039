"""The explorer's core: texts, searches, steering and comparison, hand-counted on a small sample and run on `mini`."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from prism.data import CATEGORIES, token_text, whole_characters
from prism.explorer import (
    HOWS,
    MAX_CHARACTERS,
    RARE,
    Explorer,
    Reading,
    by_category,
    by_number,
    by_token,
    categories,
    search,
    steer,
)
from prism.explorer.labels import Label, read_labels
from prism.explorer.markup import fragment
from prism.explorer.rows import LEAST, ordered, rows, special_order
from prism.explorer.sample import Sample
from prism.explorer.search import chance_scores
from prism.explorer.steer import EXAMPLES, OFFERED, RANDOM, Continuation
from prism.features import FeatureMatrix
from prism.models import get_spec

SENTENCE = "The cat sat on the mat, and the dog looked at it."


class Letters:
    """A tokenizer of letters; texts of up to three are one token."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text.strip()] if len(text) > 3 else [0]}

    def decode(self, ids):
        return "".join(map(chr, ids))

    def convert_ids_to_tokens(self, token):
        return chr(token)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer("mini")


@pytest.fixture
def small() -> Reading:
    """Eight texts of four tokens; feature 0 fires on ' The' and 'the', 1 on everything, 2 in one text of Python."""
    tokens = [" The", "the", "b", "\n"] * 8
    dense = np.zeros((32, 4), np.float32)
    dense[[i for i, token in enumerate(tokens) if token.strip().lower() == "the"], 0] = 2.0
    dense[:, 1] = 1.0
    dense[4:8, 2] = [1, 2, 3, 4]
    text = np.repeat(np.arange(8), 4)
    table = pd.DataFrame(
        {
            "text": text,
            "position": np.tile(np.arange(1, 5), 8),
            "token_id": 0,
            "token": pd.Categorical(tokens),
            "category": np.array([*CATEGORIES[:2] * 3, "corpus", "corpus"])[text],
        }
    )
    matrix = FeatureMatrix(sp.csr_matrix(dense), table)
    known = SimpleNamespace(
        labels={0: Label("2-res", 0, "the word 'the'", "Ada", "2025-03-31", "hypothesis", "a 'the'")}
    )
    return Reading(None, SimpleNamespace(tokenizer=Letters()), None, Sample(matrix, text < 6, text % 2 == 1), known)


def test_features_are_described_by_their_strongest_tokens(small):
    assert small.fires_on(0) == "·The  the"
    assert small.fires_on(2) == "↵  b  the", "strongest first"
    assert small.fires_on(3) == "nothing in the sample"
    frame = small.describe(pd.DataFrame({"feature": [2, 0]}))
    assert frame["density"].tolist() == [4 / 32, 16 / 32] and frame["fires_on"].tolist()[1] == "·The  the"


def test_a_label_is_somebodys_hypothesis_or_what_counting_found(small):
    assert small.label(0) == {"by": "hypothesis by Ada", "text": "the word 'the'"}
    assert small.label(1) == {"by": "automatic", "text": small.sample.explained(1).brief()}
    assert small.label(3) == {}, "it never fires"
    html = fragment("row", rows(small, pd.DataFrame({"feature": [0]}))[0])
    assert "hypothesis by Ada:</span> <bdi>the word &#39;the&#39;</bdi>" in html


def test_a_row_shows_number_measures_and_the_strongest_window(small):
    table = by_token(small, "the").table.assign(activation=[1.5, 1.0, 4.0], of_maximum=[0.75, 1.0, np.nan])
    first, _, last = rows(small, table)
    assert first["feature"] == 0 and first["numbers"][:2] == ["activation 1.5", "75% of its maximum"]
    assert first["numbers"][-1] == "fires on 50% of tokens" and "F1 1.00" in first["numbers"]
    assert last["numbers"][1] == "maximum unknown"
    parts = [piece.parts[0][:2] for piece in last["window"]]
    assert parts == [(" The", 1), ("the", 2), ("b", 3), ("\n", 4)], "of one text"
    assert [piece.share for piece in last["window"]] == [0.25, 0.5, 0.75, 1], "shaded by its maximum"
    html = fragment("row", last)
    assert '<b title="↵ · activation 4.000 · position 4"' in html and ">The<" in html, "as it is read, flush"
    assert small.window(3) == [] and "silent in the sample" in fragment(
        "row", rows(small, pd.DataFrame({"feature": [3]}))[0]
    )


def test_the_order_by_hand():
    """Share (at most 1) × −log10(density): 0.5 × 3, 1 × 1, 1 × 2, unknown; of the 20 of a rare one, 3 is the least."""
    activation = np.array([10.0, 90.0, 20.0, 50.0, 2.9])
    share = np.array([0.5, 1.0, 1.3, np.nan, 1.0])
    density = np.array([0.001, 0.1, 0.01, 0.0, 0.0001])
    assert special_order(activation, share, density).tolist() == [2, 0, 1, 3], "the last is 7.5: 15 % of 50, not of 90"
    activation[3] = 20
    assert special_order(activation, share, density).tolist() == [2, 0, 1, 3]
    activation[4] = 3
    assert special_order(activation, share, density).tolist() == [4, 2, 0, 1, 3]
    assert special_order(activation[:2], share[:2], np.array([0.5, 0.5])).tolist() == [1, 0], "none is rare: all count"


def test_features_of_one_token(small):
    assert small.one_token.tolist() == [True, False, False, False], "' The' and 'the' are one; 3 never fires"
    once = np.zeros((32, 4), np.float32)
    once[0, 0] = once[2, 1] = once[6, 1] = once[3, 2] = 1
    few = replace(small, sample=replace(small.sample, matrix=FeatureMatrix(sp.csr_matrix(once), small.matrix.table)))
    assert few.one_token.tolist() == [False, True, False, False], "one firing says nothing, two may"


def test_search_by_token_ranks_by_f1_over_both_cases_and_with_or_without_a_space(small):
    found = by_token(small, " THE ")
    assert found.table["feature"].tolist() == [0, 1, 2]
    assert found.table["precision"].tolist() == [1, 0.5, 0.5]
    assert found.table["recall"].tolist() == [1, 1, 2 / 16]
    assert found.table["f1"].tolist() == pytest.approx([1, 2 / 3, 2 * 2 / (4 + 16)])
    assert "16 occurrences" in found.note and "0.5000" in found.note, "what a feature that fires anywhere would have"


def test_tokens_that_are_rare_or_several_are_refused_with_what_would_do(small):
    with pytest.raises(ValueError, match="'mat' occurs 0 times in the sample"):
        by_token(small, "mat")
    with pytest.raises(ValueError, match=r"'theb' is 4 tokens for this model \('t', 'h', 'e', 'b'\)"):
        by_token(small, "theb")
    with pytest.raises(ValueError, match="Near to it are 'the'"):
        by_token(small, "teh")


def test_parts_of_characters_can_be_searched_for(explorer):
    with pytest.raises(ValueError, match=r"'🦊' is \d tokens for this model \('‹F09F›', '‹A6›', '‹8A›'\)"):
        by_token(explorer.reading(), "🦊")
    found = by_token(explorer.reading(), "‹F09F›").table
    assert found["recall"].iloc[0] > 0


def test_the_name_of_a_special_token_is_text(explorer):
    matrix, end = explorer.texts(["Hello <|endoftext|> there"]), explorer.reading().model.tokenizer.eos_token_id
    assert end not in matrix.table["token_id"].tolist()
    assert "".join(matrix.table["token"].astype(str)) == "Hello <|endoftext|> there"


def test_search_by_category_takes_names_and_titles(small):
    first, second = list(categories(small).values())
    found = by_category(small, second.upper())
    row = found.table.iloc[0]
    assert (row["feature"], row["inside"], row["outside"], row["score"]) == (2, 1, 0, 1)
    assert "corpus" not in categories(small), "documents without a label are no category"
    with pytest.raises(ValueError, match="No feature fires on more texts of"):
        by_category(small, first)
    with pytest.raises(ValueError, match=f"did you mean '{first}'"):
        by_category(small, first[:-1] + "_")


def test_search_by_number(small):
    assert by_number(small, " 2 ").table["feature"].tolist() == [2]
    with pytest.raises(ValueError, match="'two' is no number; features go from 0 to 3"):
        by_number(small, "two")
    with pytest.raises(IndexError, match="choose from 0 to 3"):
        by_number(small, "4")


def test_what_chance_reaches_is_hand_countable(small):
    """Common features are left out (0 and 1 here), so only feature 2 can score, and only in passages of its text."""
    assert small.common.tolist() == [True, True, False, False]
    scores = chance_scores(small, np.array([4]), draws=200)
    assert set(scores) == {0.0, 400.0}, "it is text 1, whole, or it is not"
    assert chance_scores(small, np.array([3]), draws=200).max() == 300, "texts are cut after their first tokens"
    assert 0.05 < (scores > 0).mean() < 0.25
    assert chance_scores(small, np.array([9]), draws=50).max() == 400, "longer than any text: all of it"
    assert (chance_scores(small, np.array([2, 2]), draws=20) == chance_scores(small, np.array([2, 2]), draws=20)).all()


# --- on mini ---------------------------------------------------------------------------------------------------------


def test_names_and_the_default(explorer):
    assert explorer.names[0] == explorer.default == get_spec("mini").default_sae
    assert sorted(explorer.names) == sorted(get_spec("mini").saes)
    assert Explorer("mini", "1-res").names[0] == "1-res"
    with pytest.raises(ValueError, match="did you mean '2-res'"):
        Explorer("mini", "2-ress")


def test_a_sentence_is_read_token_by_token(explorer):
    matrix = explorer.texts([SENTENCE])
    assert "".join(matrix.table["token"].astype(str)) == SENTENCE
    row = explorer.at_token(matrix, 3, k=5)
    dense = matrix.values[3].toarray().ravel()
    assert row["activation"].tolist() == sorted(dense, reverse=True)[:5]
    assert (dense[row["feature"]] == row["activation"]).all()
    peak = explorer.reading().matrix.max_activation()[row["feature"]]
    assert np.allclose(row["of_maximum"], row["activation"] / peak)
    with pytest.raises(IndexError, match=f"choose from 0 to {matrix.n_tokens - 1}"):
        explorer.at_token(matrix, matrix.n_tokens)


def test_the_features_of_a_text_are_listed_once_at_their_peak(explorer):
    matrix = explorer.texts([SENTENCE])
    found, dense = explorer.in_text(matrix, k=1000), matrix.values.toarray()
    assert sorted(found["feature"]) == np.flatnonzero(dense.max(0)).tolist()
    assert found["activation"].tolist() == sorted(dense.max(0)[found["feature"]], reverse=True)
    tokens = matrix.table["token"].astype(str).to_numpy()
    assert all(tokens[dense[:, f].argmax()] == token for f, token in zip(found["feature"], found["token"], strict=True))


def test_what_is_special_about_a_text_comes_first(explorer):
    matrix, reading = explorer.texts([SENTENCE]), explorer.reading()
    for firing in (reading.firing(matrix), reading.firing(matrix, slice(3, 4))):
        found, rule = ordered(reading, firing, "special", hide=False)
        score = np.minimum(found["of_maximum"], 1) * -np.log10(found["density"])
        assert score.is_monotonic_decreasing and 0 < len(found) < len(firing) and "rarity" in rule
        left_out = firing[~firing["feature"].isin(found["feature"])]
        rare = firing["activation"][firing["density"] <= RARE].max()
        assert left_out["activation"].max() < LEAST * rare <= found["activation"].min()
        assert ordered(reading, firing, "strongest", hide=False)[0].equals(firing)
    with pytest.raises(ValueError, match="choose from special, strongest"):
        ordered(reading, firing, "loudest", hide=False)


def test_a_character_of_several_tokens_is_one_place(explorer):
    matrix, reading = explorer.texts(["so 🦊 lol"]), explorer.reading()
    pieces = whole_characters(matrix.table["token"].tolist())
    assert [text for text, _ in pieces][:2] == ["so", " 🦊"] and matrix.n_tokens > len(pieces)
    part = pieces[1][1]
    firing = reading.firing(matrix, part).set_index("feature")["activation"]
    assert (firing == matrix.values[part].max(axis=0).toarray().ravel()[firing.index]).all()
    found = reading.firing(matrix)
    emoji = matrix.values[part].max(axis=0).toarray().ravel() == matrix.values.max(axis=0).toarray().ravel()
    assert (found["token"][emoji[found["feature"]]] == " 🦊").any() and not found["token"].str.contains("‹").any()


def test_features_of_one_token_are_hidden_and_counted(explorer):
    reading = explorer.reading()
    firing = reading.firing(explorer.texts([SENTENCE]))
    shown, rule = ordered(reading, firing, "strongest", hide=True)
    hidden = set(firing["feature"]) - set(shown["feature"])
    assert hidden == {f for f in firing["feature"] if reading.one_token[f]} and len(hidden) > 3
    assert f"Hidden: {len(hidden)} features of one token" in rule
    tokens = reading.matrix.table["token"].astype(str)
    for feature in list(hidden)[:5]:
        rows = reading.statistics.top_rows[feature]
        assert len({tokens[row].strip().lower() for row in rows[rows >= 0]}) == 1


@pytest.mark.parametrize(
    "texts, said",
    [
        ([""], "no text yet"),
        ([" \n "], "no text yet"),
        (["x" * (MAX_CHARACTERS + 1)], "characters; at most"),
        (["я" * 700], "tokens; mini reads at most 255"),
    ],
)
def test_texts_out_of_bounds_are_refused_in_a_sentence(explorer, texts, said):
    for ask in (explorer.texts, lambda t: explorer.compare(t[0], ["2-res"]), lambda t: steer(explorer, t[0], 5)):
        with pytest.raises(ValueError, match=said):
            ask(texts)


def test_a_page_is_the_gallerys(explorer):
    page = explorer.page(5, link_to=lambda feature: f"other{feature}.html")
    assert page.startswith("<!doctype html>") and "<h1>Feature 5</h1>" in page and "Explanation" in page
    assert 'href="other' in page
    with pytest.raises(IndexError, match="choose from 0 to 3071"):
        explorer.page(3072)


def test_concepts_are_held_against_random_passages(explorer):
    texts = "def f(x):\n    return x\nfor i in range(10):\n    print(i)"
    found = search(explorer, "concept", texts)
    assert found.table["composite_score"].is_monotonic_decreasing and "4 texts" in found.note
    assert (found.table["background_share"] <= 0.25).all()
    assert not explorer.reading().common[found.table["feature"]].any()
    assert f"{found.table['composite_score'].iloc[0]:,.0f} here" in found.note
    times = re.search(r"in (\d+) of 20 random sets of beginnings", found.note)[1]
    chance = chance_scores(explorer.reading(), np.bincount(explorer.texts(texts.splitlines()).table["text"]))
    assert int(times) == (chance >= found.table["composite_score"].iloc[0]).sum()


def test_questions_that_cannot_be_answered(explorer):
    with pytest.raises(ValueError, match="choose from number, category, token, concept"):
        search(explorer, "colour", "red")
    for way in ("number", "category", "token", "concept"):
        with pytest.raises(ValueError, match="nothing to search for"):
            search(explorer, way, "  \n")
    with pytest.raises(ValueError, match="no SAE"):
        search(explorer, "number", "1", sae="../../etc/passwd")


@pytest.mark.parametrize("text", ["\ud83d", "half of it \ude00 here", "\ud83d\ude00"])
def test_half_of_a_character_is_refused_in_one_sentence_wherever_it_is_typed(explorer, text):
    said = r"has half of a character, '.u[0-9a-f]{4}' at place \d+; give the whole character"
    asked = [
        lambda: explorer.texts([text]),
        lambda: explorer.batch(["fine", text]),
        lambda: steer(explorer, text, 831),
        lambda: explorer.compare(text, [explorer.default]),
        *(lambda way=way: search(explorer, way, text) for way in ("number", "category", "token", "concept")),
    ]
    for ask in asked:
        with pytest.raises(ValueError, match=said) as error:
            ask()
        assert type(error.value) is ValueError and str(error.value).isascii()


def test_what_a_sentencepiece_model_wrote_has_its_spaces(sentencepiece):
    ids = sentencepiece("provides is the other", add_special_tokens=False)["input_ids"]
    written = Continuation("unchanged", [token_text(sentencepiece, i) for i in ids], np.zeros(len(ids)), 0.0)
    assert written.text == " provides is the other"


def test_steering_writes_three_continuations_on_one_noise(explorer):
    reading = explorer.reading()
    feature = int(explorer.at_token(explorer.texts(["a dog"]), 1)["feature"].iloc[0])
    none, changed, control = steer(explorer, "The dog", feature, "add", 0.0, n_tokens=8)
    assert none.tokens == changed.tokens == control.tokens, "at strength 0 nothing changes"
    none, changed, control = steer(explorer, "The dog", feature, "add", 8.0, n_tokens=8)
    assert none.text != changed.text and (none.label, control.label) == ("unchanged", RANDOM)
    again = steer(explorer, "The dog", feature, "add", 8.0, n_tokens=8)
    assert changed.tokens == again[1].tokens and control.tokens == again[2].tokens
    read = explorer.texts(["The dog" + none.text])
    assert read.table["token"].astype(str).tolist()[-8:] == none.tokens, "the text is cut into the same tokens again"
    assert np.allclose(read.column(feature)[-8:], none.activations, atol=1e-3)
    ids = explorer.batch(["The dog" + none.text]).tokens
    log_p = reading.model(ids, return_type="logits").log_softmax(-1)[0, :-1]
    expected = -log_p.gather(-1, ids[0, 1:, None])[-8:].mean()
    assert none.nats == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("how", HOWS)
def test_every_way_of_steering_has_a_control_of_its_kind(explorer, how):
    found = steer(explorer, "Once upon a time", 831, how, strength=1.5, n_tokens=2, temperature=0)
    assert [c.label for c in found][:2] == ["unchanged", "feature 831"]
    kind = "feature" if how in ("clamp", "suppress") else "a random direction"
    assert found[2].label.startswith(f"control: {kind}") and found[2].label != "control: feature 831"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"how": "shout"}, "choose from add, clamp, suppress, project out"),
        ({"strength": 21}, "choose from -20 to 20"),
        ({"strength": float("nan")}, "strength"),
        ({"n_tokens": 0}, "choose from 1 to 60"),
        ({"n_tokens": 61}, "choose from 1 to 60"),
        ({"temperature": -1}, "choose from 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(explorer, settings, said):
    with pytest.raises(ValueError, match=said):
        steer(explorer, "Once", 831, **settings)


def test_what_was_written_is_read_in_whole_characters():
    assert Continuation("unchanged", ["so", " ‹F09F›", "‹98›", "‹82›", "‹E2›"], np.zeros(5), 0.0).text == "so 😂…"


@pytest.mark.parametrize("model", EXAMPLES)
def test_prepared_examples_can_be_asked(model):
    spec = get_spec(model)
    assert len({one.title for one in EXAMPLES[model]}) == len(EXAMPLES[model])
    for one in EXAMPLES[model]:
        assert spec.sae(one.sae).name == one.sae and one.prompt.strip() and 0 < abs(one.strength) <= OFFERED
        assert one.strength % 0.25 == 0, "a place of the sliders"
        assert one.feature in read_labels(spec.sae(one.sae), 10**9), "it was read"


def test_steering_needs_room_and_a_feature_that_fires(explorer):
    with pytest.raises(ValueError, match="room for [0-9]+ tokens, not 60: shorten it"):
        steer(explorer, "a " * 220, 831, n_tokens=60)
    reading = explorer.reading()
    silent = replace(reading.statistics, top_values=np.zeros_like(reading.statistics.top_values))
    quiet = Explorer("mini")
    quiet._readings["2-res"] = Reading(reading.spec, reading.model, reading.sae, reading.sample, reading.dictionary)
    quiet._readings["2-res"].__dict__["statistics"] = silent
    with pytest.raises(ValueError, match="Feature 831 never fires in the sample"):
        steer(quiet, "Once", 831)


def test_comparing_saes_gives_the_numbers_of_evaluate(explorer):
    from prism.evaluation import evaluate

    found = explorer.compare(SENTENCE, ["2-res", "2-res-x4", "2-res"])
    assert found["sae"].tolist() == ["2-res", "2-res-x4"]
    reading = explorer.reading()
    wanted = evaluate(reading.model, reading.sae, explorer.batch([SENTENCE]))
    row = found.iloc[0]
    assert (row["l0"], row["explained_variance"]) == (wanted.l0, wanted.explained_variance)
    assert row["nats_lost"] == pytest.approx(wanted.delta_ce) and row["nats_lost_by_mean"] > row["nats_lost"]
    with pytest.raises(ValueError, match="at least one SAE"):
        explorer.compare(SENTENCE, [])
    with pytest.raises(ValueError, match="no SAE"):
        explorer.compare(SENTENCE, ["9-res"])
