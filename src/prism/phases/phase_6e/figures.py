"""The figures of phase 6e: features and their partners beside what a table of tokens predicts, and distributions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREY, INK, ORANGE, PALE, SKY, VERMILLION, finish, short_label

SYMBOLS = ("diamond", "square", "triangle-up", "star", "cross", "x", "pentagon", "hexagram")


def rivals_figure(
    table: Float[np.ndarray, " features"],
    partner: Float[np.ndarray, " features"],
    found: Bool[np.ndarray, " features"],
    lacking: Bool[np.ndarray, " features"],
    marks: Mapping[str, tuple[float, float]],
    other: str,
    title: str = "",
) -> go.Figure:
    """Each feature once: how well a table of tokens predicts it, against its best partner in another model.

    Args:
        table: correlation with the table's prediction; partner: with the best partner in the other model.
        found: whether another seed of the same SAE has the feature; the others are small and pale.
        lacking: those that another seed has and no small model; drawn in a colour of their own.
        marks: words -> where a feature that is named lies (table, partner); they stand in the legend.
        other: the other model's name.
        title: the figure's title.
    """
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=GREY, dash="dot"), showlegend=False)
    found, lacking = np.asarray(found, bool), np.asarray(lacking, bool)
    groups = (
        ("not in another seed", ~found, dict(size=4, color="#b9c0c7")),
        ("in another seed", found & ~lacking, dict(size=6, color=BLUE)),
        ("… and in no small model", found & lacking, dict(size=6, color=ORANGE)),
    )
    for name, rows, marker in groups:
        fig.add_scatter(
            x=np.asarray(table)[rows],
            y=np.asarray(partner)[rows],
            mode="markers",
            name=name,
            opacity=0.55,
            marker=marker,
            hovertemplate="table %{x:.2f}, partner %{y:.2f}<extra></extra>",
        )
    for symbol, (words, (x, y)) in zip(SYMBOLS * len(marks), marks.items(), strict=False):
        fig.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=short_label(words, 30),
            marker=dict(size=15, color=VERMILLION, symbol=symbol, line=dict(width=1.2, color=INK)),
            hovertemplate=f"{short_label(words, 30)}<extra></extra>",
        )
    fig.update_xaxes(title="correlation with what a table of tokens predicts", range=[-0.05, 1.05])
    fig.update_yaxes(title=f"correlation with the best partner in {short_label(other)}", range=[-0.05, 1.05])
    legend = dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top")
    return finish(fig, title, 600, legend=legend, margin=dict(r=230))


def histograms(
    values: Mapping[str, Float[np.ndarray, " features"]],
    x_title: str,
    y_title: str,
    title: str,
    line: float | None = None,
    step: float = 0.05,
) -> go.Figure:
    """One histogram under the other, on one axis from 0 to 1; what lies below 0 is added to the first bar.

    Args:
        values: name -> numbers; NaN is left out, and with it a name that has nothing else.
        x_title: what the numbers are; y_title: what the bars are a share of (in %).
        title: the figure's title.
        line: a value to mark by a dotted line.
        step: width of a bar.
    """
    kept = {name: of[~np.isnan(of)] for name, of in ((n, np.asarray(v, float)) for n, v in values.items())}
    kept = {name: of for name, of in kept.items() if len(of)}
    fig = make_subplots(len(kept), 1, shared_xaxes=True, vertical_spacing=0.3 / len(kept), subplot_titles=list(kept))
    edges = np.linspace(0, 1, round(1 / step) + 1)
    heights = [100 * np.histogram(of.clip(0, 1), edges)[0] / len(of) for of in kept.values()]
    for row, height in enumerate(heights, 1):
        bars = dict(x=edges[:-1] + step / 2, y=height, width=step, marker=dict(color=SKY, line=dict(width=1)))
        fig.add_bar(**bars, hovertemplate="%{x:.2f}: %{y:.1f} %<extra></extra>", showlegend=False, row=row, col=1)
        if line is not None:
            fig.add_vline(line, line=dict(color=VERMILLION, dash="dot"), row=row, col=1)
    fig.update_annotations(font_size=14, x=0, xanchor="left")
    fig.update_yaxes(range=[0, 1.05 * max(map(max, heights), default=1)], gridcolor=PALE, nticks=4)
    fig.update_yaxes(title=y_title, row=(len(kept) + 1) // 2, col=1)
    fig.update_xaxes(range=[0, 1])
    fig.update_xaxes(title=x_title, row=len(kept), col=1)
    return finish(fig, title, 140 + 130 * len(kept), bargap=0, margin=dict(t=85))
