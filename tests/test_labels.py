"""Written labels: where they lie, what a line must say, and which line is wrong."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from prism.explorer import Explorer
from prism.explorer.labels import Label, read_labels
from prism.files import DamagedFile
from prism.models import SaeSpec, get_spec

LINE = {
    "sae": "2-res",
    "feature": 12,
    "label": "das Subjekt einer Frage <b>",
    "author": "Ada L.",
    "date": "2025-03-31",
    "status": "hypothesis",
    "refuted_by": "a question whose subject leaves it silent",
}


@pytest.fixture
def sae(tmp_path: Path) -> SaeSpec:
    """An SAE's place among another, in the folder of a model."""
    for name in ("2-res", "1-res"):
        (tmp_path / "saes" / name).mkdir(parents=True)
    return SaeSpec("2-res", "blocks.2.hook_resid_pre", "", folder=tmp_path / "saes" / "2-res")


def write(sae: SaeSpec, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (sae.folder.parents[1] / "labels.jsonl").write_text(text, encoding="utf-8")


def test_there_need_be_none(sae):
    assert read_labels(sae, 20) == {} == read_labels(get_spec("mini").sae(), 3_072)
    assert read_labels(get_spec("gpt2-small").sae(), 24_576) == {}, "of the hub: no folder of ours"


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_sae_has_its_own(sae, end):
    odd = LINE | {"feature": 0, "label": "line\u2028separator"}
    write(sae, LINE, odd, LINE | {"sae": "1-res", "feature": 99_999}, *[""] * bool(end))
    assert read_labels(sae, 20) == {12: Label(**LINE), 0: Label(**odd)}
    assert asdict(read_labels(sae, 20)[12]) == LINE


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "line 2: Expecting value"),
        ("{", "line 2: Expecting"),
        ("[" * 100_000, "line 2"),
        ([1], "line 2: it is no object with the fields sae, feature, label, author, date, status, refuted_by"),
        ({**LINE, "note": ""}, "line 2: it is no object with the fields"),
        ({k: v for k, v in LINE.items() if k != "refuted_by"}, "line 2: it is no object with the fields"),
        (LINE | {"feature": "12"}, "line 2: feature is '12', not a number from 0"),
        (LINE | {"feature": True}, "line 2: feature is True, not a number from 0"),
        (LINE | {"feature": -1}, "line 2: feature is -1"),
        (LINE | {"feature": 20}, "line 2: '2-res' has no feature 20, only 0 to 19"),
        (LINE | {"label": " "}, "line 2: label is ' ', not some words"),
        (LINE | {"author": None}, "line 2: author is None"),
        (LINE | {"status": "true"}, "line 2: status is 'true', not 'hypothesis'"),
        (LINE | {"date": "31 March"}, "line 2: Invalid isoformat string: '31 March'"),
        (LINE | {"sae": "2-rse"}, "line 2: no SAE '2-rse'; choose from 1-res, 2-res"),
        (LINE, "line 2: feature 12 of '2-res' has a label above"),
    ],
)
def test_a_wrong_line_is_named(sae, line, why):
    write(sae, LINE, line, LINE | {"feature": 3})
    with pytest.raises(DamagedFile) as error:
        read_labels(sae, 20)
    assert "labels.jsonl' is damaged: " in str(error.value) and why in str(error.value)


def test_what_is_no_text_is_named(sae):
    (sae.folder.parents[1] / "labels.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedFile, match="labels.jsonl"):
        read_labels(sae, 20)


def test_the_explorer_shows_them(monkeypatch):
    label = Label(**LINE)
    monkeypatch.setattr("prism.explorer.sample.read_labels", lambda sae, d_sae: {12: label})
    explorer = Explorer("mini")
    assert explorer.reading().label(12) == {"by": "hypothesis by Ada L.", "text": LINE["label"]}
    page = explorer.page(12)
    assert "das Subjekt einer Frage &lt;b&gt;" in page and "leaves it silent" in page and "by Ada L." in page
    assert "Hypothesis" not in explorer.page(13)
