"""Figures of phase 6b: what nodes are estimated to do beside what they do, and what an edit does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from prism.visualization.style import BLUE, INK, OKABE_ITO, ORANGE, finish, short_label


def node_bars(
    table: pd.DataFrame, columns: Sequence[str], title: str, unit: str = "effect on logit(are) − logit(is)"
) -> go.Figure:
    """One row of bars a node, one colour a way to measure its effect.

    Args:
        table: node (its name) and the columns to draw, in the order to show.
        columns: names of columns with effects.
        title: the figure's title.
        unit: of the effects.
    """
    fig = go.Figure()
    for colour, column in zip((BLUE, ORANGE, OKABE_ITO[3]), columns, strict=False):
        fig.add_bar(
            y=[short_label(name, 40) for name in table["node"]],
            x=table[column].to_numpy(),
            orientation="h",
            name=short_label(column),
            marker_color=colour,
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=unit)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return finish(fig, title, 150 + 34 * len(table), barmode="group", margin=dict(l=230, t=100))


def leads_figure(
    before: Mapping[str, Float[np.ndarray, " prompts"]],
    after: Mapping[str, Float[np.ndarray, " prompts"]],
    title: str,
    unit: str = "logit(are) − logit(is)",
) -> go.Figure:
    """Each prompt's lead before and after an edit, one row a kind of prompt.

    Args:
        before, after: kind -> the lead in each of its prompts.
        title: the figure's title.
        unit: of the leads.
    """
    fig = go.Figure()
    for name, leads, colour, shift in (("as it is", before, BLUE, -0.16), ("edited", after, ORANGE, 0.16)):
        rows = np.concatenate([np.full(len(values), i + shift) for i, values in enumerate(leads.values())])
        spread = np.concatenate([np.linspace(-0.09, 0.09, len(values)) for values in leads.values()])
        fig.add_scatter(
            x=np.concatenate(list(leads.values())),
            y=rows + spread,
            mode="markers",
            name=name,
            marker=dict(size=6, color=colour, opacity=0.65),
            hovertemplate="%{x:.2f}<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=unit)
    labels = [short_label(kind, 44) for kind in before]
    fig.update_yaxes(tickvals=list(range(len(before))), ticktext=labels, autorange="reversed", showgrid=False, ticks="")
    return finish(fig, title, 170 + 70 * len(before), "one dot a prompt", margin=dict(l=230, t=110))
