"""Figures carry the right data and titles, and HTML is escaped."""

import re

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
import scipy.sparse as sp
import torch

from prism import explorer
from prism import visualization as viz
from prism.analysis import feature
from prism.data import CATEGORIES
from prism.features import FeatureMatrix
from prism.visualization import style
from prism.visualization.tokens import marked, shaded, templates

SCRIPT = "<script>alert(1)</script>"
DENSE = np.zeros((14 * 6, 9), np.float32)  # 14 texts (two a category) of 6 tokens; feature 7 is dead
for text in range(14):
    DENSE[6 * text : 6 * text + 3, text // 2] = (1.0, 2.0 + text, 0.5)  # feature c fires in category c alone
DENSE[:, 8] = np.arange(84) + 1  # fires everywhere


@pytest.fixture
def matrix():
    words = [SCRIPT, " cat", "\n", "\ttab", "é", " the"]
    table = pd.DataFrame(
        {
            "text": np.repeat(np.arange(14), 6),
            "position": np.tile(np.arange(1, 7), 14),
            "token_id": np.tile(np.arange(6), 14),
            "token": words * 14,
            "category": np.repeat(CATEGORIES, 12),
        }
    )
    return FeatureMatrix(sp.csr_matrix(DENSE), table)


# style


@pytest.mark.parametrize("png, expected", [("0", "plotly_mimetype"), ("1", "plotly_mimetype+png")])
def test_use_style_registers_the_template_and_picks_the_renderer(monkeypatch, png, expected):
    before = pio.templates.default, pio.renderers.default
    monkeypatch.setenv("PRISM_PNG", png)
    try:
        viz.use_style()
        assert pio.templates.default == "prism"
        assert pio.renderers.default == expected
        assert pio.templates["prism"].layout.colorway[0] == viz.BLUE
        assert pio.templates["prism"].layout.font.size == 14
    finally:
        pio.templates.default, pio.renderers.default = before


def test_category_colours_are_fixed_distinct_and_extended_for_others():
    assert list(viz.style.CATEGORY_COLOURS) == list(CATEGORIES)
    assert len(set(viz.style.CATEGORY_COLOURS.values())) == 7
    assert style.category_colours(["mine", "math"])["math"] == viz.style.CATEGORY_COLOURS["math"]
    assert "mine" in style.category_colours(["mine"])


def test_category_order_is_fixed_with_others_last():
    assert viz.category_order(["mine", *reversed(CATEGORIES), "math"]) == [*CATEGORIES, "mine"]


# labels


def test_plotly_sees_no_markup_in_labels():
    assert viz.short_label("a <b>bold</b> & more") == "a &lt;b&gt;bold&lt;/b&gt; &amp; more"
    assert len(viz.short_label("word " * 50)) <= 60


# tokens as HTML


def shading(tokens, values, title="", **settings):
    """As a page draws them."""
    return str(templates().get_template("tokens.html").module.shading(shaded(tokens, values, **settings), title))


def test_token_shading_scales_from_transparent_to_full():
    html = shading(["a", "b", "c"], np.array([0.0, 2.0, 4.0]))
    assert '<span title="a · activation 0.000 · position 0">a</span>' in html
    assert re.findall(r"rgba\(230,159,0,([\d.]+)\)", html) == ["0.50", "1.00"]
    assert "rgba(230,159,0,0.25)" in shading(["a"], [1.0], maximum=4.0)


def test_token_shading_escapes_everything_and_shows_white_space():
    html = shading([SCRIPT, ' "x"', "\n", "\t", "\x00"], np.arange(5.0), title=SCRIPT, start=7)
    assert "<script" not in html and html.count("&lt;script&gt;") == 3
    assert "·&#34;x&#34;" in html and "↵<br>" in html and "⇥" in html and "\x00" not in html
    assert "position 7" in html and "position 11" in html


def test_no_token_is_invisible():
    shown = [marked(token) for token in (" a", "\x7f", "\xa0", "\ufe0f", "\u200d\u200d", "❤\ufe0f", "é")]
    assert shown == ["·a", "␡", "⍽", "‹U+FE0F›", "‹U+200D›‹U+200D›", "❤\ufe0f", "é"]
    assert marked("« \xa0a\n", keep=" ") == "« \xa0a↵"


def test_a_window_begins_flush_and_a_continuation_where_its_prompt_ends():
    spans = templates().get_template("tokens.html").module.spans
    for flush, first in ((True, ">the<"), (False, "> the<")):
        html = str(spans(shaded([" the", " dog"], [0.0, 1.0]), " ", flush))
        assert first in html and "> dog<" in html
    assert "> <" in str(spans(shaded([" "], [1.0]), " ", True))  # what fires is never left out


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, 0.0], [float("nan"), 0.0]])
def test_token_shading_without_activation_shades_nothing(values):
    assert "rgba" not in shading(["a", "b"], values)


