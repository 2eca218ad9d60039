"""Phase 6d: detection of every feature, describer by describer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.analysis import confidence_interval
from prism.phases.phase_6d.methods import AGAINST, DESCRIBERS
from prism.visualization.style import BLUE, GREY, INK, ORANGE, PURPLE, finish

COLOURS = dict(zip(DESCRIBERS.values(), (ORANGE, BLUE, PURPLE, GREY), strict=True))
SHIFT = 0.012  # lines of equal height are drawn this far apart at most


def describers_figure(table: pd.DataFrame, title: str, seed: int = 0) -> go.Figure:
    """Detection of every feature, from random silent windows to those with the same token: a panel a describer.

    Args:
        table: from `judged`.
        title: the figure's title.
        seed: of how far apart equal lines are drawn, and of the intervals.
    """
    names = list(dict.fromkeys(table["of"]))
    fig = make_subplots(1, max(len(names), 1), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03)
    fig.update_annotations(font=dict(size=14, color=INK))
    for column, name in enumerate(names, start=1):
        mine = table[table["of"] == name]
        for trace in (_features(mine, COLOURS[name], seed), _means(mine[list(AGAINST)], seed)):
            fig.add_trace(trace, row=1, col=column)
    fig.add_hline(0.5, line=dict(color=INK, dash="dot", width=1.5))
    fig.update_xaxes(tickvals=[0, 1], ticktext=["random", "same<br>token"], range=[-0.35, 1.35], showgrid=False)
    fig.update_yaxes(range=[-0.03, 1.03], dtick=0.25)
    fig.update_yaxes(title="detection (balanced accuracy)", col=1)
    subtitle = "a thin line: a feature; black: mean, 95 %; dotted: any judge who always answers the same"
    return finish(fig, title, 470, subtitle, showlegend=False)


def _features(mine: pd.DataFrame, colour: str, seed: int) -> go.Scatter:
    """Every feature's two scores, joined; one trace, with gaps."""
    scores = mine[list(AGAINST)].to_numpy(float)
    scores = scores + np.random.default_rng(seed).uniform(-SHIFT, SHIFT, (len(scores), 1))
    y = np.hstack([scores, np.full((len(scores), 1), np.nan)]).ravel()
    x = np.tile([0.0, 1.0, np.nan], len(scores))
    look = dict(line=dict(color=colour, width=1.5), marker=dict(size=5, color=colour), opacity=0.55)
    text = np.repeat(mine["feature"].astype(str).to_numpy(), 3)
    return go.Scatter(x=x, y=y, mode="lines+markers", text=text, hovertemplate="feature %{text}: %{y:.2f}", **look)


def _means(scores: pd.DataFrame, seed: int) -> go.Scatter:
    """The mean over features against each kind, with its interval."""
    means = scores.mean().to_numpy(float)
    ends = [confidence_interval(v, seed=seed) if len(v) > 1 else (v.mean(),) * 2 for v in scores.to_numpy(float).T]
    low, high = np.array(ends).T
    bars = dict(type="data", array=high - means, arrayminus=means - low, width=6, thickness=2.5)
    look = dict(marker=dict(size=9, color=INK), line=dict(color=INK, width=3))
    return go.Scatter(x=[0, 1], y=means, error_y=bars, mode="lines+markers", **look)
