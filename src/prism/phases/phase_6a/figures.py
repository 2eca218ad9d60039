"""Figures of phase 6a: what a search found among random directions, and what a dose does and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, finish, short_label


def search_figure(found: pd.DataFrame, clouds: Mapping[str, pd.DataFrame], unchanged: float, title: str) -> go.Figure:
    """Share over cost: a labelled point a feature, over clouds of what was drawn at random.

    Args:
        found: share and cost of each feature, whose index names it.
        clouds: what was drawn -> share and cost of each.
        unchanged: the share in the model as it is, drawn as a line.
    """
    fig = go.Figure()
    hover = "cost %{x:.2f}, share %{y:.2%}<extra></extra>"
    for (name, cloud), colour, symbol in zip(clouds.items(), (GREY, SKY), ("circle", "triangle-up"), strict=False):
        marker = dict(size=7, color=colour, opacity=0.6, symbol=symbol)
        fig.add_scatter(
            x=cloud["cost"], y=cloud["share"], mode="markers", marker=marker, hovertemplate=hover, name=name
        )
    fig.add_scatter(
        x=found["cost"],
        y=found["share"],
        mode="markers",
        customdata=[short_label(name) for name in found.index],
        marker=dict(size=11, color=ORANGE, symbol="diamond"),
        hovertemplate="%{customdata}: " + hover,
        name="features chosen",
    )
    for name, shift in zip(found.index, _label_shifts(found), strict=True):
        label = dict(
            text=short_label(name), showarrow=False, yshift=shift, bgcolor="rgba(255,255,255,0.75)", borderpad=0
        )
        fig.add_annotation(x=found.loc[name, "cost"], y=np.log10(max(found.loc[name, "share"], 1e-6)), **label)
    fig.add_hline(unchanged, line=dict(color=GREY, dash="dot"), layer="below")
    _log_share(fig, [*found["share"], *(share for cloud in clouds.values() for share in cloud["share"]), unchanged])
    fig.update_xaxes(title="cost on the same text (nats a token)")
    return finish(
        fig,
        title,
        430,
        "the chosen at their own maximum, random ones at the same lengths; dotted: the model unchanged",
    )


def _label_shifts(found: pd.DataFrame) -> list[int]:
    """Pixels from each marker up to its label, or down where another marker stands close above."""
    wide, log = max(np.ptp(found["cost"]), 1e-9), np.log10(np.maximum(found["share"], 1e-6))
    shifts = []
    for name in found.index:
        beside = (found["cost"] - found.loc[name, "cost"]).abs() < 0.1 * wide
        above = (log > log[name]) & (log < log[name] + 0.6)
        shifts.append(-17 if (beside & above).any() else 17)
    return shifts


def dose_figure(
    curves: Mapping[str, pd.DataFrame], told: pd.DataFrame, unchanged: float, level: float, title: str
) -> go.Figure:
    """Share over dose and share over cost, a line a way to steer; an instruction has no dose, and is a star.

    Args:
        curves: way -> dose, share, cost; ways that begin with 'random' are grey.
        told: share and cost of each instruction, whose index has its words; the one with the largest share is labelled.
        unchanged: the share in the model as it is, drawn as a line.
        level: a cost to mark (nats a token).
    """
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    grey = [way for way in curves if way.startswith("random")]
    colours = dict(zip([way for way in curves if way not in grey], (ORANGE, BLUE, VERMILLION, PURPLE), strict=False))
    for column, x in enumerate(("dose", "cost"), start=1):
        for way, part in curves.items():
            colour = colours.get(way, GREY)
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
    best = told["share"].idxmax()
    fig.add_scatter(
        x=told["cost"],
        y=told["share"],
        mode="markers+text",
        text=["the best" if said == best else "" for said in told.index],
        textposition="top center",
        customdata=[short_label(said) for said in told.index],
        marker=dict(size=13, color=GREEN, symbol="star", line=dict(color="white", width=1)),
        name="instructions",
        hovertemplate="%{customdata}: cost %{x:.2f}, share %{y:.2%}<extra></extra>",
        row=1,
        col=2,
    )
    fig.add_hline(unchanged, line=dict(color=GREY, dash="dot"), layer="below")
    fig.add_vline(level, line=dict(color=GREY, dash="dash"), layer="below", row=1, col=2)
    fig.add_annotation(
        x=level, y=0.98, yref="y2 domain", xanchor="left", text=f" {level:g} nats", showarrow=False, row=1, col=2
    )
    _log_share(fig, [*(share for part in curves.values() for share in part["share"]), *told["share"], unchanged])
    fig.update_xaxes(title="dose (1: a way's whole push)", row=1, col=1)
    fig.update_xaxes(title="cost (nats a token)", range=[-0.2 * level, 5 * level], row=1, col=2)
    legend = dict(orientation="h", y=-0.24, yanchor="top", x=0.5, xanchor="center")
    subtitle = "dotted: the model unchanged; dashed: the cost at which ways are compared"
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
