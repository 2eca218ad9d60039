"""Figures of phase 6a: what a search found among random directions, and what a dose does and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import GREY, OKABE_ITO, finish, short_label


def search_figure(found: pd.DataFrame, cloud: pd.DataFrame, unchanged: float, title: str) -> go.Figure:
    """Share over cost: a labelled point a feature, over a grey cloud of random directions.

    Args:
        found: share and cost of each feature, whose index names it.
        cloud: share and cost of each random direction.
        unchanged: the share in the model as it is, drawn as a line.
    """
    fig = go.Figure()
    names = [short_label(name) for name in found.index]
    hover = "cost %{x:.2f}, share %{y:.2%}<extra></extra>"
    grey = dict(size=6, color=GREY, opacity=0.45)
    fig.add_scatter(
        x=cloud["cost"], y=cloud["share"], mode="markers", marker=grey, hovertemplate=hover, name="random directions"
    )
    fig.add_scatter(
        x=found["cost"],
        y=found["share"],
        mode="markers+text",
        text=names,
        textposition="top center",
        marker=dict(size=11, color=OKABE_ITO[1], symbol="diamond"),
        hovertemplate="%{text}: " + hover,
        name="features",
    )
    fig.add_hline(unchanged, line=dict(color=GREY, dash="dot"), layer="below")
    _log_share(fig, [*found["share"], *cloud["share"], unchanged])
    fig.update_xaxes(title="cost on the same text (nats a token)")
    return finish(
        fig,
        title,
        430,
        "each added at its own maximum, random directions at the same lengths; dotted: the model unchanged",
    )


def dose_figure(curves: Mapping[str, pd.DataFrame], told: tuple[float, float], level: float, title: str) -> go.Figure:
    """Share over dose and share over cost, a line a way to steer; an instruction has no dose, and is a star.

    Args:
        curves: way -> dose, share, cost; ways that begin with 'random' are grey.
        told: share and cost of the instruction.
        level: a cost to mark (nats a token).
    """
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    grey = [way for way in curves if way.startswith("random")]
    coloured = [way for way in curves if way not in grey]
    for column, x in enumerate(("dose", "cost"), start=1):
        for way, part in curves.items():
            colour = GREY if way in grey else OKABE_ITO[1 - coloured.index(way) % 7]
            fig.add_scatter(
                x=part[x],
                y=part["share"],
                row=1,
                col=column,
                mode="lines+markers",
                name="random directions" if way in grey else short_label(way),
                legendgroup="random" if way in grey else way,
                showlegend=column == 1 and way not in grey[1:],
                line=dict(color=colour, width=1 if way in grey else 2.5),
                marker=dict(size=4 if way in grey else 8),
                hovertemplate=short_label(way) + f": {x} %{{x:.2f}}, share %{{y:.2%}}<extra></extra>",
            )
    star = dict(size=15, color=OKABE_ITO[2], symbol="star")
    fig.add_scatter(x=[told[1]], y=[told[0]], mode="markers", marker=star, name="instruction", row=1, col=2)
    fig.add_vline(level, line=dict(color=GREY, dash="dot"), layer="below", row=1, col=2)
    shares = [share for part in curves.values() for share in part["share"]]
    _log_share(fig, [*shares, told[0]])
    fig.update_xaxes(title="dose (the feature's own maxima)", row=1, col=1)
    fig.update_xaxes(title="cost (nats a token)", range=[-0.2 * level, 5 * level], row=1, col=2)
    legend = dict(orientation="h", y=-0.24, yanchor="top", x=0.5, xanchor="center")
    subtitle = "right: up to five times the cost at which ways are compared (dotted)"
    return finish(fig, title, 480, subtitle, legend=legend, margin=dict(b=130))


def _log_share(fig: go.Figure, shares: Sequence[float]) -> None:
    """A logarithmic axis of shares in per cent, with whole powers of ten."""
    low, high = (np.log10(np.clip(end, 1e-6, 1)) for end in (min(shares), max(shares)))
    ticks = [10.0**power for power in range(int(np.floor(low)), 1)]
    axis = dict(
        type="log", range=[low - 0.2, high + 0.35], tickvals=ticks, ticktext=[f"{100 * tick:g} %" for tick in ticks]
    )
    fig.update_yaxes(minor_showgrid=False, **axis)
    fig.update_layout(yaxis_title="probability of the target's tokens")
