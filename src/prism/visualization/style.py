"""The one look of all figures: template, colours, and small helpers."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from prism.analysis.counting import as_array as as_array  # all figures take it from here
from prism.data import CATEGORIES, CATEGORY_TITLES

WIDTH = 900  # pixels: what a notebook cell shows at full size
ULTRALOW = 1e-6  # firings per token below which a feature counts as 'ultralow'
WINDOW = 12  # tokens of context on either side of an example's strongest token
INK, GREY, PALE = "#222222", "#7f8790", "#e3e6ea"
# Okabe & Ito (2008), the palette that stays distinct under every common colour blindness.
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, YELLOW = OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#CC79A7",
    "#F0E442",
)
CATEGORY_COLOURS = dict(zip(CATEGORIES, OKABE_ITO, strict=True))
DIVERGING = [[0.0, VERMILLION], [0.5, "#ffffff"], [1.0, BLUE]]  # for numbers on both sides of 0
SEQUENTIAL = [[0.0, "#f4f6f8"], [0.15, "#cfe4f3"], [0.45, "#56B4E9"], [0.75, "#0072B2"], [1.0, "#002b45"]]


def use_style() -> None:
    """Make 'prism' plotly's default template, show figures as JSON, with a PNG if `PRISM_PNG=1`, and whole sentences.

    A PNG is what GitHub shows of a notebook; it needs a Chromium or Chrome on this machine.
    """
    pio.templates["prism"] = _template()
    pio.templates.default = "prism"
    pio.renderers["png"].width = WIDTH
    pio.renderers["png"].scale = 0.8  # a notebook with its pictures stays below 1 MB
    pd.set_option("display.max_colwidth", 100)  # a table shows a sentence whole
    pio.renderers.default = "plotly_mimetype+png" if os.environ.get("PRISM_PNG") == "1" else "plotly_mimetype"


def _template() -> go.layout.Template:
    axis = dict(
        gridcolor=PALE,
        linecolor=GREY,
        zeroline=False,
        ticks="outside",
        tickcolor=PALE,
        ticklabelstandoff=4,
        automargin=True,
        title=dict(font=dict(size=14), standoff=10),
    )
    title = dict(
        x=0,
        xref="paper",
        xanchor="left",
        y=1,
        yref="container",
        yanchor="top",
        pad=dict(t=16),
        font=dict(size=18),
        subtitle=dict(font=dict(size=13, color="#5a6169")),
    )
    return go.layout.Template(
        layout=dict(
            font=dict(family="Open Sans, Helvetica, Arial, sans-serif", size=14, color=INK),
            paper_bgcolor="white",
            plot_bgcolor="white",
            colorway=list(OKABE_ITO),
            width=WIDTH,
            margin=dict(l=70, r=30, t=90, b=60),
            xaxis=axis,
            yaxis=axis,
            title=title,
            legend=dict(orientation="h", x=1, xanchor="right", y=1.01, yanchor="bottom", font=dict(size=13)),
            hoverlabel=dict(font=dict(size=13)),
            bargap=0.15,
        )
    )


def finish(fig: go.Figure, title: str, height: int, subtitle: str = "", **layout) -> go.Figure:
    for trace in fig.data:  # six digits are enough for an eye, and half of what a committed notebook would hold
        for axis in ("x", "y", "z"):
            values = trace[axis] if axis in trace else None
            if isinstance(values, np.ndarray) and values.dtype == np.float64:
                trace[axis] = values.astype(np.float32)
    margin = dict(t=95 if subtitle else 75) | layout.pop("margin", {})
    titles = dict(text=title, subtitle=dict(text=subtitle))
    size = dict(width=WIDTH, height=max(height, 300), margin=margin)
    return fig.update_layout(template=_template(), title=titles, **size, **layout)


def category_title(name: str) -> str:
    """The words a figure uses for a category; a category that is not one of the seven keeps its own name."""
    return CATEGORY_TITLES.get(name, str(name))


def category_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each category: the seven always have their own, others take the palette in turn."""
    others = [name for name in dict.fromkeys(names) if name not in CATEGORY_COLOURS]
    return CATEGORY_COLOURS | {name: OKABE_ITO[i % len(OKABE_ITO)] for i, name in enumerate(others)}


def category_order(names: Iterable[str]) -> list[str]:
    """The distinct categories in their fixed order, ones that are not of the seven after them."""
    present = list(dict.fromkeys(names))
    return [c for c in CATEGORIES if c in present] + [c for c in present if c not in CATEGORIES]


def short_label(value: object, width: int = 60) -> str:
    """Text for a figure: plotly would read `<b>` as bold, and a long label pushes the axes aside."""
    return escape(textwrap.shorten(str(value), width, placeholder=" …") or " ", quote=False)


def colour_bar(title: str) -> dict:
    return dict(title=dict(text=title, side="right", font=dict(size=14)), thickness=14, outlinewidth=0)
