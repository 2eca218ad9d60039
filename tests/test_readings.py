"""Units read blind: what a reader sees, what a scorer is asked, and what is counted of it."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import lil_matrix

from prism.build.readings import Sizes, Windows, listing, scored, shares, sheets
from prism.features import FeatureMatrix

DOCUMENTS, LENGTH = 40, 30
SIZES = Sizes(documents=DOCUMENTS, units=2, top=3, middle=2, asked=5)


@pytest.fixture(scope="module")
def matrix():
    """80 texts; units 0 and 1 fire on one token of each (unit 1 on token id 300 alone), unit 2 in two texts."""
    rng, n = np.random.default_rng(0), 2 * DOCUMENTS * LENGTH
    ids = rng.integers(100, 300, n)
    values = lil_matrix((n, 3), dtype=np.float32)
    for text in range(2 * DOCUMENTS):
        values[text * LENGTH + int(rng.integers(LENGTH)), 0] = rng.uniform(1, 9)
        place = text * LENGTH + int(rng.integers(LENGTH))
        values[place, 1], ids[place] = rng.uniform(1, 9), 300
    values[5, 2] = values[LENGTH + 5, 2] = 1
    text = np.repeat(np.arange(2 * DOCUMENTS), LENGTH)
    table = pd.DataFrame({"text": text, "position": np.tile(np.arange(1, LENGTH + 1), 2 * DOCUMENTS)})
    return FeatureMatrix(values.tocsr(), table.assign(token_id=ids, token=pd.Categorical(ids.astype(str))))


@pytest.fixture(scope="module")
def made(matrix, mini):
    return sheets({"features": matrix}, mini.tokenizer, SIZES)


def test_living_units_alone_are_read(made):
    assert sorted(one["unit"] for one in made[2].values()) == [0, 1]


def test_the_reader_sees_windows_of_the_first_half_and_no_number(made, matrix, mini):
    read, _, key = made
    own = Windows(matrix, mini.tokenizer, DOCUMENTS)
    for one in read:
        assert set(one) == {"id", "top", "middle"} and (len(one["top"]), len(one["middle"])) == (3, 2)
        column = matrix.column(key[one["id"]]["unit"])
        strongest = sorted(np.flatnonzero(column[: DOCUMENTS * LENGTH]), key=lambda row: -column[row])[:3]
        assert one["top"] == [own.window(row) for row in strongest]
        assert all(window.count("«") == window.count("»") == 1 for window in one["top"] + one["middle"])


def test_a_quiz_asks_for_five_that_fire_and_five_that_do_not_from_the_other_half(made, matrix, mini):
    _, quiz, key = made
    own = Windows(matrix, mini.tokenizer, DOCUMENTS)
    fires = {unit: {own.window(row) for row in np.flatnonzero(matrix.column(unit))} for unit in (0, 1)}
    held = {own.window(row) for row in range(DOCUMENTS * LENGTH, matrix.n_tokens)}
    assert len(quiz) == 4
    for one in quiz:
        truth = key[one["id"]][one["where"]]
        assert sum(truth) == 5 and len(truth) == 10 and set(one["windows"]) <= held
        assert [window in fires[key[one["id"]]["unit"]] for window in one["windows"]] == truth


def test_middle_windows_are_of_middle_rank(made, matrix, mini):
    own = Windows(matrix, mini.tokenizer, DOCUMENTS)
    column = matrix.column(0)
    rows = own.middle(0, True, np.random.default_rng(0), 5)
    held = np.sort(column[DOCUMENTS * LENGTH :][column[DOCUMENTS * LENGTH :] > 0])[::-1]
    assert all(held[24] < column[row] <= held[16] for row in rows)


def test_a_character_of_several_tokens_is_marked_whole(matrix, mini):
    ids = mini.tokenizer.encode("so 🦑 it")
    table = pd.DataFrame({"text": 0, "position": range(1, len(ids) + 1), "token_id": ids, "token": "x"})
    own = Windows(FeatureMatrix(matrix.values[: len(ids)], table), mini.tokenizer, 1)
    parts = [row for row in range(len(ids)) if "🦑" in own.window(row).partition("«")[2].partition("»")[0]]
    assert len(parts) > 1 and not any("�" in own.window(row) for row in range(len(ids)))


def test_answers_are_counted(made):
    _, quiz, key = made
    first, second = key
    readings = [
        {"id": first, "reading": "a sign", "class": "token"},
        {"id": second, "reading": "", "class": "none"},
    ]
    right = {"id": first, "where": "top", "fires": key[first]["top"]}
    wrong = {"id": first, "where": "middle", "fires": [not fires for fires in key[first]["middle"]]}
    table = scored(key, readings, [right, wrong])
    assert table["top"].tolist()[0] == 10 and table["middle"].tolist()[0] == 0 and table["top"].isna().tolist()[1]
    row = shares(table).iloc[0]
    assert row["named"].startswith("50% [") and row["right at the top"].startswith("50%")
    assert row["right in the middle"].startswith("0%") and row["beyond one token"].startswith("0%")
    assert "no reading" in listing(table) and "10/10" in listing(table)
