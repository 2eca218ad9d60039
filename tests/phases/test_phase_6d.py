"""Phase 6d: recorded descriptions and answers, detection by quiz, units and their scores, the figure."""

import json

import numpy as np
import pandas as pd
import pytest
from figure_checks import titled
from scipy.sparse import csr_matrix

from prism import autointerp as ai
from prism.exercises import progress
from prism.features import FeatureMatrix
from prism.models import MODELS, SaeSpec
from prism.phases.phase_6d import exercises, figures, methods

KINDS = ["firing"] * 4 + ["silent"] * 2 + ["same token"] * 2


def quiz(reader, sentence="words", **more):
    return {"sentence": sentence, "windows": list("abcdefgh"), "kinds": KINDS, "reader": reader} | more


RECORDED = {
    7: {
        "quizzes": {
            "label": quiz([True] * 4 + [False] * 4),
            "model": quiz([True, True, True, False, False, False, True, True], model=[1.0] * 8),
        }
    },
    9: {"quizzes": {"label": quiz([True] * 8), "shuffled": quiz([False] * 8)}},
}


def world(texts=80, length=40, seed=0) -> FeatureMatrix:
    """Random words; unit 0 fires on word 3, unit 1 on words 5 and 6, unit 2 everywhere, unit 3 nowhere."""
    ids = np.random.default_rng(seed).integers(0, 50, texts * length)
    values = np.stack([ids == 3, np.isin(ids, [5, 6]), np.ones_like(ids), np.zeros_like(ids)], 1).astype(np.float32)
    table = pd.DataFrame(
        {"text": np.repeat(np.arange(texts), length), "position": np.tile(np.arange(length), texts) + 1}
    )
    return FeatureMatrix(csr_matrix(values), table.assign(token_id=ids, token=[f" w{i}" for i in ids]))


@pytest.fixture(scope="module")
def halves():
    matrix = world()
    held = (matrix.table["text"] >= 40).to_numpy()
    return ai.Examples(matrix.select(~held), 4), ai.Examples(matrix.select(held), 4)


def test_answers_are_one_row_a_window():
    table = methods.answers(RECORDED)
    assert len(table) == 32 and table["of"].unique().tolist() == [
        "the label",
        "SmolLM2 itself",
        "another feature's label",
    ]
    own = table[table["of"] == "SmolLM2 itself"]
    assert own["model"].eq(1).all() and own["reader"].sum() == 5 and table["model"].isna().sum() == 24
    assert methods.answers({}).empty and list(methods.answers({})) == list(table)


def test_detection_of_quizzes_by_hand():
    table = methods.answers(RECORDED)
    found = methods.judged(table.assign(says=table["reader"])).set_index(["of", "feature"])
    assert found.loc[("SmolLM2 itself", 7)].tolist() == [0.875, 0.375]  # 3 of 4 found; 2 of 2 left alone, 0 of 2
    assert found.loc[("the label", 7)].tolist() == [1, 1]
    assert found.loc[("the label", 9)].tolist() == found.loc[("another feature's label", 9)].tolist() == [0.5] * 2
    assert [of for of in methods.DESCRIBERS.values() if of in found.index] == list(
        dict.fromkeys(found.index.get_level_values(0))
    )
    assert methods.judged(methods.answers({}).assign(says=False)).empty


def test_intervals_in_words():
    assert methods.interval(pd.Series([0.5, 0.6, 0.7, np.nan])) == "0.600 [0.352, 0.848]"
    assert methods.interval(pd.Series([0.5])) == methods.interval(pd.Series([], dtype=float)) == "–"


def test_records_of_an_sae_and_of_one_without(tmp_path):
    saes = tmp_path / "saes"
    (saes / "1-res").mkdir(parents=True)
    rows = [{"sae": name, "feature": 3, **RECORDED[7]} for name in ("1-res", "2-res")]
    (tmp_path / methods.RECORDS).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    spec = SaeSpec("1-res", "blocks.1.hook_resid_pre", "", folder=saes / "1-res")
    assert list(methods.records(spec)) == [3] and methods.readings(spec).empty
    assert methods.records(SaeSpec("1-res", "blocks.1.hook_resid_pre", "")) == {}
    assert methods.records(MODELS["mini"].sae()) == {}


def test_the_committed_records_are_whole():
    recorded, labels = methods.records(MODELS["smollm2"].sae()), methods.readings(MODELS["smollm2"].sae())
    table = methods.answers(recorded)
    assert len(recorded) == 20 and {"15-res", "twin"} <= set(labels["kind"])
    sizes = table.groupby(["feature", "of", "kind"]).size().unstack()
    assert (sizes[["firing", "silent", "same token"]] == [6, 3, 3]).all(axis=None) and len(sizes) == 80
    assert table.groupby("of")["model"].count().to_dict() == dict(
        zip(methods.DESCRIBERS.values(), (0, 240, 240, 0), strict=True)
    )
    assert all(record["prompt"].count("\n- ") == 8 for record in recorded.values())


