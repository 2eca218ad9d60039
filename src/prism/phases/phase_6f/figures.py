"""Figures of phase 6f: what a monitor keeps on new text, what a swap moves, and what an edit costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREY, INK, OKABE_ITO, category_order, category_title, finish, short_label

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


def promise_figure(
    recall: pd.DataFrame,
    false_alarms: pd.DataFrame,
    promised: float = 0.95,
    title: str = "What a threshold that was set elsewhere finds, and what it costs",
) -> go.Figure:
    """Recall and false-positive rate on the new source, a row a class and a point a monitor.

    Args:
        recall: a row a class, a column an input (0 to 1).
        false_alarms: the same of the false-positive rate.
        promised: the recall that the thresholds were set for.
        title: the figure's title.
    """
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    order = category_order(recall.index)
    for i, name in enumerate(recall.columns):
        y = np.arange(len(order)) + (i - (recall.shape[1] - 1) / 2) * 0.2
        for column, table in enumerate((recall, false_alarms), start=1):
            fig.add_scatter(
                x=table.loc[order, name].to_numpy(),
                y=y,
                mode="markers",
                name=short_label(name),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                marker=dict(size=11, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
                hovertemplate=f"{short_label(name)}: %{{x:.0%}}<extra></extra>",
            )
    fig.add_vline(x=promised, line=dict(color=GREY, dash="dot"), row=1, col=1)
    fig.update_yaxes(
        tickvals=list(range(len(order))), ticktext=[category_title(c) for c in order], autorange="reversed"
    )
    fig.update_xaxes(title=f"share found (promised: {promised:.0%})", row=1, col=1)
    fig.update_xaxes(title="false alarms among other texts", row=1, col=2)
    most = max(0.4, 1.1 * float(false_alarms.to_numpy().max()))
    fig.update_xaxes(range=[-0.04, 1.04], tickformat=".0%", nticks=6, row=1, col=1)
    fig.update_xaxes(range=[-0.02, most], tickformat=".0%", nticks=6, row=1, col=2)
    return finish(fig, title, 470, "each text of the new source, thresholds from the known one")


def swap_figure(
    effects: Mapping[str, Float[np.ndarray, " templates"]],
    controls: Sequence[str] = (),
    title: str = "What swapping one term does to the gap between two words",
) -> go.Figure:
    """A row a kind of swap: each template's effect and their mean; controls are grey.

    Args:
        effects: kind -> effect of each template (nats; above 0 is the expected direction).
        controls: kinds that are controls.
        title: the figure's title.
    """
    fig = go.Figure()
    for place, (kind, values) in enumerate(effects.items()):
        colour = GREY if kind in controls else BLUE
        fig.add_scatter(
            x=np.asarray(values),
            y=place + 0.2 * np.linspace(-1, 1, len(values)),
            mode="markers",
            marker=dict(size=7, color=colour, opacity=0.6),
            hovertemplate=f"{short_label(kind)}, a template: %{{x:+.2f}} nats<extra></extra>",
        )
        fig.add_scatter(
            x=[float(np.mean(values))],
            y=[place],
            mode="markers",
            marker=dict(size=14, color=colour, symbol="diamond", line=dict(color=INK, width=1.5)),
            hovertemplate=f"{short_label(kind)}: mean %{{x:+.2f}} nats<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=GREY, dash="dot"))
    fig.update_yaxes(tickvals=list(range(len(effects))), ticktext=list(map(short_label, effects)), autorange="reversed")
    fig.update_xaxes(title="effect of the swap (nats; right: as grammar or stereotype has it)")
    subtitle = "points: templates; diamonds: their mean; grey: controls"
    return finish(fig, title, 200 + 45 * len(effects), subtitle, showlegend=False)
