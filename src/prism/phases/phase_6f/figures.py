"""Figures of phase 6f: what a monitor keeps on new text, and what a swap moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from scipy.stats import binomtest

from prism.visualization.style import BLUE, GREY, INK, OKABE_ITO, category_order, category_title, finish, short_label

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")
APART = 0.19  # rows between two monitors of one class


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` (Wilson 1927)."""
    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def promise_figure(
    recall: pd.DataFrame,
    false_alarms: pd.DataFrame,
    promised: float,
    texts: tuple[int, int],
) -> go.Figure:
    """Recall and false-positive rate on the new source, a row a class and a point a monitor, with Wilson's intervals.

    Args:
        recall: a row a class, a column an input (0 to 1).
        false_alarms: the same of the false-positive rate.
        promised: the recall that the thresholds were set for.
        texts: of a class, and of all others: what the two shares are of.
    """
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    order = category_order(recall.index)
    for i, name in enumerate(recall.columns):
        y = np.arange(len(order)) + (i - (recall.shape[1] - 1) / 2) * APART
        for column, (table, n) in enumerate(zip((recall, false_alarms), texts, strict=True), start=1):
            shares = table.loc[order, name].to_numpy()
            low, high = np.array([wilson(share, n) for share in shares]).T
            fig.add_scatter(
                x=shares,
                y=y,
                error_x=dict(array=high - shares, arrayminus=shares - low, thickness=1, width=0),
                mode="markers",
                name=short_label(name),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                marker=dict(size=9, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
                hovertemplate=f"{short_label(name)}: %{{x:.0%}}<extra></extra>",
            )
    fig.add_vline(x=promised, line=dict(color=GREY, dash="dot"), row=1, col=1)
    fig.update_yaxes(
        tickvals=list(range(len(order))), ticktext=[category_title(c) for c in order], autorange="reversed"
    )
    fig.update_xaxes(title=f"share found (set for {promised:.0%})", row=1, col=1)
    fig.update_xaxes(title="false alarms among other texts", row=1, col=2)
    most = max(0.4, 1.05 * wilson(float(false_alarms.to_numpy().max()), texts[1])[1])
    fig.update_xaxes(range=[-0.04, 1.04], tickformat=".0%", nticks=6, row=1, col=1)
    fig.update_xaxes(range=[-0.02, most], tickformat=".0%", nticks=6, row=1, col=2)
    short = int((recall < promised).to_numpy().sum())
    title = f"On the new source {short} of {recall.size} monitors find less than the {promised:.0%} they were set for"
    subtitle = f"a point: a class with {texts[0]} texts, {texts[1]} others; bars: 95% intervals"
    return finish(fig, title, 600, subtitle, legend=dict(y=-0.15, yanchor="top", x=0.5, xanchor="center"))


def swap_figure(
    effects: Mapping[str, Float[np.ndarray, " templates"]],
    intervals: Mapping[str, tuple[float, float]],
    controls: Sequence[str] = (),
) -> go.Figure:
    """A row a kind of swap: each template's effect, their mean and its interval; the first kind has its own axis.

    Args:
        effects: kind -> effect of each template (nats; above 0 is the expected direction). The first is the one whose
            effects are much larger than the others'.
        intervals: kind -> ends of the mean's 95 % interval.
        controls: kinds that are controls, in grey.
    """
    names = list(effects)
    fig = make_subplots(rows=2, cols=1, row_heights=[1, len(names) - 1], vertical_spacing=0.16)
    for place, (kind, values) in enumerate(effects.items()):
        colour, row, mean = GREY if kind in controls else BLUE, 1 if place == 0 else 2, float(np.mean(values))
        low, high = intervals[kind]
        fig.add_scatter(
            x=np.asarray(values),
            y=place + 0.25 * np.linspace(-1, 1, len(values)),
            mode="markers",
            marker=dict(size=7, color=colour, opacity=0.6),
            hovertemplate=f"{short_label(kind)}, a template: %{{x:+.2f}} nats<extra></extra>",
            row=row,
            col=1,
        )
        fig.add_scatter(
            x=[mean],
            y=[place],
            error_x=dict(array=[high - mean], arrayminus=[mean - low], color=INK, thickness=2, width=5),
            mode="markers",
            marker=dict(size=13, color=colour, symbol="diamond", line=dict(color=INK, width=1.5)),
            hovertemplate=f"{short_label(kind)}: mean %{{x:+.2f}} nats<extra></extra>",
            row=row,
            col=1,
        )
    for row, (first, last) in enumerate(((0, 1), (1, len(names))), start=1):
        ticks = dict(tickvals=list(range(first, last)), ticktext=[short_label(name) for name in names[first:last]])
        fig.update_yaxes(**ticks, range=[last - 0.5, first - 0.5], row=row, col=1)
        fig.add_vline(x=0, line=dict(color=GREY, dash="dot"), row=row, col=1)
    fig.update_xaxes(title="effect of the swap (nats; right: as grammar or stereotype has it)", row=2, col=1)
    lean = [kind for kind in names if kind not in controls and intervals[kind][0] > 0]
    title = f"Swaps that lean the stereotype's way: {', '.join(map(short_label, lean)) or 'none'}"
    subtitle = "points: templates (height means nothing); diamonds: mean, 95% interval; grey: controls; two scales"
    return finish(fig, title, 230 + 45 * len(names), subtitle, showlegend=False)
