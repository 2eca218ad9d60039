"""The notebook's explorer, driven through its parts: what a reader does, and what is said to mistakes."""

import functools
import re
from html import unescape

import ipywidgets as widgets
import numpy as np
import pytest

from prism.explorer import MAX_CHARACTERS, Explorer, answers, explore, sample
from prism.explorer.markup import fragment
from prism.explorer.rows import ordered, rows
from prism.explorer.steer import EXAMPLES, RANDOM, Example
from prism.explorer.trials import SteerPanel
from prism.explorer.widget import framed

NASTY = "<script>alert(1)</script> <img src=x onerror=alert(2)> & so on"
TEXT = "The court shall hear the claim of the tenant, lol 😂 print('hi')"


@pytest.fixture(scope="module")
def explorer():
    """`mini` on the labelled texts and some documents, to be quick; each page is written once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "EXPLAIN_DOCUMENTS", 40)
        patch.setattr(sample, "SCORE_DOCUMENTS", 20)
        explorer = Explorer("mini")
        explorer.page = functools.cache(explorer.page)
        yield explorer


@pytest.fixture(scope="module")
def shared(explorer):
    return explore(explorer, TEXT)


@pytest.fixture
def widget(shared):
    """One widget for all tests, at its beginning: the first sentence read, nothing pinned, one feature looked at."""
    shared.sae.value, shared.sentence.order.value, shared.sentence.hide.value = "2-res", "special", True
    shared.view.seen.clear()
    read(shared, TEXT)
    for pin in shared.pins.values():
        pin.unpin.click()
    shared.look("2-res", 12)
    shared.search.way.value = "number"
    for way in ("number", "token", "concept"):
        shared.search.queries[way].value = ""
    return shared


def read(widget, text):
    widget.sentence.text.value = text
    widget.sentence.button.click()


def ask(widget, way, query):
    widget.search.way.value = way
    widget.search.queries[way].value = query
    return said(widget.search.note)


def said(html):
    return unescape(re.sub("<[^>]+>", "", html.value))


def shown(page):
    """The feature that a frame's page is about."""
    found = re.search(r"<h1>Feature (\d+)</h1>", unescape(page.value))
    return int(found[1]) if found else None


def pick(some, place):
    some.buttons[place].click()
    return some.features[place]


def listed(explorer, sae, row=None):
    """The features of the list of a text, or of one of its tokens, in the order that it begins with."""
    reading, where = explorer.reading(sae), None if row is None else slice(row, row + 1)
    found, _ = ordered(reading, reading.firing(explorer.texts([TEXT], sae), where), "special", hide=True)
    return found["feature"].tolist()[:12]


def token(widget, text):
    """Choose a token of the sentence by its letters."""
    names = [name for name, _ in widget.sentence.tokens.options]
    widget.sentence.tokens.index = names.index(text)


# at first


def test_it_begins_with_a_feature_of_the_sentence(explorer):
    widget = explore(explorer, TEXT)
    assert isinstance(widget, widgets.Widget)
    feature = shown(widget.view.page)
    assert widget.view.seen == [("2-res", feature)] and feature in widget.sentence.rows.features
    assert feature == widget.sentence.rows.features[0]
    assert widget.sae.value == explorer.default and "2-res is ready" in said(widget.status)
    assert [name for name, _ in widget.sentence.tokens.options][:3] == ["whole text", "The", "·court"]


def test_an_sae_that_cannot_be_loaded_is_a_sentence(explorer, monkeypatch, widget):
    reading = explorer.reading

    def missing(name=None):
        if name == "1-res":
            raise FileNotFoundError("the SAE '1-res' is not on this disk")
        return reading(name)

    monkeypatch.setattr(explorer, "reading", missing)
    widget.sae.value = "1-res"
    assert said(widget.status) == "The SAE '1-res' is not on this disk"
    assert widget.sae.value == widget.current == "2-res" and shown(widget.view.page) == 12
    monkeypatch.setattr(explorer, "reading", lambda name=None: missing("1-res"))
    first = explore(explorer, TEXT)
    assert "not on this disk" in said(first.status) and first.view.seen == []
    read(first, TEXT)
    first.view.pinners["A"].click()
    assert first.pins["A"].pinned is None


