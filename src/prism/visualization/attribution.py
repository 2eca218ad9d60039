"""Figures of phase 6b: what nodes are estimated to do beside what they do, and what happens to sets of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import GREY, INK, OKABE_ITO, finish, short_label

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")


def node_bars(
    table: pd.DataFrame,
    columns: Sequence[str],
    title: str = "The nodes that do most, by estimate and by ablation",
    unit: str = "effect on the logit difference",
) -> go.Figure:
    """One row of bars a node, one colour a way to measure its effect.

    Args:
        table: position, token, node and the columns to draw (see `interventions.node_table`), in the order to show.
        columns: names of columns with effects.
        title: the figure's title.
        unit: of the effects.
    """
    names = [
        f"{row.node} · {row.position}: {short_label(repr(row.token)[1:-1] or ' ', 14)}" for row in table.itertuples()
    ]
    fig = go.Figure()
    for i, column in enumerate(columns):
        fig.add_bar(
            y=names,
            x=table[column].to_numpy(),
            orientation="h",
            name=short_label(column),
            marker_color=OKABE_ITO[i % 7],
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=unit)
    fig.update_yaxes(title="node · position: token", autorange="reversed", showgrid=False)
    return finish(fig, title, 150 + 34 * len(table), barmode="group", margin=dict(l=210, t=100))


def effects_scatter(
    frame: pd.DataFrame,
    methods: Sequence[str],
    exact: str = "ablation",
    most: int = 1200,
    seed: int = 0,
    title: str = "Estimated against real effects of single nodes",
) -> go.Figure:
    """A panel a method: its estimate over the real effect of each node, on signed square-root axes.

    Args:
        frame: one row a node: the methods' columns, `exact`, and is_error.
        methods: names of columns.
        exact: name of the column of real effects.
        most: points at most: the largest real effects, and others drawn at random.
        seed: of that draw.
        title: the figure's title.
    """
    order = frame[exact].abs().sort_values(ascending=False).index
    rest = frame.loc[order[most // 3 :]]
    shown = pd.concat([frame.loc[order[: most // 3]], rest.sample(min(len(rest), most - most // 3), random_state=seed)])
    fig = make_subplots(
        rows=1,
        cols=len(methods),
        subplot_titles=[short_label(m) for m in methods],
        shared_yaxes=True,
        horizontal_spacing=0.06,
    )
    limit = float(shown[[exact, *methods]].abs().to_numpy().max()) or 1.0
    for column, method in enumerate(methods, start=1):
        for i, (name, part) in enumerate((("features", shown[~shown.is_error]), ("error", shown[shown.is_error]))):
            fig.add_scatter(
                x=_signed_root(part[exact]),
                y=_signed_root(part[method]),
                mode="markers",
                name=name,
                row=1,
                col=column,
                marker=dict(size=5, color=OKABE_ITO[i * 4], symbol=SYMBOLS[i], opacity=0.5),
                legendgroup=name,
                showlegend=column == 1,
                hoverinfo="skip",
            )
        ends = _signed_root(np.array([-limit, limit]))
        fig.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line=dict(color=GREY, dash="dot"),
            showlegend=False,
            row=1,
            col=column,
            hoverinfo="skip",
        )
    ticks = [t for t in (-100, -25, -5, -1, 0, 1, 5, 25, 100) if abs(t) <= limit] if limit >= 1 else [0]
    axis = dict(tickvals=_signed_root(np.array(ticks, dtype=float)), ticktext=[str(t) for t in ticks])
    fig.update_xaxes(title="real effect: ablation", **axis)
    fig.update_yaxes(**axis)
    fig.update_yaxes(title="estimated effect", col=1)
    return finish(
        fig, title, 430, "logit difference; square-root axes; dotted: equal", margin=dict(t=120), legend=dict(y=1.07)
    )


def _signed_root(values: pd.Series | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    return np.sign(values) * np.sqrt(np.abs(values))


def set_curves(
    frame: pd.DataFrame,
    panels: Sequence[str],
    titles: Sequence[str],
    title: str,
    subtitle: str = "",
    line_at: Sequence[float | None] | None = None,
) -> go.Figure:
    """Lines over the size of a set, one for each way to choose or to predict it, with 95 % intervals.

    Args:
        frame: rows rule, size, panel, value, low, high.
        panels: which values of the column panel to draw, side by side.
        titles: the y axis of each.
        title: the figure's title.
        subtitle: a line below it.
        line_at: a horizontal line in each panel, or None.
    """
    fig = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.11)
    for column, (panel, words) in enumerate(zip(panels, titles, strict=True), start=1):
        part = frame[frame["panel"] == panel]
        for i, rule in enumerate(dict.fromkeys(part["rule"])):
            line = part[part["rule"] == rule].sort_values("size")
            bars = dict(
                type="data",
                symmetric=False,
                array=(line["high"] - line["value"]).to_numpy(),
                thickness=1.2,
                arrayminus=(line["value"] - line["low"]).to_numpy(),
                width=3,
            )
            fig.add_scatter(
                x=line["size"].to_numpy(),
                y=line["value"].to_numpy(),
                error_y=bars,
                mode="lines+markers",
                name=short_label(rule),
                legendgroup=rule,
                showlegend=column == 1,
                row=1,
                col=column,
                line=dict(color=OKABE_ITO[i % 7], width=2.5, dash=DASHES[i % 5]),
                marker=dict(size=8, symbol=SYMBOLS[i % 5]),
                hovertemplate="%{x} nodes: %{y:.2f}<extra></extra>",
            )
        if line_at is not None and line_at[column - 1] is not None:
            fig.add_hline(y=line_at[column - 1], line=dict(color=GREY, dash="dot"), row=1, col=column)
        sizes = sorted(part["size"].unique())
        fig.update_xaxes(title="nodes in the set (log scale)", type="log", tickvals=sizes, row=1, col=column)
        fig.update_yaxes(title=words, row=1, col=column)
    return finish(fig, title, 430, subtitle, margin=dict(t=120), legend=dict(y=1.04))


def interval_bars(
    frame: pd.DataFrame,
    title: str,
    unit: str,
    axis: str,
    subtitle: str = "",
) -> go.Figure:
    """Grouped bars with intervals.

    Args:
        frame: rows label (place on the axis), group (colour), value, low, high.
        title: the figure's title.
        unit: of the values.
        axis: what the labels are.
        subtitle: a line below the title.
    """
    fig = go.Figure()
    for i, group in enumerate(dict.fromkeys(frame["group"])):
        part = frame[frame["group"] == group]
        bars = dict(
            type="data",
            symmetric=False,
            array=(part["high"] - part["value"]).to_numpy(),
            thickness=1.2,
            arrayminus=(part["value"] - part["low"]).to_numpy(),
            width=3,
        )
        fig.add_bar(
            x=[short_label(x, 34) for x in part["label"]],
            y=part["value"].to_numpy(),
            error_y=bars,
            name=short_label(group),
            marker_color=OKABE_ITO[i % 7],
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        )
    fig.add_hline(y=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=axis, showgrid=False)
    fig.update_yaxes(title=unit)
    return finish(fig, title, 420, subtitle, barmode="group", margin=dict(t=115))
