"""The parts of the notebook's explorer to find a feature in: a sentence token by token, a search, rows to pick from.

Each of them calls `pick` with the feature that is picked.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
from jaxtyping import Float

from prism.data import whole_characters
from prism.explorer.answers import ASK, SHADE
from prism.explorer.markup import fragment
from prism.explorer.rows import ORDERS, listing, rows
from prism.explorer.search import WAYS, categories, search
from prism.explorer.session import ERRORS, Explorer
from prism.features import FeatureMatrix
from prism.visualization.tokens import marked

WIDE, WRAP = {"width": "auto"}, {"flex_flow": "row wrap"}
ROWS = 12  # features that a list offers
WHOLE = "whole text"


def words(text: str, bad: bool = False) -> str:
    """A line of plain text as HTML; one that tells of a mistake is marked."""
    return fragment("line", text[:1].upper() + text[1:], "bad" if bad else "say", "status", "div")


def attempt(note: widgets.HTML, action: Callable[..., None], *values: object) -> bool:
    """Do something; where it cannot be done, the note says why.

    Returns:
        Whether it was done.
    """
    try:
        action(*values)
    except ERRORS as error:
        note.value = words(str(error), bad=True)
        return False
    return True


def quietly(widget: widgets.Widget, handler: Callable[[dict], None], **traits: object) -> None:
    """Set a widget without the handler of its index hearing of it."""
    widget.unobserve(handler, "index")
    for name, value in traits.items():
        setattr(widget, name, value)
    widget.observe(handler, "index")


def button(
    text: str, do: Callable[[], object], tooltip: str = "", width: str = "auto", kind: str = ""
) -> widgets.Button:
    """A button that does something."""
    made = widgets.Button(description=text, tooltip=tooltip, button_style=kind, layout={"width": width})
    made.on_click(lambda _: do())
    return made


class Rows(widgets.VBox):
    """Features to pick from, at most `ROWS`: a button with the number of each, and beside it what a row shows."""

    def __init__(self, pick: Callable[[int], None]) -> None:
        self.features: list[int] = []
        self.buttons = [
            button("", lambda place=place: pick(self.features[place]), "show its page", "62px") for place in range(ROWS)
        ]
        self.shown = [widgets.HTML(layout={"flex": "1", "min_width": "0"}) for _ in range(ROWS)]
        super().__init__([widgets.HBox(pair) for pair in zip(self.buttons, self.shown, strict=True)])
        for box in self.children:
            box.add_class("prism-line")
        self.fill([])

    def fill(self, some: list[dict]) -> None:
        """Offer features, as `rows` has them."""
        self.features = [one["feature"] for one in some]
        for one, press, html in zip(some, self.buttons, self.shown, strict=False):
            press.description, html.value = str(one["feature"]), fragment("row", one)
        for place, box in enumerate(self.children):
            box.layout.display = None if place < len(some) else "none"

    def mark(self, feature: int | None) -> None:
        """Show which feature is looked at, if it is among these."""
        for place, box in enumerate(self.children):
            chosen = self.features[place : place + 1] == [feature]
            (box.add_class if chosen else box.remove_class)("prism-chosen")


class SentencePanel(widgets.VBox):
    """A text of the reader's own: its tokens, shaded; the features of each; where the chosen feature fires."""

    def __init__(self, explorer: Explorer, pick: Callable[[int], None], text: str) -> None:
        self.explorer, self.sae, self.feature = explorer, explorer.default, None
        self.matrix: FeatureMatrix | None = None
        self.pieces: list[tuple[str, slice]] = []
        self.text = widgets.Textarea(
            text, rows=3, layout=WIDE, placeholder="type a sentence", continuous_update=False, tooltip="your sentence"
        )
        self.button = button("Read", self.read, width="80px", kind="primary")
        self.tokens = widgets.ToggleButtons(options=[WHOLE], index=0, style={"button_width": "auto"})
        self.note, self.legend, self.colours, self.above = (widgets.HTML() for _ in range(4))
        self.rows = Rows(pick)
        self.tokens.add_class("prism-tokens-of")
        self.tokens.add_class(f"prism-{self.tokens.model_id}")  # colours are one panel's own
        self.colours.layout.display = "none"
        self.tokens.observe(self._token, "index")
        self.order = widgets.Dropdown(options=[*ORDERS.items()], tooltip="order of the features", layout=WIDE)
        self.hide = widgets.Checkbox(True, description="hide features of one token", indent=False, layout=WIDE)
        for choice in (self.order, self.hide):
            choice.observe(lambda _: self.matrix is not None and self._token({"new": self.tokens.index}), "value")
        self.how = widgets.HBox([self.order, self.hide], layout=WRAP)
        super().__init__(
            [self.text, self.button, self.note, self.colours, self.tokens, self.legend, self.how, self.above, self.rows]
        )

    def read(self, sae: str | None = None) -> None:
        """Send the text through an SAE, by default the one before."""
        self.sae, self.matrix, self.note.value = sae or self.sae, None, ""
        attempt(self.note, self._read)
        for part in (self.tokens, self.legend, self.how, self.above, self.rows):
            part.layout.visibility = "visible" if self.matrix is not None else "hidden"

    def _read(self) -> None:
        self.matrix = self.explorer.texts([self.text.value], self.sae)
        self.pieces = whole_characters(self.matrix.table["token"].tolist())
        names = [WHOLE, *(marked(text) for text, _ in self.pieces)]
        quietly(self.tokens, self._token, options=[(name, i) for i, name in enumerate(names)], index=0)
        self._token({"new": 0})
        self._shaded()

    def follow(self, feature: int | None) -> None:
        """Shade the text by a feature."""
        self.feature = feature
        self.rows.mark(feature)
        self._shaded()

    def _token(self, change: dict) -> None:
        text, where = self.pieces[change["new"] - 1] if change["new"] else ("", None)
        reading, how = self.explorer.reading(self.sae), (self.order.value, self.hide.value)
        some, rule = listing(reading, self.matrix, where, *how, ROWS)
        self.above.value = words(f"{f'On {marked(text)}' if where else 'In this text'}. {rule}")
        self.rows.fill(some)
        self.rows.mark(self.feature)

    def _shaded(self) -> None:
        """Shade the text by the chosen feature, or by how near a rare one comes to its maximum."""
        if self.matrix is None:
            return
        reading, starts = self.explorer.reading(self.sae), [part.start for _, part in self.pieces]
        values = reading.shares(self.matrix)
        if self.feature is not None:
            values = self.matrix.column(self.feature) / max(reading.statistics.maxima[self.feature], 1e-9)
        values = np.maximum.reduceat(values, starts)  # of a character of several tokens, the largest
        scope = f".prism-{self.tokens.model_id} button:nth-of-type"
        shades = [_rule(f"{scope}({place})", min(share, 1)) for place, share in enumerate(values, 2) if share > 0]
        self.colours.value = f"<style>{''.join(shades)}</style>"
        self.legend.value = words(self._legend(values))

    def _legend(self, shares: Float[np.ndarray, " pieces"]) -> str:
        if self.feature is None:
            return SHADE
        if not (n := int((shares > 0).sum())):
            return f"Feature {self.feature} fires nowhere in this text."
        best = int(shares.argmax())
        return (
            f"Feature {self.feature} fires in {n} of {len(shares)} places, most on {marked(self.pieces[best][0])}: "
            f"{shares[best]:.0%} of its maximum in the sample."
        )


