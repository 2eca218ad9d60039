"""Figures of phase 6a: which features steer, what a dose does and costs, and ways to steer at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import (
    GREY,
    OKABE_ITO,
    PALE,
    as_array,
    category_colours,
    category_order,
    category_title,
    finish,
    short_label,
)
from prism.visualization.tokens import marked, templates

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


def candidate_figure(
    table: pd.DataFrame,
    scores: Sequence[str] = ("input AUC", "output score"),
    title: str = "What tells in advance which features steer",
) -> go.Figure:
    """Gain of each candidate feature over each of its scores, a panel a score, coloured by the kind of text.

    Args:
        table: one row a feature: kind, feature, gain (share of the kind's tokens), and a column for each score.
        scores: the columns to plot along x.
        title: the figure's title.
    """
    fig = make_subplots(rows=1, cols=len(scores), shared_yaxes=True, horizontal_spacing=0.06)
    colours = category_colours(table["kind"])
    for column, score in enumerate(scores, start=1):
        for kind in category_order(table["kind"]):
            part = table[table["kind"] == kind]
            fig.add_scatter(
                x=as_array(part[score].to_numpy()),
                y=as_array(part["gain"].to_numpy()),
                mode="markers",
                row=1,
                col=column,
                name=category_title(kind),
                legendgroup=kind,
                showlegend=column == 1,
                marker=dict(size=8, color=colours[kind], line=dict(width=0.5, color="white")),
                text=[f"feature {f}" for f in part["feature"]],
                hovertemplate="%{text}: " + score + " %{x:.3f}, gain %{y:.3f}<extra></extra>",
            )
        fig.update_xaxes(title=score, row=1, col=column)
    fig.update_yaxes(title="gain in share of the kind's tokens", row=1, col=1)
    legend = dict(y=-0.26, yanchor="top", x=0.5, xanchor="center")
    return finish(
        fig, title, 440, "one point a feature, at one times its own maximum", legend=legend, margin=dict(b=110)
    )


def dose_figure(
    points: pd.DataFrame,
    null: pd.DataFrame,
    level: float | None = None,
    dose_title: str = "dose",
    title: str = "Dose and response: what steering brings, and what it costs",
) -> go.Figure:
    """Gain over the dose, and gain over the cost; a line a method, random directions as thin grey lines.

    Args:
        points: columns method, dose, gain, cost; methods whose dose is NaN stand in the right panel only.
        null: columns direction, dose, gain, cost: the random directions.
        level: a cost to mark (nats a token).
        dose_title: the unit of the dose, for the axis.
        title: the figure's title.
    """
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for column, x in enumerate(("dose", "cost"), start=1):
        gaps = null.groupby("direction", sort=False)[[x, "gain"]].apply(
            lambda one: pd.concat([one, pd.DataFrame({c: [None] for c in one})])
        )  # one trace for all, a gap between two
        fig.add_scatter(
            x=as_array(gaps[x].astype(float).to_numpy()),
            y=as_array(gaps["gain"].astype(float).to_numpy()),
            row=1,
            col=column,
            mode="lines",
            line=dict(color=GREY, width=0.7),
            opacity=0.55,
            showlegend=column == 1,
            name=f"{null['direction'].nunique()} random directions",
            legendgroup="null",
            hoverinfo="skip",
        )
        for i, (method, part) in enumerate(points.groupby("method", sort=False)):
            if part[x].isna().all():
                continue
            fig.add_scatter(
                x=as_array(part[x].to_numpy()),
                y=as_array(part["gain"].to_numpy()),
                row=1,
                col=column,
                mode="lines+markers",
                name=short_label(method),
                legendgroup=method,
                showlegend=column == 2,
                line=dict(color=OKABE_ITO[i % 7], width=2),
                marker=dict(size=7, symbol=SYMBOLS[i % 7]),
                hovertemplate=f"{short_label(method)}: {x} %{{x:.2f}}, gain %{{y:.3f}}<extra></extra>",
            )
    if level is not None:
        fig.add_vline(x=level, line=dict(color=GREY, dash="dot", width=1.5), row=1, col=2)
        if points["cost"].max() > 8 * level:  # the large doses would press everything else into a corner
            near = pd.concat([points, null]).query("cost <= 8 * @level")["gain"]
            fig.update_xaxes(range=[-0.4 * level, 8 * level], row=1, col=2)
            fig.update_yaxes(range=[near.min() - 0.08 * np.ptp(near), near.max() + 0.08 * np.ptp(near)], row=1, col=2)
    doses = sorted(points["dose"].dropna().unique())
    fig.update_xaxes(title=dose_title, type="log", tickvals=doses, ticktext=[f"{d:g}" for d in doses], row=1, col=1)
    fig.update_xaxes(title="cost: ΔCE on other text (nats per token)", row=1, col=2)
    fig.update_yaxes(title="gain in share of target tokens", row=1, col=1)
    legend = dict(y=-0.26, yanchor="top", x=0.5, xanchor="center")
    subtitle = "right: up to eight times the cost at which ways are compared (dotted)" if level is not None else ""
    return finish(fig, title, 460, subtitle, legend=legend, margin=dict(b=120))


def equal_cost_figure(table: pd.DataFrame, null: pd.DataFrame, title: str = "Ways to steer at equal cost") -> go.Figure:
    """Gain at equal cost, a row a kind of text and a marker a method, over the range of random directions.

    Args:
        table: columns kind, method, gain, low, high; NaN where a method never costs so much.
        null: columns kind, low, high: the range of the random directions.
        title: the figure's title.
    """
    fig, kinds = go.Figure(), category_order(table["kind"])[::-1]
    rows = {kind: i for i, kind in enumerate(kinds)}
    methods = list(dict.fromkeys(table["method"]))
    for i, one in enumerate(null.dropna().itertuples()):
        y = rows[one.kind]
        fig.add_scatter(
            x=[one.low, one.high, one.high, one.low],
            y=[y - 0.42, y - 0.42, y + 0.42, y + 0.42],
            fill="toself",
            mode="none",
            fillcolor=PALE,
            name="random directions, 95 % of them",
            showlegend=i == 0,
            legendgroup="null",
            hoverinfo="skip",
        )
    for i, method in enumerate(methods):
        part = table[table["method"] == method].dropna(subset="gain")
        shift = 0.3 - 0.6 * i / max(len(methods) - 1, 1)
        bars = [as_array((part[a] - part[b]).fillna(0).to_numpy()) for a, b in (("high", "gain"), ("gain", "low"))]
        fig.add_scatter(
            x=as_array(part["gain"].to_numpy()),
            y=[rows[kind] + shift for kind in part["kind"]],
            mode="markers",
            name=short_label(method),
            marker=dict(size=9, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
            error_x=dict(type="data", symmetric=False, array=bars[0], arrayminus=bars[1], thickness=1.5, width=3),
            text=[category_title(kind) for kind in part["kind"]],
            hovertemplate="%{text}: %{x:.3f}<extra>" + short_label(method) + "</extra>",
        )
    fig.update_xaxes(title="gain in share of the kind's tokens", rangemode="tozero")
    fig.update_yaxes(tickvals=list(rows.values()), ticktext=[category_title(k) for k in kinds], showgrid=False)
    legend = dict(y=-0.16, yanchor="top", x=0.5, xanchor="center")
    return finish(
        fig,
        title,
        120 + 70 * len(kinds) + 100,
        "bars: 95 % paired bootstrap over contexts",
        legend=legend,
        margin=dict(l=150, b=120),
    )


def samples_table(samples: dict[str, Sequence[str]], prompts: Sequence[str], limit: int = 160) -> str:
    """Generated texts side by side as an HTML table: a row a prompt, a column a way to steer. Everything is escaped.

    Args:
        samples: way -> its texts, one for each opening (a way may itself be called "prompt").
        prompts: what was continued.
        limit: characters to show of each.

    Raises:
        ValueError: a way that does not have one text for each prompt.
    """
    for way, texts in samples.items():
        if len(texts) != len(prompts):
            raise ValueError(f"{len(texts)} texts for '{way}' but {len(prompts)} prompts; give one for each")
    rows = [
        [marked(text[:limit]).replace("·", " ").replace("↵", "↵ ") for text in row]
        for row in zip(prompts, *samples.values(), strict=True)
    ]
    return templates().get_template("samples.html").render(heads=("opening", *samples), rows=rows)
