"""The web explorer: a page on this machine alone, where a reader's own sentences meet a model's features."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import traceback
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from prism.explorer import answers
from prism.explorer.guard import HOST, Guard, listen
from prism.explorer.markup import asset, fragment, sentence
from prism.explorer.rows import ORDERS
from prism.explorer.search import WAYS, categories
from prism.explorer.session import ERRORS, MAX_CHARACTERS, Explorer
from prism.explorer.steer import EXAMPLES, HOWS, MAX_NEW_TOKENS, OFFERED, STRENGTH, Example

QUEUE = 16  # questions that may wait; one is answered at a time
HISTORY = 12  # features kept at hand
WRONG = "Something went wrong; the terminal says what. The app goes on: change something and try again."


def safely(function: Callable, outputs: int = 1) -> Callable:
    """`function`, its errors turned into a sentence in the first of its outputs, the others left as they are."""

    @functools.wraps(function)
    def answer(*inputs):
        try:
            return function(*inputs)
        except Exception as error:
            return problem(error) if outputs == 1 else (problem(error), *[gr.skip()] * (outputs - 1))

    return answer


def problem(error: Exception) -> str:
    """An error as a sentence of the page."""
    return sentence(words(error), "problem")


def words(error: Exception) -> str:
    """What is said of an error; one that nobody foresaw goes to the terminal."""
    if isinstance(error, ERRORS):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return WRONG


class Page:
    """The components of the page, tab by tab, and what they ask of an explorer.

    It loads the explorer's default SAE and answers the examples, so that all code has run once.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.picks = explorer, []
        first = answers.example_feature(explorer)
        with gr.Blocks(title="Prism explorer", analytics_enabled=False) as self.blocks:
            with gr.Row(elem_classes="prism-row"):
                with gr.Column(scale=3, min_width=300):
                    gr.HTML("<h1>Prism</h1>")
                    self.about = gr.HTML(answers.about(explorer, explorer.default), elem_id="about")
                self.sae = gr.Dropdown(
                    explorer.names, value=explorer.default, label="SAE", elem_id="sae", min_width=200
                )
            self.read = gr.State((answers.SENTENCE, explorer.default))  # the sentence last read, and by which SAE
            self.visited = gr.State([])
            with gr.Tabs(selected="sentence") as self.tabs:
                for name, title, fill in (
                    ("sentence", "Your sentence", self._sentence),
                    ("feature", "Feature", functools.partial(self._feature, first)),
                    ("search", "Concept search", self._search),
                    ("steer", "Steer", functools.partial(self._steer, first)),
                    ("compare", "Compare SAEs", self._compare),
                ):
                    with gr.Tab(title, id=name):
                        gr.HTML(sentence(answers.HELP[name], "help"))
                        fill()
            self._connect()
        self.blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)

    # --- the tabs --------------------------------------------------------------------------------------------------

    def _sentence(self) -> None:
        self.text = _textbox("Sentence", answers.SENTENCE, "text")
        self.go = gr.Button("Read it", variant="primary", elem_id="read", elem_classes="prism-go")
        with gr.Row(elem_classes="prism-row prism-how"):
            self.order = gr.Radio([*ORDERS.items()], value="special", container=False, elem_id="order")
            self.hide = gr.Checkbox(True, label="hide features of one token", container=False, elem_id="hide")
        buttons, strongest = answers.read_text(self.explorer, answers.SENTENCE, self.explorer.default)
        self.tokens = gr.HTML(buttons, js_on_load=asset("pick.js"), elem_id="tokens")
        self.found = self._pickable(strongest, "found")

    def _feature(self, first: int) -> None:
        with gr.Row(elem_classes="prism-row"):
            self.number = gr.Number(first, label="Feature", precision=0, elem_id="number", min_width=120)
            self.show = gr.Button("Show", variant="primary", elem_id="show", min_width=70)
            self.back, self.on, self.pin = (
                gr.Button(text, elem_id=text.split()[0].lower(), min_width=70)
                for text in ("Previous", "Next", "Pin beside")
            )
        self.history = self._pickable("", "history")
        page = answers.read_feature(self.explorer, first, self.explorer.default)
        with gr.Row():
            with gr.Column(min_width=300):
                self.page = gr.HTML(page, js_on_load=asset("follow.js"), elem_id="page")
            with gr.Column(min_width=300, visible=False) as self.beside:
                self.pinned = gr.HTML(js_on_load=asset("follow.js"), elem_id="pinned")
                self.unpin = gr.Button("Unpin", elem_id="unpin")
        self.picks += [self.page, self.pinned]

    def _search(self) -> None:
        self.way = gr.Radio([(f"by {way}", way) for way in WAYS], value="concept", label="Search", elem_id="way")
        self.query = _textbox(answers.ASK["concept"], answers.EXAMPLES["concept"], "query", 3)
        self.search = gr.Button("Search", variant="primary", elem_id="search", elem_classes="prism-go")
        self.results = self._pickable("", "results")

    def _steer(self, first: int) -> None:
        self.prepared = EXAMPLES.get(self.explorer.spec.name, ())
        with gr.Row(visible=bool(self.prepared), elem_classes="prism-examples"):
            gr.HTML(sentence(answers.PREPARED, "help"))
            self.examples = [gr.Button(one.title, size="sm", min_width=120) for one in self.prepared]
        self.prompt = _textbox("Prompt", answers.PROMPT, "prompt")
        with gr.Row():
            self.steered = gr.Number(first, label="Feature", precision=0, elem_id="steered", min_width=110)
            self.strength = gr.Slider(
                -OFFERED,
                OFFERED,
                STRENGTH,
                step=0.25,
                min_width=220,
                scale=3,
                label="Strength, × its maximum",
                elem_id="strength",
            )
        with gr.Accordion("More settings", open=False), gr.Row():
            self.how = gr.Radio(HOWS, value=HOWS[0], label="How", elem_id="how", min_width=300)
            self.n_tokens = gr.Slider(1, MAX_NEW_TOKENS, 30, step=1, label="Tokens", min_width=160)
            self.temperature = gr.Slider(0, 2, 0.7, step=0.1, label="Temperature", min_width=160)
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=110)
        self.write = gr.Button("Write", variant="primary", elem_id="write", elem_classes="prism-go")
        self.written = gr.HTML(elem_id="written")

    def _compare(self) -> None:
        names = self.explorer.names
        self.compared = _textbox("Sentence", answers.SENTENCE, "compared")
        self.chosen = gr.CheckboxGroup(names, value=names[:3], label="SAEs (each loads when first used)")
        self.compare = gr.Button("Compare", variant="primary", elem_id="compare", elem_classes="prism-go")
        self.comparison = self._pickable("", "comparison")

    def _pickable(self, html: str, name: str) -> gr.HTML:
        """A piece of page whose feature buttons open pages."""
        self.picks.append(gr.HTML(html, js_on_load=asset("pick.js"), elem_id=name))
        return self.picks[-1]

    # --- what happens ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Every event; all share one place in the queue, as the model answers one question at a time."""
        ask = dict(concurrency_id="explorer", concurrency_limit=1, api_visibility="private")
        explorer, on = self.explorer, functools.partial

        def answer(triggers: Sequence, function: Callable, inputs: Sequence, outputs: Sequence):
            return gr.on(triggers, safely(function, len(outputs)), inputs, outputs, **ask)

        answer(
            [self.go.click, self.text.submit, self.order.input, self.hide.input],
            self._read_text,
            [self.text, self.sae, self.order, self.hide],
            [self.tokens, self.found, self.read],
        )
        answer([self.tokens.select], self._read_token, [self.read, self.order, self.hide], [self.found])
        shown = [self.number, self.sae, self.read, self.visited], [self.page, self.history, self.visited]
        answer([self.show.click, self.number.submit], self._show, *shown)
        for button, step in ((self.back, -1), (self.on, 1)):
            answer([button.click], on(self._walk, step), shown[0], [*shown[1], self.number])
        opened = dict(inputs=[self.read, self.visited], show_progress_on=[self.about], **ask)
        opened["outputs"] = [
            self.page,
            self.history,
            self.visited,
            self.sae,
            self.number,
            self.steered,
            self.about,
            self.tabs,
        ]
        for part in self.picks:
            part.select(self._pick, **opened)
        self.blocks.load(self._asked_for, **opened)
        answer([self.pin.click], self._pin, [self.number, self.sae], [self.pinned, self.beside])
        self.unpin.click(lambda: gr.Column(visible=False), None, self.beside, api_visibility="private")
        self.way.input(self._example, [self.way], self.query, api_visibility="private")
        answer(
            [self.search.click, self.query.submit],
            on(answers.search_features, explorer),
            [self.way, self.query, self.sae],
            [self.results],
        )
        settings = [self.prompt, self.steered, self.how, self.strength, self.n_tokens, self.temperature, self.seed]
        settings += [self.sae]
        answer([self.write.click, self.prompt.submit], on(answers.write, explorer), settings, [self.written])
        filled = [self.about, self.prompt, self.sae, self.steered, self.how, self.strength]
        for button, one in zip(self.examples, self.prepared, strict=True):
            fill = answer([button.click], on(self._prepared, one), [], filled)
            fill.then(safely(on(answers.write, explorer)), settings, [self.written], **ask)
        gr.on(
            [self.compare.click, self.compared.submit],
            self._compare_all,
            [self.compared, self.chosen],
            [self.comparison],
            **ask,
        )
        wait = "Loading {}: some seconds the first time …"
        self.sae.input(lambda sae: sentence(wait.format(sae)), self.sae, self.about, api_visibility="private").then(
            safely(self._changed, 5),
            [self.sae, self.text, self.order, self.hide],
            [self.about, self.tokens, self.found, self.read, self.page],
            **ask,
        )

    def _read_text(self, text: str, sae: str, order: str, hide: bool) -> tuple:
        return *answers.read_text(self.explorer, text, sae, order, hide), (text, sae)

    def _read_token(self, read: tuple[str, str], order: str, hide: bool, event: gr.EventData):
        text, sae = read
        if event._data.get("read") != answers.digest(text):  # another sentence has been read meanwhile
            return gr.skip()
        return answers.read_token(self.explorer, text, _whole(event._data.get("row")), sae, order, hide)

    def _show(self, feature: int | None, sae: str, read: tuple[str, str], visited: list) -> tuple:
        page = answers.read_feature(self.explorer, feature, sae, read[0])
        visited = [(sae, feature), *(seen for seen in visited if seen != (sae, feature))][:HISTORY]
        return page, fragment("recent", visited), visited

    def _walk(self, step: int, feature: int | None, sae: str, read: tuple[str, str], visited: list) -> tuple:
        """The feature before or after, round the ends."""
        feature = ((feature or 0) + step) % self.explorer.reading(sae).matrix.d_sae
        return *self._show(feature, sae, read, visited), feature

    def _pin(self, feature: int | None, sae: str) -> tuple:
        return safely(answers.read_feature)(self.explorer, feature, sae), gr.Column(visible=True)

    def _pick(self, read: tuple[str, str], visited: list, event: gr.EventData) -> tuple:
        return self._open(event._data, read, visited)

    def _asked_for(self, read: tuple[str, str], visited: list, request: gr.Request) -> tuple:
        """What the address asks for: `/?sae=…&feature=…`."""
        asked = dict(request.query_params)
        return self._open(asked, read, visited) if "feature" in asked else (gr.skip(),) * 8

    def _open(self, asked: Mapping[str, object], read: tuple[str, str], visited: list) -> tuple:
        """A feature's page in its tab; what cannot be opened is said, and everything stays as it is."""
        try:
            sae = self.explorer.spec.sae(str(asked.get("sae") or self.explorer.default)).name
            feature = _whole(asked.get("feature"))
            page = self._show(feature, sae, read, visited)
            return *page, sae, feature, feature, answers.about(self.explorer, sae), gr.Tabs(selected="feature")
        except Exception as error:
            gr.Warning(escape(words(error)), title="Not found")
            return (gr.skip(),) * 8

    def _prepared(self, one: Example) -> tuple:
        return answers.about(self.explorer, one.sae), one.prompt, one.sae, one.feature, HOWS[0], one.strength

    def _compare_all(self, text: str, names: Sequence[str]) -> Iterator[str]:
        try:
            yield from answers.compare(self.explorer, text, names)
        except Exception as error:
            yield problem(error)

    def _example(self, way: str):
        titles = categories(self.explorer.reading())
        if way == "category":
            return gr.Textbox(value=next(iter(titles), ""), label=f"One of: {', '.join(titles)}")
        return gr.Textbox(value=answers.EXAMPLES[way], label=answers.ASK[way])

    def _changed(self, sae: str, text: str, order: str, hide: bool) -> tuple:
        about = answers.about(self.explorer, sae)
        words = sentence(f"Choose a feature of {sae}: type its number above.")
        try:
            shown = self._read_text(text, sae, order, hide)
        except Exception as error:  # nothing of the former SAE stays
            shown = problem(error), "", ("", sae)
        return about, *shown, words


