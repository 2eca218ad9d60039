"""Figures of phase 6c: features that are followed from layer to layer, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import GREY, OKABE_ITO, PALE, finish, short_label

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def agreement_lines(
    bins: pd.DataFrame,
    title: str = "Do the two measures name the same partner?",
) -> go.Figure:
    """Share of features whose best partner is the same by both measures, over the decoder cosine of that partner.

    Args:
        bins: one row a bin of one line: line (its name), cosine (middle of the bin), agreement (0 to 1), features.
        title: the figure's title.
    """
    fig = go.Figure()
    for i, (name, part) in enumerate(bins.groupby("line", sort=False)):
        fig.add_scatter(
            x=part["cosine"],
            y=part["agreement"],
            mode="lines+markers",
            name=short_label(name),
            line=dict(color=OKABE_ITO[i % 7], dash=DASHES[i % 4]),
            customdata=part["features"],
            marker=dict(size=9, symbol=SYMBOLS[i % 4]),
            hovertemplate=f"{short_label(name)}: %{{y:.0%}} of %{{customdata}} features<extra></extra>",
        )
    fig.update_xaxes(title="decoder cosine of a feature with its best partner in the next layer (bins of 0.1)")
    fig.update_yaxes(title="correlation names the same partner", tickformat=".0%", range=[-0.03, 1.03])
    return finish(
        fig, title, 440, "bins of fewer than 10 features are left out", margin=dict(t=130), legend=dict(y=1.0)
    )


def persistence_curves(
    curves: pd.DataFrame,
    threshold: float | None = None,
    title: str = "How many features have a partner of their own in the next layer",
) -> go.Figure:
    """Share of features that persist over the threshold, a row of panels a step, a panel a measure of likeness.

    Args:
        curves: one row a point: step, measure, line (observed, or a control's name), threshold, one_to_one (0 to 1).
        threshold: marked by a vertical line.
        title: the figure's title.
    """
    steps, measures = (list(dict.fromkeys(curves[name])) for name in ("step", "measure"))
    heads = [f"{short_label(step)}: {short_label(measure)}" for step in steps for measure in measures]
    fig = make_subplots(
        rows=len(steps),
        cols=len(measures),
        shared_yaxes=True,
        subplot_titles=heads,
        shared_xaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.2 / len(steps),
    )
    colours = {name: OKABE_ITO[i % 7] for i, name in enumerate(dict.fromkeys(curves["line"]))}
    shown = set()
    for (step, measure, name), part in curves.groupby(["step", "measure", "line"], sort=False):
        fig.add_scatter(
            x=part["threshold"],
            y=part["one_to_one"],
            row=1 + steps.index(step),
            col=1 + measures.index(measure),
            mode="lines+markers",
            name=short_label(name),
            legendgroup=name,
            showlegend=name not in shown,
            line=dict(color=colours[name], dash=DASHES[list(colours).index(name) % 4]),
            marker=dict(size=6),
            hovertemplate=f"{short_label(name)}: %{{y:.1%}} above %{{x:.1f}}<extra></extra>",
        )
        shown.add(name)
    if threshold is not None:
        fig.add_vline(x=threshold, line=dict(color=GREY, dash="dot", width=1))
    fig.update_yaxes(tickformat=".0%", range=[-0.02, 1.02])
    fig.update_yaxes(title="share that persists", col=1)
    fig.update_xaxes(title="pairs more alike than", row=len(steps))
    fig.update_annotations(font_size=13)
    top = 1 + 0.13 * 1.6 / len(steps)
    return finish(
        fig,
        title,
        150 + 230 * len(steps),
        "one-to-one assignment; vertical line: the threshold used below",
        margin=dict(t=140),
        legend=dict(y=top),
    )


def depth_sankey(
    fates: pd.DataFrame, names: Sequence[str], title: str = "Birth, persistence and death of features"
) -> go.Figure:
    """Aggregated flows of features from layer to layer, coloured by the layer at which their chain begins.

    Args:
        fates: from `methods.fates`: born, last (layers from 0), features.
        names: of the layers, from the first on.
        title: the figure's title.
    """
    n = len(names)
    total = [int(fates.query("born <= @i <= last")["features"].sum()) for i in range(n)]
    born = [int(fates.query("born == @i")["features"].sum()) for i in range(n)]
    died = [int(fates.query("last == @i")["features"].sum()) for i in range(n)]
    labels = [f"{short_label(name)}: {total[i]:,}" for i, name in enumerate(names)]
    labels += [f"no ancestor: {born[i]:,}" for i in range(1, n)] + [f"no heir: {died[i]:,}" for i in range(n - 1)]
    links = []  # (from, to, features, birth)
    for i in range(n - 1):
        for b in range(i + 1):
            links.append((i, i + 1, int(fates.query("born == @b and last > @i")["features"].sum()), b))
            links.append((i, 2 * n - 1 + i, int(fates.query("born == @b and last == @i")["features"].sum()), b))
        links.append((n + i, i + 1, born[i + 1], i + 1))
    links = [link for link in links if link[2]]
    source, target, value, birth = (list(column) for column in zip(*links, strict=True)) if links else ([], [], [], [])
    across = [i / max(n - 1, 1) for i in range(n)]
    step = 1 / max(n - 1, 1)
    x = across + [a - 0.45 * step for a in across[1:]] + [a + 0.45 * step for a in across[:-1]]
    y = [0.4] * n + [0.92] * (n - 1) + [0.1] * (n - 1)
    colours = [OKABE_ITO[i % 7] for i in range(n)] + [PALE] * (2 * n - 2)
    fig = go.Figure(
        go.Sankey(
            arrangement="fixed",
            textfont=dict(size=13),
            node=dict(
                label=labels,
                color=colours,
                x=[min(max(v, 0.01), 0.99) for v in x],
                y=y,
                pad=18,
                thickness=18,
                line=dict(width=0.5, color=GREY),
                hovertemplate="%{label}<extra></extra>",
            ),
            link=dict(
                source=source,
                target=target,
                value=value,
                color=[_faint(OKABE_ITO[b % 7]) for b in birth],
                hovertemplate="%{value:,} features<extra></extra>",
            ),
        )
    )
    return finish(
        fig, title, 460, "widths: features; colour: the layer at which a chain begins", margin=dict(l=30, r=40, b=40)
    )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.4)"


def lens_lines(
    table: pd.DataFrame, title: str = "Which tokens do persistent features write, layer by layer?"
) -> go.Figure:
    """Rank of the token at a firing, and of the one after it, in the feature's direct logits, above other features'.

    Args:
        table: one row a layer and token: layer, token (which), advantage (mean rank above the control's), low, high.
        title: the figure's title.
    """
    fig = go.Figure()
    for i, (name, part) in enumerate(table.groupby("token", sort=False)):
        bars = dict(
            type="data",
            symmetric=False,
            array=part["high"] - part["advantage"],
            thickness=1.5,
            width=4,
            arrayminus=part["advantage"] - part["low"],
        )
        fig.add_scatter(
            x=[short_label(v) for v in part["layer"]],
            y=part["advantage"],
            mode="lines+markers",
            name=short_label(name),
            error_y=bars,
            marker=dict(size=10, symbol=SYMBOLS[i % 4]),
            line=dict(color=OKABE_ITO[i % 7], dash=DASHES[i % 4]),
            hovertemplate=f"{short_label(name)}: %{{y:+.3f}}<extra></extra>",
        )
    fig.add_hline(y=0, line=dict(color=GREY, dash="dot"))
    fig.update_xaxes(title="layer (its SAE)")
    fig.update_yaxes(title="rank above other features' (share of vocabulary)", tickformat="+.2f")
    return finish(
        fig,
        title,
        430,
        "bars: 95 % bootstrap over chains; 0: no better than other features' logits",
        margin=dict(t=115),
    )