def test_another_sae_keeps_the_sentence_and_the_search(explorer, widget):
    ask(widget, "token", "the")
    before, token_names = widget.search.rows.features, widget.sentence.tokens.options
    told = []
    widget.status.observe(lambda change: told.append(unescape(change["new"])), "value")
    widget.sae.value = "2-res-x4"
    assert "Loading 2-res-x4 …" in told[0] and "2-res-x4 is ready" in told[-1]
    assert widget.sentence.tokens.options == token_names and widget.sentence.text.value == TEXT
    assert widget.sentence.rows.features == listed(explorer, "2-res-x4")
    assert widget.search.rows.features != before and len(widget.search.rows.features) == 12
    assert widget.view.seen[-1] == ("2-res-x4", shown(widget.view.page))
    widget.view.back.click()
    assert widget.sae.value == "2-res" and shown(widget.view.page) == 12, "the way back leads to the other SAE"
    assert widget.search.rows.features == before


def test_nothing_of_the_former_sae_stays(explorer, widget, monkeypatch):
    ask(widget, "number", "700")
    read(widget, "")
    widget.sae.value = "1-res"
    assert widget.search.rows.features == [] and widget.steer.sae == "1-res"
    assert said(widget.view.note) == "This page is still of 2-res."
    ask(widget, "token", "the")
    asked = []
    monkeypatch.setattr("prism.explorer.panels.search", lambda *a: asked.append(a))
    widget.search.button.click()
    assert asked == [], "the field has asked it already"


# the sentence


def test_a_token_shows_its_features(explorer, widget):
    token(widget, "·shall")
    row = widget.sentence.tokens.index - 1
    special = listed(explorer, "2-res", row)
    assert widget.sentence.rows.features == special
    widget.sentence.order.value, widget.sentence.hide.value = "strongest", False
    expected = explorer.at_token(explorer.texts([TEXT]), row, 12)
    assert widget.sentence.rows.features == list(expected["feature"]) != special
    second = expected.iloc[1]
    assert widget.sentence.rows.buttons[1].description == str(int(second["feature"]))
    assert widget.sentence.rows.shown[1].value == fragment("row", rows(explorer.reading(), expected)[1])
    assert f"{second['of_maximum']:.0%} of its maximum" in said(widget.sentence.rows.shown[1])
    assert said(widget.sentence.above) == "On ·shall. Order: activation."
    widget.sentence.hide.value = True
    assert "Hidden: " in said(widget.sentence.above)
    widget.sentence.hide.value = False
    widget.sentence.tokens.index = 0
    assert widget.sentence.rows.features == list(explorer.in_text(explorer.texts([TEXT]), 12)["feature"])


def test_a_feature_of_the_list_shows_its_page_and_shades_the_sentence(explorer, widget):
    token(widget, "·shall")
    row, feature = widget.sentence.tokens.index - 1, pick(widget.sentence.rows, 1)
    assert shown(widget.view.page) == feature and said(widget.sentence.legend).startswith(f"Feature {feature} ")
    marked = ["prism-chosen" in box._dom_classes for box in widget.sentence.rows.children]
    assert marked.index(True) == 1 and sum(marked) == 1
    starts = [part.start for _, part in widget.sentence.pieces]
    column = np.maximum.reduceat(explorer.texts([TEXT]).column(feature), starts)
    shaded = {int(place) - 2 for place in re.findall(r"nth-of-type\((\d+)\)", widget.sentence.colours.value)}
    assert shaded == set(column.nonzero()[0]) and row in shaded
    peak = explorer.reading().statistics.maxima[feature]
    assert f"{column.max() / peak:.0%} of its maximum" in said(widget.sentence.legend)
    widget.sentence.follow(None)
    shares = np.maximum.reduceat(explorer.reading().shares(explorer.texts([TEXT])), starts)
    assert "how near a rare feature comes" in said(widget.sentence.legend)
    assert widget.sentence.colours.value.count("nth-of-type") == (shares > 0).sum()


def test_a_character_is_one_button(explorer, widget):
    read(widget, "so 🦊 lol")
    names = [name for name, _ in widget.sentence.tokens.options]
    assert "·🦊" in names and not any("‹" in name for name in names)
    token(widget, "·🦊")
    text, part = widget.sentence.pieces[names.index("·🦊") - 1]
    assert text == " 🦊" and part.stop - part.start > 1
    assert said(widget.sentence.above).startswith("On ·🦊. Order: share of its own maximum")


