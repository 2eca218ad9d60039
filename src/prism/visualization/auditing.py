"""Figures of phase 6f: what a monitor keeps on new text, what a swap moves, and what an edit costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import (
    BLUE,
    GREY,
    INK,
    OKABE_ITO,
    VERMILLION,
    category_order,
    category_title,
    finish,
    short_label,
)

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


def _error(estimate: pd.Series, low: pd.Series, high: pd.Series) -> dict:
    return dict(
        type="data",
        symmetric=False,
        array=(high - estimate).to_numpy(),
        arrayminus=(estimate - low).to_numpy(),
        thickness=1.5,
        width=3,
    )


def roc_figure(
    bands: Mapping[str, Mapping[str, pd.DataFrame]],
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    title: str = "ROC of the monitors: the source that they know, and a new one",
) -> go.Figure:
    """A panel a source, a curve a monitor; a band for the first one, a mark where each one's threshold is.

    Args:
        bands: source -> monitor -> `evaluation.roc_band`.
        points: source -> monitor -> (recall, false-positive rate) at the monitor's own threshold.
        title: the figure's title.
    """
    fig = make_subplots(rows=1, cols=len(bands), subplot_titles=list(bands), horizontal_spacing=0.1)
    for column, (source, curves) in enumerate(bands.items(), start=1):
        for i, (name, band) in enumerate(curves.items()):
            colour = OKABE_ITO[i % 7]
            if i == 0:
                both = pd.concat([band["high"], band["low"][::-1]])
                fig.add_scatter(
                    x=pd.concat([band["fpr"], band["fpr"][::-1]]).to_numpy(),
                    y=both.to_numpy(),
                    fill="toself",
                    fillcolor="rgba(0,114,178,0.15)",
                    line=dict(width=0),
                    hoverinfo="skip",
                    mode="lines",
                    showlegend=False,
                    row=1,
                    col=column,
                )
            fig.add_scatter(
                x=band["fpr"].to_numpy(),
                y=band["recall"].to_numpy(),
                mode="lines",
                name=short_label(name),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                line=dict(color=colour, width=2.5, shape="hv", dash=("solid", "dash", "dot")[i % 3]),
                hovertemplate=f"{short_label(name)}: %{{y:.2f}} at %{{x:.2f}}<extra></extra>",
            )
            recall, fpr = points[source][name]
            fig.add_scatter(
                x=[fpr],
                y=[recall],
                mode="markers",
                showlegend=False,
                legendgroup=name,
                row=1,
                col=column,
                marker=dict(size=12, color=colour, symbol=SYMBOLS[i % 7], line=dict(color=INK, width=1.5)),
                hovertemplate=f"{short_label(name)}: %{{y:.2f}} at %{{x:.2f}}<extra></extra>",
            )
        fig.update_xaxes(title="false-positive rate", range=[-0.02, 1.02], row=1, col=column)
        fig.update_yaxes(title="recall" if column == 1 else "", range=[-0.02, 1.04], row=1, col=column)
    banded = short_label(next(iter(next(iter(bands.values())))))
    note = f"marks: the threshold set on the first source; band ({banded}): 95 % bootstrap over documents"
    return finish(fig, title, 460, note, margin=dict(t=125), legend=dict(y=1.1))


def promise_figure(
    table: pd.DataFrame,
    promised: float = 0.95,
    title: str = "The recall that was promised, and the recall on a new source",
) -> go.Figure:
    """Realised recall and false-positive rate on the new source by class, a point a monitor, with intervals.

    Args:
        table: columns input, category, recall, recall_low, recall_high, fpr, fpr_low, fpr_high.
        promised: the recall that the thresholds were set for.
        title: the figure's title.
    """
    fig = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    order = category_order(table["category"])
    names = list(dict.fromkeys(table["input"]))
    for i, name in enumerate(names):
        part = table[table["input"] == name].set_index("category").loc[order]
        y = np.arange(len(order)) + (i - (len(names) - 1) / 2) * 0.22
        for column, measure in enumerate(("recall", "fpr"), start=1):
            fig.add_scatter(
                x=part[measure].to_numpy(),
                y=y,
                mode="markers",
                name=short_label(name),
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
                marker=dict(size=10, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
                error_x=_error(part[measure], part[f"{measure}_low"], part[f"{measure}_high"]),
                hovertemplate=f"{short_label(name)}: %{{x:.2f}}<extra></extra>",
            )
    fig.add_vline(x=promised, line=dict(color=GREY, dash="dot"), row=1, col=1)
    labels = [category_title(c) for c in order]
    fig.update_yaxes(tickvals=list(range(len(order))), ticktext=labels, autorange="reversed")
    fig.update_xaxes(title=f"realised recall (promised: {promised:.0%})", range=[-0.03, 1.05], row=1, col=1)
    fig.update_xaxes(title="realised false-positive rate", range=[-0.03, 1.05], row=1, col=2)
    return finish(fig, title, 560, "thresholds were set on the training source; bars: 95 % bootstrap over documents")


def swap_figure(
    effects: Mapping[str, Float[np.ndarray, " templates"]],
    intervals: Mapping[str, tuple[float, float]],
    controls: Mapping[str, str] | None = None,
    title: str = "What swapping one term does to the gap between two words",
) -> go.Figure:
    """A row a kind of swap: each template's effect, their mean and its interval; controls are grey.

    Args:
        effects: kind -> effect of each template (nats; above 0 is the expected direction).
        intervals: kind -> 95 % interval of the mean.
        controls: kinds that are controls -> what they are for.
        title: the figure's title.
    """
    fig = go.Figure()
    names = [f"{kind} (control)" if kind in (controls or {}) else kind for kind in effects]
    for place, (kind, values) in enumerate(effects.items()):
        colour = GREY if kind in (controls or {}) else BLUE
        spread = place + 0.26 * np.linspace(-1, 1, len(values))
        fig.add_scatter(
            x=np.asarray(values),
            y=spread,
            mode="markers",
            showlegend=False,
            marker=dict(size=6, color=colour, opacity=0.5),
            hovertemplate=f"{kind}, a template: %{{x:+.2f}} nats<extra></extra>",
        )
        mean, (low, high) = float(np.mean(values)), intervals[kind]
        fig.add_scatter(
            x=[mean],
            y=[place],
            mode="markers",
            showlegend=False,
            marker=dict(size=13, color=colour, symbol="diamond", line=dict(color=INK, width=1)),
            error_x=dict(
                type="data",
                symmetric=False,
                array=[high - mean],
                arrayminus=[mean - low],
                color=INK,
                thickness=2,
                width=6,
            ),
            hovertemplate=f"{kind}: mean %{{x:+.3f}} nats<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=GREY, dash="dot"))
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    fig.update_xaxes(title="effect of the swap (nats; above 0: the stereotype's direction)")
    return finish(fig, title, 150 + 62 * len(names), "points: templates; diamonds: mean with 95 % interval")


def ablation_figure(
    table: pd.DataFrame, title: str = "What a change takes from the gap, and what it costs on ordinary text"
) -> go.Figure:
    """A point a change: how much the swap's effect shrinks on held-out templates over the cost in cross-entropy.

    Args:
        table: one row a change: change, kind ('features', 'random features', 'direction'), shrink, low, high (nats),
            cost, cost_low, cost_high (nats per token).
        title: the figure's title.
    """
    fig = go.Figure()
    colours = {"features": BLUE, "random features": GREY, "direction": VERMILLION}
    for i, (kind, part) in enumerate(table.groupby("kind", sort=False)):
        fig.add_scatter(
            x=part["cost"].to_numpy(),
            y=part["shrink"].to_numpy(),
            mode="markers",
            name=short_label(kind),
            marker=dict(size=12, color=colours.get(kind, INK), symbol=SYMBOLS[i % 7]),
            error_x=_error(part["cost"], part["cost_low"], part["cost_high"]),
            error_y=_error(part["shrink"], part["low"], part["high"]),
            text=part["change"].tolist(),
            hovertemplate="%{text}: %{y:+.3f} nats for %{x:.4f}<extra></extra>",
        )
    fig.add_hline(y=0, line=dict(color=GREY, dash="dot"))
    fig.update_xaxes(title="collateral: cost on ordinary text (nats per token)")
    fig.update_yaxes(title="how much the gap shrinks (nats)")
    return finish(fig, title, 430, "held-out templates; bars: 95 % over templates and over sequences")


def edit_figure(costs: pd.DataFrame, target: str, title: str = "What an edit costs on each kind of text") -> go.Figure:
    """A row a kind of text: the edit's cost beside that of random features and of a projected-out direction.

    Args:
        costs: columns change, category, cost, low, high (nats per token).
        target: the category that the edit is meant for, marked by an arrow.
        title: the figure's title.
    """
    order = category_order(costs["category"])
    fig = go.Figure()
    changes = list(dict.fromkeys(costs["change"]))
    for i, change in enumerate(changes):
        part = costs[costs["change"] == change].set_index("category").loc[order]
        fig.add_scatter(
            x=part["cost"].to_numpy(),
            y=np.arange(len(order)) + (i - (len(changes) - 1) / 2) * 0.15,
            mode="markers",
            name=short_label(change),
            marker=dict(size=11, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
            error_x=_error(part["cost"], part["low"], part["high"]),
            hovertemplate=f"{short_label(change)}: %{{x:+.3f}}<extra></extra>",
        )
    fig.add_vline(x=0, line=dict(color=GREY, dash="dot"))
    labels = [f"→ {category_title(c)}" if c == target else category_title(c) for c in order]
    fig.update_yaxes(tickvals=list(range(len(order))), ticktext=labels, autorange="reversed")
    fig.update_xaxes(title="cost of the edit (nats per token)")
    return finish(
        fig,
        title,
        660,
        "→: what the edit is meant for; held-out texts; bars: 95 % over texts",
        margin=dict(t=150),
    )
