"""The explorer in a notebook: `explore()`."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets

from prism.analysis.feature import co_active, decoder_neighbours
from prism.explorer.markup import asset, fragment
from prism.explorer.panels import WRAP, SearchPanel, SentencePanel, attempt, button, quietly, words
from prism.explorer.session import Explorer
from prism.explorer.trials import ComparePanel, SteerPanel

SENTENCE = "The court shall hear the claim, lol 😂 print('hi')"
NEAR = 5  # of each kind of related features
HEIGHT = 640  # pixels of a page, which scrolls by itself
Look = tuple[str, int]  # an SAE's name and a feature of it


def explore(explorer: Explorer | None = None, sentence: str = SENTENCE) -> widgets.Widget:
    """The explorer as a widget: a sentence token by token, searches, steering, SAEs compared, pages side by side.

    Args:
        explorer: model and SAEs; by default `Explorer()`.
        sentence: to begin with.

    Returns:
        A widget that needs a running kernel. Every mistake is a sentence in it.

    Raises:
        ValueError: the model or SAE that the environment names is unknown.
    """
    return ExplorerWidget(explorer or Explorer(), sentence)


class ExplorerWidget(widgets.VBox):
    """What `explore` shows; the parts are attributes, to be driven from code as well.

    Attributes:
        sae: the choice of SAE.
        status: what became of it.
        sentence, search: the panels to find a feature in.
        steer, compare: the panels that run the model again.
        view: the chosen feature's page, and the way back to those before.
        pins: 'A' and 'B', to look at beside each other.
    """

    def __init__(self, explorer: Explorer, sentence: str) -> None:
        self.explorer, self.current = explorer, explorer.default
        titles = [(f"{name}: {explorer.spec.saes[name].title}", name) for name in explorer.names]
        self.sae = widgets.Dropdown(
            options=titles,
            description="SAE",
            layout={"width": "auto", "max_width": "560px"},
            style={"description_width": "36px"},
        )
        self.status = widgets.HTML()
        self.sentence = SentencePanel(explorer, self._picked, sentence)
        self.search = SearchPanel(explorer, self._picked)
        self.steer, self.compare = SteerPanel(explorer), ComparePanel(explorer, sentence)
        self.pins = {slot: Pin(slot, self.look) for slot in "AB"}
        self.view = FeatureView(explorer, self.look, self._pin)
        self.sae.observe(self._chosen, "index")
        tabs = widgets.Tab(
            [self.sentence, self.search, self.steer, self.compare], titles=["Sentence", "Search", "Steer", "Compare"]
        )
        tabs.layout = {"flex": "3 1 340px", "min_width": "0"}
        self.view.layout.flex, self.view.layout.min_width = "4 1 350px", "0"
        wrap = WRAP | {"align_items": "flex-start", "grid_gap": "8px"}
        style = widgets.HTML(f"<style>{asset('rows.css')}{asset('widget.css')}</style>", layout={"display": "none"})
        super().__init__(
            [
                style,
                self.sae,
                self.status,
                widgets.HBox([tabs, self.view], layout=wrap),
                widgets.HBox(list(self.pins.values()), layout=wrap),
            ]
        )
        self.add_class("prism-explorer")
        if self._load(self.current):
            self._begin()

    def look(self, sae: str, feature: int) -> None:
        """Show a feature's page; where it is one of another SAE, that SAE is chosen."""
        if sae != self.current:
            if not self._load(sae):
                return
            quietly(self.sae, self._chosen, value=sae)
        if attempt(self.view.note, self.view.show, sae, feature):
            self.sentence.follow(feature)
            self.search.rows.mark(feature)
            self.steer.follow(sae, feature)

    def _picked(self, feature: int) -> None:
        self.look(self.current, feature)

    def _load(self, name: str) -> bool:
        """Send sentence and search through an SAE; the status says what became of it."""
        self.status.value = words(f"loading {name} …")
        return attempt(self.status, self._loaded, name)

    def _loaded(self, name: str) -> None:
        reading = self.explorer.reading(name)
        self.current = name
        self.sentence.follow(None)
        self.sentence.read(name)
        self.search.use(name)
        self.steer.sae = name
        self.status.value = words(
            f"{self.explorer.spec.title}: {name} is ready; maxima, densities and examples come "
            f"from a sample of {reading.matrix.n_tokens:,} tokens."
        )

    def _chosen(self, change: dict) -> None:
        if self._load(self.sae.value):
            self._begin()
        else:
            quietly(self.sae, self._chosen, value=self.current)

    def _begin(self) -> None:
        """Show the first feature of the sentence's list."""
        if self.sentence.matrix is not None and self.sentence.rows.features:
            self._picked(self.sentence.rows.features[0])
        elif self.view.seen and (before := self.view.seen[self.view.at][0]) != self.current:
            self.view.note.value = words(f"This page is still of {before}.")

    def _pin(self, slot: str) -> None:
        self.pins[slot].put(*self.view.seen[self.view.at], self.view.page.value)