def _textbox(label: str, value: str, name: str, lines: int = 1) -> gr.Textbox:
    return gr.Textbox(value, label=label, lines=lines, max_lines=6, max_length=MAX_CHARACTERS, elem_id=name)


def _whole(value: object) -> int:
    """A whole number out of what a browser sent."""
    try:
        return int(str(value))
    except ValueError:
        raise ValueError("That is no whole number.") from None


def application(explorer: Explorer) -> FastAPI:
    """The page behind its guard: no uploads, no files, no other host's name, nothing loaded from elsewhere."""
    theme = gr.themes.Default(  # in the fonts of the reader's system: none is fetched
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        primary_hue="blue",
        text_size="md",
    )
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        Page(explorer).blocks,
        "/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        max_file_size="1b",
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme,
        css=asset("rows.css") + asset("app.css"),
    )
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def serve(model: str | None = None, sae: str | None = None, port: int = 7860, open_browser: bool = True) -> None:
    """Serves the web explorer until it is stopped.

    Args:
        model: name or folder; by default what `PRISM_MODEL` says, else `mini`.
        sae: the SAE to begin with; by default the notebooks'.
        port: of 127.0.0.1; if it is taken, the next free one. 0 takes any.

    Raises:
        ValueError: unknown model or SAE.
        OSError: no port is free, or the model is not on this disk and cannot be downloaded.
    """
    explorer = Explorer(model, sae)
    server = listen(port)
    print(f"Loading {explorer.spec.name} and its SAE {explorer.default} …", flush=True)
    app = application(explorer)
    address = f"http://{HOST}:{server.getsockname()[1]}"
    print(f"Open {address} (answers this machine only; Ctrl-C stops it)", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    # Errors are printed where they happen; what uvicorn would add is that it ends the open page's connection.
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    running.capture_signals = contextlib.nullcontext  # they are for prism.stopping, which waits for no open page
    running.run(sockets=[server])
