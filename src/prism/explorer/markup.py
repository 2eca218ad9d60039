"""What the explorers show, as HTML: templates filled in, tables, frames; everything from outside escaped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prism.visualization.tokens import templates

FOLDER = Path(__file__).with_name("templates")
# A page in a frame may neither run scripts nor load anything; what it links to elsewhere opens beside the app.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SANDBOX = "allow-same-origin allow-popups allow-popups-to-escape-sandbox"  # same origin: the app follows its links

COLUMNS = {  # of the table of SAEs: heading, and how a number is written
    "sae": ("SAE", "{}"),
    "features": ("features", "{:,}"),
    "l0": ("active a token", "{:.1f}"),
    "explained_variance": ("variance explained", "{:.1%}"),
    "nats_lost": ("nats lost a token", "{:+.2f}"),
    "nats_lost_by_mean": ("… by the mean", "{:+.2f}"),
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


def table(frame: pd.DataFrame, note: str) -> str:
    """The measures of some SAEs, with a note under them."""
    rows = [[COLUMNS[name][1].format(value) for name, value in row.items()] for row in frame.to_dict("records")]
    return fragment("table", [COLUMNS[name][0] for name in frame], rows, note)


def frame(page: str, title: str) -> str:
    """A whole page inside the app, in a frame where no script runs and nothing is loaded."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><base target="_blank">'
    return fragment("frame", page.replace("<head>", f"<head>{policy}", 1), title, SANDBOX)
