"""The front: what each SAE of a family reaches at each sparsity."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from prism.visualization.style import INK, OKABE_ITO, finish, short_label

COLOURS = (*OKABE_ITO[:6], INK)  # yellow is too pale for a line
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross")
AXIS_TITLES = {
    "l0": "L0: active features a token (log scale)",
    "explained_variance": "explained variance",
    "delta_ce": "ΔCE: rise of the loss (nats a token)",
    "dead": "dead features",
}


def front_figure(
    frame: pd.DataFrame,
    x: str = "l0",
    y: str = "explained_variance",
    label: str | Mapping[str, str] = "member",
    title: str = "What each architecture reaches at each sparsity",
) -> go.Figure:
    """One line an architecture through its points; x in powers of two, error bars where the frame has an interval.

    Args:
        frame: one row an SAE: `member`, x and y; `<y>_low` and `<y>_high` if there are intervals.
        x: column of the horizontal axis, above 0.
        y: column of the vertical axis.
        label: the column that names a line, or member -> the words for it.
        title: the figure's title.

    Raises:
        ValueError: a column that the frame has not.
    """
    by = label if isinstance(label, str) else "member"
    words = {} if isinstance(label, str) else dict(label)
    if missing := [name for name in (by, x, y) if name not in frame]:
        raise ValueError(f"no column '{missing[0]}' in this frame; it has {', '.join(map(str, frame.columns))}")
    fig, spread = go.Figure(), {f"{y}_low", f"{y}_high"} <= set(frame)
    last = frame.sort_values(x).groupby(by, sort=False)[y].last()  # the legend stands in the order of the lines' ends
    place = {name: rank for rank, name in enumerate(last.sort_values(ascending=False).index)}
    for i, (name, part) in enumerate(frame.groupby(by, sort=False)):
        part, colour = part.sort_values(x), COLOURS[i % 7]
        bars = (
            dict(
                type="data",
                symmetric=False,
                thickness=1.5,
                width=4,
                array=part[f"{y}_high"] - part[y],
                arrayminus=part[y] - part[f"{y}_low"],
            )
            if spread
            else None
        )
        fig.add_scatter(
            x=part[x],
            y=part[y],
            error_y=bars,
            mode="lines+markers",
            name=_wrapped(words.get(name, name)),
            legendrank=place[name],
            line=dict(color=colour, width=2.5, dash=DASHES[i // 7 % 4]),
            marker=dict(size=9, symbol=SYMBOLS[i % 7] + ("-open" if i >= 7 else "")),
            hovertemplate=f"{short_label(words.get(name, name))}<br>{x} %{{x:.4g}}, {y} %{{y:.4g}}<extra></extra>",
        )
    fig.update_xaxes(title=AXIS_TITLES.get(x, x), **_log2_axis(frame[x].to_numpy(float)))
    fig.update_yaxes(title=AXIS_TITLES.get(y, y))
    legend = dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top")
    return finish(fig, title, 470, "bars: 95 % intervals" if spread else "", legend=legend, showlegend=True)


def _wrapped(name: object, width: int = 22) -> str:
    """A name beside a figure, over as many lines as it needs."""
    return "<br>".join(short_label(line) for line in textwrap.wrap(str(name), width)) or " "


def _log2_axis(values: Float[np.ndarray, " n"]) -> dict:
    """A log axis with a tick at each power of two."""
    low, high = np.log2(values.min()), np.log2(values.max())
    marks = [2.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1)]
    edge = max(0.15, 0.06 * (high - low))
    ends = [(end * np.log10(2)) for end in (low - edge, high + edge)]
    return dict(type="log", range=ends, tickvals=marks, ticktext=[f"{mark:g}" for mark in marks])