def test_what_the_model_saw():
    prompt = 'Here are words.\n- "a" in "a b"\n- "b" in "b c"\nWhat do they share?'
    assert methods.shown({3: {"prompt": prompt}}, 3) == '- "a" in "a b"\n- "b" in "b c"'
    assert methods.shown({}, 3) == "(nothing is recorded)"


def test_units_are_the_recorded_ones_or_drawn(halves):
    assert methods.units({}, 9, *halves) == [0, 1] == methods.units({1: {}, 2: {}, 0: {}}, 9, *halves)
    with pytest.raises(ValueError, match="1 features fire"):
        methods.units({1: {}, 2: {}}, 9, *halves)


def test_features_that_are_opened_are_those_of_the_text_where_they_are():
    assert methods.opened((7, 8, 2), [1, 2, 3]) == [1, 3, 2] and methods.opened((9, 8, 7), [4]) == [4, 4, 4]


def test_a_verdict_needs_two_features():
    assert (
        methods.above(pd.Series([0.1, 0.11, 0.12, np.nan])) is True and methods.above(pd.Series([0.1, -0.3])) is False
    )
    assert methods.above(pd.Series([0.4])) is methods.above(pd.Series([], dtype=float)) is None


def test_own_explanations_beat_shuffled_ones(halves):
    counter = ai.TokenStatistics(halves[0])
    scores = methods.score_units({unit: counter.explain(unit) for unit in (0, 1)}, halves[1])
    assert scores["unit"].tolist() == [0, 1] and (scores["detection"] > 0.95).all()
    assert (scores["shuffled_detection"] < 0.75).all()


def test_windows_in_a_table(halves):
    windows = halves[1].windows(0, np.flatnonzero(halves[1].fires(0))[:9])
    rows = methods.middle_marked(windows, np.ones(9, bool), "firing")
    assert len(rows) == 3 and all("⟦ w3⟧" in text and kind == "firing" and says == "fires" for kind, text, says in rows)
    assert methods.middle_marked(windows[:0], np.zeros(0, bool), "same token") == []


def test_windows_of_whole_characters_are_preferred(halves):
    windows = halves[1].windows(0, np.flatnonzero(halves[1].fires(0))[:4])
    windows.tokens[:2, 0] = "‹E5›"
    says = np.array([True, True, True, False])
    assert [said for *_, said in methods.middle_marked(windows, says, "firing")] == ["fires", "silent"]
    windows.tokens[:, 0] = "‹E5›"
    assert len(methods.middle_marked(windows, says, "firing", 4)) == 4


def test_where_a_feature_fires_in_a_window(halves):
    told = methods.fires_on(halves[1], 1)
    assert set(told.values()) == {'" w5"', '" w6"'}
    assert all(window.split().count(word.strip('" ')) for window, word in told.items())
    assert methods.fires_on(halves[1], 3) == {}


def test_how_often_a_judge_says_yes():
    shares = methods.yes_shares(methods.answers(RECORDED))
    assert list(shares) == ["firing", "silent", "same token"]
    assert shares.loc["SmolLM2 itself"].tolist() == [0.75, 0, 1]
    assert shares.loc["the label"].tolist() == [1, 0.5, 0.5]  # of two quizzes
    assert list(shares.index) == ["SmolLM2 itself", "the label", "another feature's label"]
    assert methods.yes_shares(methods.answers({})).empty


def test_the_figure_shows_every_feature():
    table = methods.answers(RECORDED)
    fig = titled(figures.describers_figure(methods.judged(table.assign(says=table["reader"])), "A title"))
    assert len(fig.data) == 6 and [note.text for note in fig.layout.annotations][:2] == ["SmolLM2 itself", "the label"]
    own, mean, label = fig.data[:3]
    assert np.allclose(own.y[:2], [0.875, 0.375], atol=figures.SHIFT) and np.allclose(mean.y, [0.875, 0.375])
    assert np.isnan(own.y[2]) and list(label.text) == ["7"] * 3 + ["9"] * 3
    assert len(figures.describers_figure(methods.judged(methods.answers({}).assign(says=False)), "None").data) == 0


def test_a_hypothesis_of_phase_6d(monkeypatch):
    seen = []
    monkeypatch.setattr(progress, "record", lambda *what: seen.append(what))
    exercises.check_hypothesis("a", "b", lambda text: float(text == "a"))
    assert seen == [("6d", "hypothesis", progress.SOLVED)]