def test_token_shading_wants_one_value_per_token():
    with pytest.raises(ValueError, match="2 tokens"):
        shading(["a", "b"], [1.0])


# one feature


def test_summary_by_hand(matrix):
    summary = feature.summarise_feature(matrix, 0, k=5)
    assert (summary.firings, summary.n_tokens, summary.maximum) == (6, 84, 3.0)
    assert summary.density == pytest.approx(6 / 84)
    assert summary.top_token_share == pytest.approx(1 / 3)
    assert list(summary.categories["category"]) == list(CATEGORIES)
    assert list(summary.categories["share_firing"]) == [1.0] + [0.0] * 6
    assert summary.categories["mean_max"][0] == pytest.approx(2.5)
    assert list(summary.examples["text"]) == [1, 0] and list(summary.examples["activation"]) == [3.0, 2.0]


def test_summary_of_a_dead_and_of_a_missing_feature(matrix):
    assert feature.summarise_feature(matrix, 7).firings == 0
    assert "is dead in this sample" in explorer.explore_feature(matrix, 7).data
    with pytest.raises(IndexError, match="0 to 8 .the nearest is 8"):
        feature.summarise_feature(matrix, 9)


def test_top_logits_by_hand_and_from_torch():
    unembed = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]], requires_grad=True)
    frame = feature.top_logits(torch.tensor([1.0, 5.0]), unembed, ["a", "b", "c"], k=2)
    assert list(frame["token"]) == ["c", "b", "a", "b"] and list(frame["side"]) == ["top"] * 2 + ["bottom"] * 2
    assert list(frame["logit"]) == [3.0, -1.0, -2.0, -1.0]
    with pytest.raises(ValueError, match="do not fit"):
        feature.top_logits([1.0], unembed, ["a", "b", "c"])


def test_co_active_and_decoder_neighbours_by_hand(matrix):
    assert feature.co_active(matrix, 0).to_dict("records") == [{"feature": 8, "jaccard": 6 / 84, "count": 6}]
    assert feature.co_active(matrix, 7).empty
    decoder = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    frame = feature.decoder_neighbours(decoder, 0, k=2)
    assert list(frame["feature"]) == [1, 2] and list(frame["cosine"]) == [1.0, 0.0]


@pytest.fixture
def page(matrix):
    decoder, unembed = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    return explorer.feature_page(
        8,
        matrix,
        decoder,
        unembed.T[:, :7],
        [SCRIPT, "b", "c", "d", "e", "f", "g"],
        title=SCRIPT,
        link='https://example.org/"><script>',
    )


def test_feature_page_has_every_section_and_escapes(page):
    for head in (
        "Activations",
        "Categories",
        "Writes towards",
        "Writes away from",
        "Fires together with",
        "Nearest directions",
        "Strongest texts",
        "Across the range",
    ):
        assert f">{head}</h2>" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'href="https://example.org/&#34;&gt;&lt;script&gt;"' in page


def test_feature_page_needs_no_network_and_no_script(page):
    assert not re.search(r"<(script|link|img|iframe)|\bsrc=|@import|url\(|\bon\w+=", page)
    assert page.startswith("<!doctype html>") and "prefers-color-scheme:dark" in page


def test_feature_page_does_without_decoder_categories_and_a_safe_link(matrix):
    bare = FeatureMatrix(matrix.values, matrix.table.drop(columns="category"))
    page = explorer.feature_page(0, bare, link="javascript:alert(1)")
    assert "javascript:" not in page and "Writes towards" not in page and "Categories" not in page
    assert "is dead in this sample" in explorer.feature_page(7, matrix)


def test_windows_stop_at_the_text_and_examples_are_one_per_text(matrix):
    html = explorer.explore_feature(matrix, 0, k=10).data
    assert html.count('class="example"') == 2
    assert all(len(re.findall("position", part)) == 6 for part in html.split('class="example"')[1:])


def test_explore_feature_names_what_it_shows(matrix):
    assert "<h1>Neuron 7</h1>" in explorer.explore_feature(matrix, 7, name="Neuron").data
    assert "&lt;b&gt;" in explorer.explore_feature(matrix, 7, name="<b>").data