def test_the_chosen_feature_is_followed_into_another_sentence(explorer, widget):
    read(widget, "print(x)")
    assert said(widget.sentence.legend) == "Feature 12 fires nowhere in this text."
    assert all(option[1] < 5 for option in widget.sentence.tokens.options)


def test_html_and_script_in_a_sentence_are_text(widget):
    read(widget, "<script>alert(1)</script> & <b onclick='x'>")
    for place in range(len(widget.sentence.tokens.options)):
        widget.sentence.tokens.index = place
        told = "".join(part.value for part in walk(widget.sentence) if isinstance(part, widgets.HTML))
        assert set(re.findall(r"<([a-z0-9]+)", told)) <= {"div", "style", "span", "b", "bdi"}, told
    token(widget, "<")
    assert "On &lt;. " in widget.sentence.above.value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "There is no text yet"),
        (" \n ", "There is no text yet"),
        ("a" * (MAX_CHARACTERS + 1), "1,001 characters"),
        ("🦊 " * 200, "reads at most"),
    ],
)
def test_a_bad_sentence_is_answered_and_the_next_one_read(widget, text, why):
    read(widget, text)
    assert why in said(widget.sentence.note) and widget.sentence.rows.layout.visibility == "hidden"
    widget.look("2-res", 5)
    assert shown(widget.view.page) == 5, "the rest goes on"
    read(widget, TEXT)
    assert said(widget.sentence.note) == "" and widget.sentence.rows.layout.visibility == "visible"


# searches


def test_a_number_goes_to_its_page(widget):
    ask(widget, "number", "700")
    assert shown(widget.view.page) == 700 and widget.search.rows.features == [700]


@pytest.mark.parametrize(
    ("way", "query"),
    [("category", "Python code"), ("category", "Mathematical notation"), ("token", "of"), ("concept", "x = 1\ny = 2")],
)
def test_each_search_lists_features_to_pick(widget, way, query):
    note = ask(widget, way, query)
    listed = [box for box in widget.search.rows.children if box.layout.display is None]
    assert len(listed) == len(widget.search.rows.features) > 1
    assert shown(widget.view.page) == 12, "nothing is picked unasked"
    assert {"token": "precision", "category": "score", "concept": "composite score"}[way] in note
    feature = pick(widget.search.rows, 1)
    assert shown(widget.view.page) == feature


def test_categories_come_by_their_titles(widget):
    widget.search.way.value = "category"
    assert widget.search.queries["category"].options[0] == "Python code" and widget.search.rows.features


@pytest.mark.parametrize(
    ("way", "query", "why"),
    [
        ("number", "99999", "choose from 0 to 3071"),
        ("number", "-1", "choose from 0 to 3071"),
        ("number", "<b>", "'<b>' is no number"),
        ("token", "zyzzyva", "tokens for this model"),
        ("concept", "a" * 2_000, "at most 1,000"),
    ],
)
def test_a_wrong_query_is_a_sentence(widget, way, query, why):
    assert why in ask(widget, way, query)
    assert not widget.search.rows.features and "<b>" not in widget.search.note.value
    assert shown(widget.view.page) == 12, "what was looked at stays"


def test_nothing_to_search_for_is_a_sentence(widget):
    ask(widget, "token", "the")
    widget.search.queries["token"].value = ""
    widget.search.button.click()
    assert "type something" in said(widget.search.note) and not widget.search.rows.features


# pages


def test_the_history_leads_back_and_forth(widget):
    for feature in (20, 30, 20):
        widget.look("2-res", feature)
    view = widget.view
    assert view.seen == [("2-res", 12), ("2-res", 20), ("2-res", 30)] and view.at == 1
    view.back.click()
    assert shown(view.page) == 12 and view.back.disabled and not view.forward.disabled
    assert said(widget.sentence.legend).startswith("Feature 12 ")
    view.history.index = 2
    assert shown(view.page) == 30 and view.forward.disabled
    view.forward.click()
    assert shown(view.page) == 30, "there is none after the last"


def test_related_features_are_a_step_away(widget):
    widget.look("2-res", 700)
    place = next(i for i, name in enumerate(widget.view.related.options) if name.startswith("points like"))
    other = int(re.search(r"points like (\d+)", widget.view.related.options[place])[1])
    widget.view.related.index = place
    assert shown(widget.view.page) == other and widget.view.seen[-1] == ("2-res", other)


