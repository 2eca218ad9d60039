"""The web explorer without a browser: its bounds, its errors, its guard, as forged requests meet them."""

from __future__ import annotations

import asyncio
import errno
import html
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from prism import cli
from prism.explorer import MAX_CHARACTERS, Explorer, answers, app, guard, markup
from prism.explorer.steer import EXAMPLES, Example
from prism.visualization.tokens import shaded

NASTY = "<script>alert(1)</script> <img src=x onerror=alert(2)> {{value}} ${7*7} \" ' &"


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer("mini")


@pytest.fixture(scope="module")
def page(explorer: Explorer) -> app.Page:
    return app.Page(explorer)


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[httpx.Client]:
    """A client of the app as it is served, on a socket of this machine."""
    listening = guard.listen(0)
    server = uvicorn.Server(uvicorn.Config(app.application(explorer), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60, trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join(10)


def _ask(client: httpx.Client, element: str, event: str, data: list, event_data: dict | None = None) -> dict:
    """What the server makes of an event that a browser, or somebody in its place, reports."""
    session, until = uuid.uuid4().hex, time.monotonic() + 120  # heartbeats come all the while
    while (response := _join(client, element, event, data, event_data, session)).status_code == 503:
        time.sleep(0.2)  # the queue is full of another test's questions
    assert response.status_code == 200, response.text
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            assert time.monotonic() < until, "no answer in two minutes"
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def _join(client: httpx.Client, element: str, event: str, data: list, event_data=None, session="-") -> httpx.Response:
    config = client.get("/config").json()
    whose = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    events = [
        entry
        for entry in config["dependencies"]
        if any(whose.get(target) == element and name == event for target, name in entry["targets"])
    ]
    body = {
        "fn_index": events[0]["id"],
        "data": data,
        "event_data": event_data,
        "session_hash": session,
        "trigger_id": events[0]["targets"][0][0],
    }
    return client.post("/gradio_api/queue/join", json=body)


def test_it_answers_through_its_queue(client: httpx.Client) -> None:
    message = _ask(client, "read", "click", ["Hello there, world", "2-res", "special", True])
    assert message["success"]
    tokens, table = message["output"]["data"][:2]
    assert ">·world<" in tokens and 'data-row="1"' in tokens and "data-feature=" in table


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=README.md",
        "/gradio_api/file=../README.md",
        "/file=/etc/passwd",
        "/gradio_api/file/README.md",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/static/%2e%2e/%2e%2e/routes.py",
        "/assets/..%2f..%2froutes.py",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/gradio_api/deep_link",
    ],
)
def test_no_file_and_no_other_address(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (403, 404), response.text[:200]
    assert "root:" not in response.text and "Prism" not in response.text


@pytest.mark.parametrize("path", ["/static/C:x/secret.txt", "/static/..%5c..%5croutes.py", "/assets/%5c%5chost%5cx"])
def test_a_drive_or_a_share_is_no_address(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 403


def test_gradio_refuses_files_by_itself(explorer: Explorer, page: app.Page) -> None:
    """The guard is the second lock, not the only one: it is taken off here."""
    served = app.application(explorer)
    served.user_middleware = [entry for entry in served.user_middleware if entry.cls is not guard.Guard]

    async def codes() -> list[int]:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as open_client:
            paths = ("/gradio_api/file=/etc/passwd", "/gradio_api/file=README.md", "/gradio_api/file=../README.md")
            return [(await open_client.get(path)).status_code for path in paths]

    assert all(code in (403, 404) for code in asyncio.run(codes()))
    assert page.blocks.analytics_enabled is False and page.blocks.api_open is False
    names = {type(block).__name__ for block in page.blocks.blocks.values()}
    assert not names & {"File", "UploadButton", "Image", "Audio", "Video", "FileExplorer", "DownloadButton", "Gallery"}


def test_a_way_up_is_no_address(client: httpx.Client) -> None:
    """Sent as it stands: a client of ours would tidy it up."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        raw.sendall(b"GET /static/../../../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = raw.recv(1000)
    assert answer.split()[1] == b"403" and b"root:" not in answer


def test_uploads_and_large_questions_are_refused(client: httpx.Client) -> None:
    assert client.post("/gradio_api/upload", files={"files": ("a.txt", b"words")}).status_code == 403
    assert client.post("/gradio_api/queue/join", content=b"x" * (guard.LARGEST + 1)).status_code == 413
    endless = client.post("/gradio_api/queue/join", content=(b"x" for _ in range(3)))
    assert endless.status_code == 413
    assert client.delete("/").status_code == 405
    assert _ask(client, "read", "click", ["still here", "2-res", "special", True])["success"]


def test_a_length_beside_chunks_is_refused(client: httpx.Client) -> None:
    """The chunks would be read, however many, whatever the length says."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as raw:
        raw.sendall(
            b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        assert raw.recv(100).split()[1] in (b"400", b"413")


def test_every_event_goes_through_the_queue(client: httpx.Client) -> None:
    """The guard knows no other way, and the queue is what bounds them."""
    assert all(
        entry["queue"] is not False for entry in client.get("/config").json()["dependencies"] if entry["backend_fn"]
    )


def test_only_this_machine_is_answered(client: httpx.Client) -> None:
    listening = guard.listen(0)
    assert listening.getsockname()[0] == "127.0.0.1"
    listening.close()
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400  # a name that points here (rebinding)
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    options = {action.dest for action in cli._parser()._subparsers._group_actions[0].choices["app"]._actions}
    assert options == {"help", "model", "sae", "port", "no_browser"}


def test_a_taken_port_gives_the_next_and_none_gives_a_sentence() -> None:
    with guard.listen(0) as first:
        taken = first.getsockname()[1]
        with guard.listen(taken) as second:
            assert taken < second.getsockname()[1] <= taken + guard.PORTS
    with pytest.raises(OSError, match="no port 70000"):
        guard.listen(70_000)


def test_no_free_port_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def taken(*_):
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(socket.socket, "bind", taken)
    assert cli.main(["app", "--no-browser", "--port", "7860"]) == 1
    assert "prism: the ports 7860 to 7879 are taken" in capsys.readouterr().err


def test_unknown_names_are_one_line(capsys) -> None:
    assert cli.main(["app", "--no-browser", "--model", "mini", "--sae", "2-ress"]) == 2
    error = capsys.readouterr().err
    assert "2-res" in error and error.count("\n") == 1


def test_a_full_queue_says_so_and_empties(client: httpx.Client, explorer: Explorer) -> None:
    with explorer.lock:  # the first question waits for this
        answered = [
            _join(client, "read", "click", [f"number {i}", "2-res", "special", True]) for i in range(app.QUEUE + 3)
        ]
    codes = [response.status_code for response in answered]
    assert codes.count(200) in (app.QUEUE, app.QUEUE + 1) and codes[-1] == 503
    assert "full" in answered[-1].json()["detail"].lower()
    until = time.monotonic() + 30
    while _join(client, "read", "click", ["again", "2-res", "special", True]).status_code != 200:
        assert time.monotonic() < until, "the queue stays full"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("element", "data", "says"),
    [
        ("read", ["", "2-res", "special", True], "no text yet"),
        ("read", ["x" * (MAX_CHARACTERS + 1), "2-res", "special", True], "at most 1,000"),
        ("read", ["a b " * 240, "2-res", "special", True], "tokens"),
        ("search", ["number", "one", "2-res"], "no number"),
        ("search", ["number", "999999", "2-res"], "3071"),
        ("search", ["category", "Pyton code", "2-res"], "Python code"),
        ("search", ["category", "x" * 5_000, "2-res"], "at most 1,000"),
        ("search", ["token", NASTY, "2-res"], "tokens for this model"),
        ("search", ["concept", "\n", "2-res"], "nothing to search for"),
        ("write", ["Hello", None, "add", 1, 5, 0.7, 0, "2-res"], "no feature yet"),
        ("write", ["Hello", 999999, "add", 1, 5, 0.7, 0, "2-res"], "3071"),
        ("write", ["", 1, "add", 1, 5, 0.7, 0, "2-res"], "no text yet"),
        ("compare", ["Hello", []], "at least one SAE"),
    ],
)
def test_errors_are_sentences_of_the_page(client: httpx.Client, element: str, data: list, says: str) -> None:
    message = _ask(client, element, "click", data)
    shown = message["output"]["data"][0]
    assert message["success"] and 'role="alert"' in shown and says in html.unescape(shown)
    assert "Traceback" not in shown and "<script" not in shown and "<img" not in shown


@pytest.mark.parametrize(
    ("element", "event", "data", "event_data"),
    [
        ("read", "click", ["Hello", "../../etc/passwd"], None),
        ("read", "click", ["Hello", "2-res", "<b>loudest</b>", True], None),
        ("search", "click", ["files", "x", "2-res"], None),
        ("write", "click", ["Hello", 1, "add", 1e9, 5, 0.7, 0, "2-res"], None),
        ("write", "click", ["Hello", 1, "add", 1, 5, 0.7, -5, "2-res"], None),
        ("write", "click", ["Hello", 1, "shout", 1, 5, 0.7, 0, "2-res"], None),
        ("compare", "click", ["Hello", ["nope"]], None),
        ("read", "click", [["a", "list"], 7], None),
        ("read", "click", [], None),
    ],
)
def test_forged_values_are_refused_and_the_app_goes_on(client, element, event, data, event_data) -> None:
    message = _ask(client, element, event, data, event_data)
    text = json.dumps(message)
    assert not message["success"] or 'role=\\"alert\\"' in text
    assert "root:x" not in text and "Traceback" not in text
    assert _ask(client, "read", "click", ["still here", "2-res", "special", True])["success"]


@pytest.mark.parametrize(
    "picked",
    [
        {"feature": "999999", "sae": "2-res"},
        {"feature": "x", "sae": "2-res"},
        {"feature": "1", "sae": "../x"},
        {"feature": None},
        {},
    ],
)
def test_a_forged_click_changes_nothing(client: httpx.Client, picked: dict) -> None:
    message = _ask(client, "found", "select", [None, None], picked)
    assert message["success"]
    parts = [part for part in message["output"]["data"] if part is not None]  # None: states stay on the server
    assert len(parts) == 7 and all(part["__type__"] == "update" and "value" not in part for part in parts)


def test_what_nobody_foresaw_is_logged_and_said(page: app.Page, capsys) -> None:
    def broken(*_):
        raise KeyError("secret")

    shown, skipped = app.safely(broken, 2)("text", "2-res")
    assert app.WRONG in html.unescape(shown) and "secret" not in shown and skipped == {"__type__": "update"}
    assert "KeyError: 'secret'" in capsys.readouterr().err


def test_everything_shown_is_escaped(explorer: Explorer) -> None:
    name = explorer.default
    hostile = [
        {"feature": 7, "label": {"by": NASTY, "text": NASTY}, "numbers": [NASTY], "window": shaded([NASTY], [1.0])}
    ]
    parts = [
        *answers.read_text(explorer, NASTY, name),
        answers.read_token(explorer, NASTY, 1, name),
        answers.read_feature(explorer, 7, name, NASTY),
        *answers.compare(explorer, NASTY, [name]),
        answers.write(explorer, NASTY, 667, "add", 0.5, 2, 0.7, 0, name),
        app.problem(ValueError(NASTY)),
        markup.fragment("rows", hostile, name, NASTY, NASTY, True),
        markup.frame(NASTY, NASTY),
    ]
    for part in parts:
        assert "<script" not in part and "<img" not in part and "{{" not in part and "${" not in part
    assert "&lt;" in parts[0] and "&#123;" in parts[0]  # it is shown, not dropped


def test_the_page_says_its_order_and_what_it_hides(explorer: Explorer) -> None:
    _, listed = answers.read_text(explorer, answers.SENTENCE, "2-res")
    assert "rarity" in listed and "Hidden: " in listed
    _, strongest = answers.read_text(explorer, answers.SENTENCE, "2-res", "strongest", False)
    assert "Order: activation." in strongest and "Hidden: " not in strongest and listed != strongest
    with pytest.raises(IndexError, match="No token or character begins at 99; choose from 0, 1"):
        answers.read_token(explorer, "Hi you", 99, "2-res")


def test_a_character_is_one_button(explorer: Explorer) -> None:
    tokens, _ = answers.read_text(explorer, "so 🦊 lol", "2-res")
    assert "so</button>" in tokens and ">·🦊</button>" in tokens and "‹" not in tokens
    rows = [int(row) for row in re.findall(r'data-row="(\d+)"', tokens)]
    assert rows[:2] == [0, 1] and rows[2] > 2 and rows == sorted(rows)
    assert re.search(rf"<h3>On tokens 2 to {rows[2]}, ·🦊</h3>", answers.read_token(explorer, "so 🦊 lol", 1, "2-res"))
    with pytest.raises(IndexError, match="begins at 2"):
        answers.read_token(explorer, "so 🦊 lol", 2, "2-res")


def test_the_cost_is_said_in_words(explorer: Explorer) -> None:
    assert answers._cost(2.0, 2.05).endswith("about as likely as in the model's own text.")
    assert "+0.69 nats a token" in answers._cost(2.6931, 2.0) and "2.0 times less likely" in answers._cost(2.6931, 2.0)
    assert "-0.69 nats" in answers._cost(2.0, 2.6931) and "2.0 times more likely" in answers._cost(2.0, 2.6931)
    written = answers.write(explorer, "Once\nupon", 667, "add", 1.5, 4, 0.7, 0, "2-res")
    assert '<span class="prism-prompt">Once\nupon</span>' in written and written.count("Cost: ") == 2
    assert "·" not in re.sub('title="[^"]*"', "", written[: written.index("Shade:")]), "as text is read"


def test_prepared_examples_fill_the_tab_and_write(explorer: Explorer, page: app.Page, monkeypatch) -> None:
    assert page.examples == [], "mini has none"
    monkeypatch.setitem(EXAMPLES, "mini", (Example("Law", "The court", "2-res", 667, 1.5),))
    other = app.Page(explorer)
    assert [button.value for button in other.examples] == ["Law"]
    about, *filled = other._prepared(other.prepared[0])
    assert "2-res" in about and filled == ["The court", "2-res", 667, "add", 1.5]


def test_a_page_in_its_frame_can_do_nothing(explorer: Explorer) -> None:
    shown = answers.read_feature(explorer, 7, explorer.default)
    assert "allow-scripts" not in shown and "sandbox=" in shown
    document = html.unescape(shown[shown.index('srcdoc="') + 8 : shown.rindex('"')])
    assert "default-src 'none'" in document and document.count("Content-Security-Policy") == 1
    assert 'href="/?sae=2-res&amp;feature=' in document


def test_a_click_on_the_tokens_of_another_sentence_is_left_alone(page: app.Page, explorer: Explorer) -> None:
    tokens, _ = answers.read_text(explorer, "Hi you", "2-res")
    click = SimpleNamespace(_data={"row": "1", "read": answers.digest("Hi you")})
    assert click._data["read"] in tokens
    assert "On token 2" in page._read_token(("Hi you", "2-res"), "special", True, click)
    assert page._read_token(("Some other sentence", "2-res"), "special", True, click) == {"__type__": "update"}


def test_a_bad_number_to_pin_is_said_where_it_would_be(page: app.Page) -> None:
    for number, says in ((None, "no number yet"), (99_999, "3071")):
        shown, beside = page._pin(number, "2-res")
        assert 'role="alert"' in shown and says in html.unescape(shown) and beside.visible


def test_nothing_of_the_former_sae_stays(page: app.Page) -> None:
    about, tokens, found, read, _ = page._changed("1-res", "", "special", True)
    assert "1-res" in about and "no text yet" in tokens and found == "" and read == ("", "1-res")


def test_history_goes_back_in_order(page: app.Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "read_feature", lambda *_: "a page")
    visited: list = []
    for feature in [*range(1, app.HISTORY + 3), 5]:
        _, buttons, visited = page._show(feature, "2-res", ("", "2-res"), visited)
    assert [feature for _, feature in visited] == [5, 14, 13, 12, 11, 10, 9, 8, 7, 6, 4, 3]
    assert buttons.count("data-feature") == app.HISTORY
    walked = [page._walk(*step, "2-res", ("", "2-res"), [])[-1] for step in ((-1, 0), (1, 3071), (1, None))]
    assert walked == [3071, 0, 1]


def test_the_address_opens_a_feature(page: app.Page) -> None:
    asked = SimpleNamespace(query_params={"feature": "12"})
    shown = page._asked_for(("", "2-res"), [], asked)
    assert shown[3:5] == ("2-res", 12) and "Feature 12" in html.unescape(shown[0])
    assert page._asked_for(("", "2-res"), [], SimpleNamespace(query_params={})) == ({"__type__": "update"},) * 8


def test_comparison_comes_step_by_step(explorer: Explorer) -> None:
    first, last = answers.compare(explorer, answers.SENTENCE, [explorer.default])
    assert "variance explained" in first and "Reading the sample" in first and "data-feature" not in first
    assert "data-feature" in last and "Reading the sample" not in last
