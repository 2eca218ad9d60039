"""Text as HTML, each token shaded by a value; everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from prism.visualization.style import as_array


def link(address: str, text: str) -> str:
    """An HTML link, for the cells of a table."""
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def visible(token: str) -> str:
    """A token with its white space made visible (· ↵ ⇥), control characters replaced, and escaped for HTML."""
    marks = {"\n": "↵", " ": "·", "\t": "⇥"}
    return escape("".join(marks.get(c, chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in token))


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
