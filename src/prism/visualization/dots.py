"""A measure in several groups, side by side, with intervals."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from prism.visualization.style import GREY, OKABE_ITO, PALE, finish, short_label

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")


def grouped_dots(
    frame: pd.DataFrame,
    x: str,
    colour: str,
    y_title: str,
    title: str,
    subtitle: str = "",
    x_title: str = "",
    line: float | None = None,
) -> go.Figure:
    """One point for each pair of a group (on the horizontal axis) and a colour, with intervals, side by side.

    Args:
        frame: the columns `x` and `colour`, value, and low and high (the interval's ends; NaN draws no bar).
        x: column of the groups, in the order in which they stand.
        colour: column that colour and symbol follow.
        y_title: what the value is, with its unit.
        title: the figure's title.
        subtitle: under it.
        x_title: what the groups are.
        line: a value to mark by a dotted line.

    Raises:
        ValueError: a column that the frame has not.
    """
    if missing := [name for name in (x, colour, "value", "low", "high") if name not in frame]:
        raise ValueError(f"no column '{missing[0]}' in this frame; it has {', '.join(map(str, frame.columns))}")
    groups, kinds = list(dict.fromkeys(frame[x])), list(dict.fromkeys(frame[colour]))
    step, fig = 0.7 / max(len(kinds), 1), go.Figure()
    for i, kind in enumerate(kinds):
        part = frame[frame[colour] == kind]
        bars = dict(
            type="data",
            symmetric=False,
            thickness=1.5,
            width=3,
            array=part["high"] - part["value"],
            arrayminus=part["value"] - part["low"],
        )
        fig.add_scatter(
            x=np.array([groups.index(name) for name in part[x]]) + (i - (len(kinds) - 1) / 2) * step,
            y=part["value"],
            mode="markers",
            name=short_label(kind, 40),
            error_y=bars,
            text=[short_label(name) for name in part[x]],
            marker=dict(size=10, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 5]),
            hovertemplate=f"%{{text}}, {short_label(kind)}: %{{y:.3f}}<extra></extra>",
        )
    for place in range(len(groups) - 1):
        fig.add_vline(x=place + 0.5, line=dict(color=PALE, width=1))
    if line is not None:
        fig.add_hline(y=line, line=dict(color=GREY, dash="dot"))
    labels = ["<br>".join(short_label(line) for line in textwrap.wrap(str(g), 15)) or " " for g in groups]
    fig.update_xaxes(
        title=x_title,
        tickvals=list(range(len(groups))),
        ticktext=labels,
        tickangle=0,
        range=[-0.5, len(groups) - 0.5],
        showgrid=False,
        ticks="",
    )
    fig.update_yaxes(title=y_title)
    return finish(fig, title, 430, subtitle, margin=dict(t=115))
