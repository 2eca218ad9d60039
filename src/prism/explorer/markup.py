"""What the web explorer shows, as HTML: sentences, tokens, tables, pages; everything from outside escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import pandas as pd
from jaxtyping import Float

from prism import visualization as viz

# A page in a frame may neither run scripts nor load anything; what it links to elsewhere opens beside the app.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SANDBOX = "allow-same-origin allow-popups allow-popups-to-escape-sandbox"  # same origin: the app follows its links

HEADS = {"of_maximum": "of its maximum", "fires_on": "fires on", "composite_score": "score", "mean_activation": "mean",
         "l0": "active a token", "explained_variance": "variance explained", "nats_lost": "nats lost a token",
         "nats_lost_by_mean": "… by the mean", "background_share": "texts of the sample",
         "f1": "F1", "sae": "SAE", "token": "peaks on"}  # fmt: skip
FORMATS: dict[str, Callable[[float], str]] = {
    "of_maximum": "{:.0%}".format, "share": "{:.0%}".format, "precision": "{:.0%}".format, "recall": "{:.0%}".format,
    "density": "{:.2%}".format, "background_share": "{:.2%}".format, "explained_variance": "{:.1%}".format,
    "l0": "{:.1f}".format, "nats_lost": "{:+.2f}".format, "nats_lost_by_mean": "{:+.2f}".format,
    "composite_score": "{:,.0f}".format, "score": "{:g}".format, "feature": "{:d}".format,
}  # fmt: skip


def inert(html: str) -> str:
    """A fragment without the marks of templates (`{{…}}`, `${…}`), which Gradio fills it into; it shows the same."""
    return html.replace("{", "&#123;").replace("$", "&#36;")


def sentence(text: str, kind: str = "note") -> str:
    """Words on a line of their own: a 'note', or a 'problem' that screen readers announce."""
    role = ' role="alert"' if kind == "problem" else ""
    return inert(f'<p class="prism-{kind}"{role}>{escape(text)}</p>')


def token_buttons(tokens: Sequence[str], shares: Float[np.ndarray, " tokens"], sae: str, read: str = "") -> str:
    """A text as a row of buttons, one a token, shaded by a share of 0 to 1; `read` goes with a click on any of them."""
    whose = f'type="button" data-sae="{escape(sae)}" data-read="{escape(read)}"'
    buttons = "".join(
        f'<button {whose} data-row="{row}" aria-pressed="false" '
        f'style="background:rgba(230,159,0,{0.6 * share:.2f})">{viz.visible(token)}</button>'
        for row, (token, share) in enumerate(zip(tokens, np.clip(shares, 0, 1), strict=True))
    )  # fmt: skip
    return inert(f'<div class="prism-text" role="group" aria-label="Tokens">{buttons}</div>')


def feature_button(feature: int, sae: str, text: str | None = None) -> str:
    """A button that opens a feature's page."""
    words = escape(text if text is not None else str(feature))
    return (f'<button type="button" class="prism-pick" data-sae="{escape(sae)}" data-feature="{feature}">{words}'
            "</button>")  # fmt: skip


def table(frame: pd.DataFrame, sae: str | None = None, note: str = "", title: str = "") -> str:
    """A table with a note under it; its features are buttons if `sae` says whose they are."""
    lead = [name for name in ("feature", "token", "fires_on") if name in frame]  # what a narrow screen shows
    frame = frame[lead + [name for name in frame if name not in lead]]

    def cell(name: str, value: object) -> str:
        if name == "feature" and sae is not None:
            return f"<td>{feature_button(int(value), sae)}</td>"
        return f'<td class="{"number" if _is_number(value) else "words"}">{_shown(name, value)}</td>'

    heads = "".join(f'<th scope="col">{escape(HEADS.get(name, name.replace("_", " ")))}</th>' for name in frame)
    rows = "".join(f"<tr>{''.join(map(cell, frame, row))}</tr>" for row in frame.itertuples(index=False, name=None))
    head = f"<h3>{escape(title)}</h3>" if title else ""
    foot = f"<p>{escape(note)}</p>" if note else ""
    return inert(f'{head}<div class="prism-table"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
                 f"</div>{foot}")  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number))


def _shown(name: str, value: object) -> str:
    if not _is_number(value):
        return viz.visible(value) if name == "token" else escape(str(value))
    if value != value:
        return "–"
    if name in FORMATS:
        return FORMATS[name](value)
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.2f}"


def frame(page: str, title: str) -> str:
    """A whole page inside the app, in a frame where no script runs and nothing is loaded."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><base target="_blank">'
    page = page.replace("<head>", f"<head>{policy}", 1)
    return inert(f'<iframe sandbox="{SANDBOX}" title="{escape(title)}" srcdoc="{escape(page)}"></iframe>')
