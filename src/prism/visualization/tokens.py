"""Text as HTML, each token shaded by a value; everything escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from prism.features import FeatureMatrix
from prism.visualization.style import WINDOW, as_array, category_title

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


def link(address: str, text: str) -> str:
    """An HTML link; the text alone where the address is of a kind that could run code (`javascript:`, `data:`)."""
    scheme = SCHEME.match("".join(c for c in address if c > " "))  # browsers skip white space in it, too
    if scheme and scheme[1].lower() not in ("http", "https"):
        return escape(text)
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def marked(token: str) -> str:
    """A token with its white space made visible (· ↵ ⇥) and control characters replaced, as plain text."""
    marks = {"\n": "↵", " ": "·", "\t": "⇥"}
    return "".join(marks.get(c, chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in token)


def visible(token: str) -> str:
    """The same, escaped for HTML."""
    return escape(marked(token))


def token_shading(
    tokens: Sequence[str], activations: Float[np.ndarray, " pos"], title: str = "",
    maximum: float | None = None, start: int = 0,
) -> str:  # fmt: skip
    """A text as HTML, each token shaded by how strongly a feature fires on it; hovering shows token and value.

    Args:
        tokens: the text, token by token.
        activations: one value per token; a value of 0 leaves the token unshaded.
        title: a line above the text.
        maximum: the activation that gets the full colour; by default the largest one here.
        start: position of the first token, for the hover text.

    Raises:
        ValueError: as many activations as tokens are needed.
    """
    values = np.nan_to_num(as_array(activations))
    if values.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens but activations of shape {values.shape}: give one value per token")
    shares = np.clip(values / maximum if maximum else values / max(values.max(initial=0), 1e-9), 0, 1)
    spans = [_span(*row) for row in zip(tokens, values, shares, range(start, start + len(tokens)), strict=True)]
    head = f'<div style="font-weight:600;margin-bottom:4px">{escape(title)}</div>' if title else ""
    return (f'<div class="prism-tokens" dir="ltr" style="margin:6px 0">{head}<div style="font-family:ui-monospace,'
            f'Menlo,Consolas,monospace;font-size:13px;line-height:1.75;overflow-wrap:anywhere">{"".join(spans)}'
            "</div></div>")  # fmt: skip


def _span(token: str, value: float, share: float, position: int) -> str:
    """One token. Past 0.65 it is bold, and black: the orange is too bright for the light text of a dark page."""
    hover = f"{visible(token)} · activation {value:.3f} · position {position}"
    tag, ink = ("b", ";color:#000") if share > 0.65 else ("span", "")
    style = f' style="background:rgba(230,159,0,{share:.2f});border-radius:2px{ink}"' if share >= 0.005 else ""
    return f'<{tag} title="{hover}"{style}>{visible(token).replace("↵", "↵<br>")}</{tag}><wbr>'


def example_html(matrix: FeatureMatrix, column: Float[np.ndarray, " tokens"], row: int, values: bool = False) -> str:
    """The window around one token, never across the end of its text, with the activation there and the category.

    Args:
        matrix: for its table of tokens.
        column: a unit's activation on every token; its maximum gets the full colour.
        row: the token in the middle.
        values: add a table of the activations that opens without a mouse.
    """
    texts = matrix.table["text"].to_numpy()
    window = np.arange(max(row - WINDOW, 0), min(row + WINDOW + 1, len(texts)))
    window = window[texts[window] == texts[row]]
    part = matrix.table.iloc[window]
    category = f" · {escape(category_title(part['category'].iloc[0]))}" if "category" in part else ""
    start, maximum = int(part["position"].iloc[0]), float(column.max())
    tokens = part["token"].tolist()
    shading = token_shading(tokens, column[window], maximum=maximum, start=start)
    more = _value_table(tokens, column[window], start) if values else ""
    return f'<div class="example"><small>{column[row]:.2f} · text {texts[row]}{category}</small>{shading}{more}</div>'


def _value_table(tokens: Sequence[str], values: np.ndarray, start: int) -> str:
    """What hovering shows, for keyboards and touch screens: the tokens above zero."""
    cells = "".join(
        f"<tr><td><code>{visible(token)}</code></td><td>{start + i}</td><td>{value:.3f}</td></tr>"
        for i, (token, value) in enumerate(zip(tokens, values, strict=True)) if value > 0
    )  # fmt: skip
    head = '<tr><th scope="col">token</th><th scope="col">position</th><th scope="col">activation</th></tr>'
    return f"<details><summary>values (0 where not listed)</summary><table>{head}{cells}</table></details>"
