"""The web explorer in a real headless Chromium, started by its own command, with no network but this machine's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from prism.press.browser import find_browser

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome was found; set BROWSER_PATH to one")

START = 180.0  # s, on a machine that is busy with other tests
ANSWER = 120_000  # ms; what a loaded machine may take, not what a reader waits
NASTY = "<script>window.hit = 1</script> <img src=x onerror=window.hit=2> {{7*7}} ${7*7} <b>bold</b>"


@pytest.fixture(scope="module")
def command() -> Iterator[tuple[subprocess.Popen, str]]:
    """`prism app` and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prism", "app", "--model", "mini", "--no-browser", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores Ctrl-C
    )
    lines: list[str] = []
    try:
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
        reader.start()
        until = time.monotonic() + START
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))):
            assert process.poll() is None and time.monotonic() < until, "".join(lines)
            time.sleep(0.1)
        yield process, found[0]
        with urlopen(f"{found[0]}/gradio_api/heartbeat/x"):  # as a page that is still open
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        reader.join(5)
        assert code == 130 and "prism: stopped" in lines[-1] and "Traceback" not in "".join(lines), "".join(lines)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=ANSWER)
        yield chromium
        chromium.close()


@pytest.fixture
def page(command, browser) -> Iterator:
    """The app's page; at the end: nothing was asked of any other place, no script failed, no dialog came up."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(ANSWER)
    page, asked, wrong = context.new_page(), [], []
    context.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    with page.expect_response("**/queue/join*"):  # the page's own first question, so that later ones are a test's
        page.goto(command[1])
    page.wait_for_selector("#tokens button")
    yield page
    context.close()
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob", "about")}
    assert hosts == {"127.0.0.1"} and len(asked) > 10
    assert wrong == []


def _tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def _read(page, text: str) -> None:
    """Types a sentence and waits until its last token is shown, and all that came with it is drawn."""
    page.fill("#text :is(input, textarea)", text)
    page.click("#read")
    last = text.split()[-1][-1]
    page.wait_for_function(
        "([n, last]) => { const b = [...document.querySelectorAll('#tokens button')];"
        " return b.length && b.at(-1).innerText.endsWith(last) && b[0].innerText.startsWith(n); }",
        arg=[text[0], last],
    )
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_sentence_leads_to_a_token_and_a_page(page) -> None:
    _read(page, "You know that the weather was lovely!")
    assert page.inner_text("#tokens .prism-text").replace("·", " ").replace("\n", "").startswith("You know that")
    page.click("#tokens button >> nth=1")
    page.wait_for_selector("#found h3:has-text('On token 2')")
    assert page.get_attribute("#tokens button >> nth=1", "aria-pressed") == "true"
    feature = page.inner_text("#found .prism-pick >> nth=0")
    page.click("#found .prism-pick >> nth=0")
    frame = page.frame_locator("#page iframe")
    frame.get_by_role("heading", name=f"Feature {feature}", exact=True).wait_for()
    assert "Your sentence" in page.inner_text("#page .prism-own")
    assert page.input_value("#number input") == feature
    assert "Strongest texts" in frame.locator("body").inner_text()


def test_the_order_and_what_is_hidden_are_one_click_away(page) -> None:
    said = "cell.innerText.match(/activation ([0-9.]+)/)[1]"
    cells = f"[...document.querySelectorAll('#found .prism-numbers')].map((cell) => parseFloat({said}))"
    falling = f"{cells}.every((value, place, all) => !place || value <= all[place - 1])"
    assert len(page.evaluate(cells)) > 3 and not page.evaluate(falling)
    assert "rarity" in page.inner_text("#found") and "Hidden: " in page.inner_text("#found")
    page.get_by_label("strongest first").check()
    page.wait_for_function(falling)
    page.get_by_label("hide features of one token").uncheck()
    page.wait_for_function("!document.querySelector('#found').innerText.includes('Hidden: ')")
    page.get_by_label("special to this text first").check()
    page.wait_for_selector("#found p:has-text('rarity')")


def test_links_and_buttons_walk_through_features(page, command) -> None:
    page.goto(f"{command[1]}/?sae=2-res&feature=12")
    frame = page.frame_locator("#page iframe")
    frame.get_by_role("heading", name="Feature 12", exact=True).wait_for()
    link = frame.locator("a[href^='/?sae=']").first
    near = link.inner_text().split()[-1]
    link.click()
    frame.get_by_role("heading", name=f"Feature {near}", exact=True).wait_for()
    assert len(page.context.pages) == 1  # here, not in a tab of its own
    page.click("#next")
    frame.get_by_role("heading", name=f"Feature {int(near) + 1}", exact=True).wait_for()
    page.click("#pin")
    page.wait_for_selector("#pinned iframe")
    page.click("#history .prism-pick:text-is('12')")
    frame.get_by_role("heading", name="Feature 12", exact=True).wait_for()
    pinned = page.frame_locator("#pinned iframe").get_by_role("heading", level=1)
    assert pinned.inner_text() == f"Feature {int(near) + 1}"
    frame.locator(".contents a").last.click()
    page.wait_for_function("scrollY > 300")
    assert page.url.endswith("feature=12")


def test_markup_and_script_in_a_sentence_are_text(page) -> None:
    _read(page, NASTY)
    shown = page.inner_text("#tokens .prism-text").replace("\n", "").replace("·", " ")
    assert shown == NASTY
    page.click("#found .prism-pick >> nth=0")
    page.wait_for_selector("#page .prism-own")
    assert NASTY in page.inner_text("#page .prism-own").replace("·", " ")
    _tab(page, "Concept search")
    page.click("#way label:has-text('category')")
    page.wait_for_function("document.querySelector('#query textarea').value.startsWith('Python')")
    page.fill("#query textarea", "<img src=x onerror=window.hit=3>")
    page.click("#search")
    page.wait_for_selector("#results .prism-problem:has-text('<img src=x')")
    assert page.evaluate("window.hit === undefined && !document.querySelector('#tokens img, #results img')")


def test_a_bad_address_is_a_sentence(page, command) -> None:
    page.goto(f"{command[1]}/?sae=<img src=x onerror=window.hit=4>&feature=3")
    page.get_by_text("no SAE for 'mini' named").wait_for()
    assert page.evaluate("window.hit === undefined")
    _read(page, "It still answers.")


def test_a_full_queue_is_said(page) -> None:
    full = {"detail": "Queue is full. Max size is 16 and size is 16."}
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json=full))
    page.click("#read")
    page.get_by_text("currently busy. Please try again").wait_for()
    page.unroute("**/queue/join*")
    _read(page, "It still answers.")


def test_a_concept_is_found(page) -> None:
    _tab(page, "Concept search")
    page.click("#search")
    page.wait_for_selector("#results .prism-pick")
    assert "of 20 random sets of beginnings" in page.inner_text("#results")
    feature = page.inner_text("#results .prism-pick >> nth=0")
    page.click("#results .prism-pick >> nth=0")
    heading = page.frame_locator("#page iframe").get_by_role("heading", name=f"Feature {feature}", exact=True)
    heading.wait_for()


def test_steering_changes_the_text(page) -> None:
    _tab(page, "Steer")
    page.click("#write")
    page.wait_for_selector("#written section >> nth=2")
    texts = [part.inner_text() for part in page.locator("#written .prism-tokens").all()]
    assert len(texts) == 3 and texts[0] != texts[1] and all(texts)
    page.fill("#strength input[type=number]", "0")
    page.click("#write")
    page.wait_for_function(
        "(old) => { const t = document.querySelectorAll('#written .prism-tokens');"
        " return t.length === 3 && t[1].innerText !== old; }",
        arg=texts[1],
    )
    again = [part.inner_text() for part in page.locator("#written .prism-tokens").all()]
    assert again[0] == again[1] == texts[0]  # strength 0 on the same draws is the unchanged model


def test_another_sae_reads_the_same_sentence(page) -> None:
    _read(page, "You know that.")
    page.click("#sae input")
    page.get_by_role("option", name="1-res").click()
    page.wait_for_selector("#tokens button[data-sae='1-res']")
    assert re.search("1-res.* a sample of", page.inner_text("#about"))
    assert page.inner_text("#tokens button >> nth=0") == "You"
    page.click("#found .prism-pick >> nth=0")
    heading = page.frame_locator("#page iframe").get_by_role("heading", level=1)
    heading.wait_for()
    assert "1-res" in page.frame_locator("#page iframe").locator("header").inner_text()


def test_saes_are_compared(page) -> None:
    _tab(page, "Compare SAEs")
    page.get_by_label("3-res").uncheck()
    page.click("#compare")
    page.wait_for_selector("#comparison h3:has-text('1-res')")
    rows = page.locator("#comparison table").first.locator("tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["2-res", "1-res"]
    page.wait_for_selector("#comparison .prism-pick[data-sae='1-res']")


def test_the_keyboard_alone_reaches_an_answer(page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")

    tab_to("#text :is(input, textarea)")
    page.keyboard.press("Control+A")
    page.keyboard.type("Zebras run")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#tokens button')?.innerText.startsWith('Z')")
    tab_to("#tokens button[data-row='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#found h3:has-text('On token 2')")
    tab_to("#found .prism-pick")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history .prism-pick")
    assert page.get_by_role("tab", name="Feature", exact=True).get_attribute("aria-selected") == "true"


def test_it_fits_a_phone_and_the_dark(page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    page.emulate_media(color_scheme="dark")
    page.reload()
    page.wait_for_selector("#tokens button")
    page.wait_for_function("getComputedStyle(document.body).color.match(/\\d+/g)[0] > 150")
