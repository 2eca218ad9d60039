"""Figures of phase 3: SAEs beside each other, and beside dictionaries that are no SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import (
    BLUE,
    GREY,
    OKABE_ITO,
    ORANGE,
    category_order,
    category_title,
    finish,
    short_label,
)

LOG_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
MEASURES = {"explained_variance": "explained variance (share)", "delta_ce": "ΔCE (nats per token)"}


def fidelity_figure(
    table: pd.DataFrame,
    groups: Mapping[str, str],
    highlight: str,
    title: str = "Controls explain variance, too, and cost the model more",
) -> go.Figure:
    """Explained variance and ΔCE, a row a dictionary, with intervals: the more EV and the less ΔCE, the better.

    Args:
        table: from `evaluation.evaluation_table`, in the order of the rows; where ΔCE is NaN, the figure says so.
        groups: name -> group; a group shares a colour.
        highlight: a row to hold the others against: its values are drawn as lines down the panels.
        title: the figure's title.
    """
    kinds = pd.Series([groups[name] for name in table.index], index=table.index)
    order = list(table.index)
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
            ticks = dict(tickvals=LOG_TICKS, ticktext=[f"{tick:g}" for tick in LOG_TICKS])
            fig.update_xaxes(type="log", minor_showgrid=False, **ticks, row=1, col=column)
    for name in table.index[table["delta_ce"].isna()]:
        where = dict(x=0.02, xref="x2 domain", xanchor="left", y=order.index(name), yref="y2")
        fig.add_annotation(text="no model to harm", showarrow=False, font=dict(size=12, color=GREY), **where)
    names = [f"{short_label(name, 30)} · L0 {table.loc[name, 'l0']:.0f}" for name in order]
    fig.update_yaxes(
        tickvals=list(range(len(order))),
        ticktext=[f"<b>{text}</b>" if name == highlight else text for name, text in zip(order, names, strict=True)],
        range=[len(order) - 0.4, -0.6],
        ticks="",
        tickfont=dict(size=12),
    )
    subtitle = f"bars: 95 % over documents; dotted: {short_label(highlight)}"
    return finish(fig, title, 180 + 26 * len(order), subtitle, margin=dict(t=112))


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


def specialist_figure(
    saes: Mapping[str, pd.DataFrame],
    twins: Mapping[str, Sequence[pd.DataFrame]],
    title: str = "Random directions have specialists, too",
) -> go.Figure:
    """A panel an SAE, a row a category: its specialist on fresh texts beside those of its random twins.

    Args:
        saes: name -> a table with a row a category: rate_difference (−1 to 1; NaN where the search found none), and
            passed, True where search null and fresh texts were both passed.
        twins: name -> such a table for each draw of random directions.
        title: the figure's title.
    """
    order = category_order(next(iter(saes.values())).index)[::-1]
    heads = []
    for name, table in saes.items():
        lucky = np.mean([_passed(draw) for draw in twins[name]])
        heads.append(f"<b>{short_label(name, 20)}</b>: {_passed(table)} pass<br>twins: {lucky:.1f}")
    fig = make_subplots(rows=1, cols=len(saes), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=heads)
    for column, (name, table) in enumerate(saes.items(), start=1):
        for kind, several, colour, size in (
            ("random twins, each draw", twins[name], ORANGE, 8),
            ("SAE", [table], BLUE, 12),
        ):
            rows = pd.concat([one.loc[order] for one in several])
            solid = rows["passed"].to_numpy(dtype=bool)
            fig.add_scatter(
                x=100 * rows["rate_difference"].to_numpy(dtype=float),
                y=[category_title(category) for category in rows.index],
                row=1,
                col=column,
                mode="markers",
                name=kind,
                legendgroup=kind,
                showlegend=column == 1,
                marker=dict(
                    size=size,
                    color=colour,
                    symbol=np.where(solid, "circle", "circle-open"),
                    line=dict(width=2, color=colour),
                ),
                hovertemplate="%{y}: %{x:+.0f} points<extra></extra>",
            )
        fig.update_xaxes(range=[-20, 108], tickvals=[0, 50, 100], row=1, col=column)
    fig.update_annotations(font=dict(size=13))
    fig.update_xaxes(title="rate difference (points)")
    subtitle = "filled: beats the search's null and holds on fresh texts"
    legend = dict(y=-0.34, yanchor="top")
    return finish(fig, title, 430, subtitle, margin=dict(t=125, b=120), legend=legend)


def _passed(table: pd.DataFrame) -> int:
    return int(table["passed"].sum())


def nearest_figure(
    cosines: Mapping[str, Float[np.ndarray, " features"]],
    bar: float,
    marks: Mapping[str, float],
    title: str = "How near is the nearest feature of another seed?",
) -> go.Figure:
    """Histograms of cosines, one line a rival, with the bar above which a feature counts as found again.

    Args:
        cosines: name -> each feature's largest cosine with that rival's directions.
        bar: drawn as a dotted line.
        marks: words -> a cosine to point at.
        title: the figure's title.
    """
    edges = np.linspace(0, 1, 26)
    fig = go.Figure()
    for i, (name, values) in enumerate(cosines.items()):
        share = np.histogram(np.clip(values, 0, 1), edges)[0] / max(len(values), 1)
        middle, colour = (edges[1:] + edges[:-1]) / 2, (BLUE, OKABE_ITO[3], ORANGE)[i % 3]
        line = dict(color=colour, shape="hvh", width=2.5)
        fig.add_scatter(x=middle, y=100 * share, mode="lines", name=short_label(name), line=line)
    fig.add_vline(bar, line=dict(color=GREY, dash="dot"), layer="below")
    for words, value in marks.items():
        fig.add_annotation(x=value, y=0, ax=0, ay=-150, text=short_label(words), arrowhead=2, arrowcolor=GREY)
    fig.update_xaxes(title="largest cosine with a direction of the rival", range=[0, 1])
    fig.update_yaxes(title="features (%)", range=[0, 15])
    return finish(fig, title, 380, f"dotted: the bar, {bar:g}; random directions rise beyond the axis")
