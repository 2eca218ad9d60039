"""The figure of phase 6e: features and their best partners in another model, beside what a table of tokens predicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from prism.visualization.style import BLUE, GREY, PALE, VERMILLION, finish, short_label


def rivals_figure(
    table: Float[np.ndarray, " features"],
    partner: Float[np.ndarray, " features"],
    found: Bool[np.ndarray, " features"],
    marks: Mapping[str, tuple[float, float]],
    other: str,
    title: str = "",
) -> go.Figure:
    """Each feature once: how well a table of tokens predicts it, against its best partner in another model.

    Args:
        table: correlation with the table's prediction; partner: with the best partner in the other model.
        found: whether another seed of the same SAE has the feature; those are drawn in colour.
        marks: words -> where a feature that is named lies (table, partner).
        other: the other model's name.
        title: the figure's title.
    """
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=GREY, dash="dot"), showlegend=False)
    for name, rows, colour in (("not in another seed", ~found, PALE), ("also in another seed", found, BLUE)):
        fig.add_scatter(
            x=np.asarray(table)[rows],
            y=np.asarray(partner)[rows],
            mode="markers",
            name=name,
            opacity=0.6,
            marker=dict(size=6, color=colour, line=dict(width=0.5, color=GREY)),
            hovertemplate="table %{x:.2f}, partner %{y:.2f}<extra></extra>",
        )
    for words, (x, y) in marks.items():
        side = -1 if x > 0.7 else 1  # of the point, on which its name has room
        fig.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            showlegend=False,
            marker=dict(size=11, color=VERMILLION, symbol="diamond", line=dict(width=1, color="white")),
            hovertemplate=f"{short_label(words, 30)}<extra></extra>",
        )
        name = dict(x=x, y=y, text=short_label(words, 30), showarrow=False, bgcolor="rgba(255, 255, 255, 0.85)")
        fig.add_annotation(xanchor="left" if side > 0 else "right", xshift=9 * side, **name)
    fig.update_xaxes(title="correlation with what a table of tokens predicts", range=[-0.05, 1.05])
    fig.update_yaxes(title=f"correlation with the best partner in {short_label(other)}", range=[-0.05, 1.05])
    return finish(fig, title, 520)
