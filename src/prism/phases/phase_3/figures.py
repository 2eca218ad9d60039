"""Figures of phase 3: SAEs beside each other, and beside dictionaries that are no SAEs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import (
    DIVERGING,
    GREY,
    OKABE_ITO,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)

MEASURES = {"explained_variance": "explained variance (share)", "delta_ce": "ΔCE (nats per token)"}


def fidelity_figure(
    table: pd.DataFrame,
    groups: Mapping[str, str],
    highlight: str,
    title: str = "What a reconstruction keeps, and what it costs the model",
) -> go.Figure:
    """Explained variance and ΔCE, a row a dictionary, with intervals: the more EV and the less ΔCE, the better.

    Args:
        table: from `evaluation.evaluation_table`; where ΔCE is NaN, none is drawn.
        groups: name -> group; a group shares a colour and stands together.
        highlight: a row to hold the others against: its values are drawn as lines down the panels.
        title: the figure's title.
    """
    kinds = pd.Series([groups[name] for name in table.index], index=table.index)
    order = [name for kind in dict.fromkeys(kinds) for name in table.index[kinds == kind]]
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (measure, words) in enumerate(MEASURES.items(), start=1):
        shown = table.dropna(subset=[measure])
        for i, kind in enumerate(dict.fromkeys(kinds)):
            part = shown[kinds[shown.index] == kind]
            fig.add_scatter(
                x=part[measure],
                y=[order.index(name) for name in part.index],
                row=1,
                col=column,
                mode="markers",
                name=short_label(kind),
                legendgroup=kind,
                showlegend=column == 1,
                error_x=_bars(part, measure),
                marker=dict(
                    size=[14 if name == highlight else 9 for name in part.index],
                    color=OKABE_ITO[i % 7],
                    symbol=["star" if name == highlight else "circle" for name in part.index],
                ),
                text=[short_label(name) for name in part.index],
                hovertemplate="%{text}: %{x:.3f}<extra></extra>",
            )
        line = dict(color=GREY, dash="dot")
        fig.add_vline(float(table.loc[highlight, measure]), line=line, layer="below", row=1, col=column)
        log = measure == "delta_ce" and _spans(shown, measure)
        fig.update_xaxes(title=words + ", log scale" * log, row=1, col=column, nticks=6)
        if log:
            fig.update_xaxes(type="log", dtick="D2", minor_showgrid=False, row=1, col=column)
    names = [f"{short_label(name, 30)} · L0 {table.loc[name, 'l0']:.0f}" for name in order]
    fig.update_yaxes(
        tickvals=list(range(len(order))),
        ticktext=[f"<b>{text}</b>" if name == highlight else text for name, text in zip(order, names, strict=True)],
        range=[len(order) - 0.4, -0.6],
        ticks="",
        tickfont=dict(size=12),
    )
    return finish(fig, title, 180 + 26 * len(order), "bars: 95 % bootstrap over documents", margin=dict(t=112))


def _spans(table: pd.DataFrame, measure: str, factor: float = 4.0) -> bool:
    """Whether a measure deserves a log axis: all above 0, and far enough apart for the axis to have ticks."""
    low, high = table[f"{measure}_low"].min(), table[f"{measure}_high"].max()
    return bool(low > 0 and high > factor * low)


def _bars(part: pd.DataFrame, measure: str) -> dict:
    return dict(
        type="data",
        symmetric=False,
        array=part[f"{measure}_high"] - part[measure],
        arrayminus=part[measure] - part[f"{measure}_low"],
        thickness=1.5,
        width=3,
    )


def specialist_grid(
    rates: pd.DataFrame,
    passed: pd.DataFrame,
    title: str = "The best specialist of each dictionary and category, on fresh texts",
) -> go.Figure:
    """A cell a pair of dictionary and category: its specialist's difference of rates; a dot marks those that passed.

    Args:
        rates: dictionaries as index, categories as columns, from −1 to 1; NaN where the search found none.
        passed: the same shape, True where search null and fresh texts were both passed.
        title: the figure's title.
    """
    order = category_order(rates.columns)
    values, marks = rates[order].to_numpy(dtype=float), passed[order].to_numpy(dtype=bool)
    text = [
        ["–" if np.isnan(v) else f"{100 * v:+.0f}{' ●' if m else ''}" for v, m in zip(*row, strict=True)]
        for row in zip(values, marks, strict=True)
    ]
    names = [short_label(name, 34) for name in rates.index]
    fig = go.Figure(
        go.Heatmap(
            z=100 * values,
            x=[category_title(c) for c in order],
            y=names,
            text=text,
            zmin=-100,
            zmax=100,
            texttemplate="%{text}",
            colorscale=DIVERGING,
            xgap=2,
            ygap=2,
            colorbar=colour_bar("difference of rates (points)"),
            hovertemplate="%{y}, %{x}: %{z:+.0f} points<extra></extra>",
        )
    )
    fig.update_xaxes(title="category", showgrid=False, ticks="")
    fig.update_yaxes(title="", autorange="reversed", showgrid=False, ticks="")
    subtitle = "●: beats the search's null and holds on fresh texts"
    return finish(fig, title, 190 + 38 * len(names), subtitle, margin=dict(l=190, b=90))
