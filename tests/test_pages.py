"""Feature pages and the gallery's index: valid, escaped, reachable by keyboard, readable in every shade."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from prism import explorer
from prism.explorer.gallery import gallery_index
from prism.explorer.labels import Label
from prism.explorer.markup import asset
from prism.features import FeatureMatrix
from prism.visualization.tokens import shaded, templates

HOSTILE = ["</script><img src=x onerror=alert(1)>", '"><svg onload="x">', "<b>", "&amp;", "\x00", "' style='x", "\n"]
VOID = {"meta", "br", "wbr", "img", "input", "link", "hr"}


class Checker(HTMLParser):
    """Every tag is closed in order; keeps the tags with their attributes, the links and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def matrix():
    """12 texts of the 7 hostile tokens; feature 0 fires everywhere, 1 on some, 2 twice, 3 never."""
    dense = np.zeros((84, 4), np.float32)
    dense[:, 0] = np.arange(84) + 1
    dense[::7, 1] = np.arange(12) + 0.5
    dense[:2, 2] = 1
    table = pd.DataFrame(
        {
            "text": np.repeat(np.arange(12), 7),
            "position": np.tile(np.arange(1, 8), 12),
            "token_id": np.tile(np.arange(7), 12),
            "token": HOSTILE * 12,
            "category": np.repeat([HOSTILE[0], "math"], 42),
        }
    )
    return FeatureMatrix(sp.csr_matrix(dense), table)


def page_of(matrix, feature=0, **options):
    decoder, unembed = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
    return explorer.feature_page(feature, matrix, decoder, unembed.T[:, :3] @ unembed[:3], HOSTILE, **options)


@pytest.mark.parametrize("feature", [0, 1, 2, 3])
def test_a_page_is_balanced_and_runs_nothing(matrix, feature):
    options = {"title": HOSTILE[0], "explanation": HOSTILE[1], "scores": {HOSTILE[0]: 0.5}, "index": "index.html"}
    checker = Checker(page_of(matrix, feature, **options))
    allowed = {
        "html",
        "head",
        "body",
        "meta",
        "title",
        "style",
        "a",
        "main",
        "header",
        "nav",
        "section",
        "div",
        "p",
        "h1",
        "h2",
        "h3",
        "small",
        "b",
        "span",
        "wbr",
        "br",
        "table",
        "tr",
        "th",
        "td",
        "code",
        "svg",
        "rect",
        "details",
        "summary",
        "bdi",
    }
    assert {tag for tag, _ in checker.tags} <= allowed
    assert not [name for _, attributes in checker.tags for name in attributes if name.startswith("on")]
    assert all(link == "index.html" or link.startswith("#") for link in checker.links)
    assert HOSTILE[0] in checker.text and HOSTILE[1] in checker.text, "shown as they are, as text"


@pytest.mark.parametrize("feature", [0, 1, 2, 3])
def test_a_feature_across_its_range_is_balanced_and_shows_one_firing_of_each_group(matrix, feature):
    shown = explorer.explore_feature(matrix, feature, k=4, profile=False, across=True).data
    checker, heads = Checker(shown), re.findall("<h2>(.+?)</h2>", shown)
    assert not {"script", "img", "html", "body", "details"} & {tag for tag, _ in checker.tags}
    assert not [name for _, attributes in checker.tags for name in attributes if name.startswith("on")]
    assert heads == {0: ["Across the range"], 1: ["Across the range"], 2: ["Strongest texts"], 3: []}[feature]
    assert shown.count('class="example"') == 4 if feature < 2 else "Categories" not in shown
    assert "Categories" in explorer.explore_feature(matrix, 0, across=True).data


def test_anchors_lead_somewhere_and_the_first_one_skips(matrix):
    checker = Checker(page_of(matrix, explanation="It fires."))
    names = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(names) == len(set(names))
    anchors = [link[1:] for link in checker.links if link.startswith("#")]
    assert anchors[0] == "content" and set(anchors) <= set(names)
    assert {"explanation", "density", "strongest-texts", "across-the-range"} <= set(anchors)
    assert all(section["aria-labelledby"] in names for section in checker.named("section"))


def test_every_picture_is_described(matrix):
    labels = [svg["aria-label"] for svg in Checker(page_of(matrix, 1)).named("svg")]
    assert len(labels) == 2
    assert labels[0] == "Histogram of 12 activations from 0 to 11.50; half of them are below 6.00"
    assert "3 features from 2.381% to 100.000%; this one: 14.286%" in labels[1]


def test_density_says_how_many_fire_more_rarely(matrix):
    assert "among the 3 of 4 that fire in this sample; 33% of them fire more rarely" in page_of(matrix, 1)
    assert "Density</h2>" not in page_of(matrix, 3), "a dead feature has no place among those that fire"