def _rule(selector: str, share: float) -> str:
    """The colour of a token; what fires at all can be seen.

    Past 0.6, black letters have more contrast than white ones on a dark page: 4.5 there, and more on either side.
    """
    alpha = 0.12 + 0.88 * float(share)
    ink = ";color:#000" if alpha > 0.6 else ""
    return f"{selector}{{background:rgba(230,159,0,{alpha:.2f})!important{ink}}}"


class SearchPanel(widgets.VBox):
    """Find a feature by one of `search.WAYS`; one that is found by its number is picked at once."""

    def __init__(self, explorer: Explorer, pick: Callable[[int], None]) -> None:
        self.explorer, self.sae, self.pick, self.found = explorer, explorer.default, pick, False
        self.last: tuple[str, str] | None = None
        self.queries = {
            "number": widgets.Text(placeholder="12", layout=WIDE, continuous_update=False),
            "category": widgets.Dropdown(layout=WIDE),
            "token": widgets.Text(placeholder="the", layout=WIDE, continuous_update=False),
            "concept": widgets.Textarea(placeholder="one text a line", rows=4, layout=WIDE, continuous_update=False),
        }
        self.way = widgets.ToggleButtons(options=WAYS, style={"button_width": "76px"})
        self.button = button("Search", self.search, width="80px", kind="primary")
        self.asked, self.note, self.rows = widgets.VBox(), widgets.HTML(), Rows(pick)
        self.way.observe(self._turned, "index")
        for query in self.queries.values():
            query.observe(self._typed, "value")
        super().__init__([self.way, self.asked, self.button, self.note, self.rows])
        self._turned()

    def use(self, sae: str) -> None:
        """Search another SAE; what was found in the one before is searched for again, but for a number."""
        self.sae, self.last, again = sae, None, self.found and self.way.value != "number"
        if not (choice := self.queries["category"]).options:  # every SAE reads the same texts: the same categories
            choice.options = list(categories(self.explorer.reading(sae)))
            choice.index = 0
        if again:
            self.search()
        elif self.way.value == "number":
            self._turned()

    def search(self) -> None:
        """Fill the list with what is found; a number goes to its page at once."""
        question = self.way.value, self.queries[self.way.value].value
        if question == self.last and question[0] != "number":
            return  # Enter or leaving the field has asked it already
        self.found = attempt(self.note, self._search)
        self.last = question if self.found else None
        if not self.found:
            self.rows.fill([])

    def _search(self) -> None:
        found = search(self.explorer, self.way.value, self.queries[self.way.value].value or "", self.sae, ROWS)
        self.rows.fill(rows(self.explorer.reading(self.sae), found.table))
        self.note.value = words(found.note)
        if self.way.value == "number":
            self.pick(self.rows.features[0])

    def _typed(self, change: dict) -> None:
        if change["new"] and change["owner"] is self.queries[self.way.value]:
            self.search()

    def _turned(self, _: dict | None = None) -> None:
        self.found, self.last = False, None
        self.asked.children = (self.queries[self.way.value],)
        self.note.value = words(ASK[self.way.value] + ".")
        self.rows.fill([])
        if self.way.value == "category" and self.queries["category"].value:
            self.search()
