"""What the explorers show, as HTML: templates filled in, tables, frames; everything from outside escaped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from prism.visualization.tokens import marked, templates

FOLDER = Path(__file__).with_name("templates")
# A page in a frame may neither run scripts nor load anything; what it links to elsewhere opens beside the app.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SANDBOX = "allow-same-origin allow-popups allow-popups-to-escape-sandbox"  # same origin: the app follows its links

HEADS = {
    "of_maximum": "of its maximum",
    "fires_on": "fires on",
    "composite_score": "score",
    "mean_activation": "mean",
    "l0": "active a token",
    "explained_variance": "variance explained",
    "nats_lost": "nats lost a token",
    "nats_lost_by_mean": "… by the mean",
    "background_share": "texts of the sample",
    "f1": "F1",
    "sae": "SAE",
    "token": "peaks on",
}
FORMATS = {
    "of_maximum": "{:.0%}",
    "share": "{:.0%}",
    "precision": "{:.0%}",
    "recall": "{:.0%}",
    "density": "{:.2%}",
    "background_share": "{:.2%}",
    "explained_variance": "{:.1%}",
    "l0": "{:.1f}",
    "nats_lost": "{:+.2f}",
    "nats_lost_by_mean": "{:+.2f}",
    "composite_score": "{:,.0f}",
    "score": "{:g}",
    "feature": "{:d}",
}


def render(template: str, **values: object) -> str:
    """A template of the explorer's, filled in."""
    return templates(FOLDER).get_template(template).render(values)


def asset(name: str) -> str:
    """A style sheet or a script as it stands."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fragment(macro: str, *values: object, **named: object) -> str:
    """A macro of `templates/parts.html` without what Gradio would fill in (`{{…}}`, `${…}`); it shows the same."""
    html = str(getattr(templates(FOLDER).get_template("parts.html").module, macro)(*values, **named))
    return html.replace("{", "&#123;").replace("$", "&#36;")


def sentence(text: str, kind: str = "note") -> str:
    """Words on a line of their own: a 'note', or a 'problem' that screen readers announce."""
    return fragment("line", text, kind, "alert" if kind == "problem" else "")


def table(frame: pd.DataFrame, sae: str | None = None, note: str = "", title: str = "", empty: str = "") -> str:
    """A table with a note under it, or what is said of an empty one; features are buttons if `sae` says whose."""
    lead = [name for name in ("feature", "token", "fires_on") if name in frame]  # what a narrow screen shows
    frame = frame[lead + [name for name in frame if name not in lead]]
    heads = [HEADS.get(name, name.replace("_", " ")) for name in frame]
    rows = [[_cell(name, value, sae) for name, value in row.items()] for row in frame.to_dict("records")]
    return fragment("table", heads, rows, sae, title, note, empty)


def _cell(name: str, value: object, sae: str | None) -> tuple[str, str]:
    """What a cell is (of which class), and its text."""
    if not isinstance(value, (int, float, np.number)):
        return "words", marked(value) if name == "token" else str(value)
    return "pick" if name == "feature" and sae is not None else "number", shown(name, value)


def shown(name: str, value: float) -> str:
    """A number as a column of that name shows it."""
    if value != value:
        return "–"
    if name in FORMATS:
        return FORMATS[name].format(value)
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.2f}"


def frame(page: str, title: str) -> str:
    """A whole page inside the app, in a frame where no script runs and nothing is loaded."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><base target="_blank">'
    return fragment("frame", page.replace("<head>", f"<head>{policy}", 1), title, SANDBOX)
