"""Text as HTML, each token shaded by a value; filled into templates, which escape everything."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from IPython.display import HTML
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prism.data import whole_characters
from prism.features import FeatureMatrix
from prism.visualization.style import WINDOW, as_array, category_title

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
FOLDER = Path(__file__).with_name("templates")


class Tight(FileSystemLoader):
    """Templates from folders; a line break between two tags, and what indents the next line, is none of the page's."""

    def get_source(self, environment: Environment, template: str) -> tuple:
        """See jinja2."""
        source, *rest = super().get_source(environment, template)
        return re.sub(r"(?<=[>}])\n\s*(?=[<{])", "", source), *rest


@functools.cache
def templates(*folders: Path) -> Environment:
    """The templates of these folders and of this room; what is filled in is escaped, and what is missing raises."""
    made = Environment(loader=Tight([*folders, FOLDER]), autoescape=True, undefined=StrictUndefined)
    made.filters["marked"], made.tests["harmless"] = marked, _harmless
    return made


def _harmless(address: str) -> bool:
    """False for addresses of a kind that could run code (`javascript:`, `data:`)."""
    scheme = SCHEME.match("".join(c for c in address if c > " "))  # browsers skip white space in it, too
    return not scheme or scheme[1].lower() in ("http", "https")


def marked(token: str, keep: str = "") -> str:
    """A token with its white space made visible (· ↵ ⇥ ⍽; but for what is kept), and control characters replaced.

    Of a token that is nothing but invisible marks, such as the one behind ❤️, the marks' numbers are shown.
    """
    if token and all(unicodedata.category(c) == "Cf" or c in "\ufe0e\ufe0f" for c in token):
        return "".join(f"‹U+{ord(c):04X}›" for c in token)
    marks = {"\n": "↵", " ": "·", "\xa0": "⍽", "\t": "⇥", "\x7f": "␡"}
    keep += "\xa0" * (" " in keep)
    return "".join(c if c in keep else marks.get(c, chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in token)


class Piece(NamedTuple):
    """A token, or those that make up one character.

    Attributes:
        text: what is drawn.
        share: of the maximum, 0 to 1; the largest of its tokens.
        parts: token, activation and position of each of them.
    """

    text: str
    share: float
    parts: list[tuple[str, float, int]]


def shaded(
    tokens: Sequence[str], activations: Float[np.ndarray, " pos"], maximum: float | None = None, start: int = 0
) -> list[Piece]:
    """What the macro `shading` shows: a text, each token shaded by how strongly a feature fires on it.

    Tokens that make up one character are drawn as one, shaded by the largest of their values.

    Args:
        tokens: the text, token by token.
        activations: one value per token; a value of 0 leaves the token unshaded.
        maximum: the activation that gets the full colour; by default the largest one here.
        start: position of the first token, for the hover text.

    Raises:
        ValueError: as many activations as tokens are needed.
    """
    values = np.nan_to_num(as_array(activations))
    if values.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens but activations of shape {values.shape}: give one value per token")
    shares = np.clip(values / (maximum or max(values.max(initial=0), 1e-9)), 0, 1).tolist()
    parts = [*zip(tokens, values.tolist(), range(start, start + len(tokens)), strict=True)]
    return [Piece(text, max(shares[part]), parts[part]) for text, part in whole_characters(tokens)]


def example(
    matrix: FeatureMatrix, column: Float[np.ndarray, " tokens"], row: int, listed: bool = False
) -> dict[str, object]:
    """What the macro `example` shows: the window around one token, never across the end of its text.

    Args:
        matrix: for its table of tokens.
        column: a unit's activation on every token; its maximum gets the full colour.
        row: the token in the middle.
        listed: with a table of the activations, which opens without a mouse.
    """
    around, table = window(matrix, row), matrix.table
    category = category_title(table["category"].iloc[row]) if "category" in table else ""
    tokens = shaded_rows(matrix, around, column[around], float(column.max()))
    text = int(table["text"].iloc[row])
    return {"activation": column[row], "text": text, "category": category, "tokens": tokens, "listed": listed}


def window(matrix: FeatureMatrix, row: int, size: int = WINDOW) -> slice:
    """The rows up to `size` tokens either side of one, within its text."""
    texts = matrix.table["text"].to_numpy()
    first, last = (int(np.searchsorted(texts, texts[row], side)) for side in ("left", "right"))
    return slice(max(row - size, first), min(row + size + 1, last))


def whole_token(matrix: FeatureMatrix, row: int) -> str:
    """A token, or the whole character that it is a part of."""
    around = window(matrix, row)
    pieces = whole_characters(matrix.table["token"].iloc[around].tolist())
    return next(text for text, part in pieces if part.start <= row - around.start < part.stop)


def shaded_rows(
    matrix: FeatureMatrix, rows: slice, activations: Float[np.ndarray, " rows"], maximum: float
) -> list[Piece]:
    """`shaded` for some rows of a matrix that follow each other."""
    part = matrix.table.iloc[rows]
    return shaded(part["token"].tolist(), activations, maximum, int(part["position"].iloc[0]))


def side_by_side(*views: HTML) -> HTML:
    """Views of features in one row, below each other where there is no room."""
    columns = "".join(f'<div style="flex:1 1 340px;min-width:0">{view.data}</div>' for view in views)
    return HTML(f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{columns}</div>')