def test_values_are_reachable_without_a_mouse(matrix):
    page = page_of(matrix, 1)
    examples = page.split('<div class="example">')[1:]
    assert len(examples) == 10 + 7, "the strongest, and one or two of each of five groups"
    for example in examples:
        hovers = [float(v) for v in re.findall(r'title="[^"]*activation ([\d.]+)', example)]
        listed = [float(v) for v in re.findall(r"<td>\d+</td><td>([\d.]+)</td>", example.split("<details>")[1])]
        assert listed == [value for value in hovers if value > 0] != []


def test_other_features_are_linked_where_they_have_a_page(matrix):
    page = page_of(matrix, link_to=lambda other: f'f{other}".html' if other != 2 else None)
    assert '<a href="f1&#34;.html">feature 1</a>' in page and '<th scope="row">feature 2</th>' in page
    assert "feature 1</a>" not in page_of(matrix)
    assert "javascript" not in page_of(matrix, link_to=lambda other: f"java\nscript:alert({other})")


def link(address, text):
    return str(templates().get_template("tokens.html").module.link(address, text))


@pytest.mark.parametrize("address", ["javascript:alert(1)", " JavaScript:x", "java\tscript:x", "data:text/html,x"])
def test_links_that_could_run_code_are_text(address):
    assert link(address, "<i>") == "&lt;i&gt;"


def test_ordinary_links_are_links():
    for address in ("page_1.html", "a/b.html#c:d", "https://example.org/x:y", "#top"):
        assert link(address, "x") == f'<a href="{address}">x</a>'


def test_explanation_shows_the_scores_it_has(matrix):
    scored = Checker(page_of(matrix, explanation="Fires on x.", scores={"detection": 0.914, "fuzzing": np.nan})).text
    assert "Fires on x." in scored and "detection0.91" in scored and "fuzzing" not in scored
    assert "<p>automatic, not scored: it fires in too few places of these texts, or in too many</p>" in page_of(
        matrix, explanation="Fires on x."
    )
    assert "Explanation</h2>" not in page_of(matrix)


def test_a_hypothesis_stands_with_its_author_and_what_would_refute_it(matrix):
    label = Label("2-res", 0, HOSTILE[0], HOSTILE[1], "2025-03-31", "hypothesis", HOSTILE[2])
    text = Checker(page_of(matrix, hypothesis=label)).text
    assert f"Hypothesisby {HOSTILE[1]}, 2025-03-31{HOSTILE[0]}It would be refuted by: {HOSTILE[2]}" in text
    assert "Hypothesis" not in page_of(matrix)


def test_quoted_tokens_of_another_script_leave_their_neighbourhood_in_order(matrix):
    page = page_of(matrix, explanation='Fires on "ש" (67%), "<b>" (9%).')
    assert "<bdi>&#34;ש&#34;</bdi> (67%), <bdi>&#34;&lt;b&gt;&#34;</bdi> (9%)." in page


def test_shaded_tokens_are_readable_on_both_grounds():
    """WCAG's contrast of letters on the shade of orange that they stand on is at least 4.5, light and dark."""

    def luminance(colour):
        channel = np.array(colour) / 255
        channel = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
        return channel @ [0.2126, 0.7152, 0.0722]

    def rgb(text):
        return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])

    dark = re.search(r"dark\)\{\.prism-page\{--bg:(#\w{6})\}", asset("document.css"))[1]
    assert ".prism-tokens span[style]{color:#fff}" in asset("document.css")
    for ground, ink in (("#ffffff", "#1d2329"), (dark, "#ffffff")):
        for share in np.linspace(0.01, 1, 100):
            html = str(templates().get_template("tokens.html").module.shading(shaded(["x"], [share], maximum=1.0)))
            shade = np.array([int(v) for v in re.search(r"rgba\((\d+),(\d+),(\d+)", html).groups()])
            light = luminance(share * shade + (1 - share) * rgb(ground))
            letters = luminance(rgb("#000000" if "color:#000" in html else ink))
            assert (max(light, letters) + 0.05) / (min(light, letters) + 0.05) >= 4.5, (ground, share)


def test_index_is_balanced_and_escaped():
    hostile = {"by": HOSTILE[0], "text": HOSTILE[1]}
    features = [
        {
            "feature": 3,
            "page": "a_3.html",
            "label": hostile,
            "numbers": ["random"],
            "window": shaded(HOSTILE, [1.0] * 7),
        },
        {"feature": 4, "page": "a_4.html", "label": {}, "numbers": [HOSTILE[0], "0.75"], "window": []},
    ]
    checker = Checker(gallery_index(features, HOSTILE[0], [HOSTILE[1]]))
    assert [link for link in checker.links if not link.startswith("#")] == ["a_3.html", "a_4.html"]
    assert not {"script", "img"} & {tag for tag, _ in checker.tags} and not checker.named("svg")
    for text in (*HOSTILE[:2], "random", "0.75", "silent in the sample"):
        assert text in checker.text
    assert len(checker.named("li")) == 1 + 2