class FeatureView(widgets.VBox):
    """One feature's page, the features looked at before, and those related to it.

    `look` is called with an SAE and a feature to go to, `pin` with the slot, 'A' or 'B', that is to keep the page.
    """

    def __init__(self, explorer: Explorer, look: Callable[[str, int], None], pin: Callable[[str], None]) -> None:
        self.explorer, self.look, self.at = explorer, look, -1
        self.seen: list[Look] = []
        self.near: list[int] = []
        self.back = button("◀", lambda: self._go(self.at - 1), "the feature before")
        self.forward = button("▶", lambda: self._go(self.at + 1), "the feature after")
        narrow = {"width": "auto", "min_width": "0", "flex": "1 1 70px"}
        self.history = widgets.Dropdown(tooltip="features looked at", layout=narrow)
        self.related = widgets.Dropdown(tooltip="related features", layout=narrow)
        self.pinners = {
            slot: button(
                f"Pin {slot}", lambda slot=slot: self.seen and pin(slot), f"keep it below as {slot}, beside another"
            )
            for slot in "AB"
        }
        self.page, self.note = widgets.HTML(), widgets.HTML()
        self.history.observe(self._remembered, "index")
        self.related.observe(self._related, "index")
        bar = [self.back, self.forward, self.history, self.related, *self.pinners.values()]
        super().__init__([widgets.HBox(bar, layout=WRAP), self.note, self.page])

    def show(self, sae: str, feature: int) -> None:
        """Show a page and remember it.

        Raises:
            IndexError: no such feature.
        """
        self.page.value = framed(self.explorer.page(feature, sae), f"Feature {feature} of {sae}")
        self.note.value = ""
        if (sae, feature) not in self.seen:
            self.seen.append((sae, feature))
        self.at = self.seen.index((sae, feature))
        names = [f"{other} · {self.explorer.reading(name).fires_on(other)} · {name}" for name, other in self.seen]
        quietly(self.history, self._remembered, options=list(zip(names, self.seen, strict=True)), index=self.at)
        self.back.disabled, self.forward.disabled = self.at == 0, self.at == len(self.seen) - 1
        self._fill_related(sae, feature)

    def _fill_related(self, sae: str, feature: int) -> None:
        reading = self.explorer.reading(sae)
        together = co_active(reading.matrix, feature, NEAR)
        alike = decoder_neighbours(reading.dictionary.decoder, feature, NEAR)
        self.near = [int(other) for other in [*together["feature"], *alike["feature"]]]
        names = [f"fires with {row.feature} ({row.jaccard:.2f})" for row in together.itertuples()]
        names += [f"points like {row.feature} ({row.cosine:.2f})" for row in alike.itertuples()]
        quietly(self.related, self._related, options=["related …", *names], index=0)

    def _go(self, place: int) -> None:
        if 0 <= place < len(self.seen):
            self.look(*self.seen[place])

    def _remembered(self, change: dict) -> None:
        if change["new"] is not None:
            self._go(change["new"])
            quietly(self.history, self._remembered, index=self.at)  # where its SAE could not be loaded

    def _related(self, change: dict) -> None:
        if change["new"]:
            self.look(self.seen[self.at][0], self.near[change["new"] - 1])


class Pin(widgets.VBox):
    """A place for a page that stays while others are looked at; `look` is called to go back to it."""

    def __init__(self, slot: str, look: Callable[[str, int], None]) -> None:
        self.slot, self.look = slot, look
        self.pinned: Look | None = None
        self.title, self.page = widgets.HTML(), widgets.HTML()
        self.show = button("Go to it", lambda: self.pinned and look(*self.pinned), "show it above")
        self.unpin = button("Unpin", self.clear, "give the place up")
        bar = widgets.HBox([self.title, self.show, self.unpin], layout=WRAP)
        super().__init__([bar, self.page], layout={"flex": "1 1 340px", "min_width": "0", "display": "none"})

    def put(self, sae: str, feature: int, page: str) -> None:
        """Keep a page."""
        self.pinned, self.page.value = (sae, feature), page
        self.title.value = fragment("line", f"{self.slot}: feature {feature} of {sae}", "pinned", tag="b")
        self.layout.display = None

    def clear(self) -> None:
        """Give the place up."""
        self.pinned, self.page.value, self.title.value = None, "", ""
        self.layout.display = "none"


def framed(page: str, title: str) -> str:
    """A whole document inside another: nothing in it runs, its links to other sites open beside the notebook.

    Twice, light and dark, of which `widget.css` shows the one of the notebook's theme: a frame knows only the system's.
    """
    head, body = page.split("</head>", 1)
    head = head.replace("<head>", '<head><base href="about:srcdoc">')  # else '#section' is one of the notebook's
    body = body.replace('<a href="http', '<a target="_blank" rel="noopener" href="http')
    frames, rights = "", "allow-popups allow-popups-to-escape-sandbox"
    for theme, width in (("light", "max-width:0"), ("dark", "min-width:0")):  # never, and always
        themed = head.replace("prefers-color-scheme:dark", width).replace('"light dark"', f'"{theme}"')
        frames += fragment("frame", f"{themed}</head>{body}", title, rights, theme, HEIGHT)
    return frames