def test_two_features_are_pinned_side_by_side_and_unpinned(widget):
    pins = widget.pins
    widget.view.pinners["A"].click()
    widget.look("2-res", 20)
    widget.view.pinners["B"].click()
    widget.look("2-res", 30)
    assert (shown(pins["A"].page), shown(pins["B"].page), shown(widget.view.page)) == (12, 20, 30)
    assert "A: feature 12 of 2-res" in said(pins["A"].title) and pins["A"].layout.display is None
    pins["A"].show.click()
    assert shown(widget.view.page) == 12
    pins["A"].unpin.click()
    assert pins["A"].layout.display == "none" and shown(pins["A"].page) is None
    pins["A"].show.click()
    assert shown(pins["B"].page) == 20, "the other stays"


# the model again


def test_steering_takes_the_feature_that_is_looked_at(explorer, widget):
    widget.look("2-res", 667)
    panel = widget.steer
    assert panel.feature.value == 667
    panel.tokens.value, panel.prompt.value = 6, "Once upon a time"
    panel.button.click()
    assert panel.shown.value == answers.write(explorer, "Once upon a time", 667, "add", 1.5, 6, 0.7, 0, "2-res")
    headings = re.findall("<h3>(.*?)</h3>", panel.shown.value)
    assert headings == ["unchanged", "feature 667: +1.5 × its maximum", RANDOM] and said(panel.note) == ""
    before = panel.shown.value
    panel.feature.value = 999_999
    panel.button.click()
    assert "3071" in said(panel.note) and panel.shown.value == before and not panel.button.disabled
    widget.sae.value = "2-res-x4"
    assert panel.sae == "2-res-x4" and panel.feature.value == shown(widget.view.page), "of the SAE looked at"


def test_prepared_examples_are_a_click_away(explorer, monkeypatch):
    assert SteerPanel(explorer).examples == [], "mini has none"
    monkeypatch.setitem(EXAMPLES, "mini", (Example("Law & order", "The court", "2-res", 667, 1.5),))
    panel = SteerPanel(explorer)
    panel.tokens.value = 3
    panel.examples[0].click()
    assert (panel.prompt.value, panel.feature.value, panel.strength.value) == ("The court", 667, 1.5)
    assert "feature 667: +1.5 × its maximum" in panel.shown.value


def test_steering_says_why_it_cannot(widget):
    widget.steer.prompt.value, widget.steer.feature.value = " ", 12
    widget.steer.button.click()
    assert "no text yet" in said(widget.steer.note)


def test_saes_are_compared(explorer, widget):
    panel = widget.compare
    for box in panel.boxes:
        box.value = box.description in ("2-res", "2-res-x4")
    panel.text.value = NASTY
    panel.button.click()
    assert re.findall("<h3>Special to the text: (.*?)</h3>", panel.shown.value) == ["2-res", "2-res-x4"]
    assert f"{explorer.compare(NASTY, ['2-res'])['explained_variance'].iloc[0]:.1%}" in panel.shown.value
    assert not re.search("<(button|script|img)", panel.shown.value)
    for box in panel.boxes:
        box.value = False
    panel.button.click()
    assert said(panel.note) == "Choose at least one SAE."


def test_a_page_is_framed_so_that_nothing_in_it_runs(widget):
    frames = re.findall(r'<iframe [^>]*sandbox="([^"]*)"[^>]*srcdoc="([^"]*)"></iframe>', widget.view.page.value)
    assert len(frames) == widget.view.page.value.count("<iframe ") == 2
    for rights, page in frames:
        assert "allow-scripts" not in rights and "allow-same-origin" not in rights
        assert unescape(page).startswith("<!doctype html>") and "prefers-color-scheme" not in page
    light, dark = (unescape(page) for _, page in frames)
    assert "@media(max-width:0)" in light and 'content="light"' in light
    assert "@media(min-width:0)" in dark and 'content="dark"' in dark


def test_links_in_a_frame_stay_in_it_or_open_beside_the_notebook():
    page = framed('<head></head><a href="https://x.org">x</a><a href="#s">prefers-color-scheme:dark</a>', '"><b>')
    assert "<b>" not in page
    page = unescape(page)
    assert 'target="_blank" rel="noopener" href="https://x.org"' in page and '<base href="about:srcdoc">' in page
    assert '<a href="#s">prefers-color-scheme:dark<' in page, "what a token says is left as it is"


def walk(box):
    yield box
    for child in getattr(box, "children", ()):
        yield from walk(child)
