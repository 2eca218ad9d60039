"""Figures of phase 6b: what nodes are estimated to do beside what they do, and what an edit does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from prism.visualization.style import BLUE, GREY, INK, ORANGE, finish, short_label


def node_bars(
    table: pd.DataFrame, columns: Sequence[str], title: str, unit: str = "effect on logit(are) − logit(is)"
) -> go.Figure:
    """One row of bars a node, one colour a way to measure its effect; the third, the judge, is in ink.

    Args:
        table: node (its name) and the columns to draw, in the order to show.
        columns: names of columns with effects.
        title: the figure's title.
        unit: of the effects.
    """
    fig = go.Figure()
    for colour, column in zip((BLUE, ORANGE, INK), columns, strict=False):
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
    prompts: pd.DataFrame, kinds: Sequence[str], columns: Mapping[str, str], title: str, unit: str
) -> go.Figure:
    """Each prompt's lead as it is and after edits, one row a kind of prompt; a line joins a prompt's first two leads.

    Args:
        prompts: one row a prompt, with leads as columns.
        kinds: of each prompt.
        columns: up to three columns of leads (as it is, edited, a control) -> what was done, for the legend.
        title: the figure's title.
        unit: of the leads.
    """
    places = pd.Series(list(kinds)).groupby(list(kinds), sort=False)
    shifts = np.linspace(-0.24, 0.24, len(columns))
    row = (places.ngroup() + 0.16 * (places.cumcount() / places.transform("size") - 0.5)).to_numpy()
    leads = [prompts[column].to_numpy() for column in columns]
    gap = np.full(len(row), np.nan)

    fig = go.Figure()
    fig.add_scatter(
        x=np.stack([*leads[:2], gap], axis=1).ravel(),
        y=np.stack([*(row + shift for shift in shifts[:2]), gap], axis=1).ravel(),
        mode="lines",
        line=dict(color=GREY, width=1),
        opacity=0.3 if len(row) > 60 else 0.8,
        hoverinfo="skip",
        showlegend=False,
    )
    for name, values, shift, colour in zip(columns.values(), leads, shifts, (BLUE, ORANGE, GREY), strict=False):
        fig.add_scatter(
            x=values,
            y=row + shift,
            mode="markers",
            name=short_label(name),
            marker=dict(size=6, color=colour, opacity=0.75),
            hovertemplate="%{x:.2f}<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=f"{unit}, in logits")
    labels = [short_label(kind, 44) for kind in dict.fromkeys(kinds)]
    fig.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed", showgrid=False, ticks="")
    height = 170 + (80 if len(labels) < 8 else 30) * len(labels)
    return finish(fig, title, height, "one dot a prompt, before and after joined", margin=dict(l=230, t=110))
