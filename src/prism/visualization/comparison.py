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
    DIVERGING,
    GREY,
    INK,
    OKABE_ITO,
    PALE,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")


def fidelity_figure(
    table: pd.DataFrame,
    groups: Mapping[str, str] | None = None,
    highlight: str | None = None,
    elsewhere: Sequence[str] = (),
    title: str = "What a reconstruction keeps, and at how many active features",
) -> go.Figure:
    """Explained variance, ΔCE and L0, a row an SAE, with intervals: the more EV and the less ΔCE, the better.

    Args:
        table: from `evaluation.evaluation_table`.
        groups: name -> group; a group shares a colour and stands together. By default all are of one.
        highlight: a row to hold the others against: its values are drawn as lines down the panels.
        elsewhere: rows measured on another model, whose ΔCE cannot be compared and is not drawn.
        title: the figure's title.
    """
    measures = {
        "explained_variance": "explained variance (share)",
        "delta_ce": "ΔCE (nats per token)",
        "l0": "L0 (active features per token)",
    }
    kinds = pd.Series([(groups or {}).get(name, "SAE") for name in table.index], index=table.index)
    order = [name for kind in dict.fromkeys(kinds) for name in table.index[kinds == kind]]
    rows = dict(zip(order, range(len(order)), strict=True))
    fig = make_subplots(rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.03)
    for column, (measure, words) in enumerate(measures.items(), start=1):
        shown = table.drop(index=list(elsewhere)) if measure == "delta_ce" else table
        log = measure != "explained_variance" and _spans(shown, measure)
        for i, kind in enumerate(dict.fromkeys(kinds)):
            part = shown[kinds[shown.index] == kind]
            fig.add_scatter(
                x=part[measure],
                y=[rows[name] for name in part.index],
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
        if highlight in shown.index:
            fig.add_vline(
                float(shown.loc[highlight, measure]),
                line=dict(color=GREY, dash="dot"),
                layer="below",
                row=1,
                col=column,
            )
        fig.update_xaxes(
            title=f"{words}{', log scale' * log}",
            title_font_size=13,
            row=1,
            col=column,
            nticks=5,
            **(dict(type="log", dtick="D2", minor_showgrid=False) if log else {}),
        )
    names = [f"<b>{short_label(n, 26)}</b>" if n == highlight else short_label(n, 26) for n in order]
    fig.update_yaxes(
        tickvals=list(range(len(order))),
        ticktext=names,
        range=[len(order) - 0.4, -0.6],
        ticks="",
        tickfont=dict(size=12),
    )
    return finish(fig, title, 180 + 22 * len(order), "bars: 95 % bootstrap over sequences", margin=dict(t=112))


def _spans(table: pd.DataFrame, measure: str, factor: float = 4.0) -> bool:
    """Whether a measure deserves a log axis: all above 0, and far enough apart for the axis to have ticks."""
    low, high = table[f"{measure}_low"].min(), table[f"{measure}_high"].max()
    return bool(low > 0 and high > factor * low)


def _bars(part: pd.DataFrame, measure: str, prefix: str | None = None) -> dict:
    prefix = f"{measure}_" if prefix is None else prefix
    return dict(
        type="data",
        symmetric=False,
        array=part[f"{prefix}high"] - part[measure],
        thickness=1.5,
        width=3,
        arrayminus=part[measure] - part[f"{prefix}low"],
    )


def density_curves(
    densities: Mapping[str, Float[np.ndarray, " d_sae"]],
    n_tokens: int,
    title: str = "How often features fire, SAE by SAE",
) -> go.Figure:
    """Histograms of log density as lines, each SAE's features adding up to 1; dead features are named in the legend.

    Args:
        densities: SAE -> density of each feature.
        n_tokens: in the sample: no density between 0 and one in so many can be seen.
        title: the figure's title.
    """
    edges = np.arange(-np.log10(n_tokens) - 0.125, 0.26, 0.25)  # no bin without a possible count
    fig = go.Figure()
    for i, (name, density) in enumerate(densities.items()):
        live = density[density > 0]
        counts = np.histogram(np.log10(live), edges)[0] / len(density)
        line = dict(color=OKABE_ITO[i % 7], width=2.5, shape="hvh", dash=("solid", "dash", "dot")[i // 7 % 3])
        fig.add_scatter(
            x=10 ** (edges[:-1] + 0.125),
            y=counts,
            mode="lines",
            line=line,
            name=f"{short_label(name)} ({1 - len(live) / len(density):.0%} dead)",
            hovertemplate=f"{short_label(name)}: %{{y:.1%}} near %{{x:.1g}}<extra></extra>",
        )
    fig.update_xaxes(title="density (share of tokens on which a feature fires, log scale)", type="log")
    fig.update_yaxes(title="share of the SAE's features", tickformat=".0%", rangemode="tozero")
    return finish(
        fig,
        title,
        440,
        f"{n_tokens:,} tokens",
        margin=dict(r=250, t=95),
        legend=dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top"),
    )


def specialist_grid(
    scores: pd.DataFrame,
    passed: pd.DataFrame,
    title: str = "The best specialist of each SAE and category, on fresh texts",
) -> go.Figure:
    """A cell a pair of SAE and category: the held-out score of its best specialist; a ring marks those that passed.

    Args:
        scores: SAEs as index, categories as columns; NaN where the search found none.
        passed: the same shape, True where search null and held-out test were both passed.
        title: the figure's title.
    """
    order = category_order(scores.columns)
    values, marks = scores[order].to_numpy(dtype=float), passed[order].to_numpy(dtype=bool)
    text = [
        ["" if np.isnan(v) else f"{v:+.0f}{' ●' if m else ''}" for v, m in zip(*row, strict=True)]
        for row in zip(values, marks, strict=True)
    ]
    names = [short_label(name, 34) for name in scores.index]
    limit = max(float(np.nanmax(np.abs(values), initial=1)), 1.0)
    fig = go.Figure(
        go.Heatmap(
            z=values,
            x=[category_title(c) for c in order],
            y=names,
            text=text,
            zmin=-limit,
            zmax=limit,
            texttemplate="%{text}",
            colorscale=DIVERGING,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            colorbar=colour_bar("held-out score (texts)"),
            hovertemplate="%{y}, %{x}: %{z:+.0f}<extra></extra>",
        )
    )
    blank = [(category_title(order[j]), names[i]) for i, j in np.argwhere(np.isnan(values))]
    fig.add_scatter(
        x=[x for x, _ in blank],
        y=[y for _, y in blank],
        mode="text",
        text=["–"] * len(blank),
        hoverinfo="skip",
        showlegend=False,
    )
    subtitle = "●: beats the search's null and holds on fresh texts"
    subtitle += "; –: no feature scores above 0 on the texts searched" * bool(blank)
    fig.update_xaxes(title="category", showgrid=False, ticks="")
    fig.update_yaxes(title="SAE", autorange="reversed", showgrid=False, ticks="")
    return finish(fig, title, 190 + 38 * len(names), subtitle, margin=dict(l=150, b=90))


def splitting_graph(
    edges: pd.DataFrame,
    parents: Sequence[int] | None = None,
    most: int = 8,
    title: str = "Features of the narrow SAE and their children in the wide one",
) -> go.Figure:
    """Narrow features on the left, their children on the right; a thicker line fires on more of the parent's tokens.

    Args:
        edges: the observed rows of `evaluation.splitting`.
        parents: narrow features to show; by default the `most` with most children.
        most: see `parents`.
        title: the figure's title.
    """
    if parents is None:
        counts = edges["narrow"].value_counts(sort=False).sort_index()
        parents = counts.sort_values(ascending=False, kind="stable").index[:most].tolist()
    fig, place, texts = go.Figure(), 0, []
    for parent in parents:
        part = edges[edges["narrow"] == parent].sort_values("coactivation", ascending=False)
        middle = place + (len(part) - 1) / 2
        for child, cosine, share in part[["wide", "cosine", "coactivation"]].itertuples(index=False):
            fig.add_scatter(
                x=[0, 1],
                y=[middle, place],
                mode="lines",
                showlegend=False,
                line=dict(width=1 + 7 * share, color="rgba(0,114,178,0.45)"),
                hoverinfo="skip",
            )
            words = f"{child}: cosine {cosine:.2f}, on {share:.0%} of its firings"
            texts.append((1.03, place, words, "left"))
            place += 1
        texts.append((-0.03, middle, f"feature {parent}", "right"))
        place += 0.8
    fig.add_scatter(
        x=[0 if a == "right" else 1 for *_, a in texts],
        y=[y for _, y, *_ in texts],
        mode="markers",
        marker=dict(size=8, color=BLUE),
        hoverinfo="skip",
        showlegend=False,
    )
    for x, y, words, anchor in texts:
        fig.add_annotation(x=x, y=y, text=words, xanchor=anchor, showarrow=False, font=dict(size=12))
    fig.update_xaxes(
        title="left: narrow SAE; right: wide SAE", range=[-0.35, 1.75], showticklabels=False, ticks="", showgrid=False
    )
    fig.update_yaxes(title="", autorange="reversed", showticklabels=False, ticks="", showgrid=False)
    return finish(fig, title, int(130 + 22 * place), "thicker: fires on a larger share of the parent's firings")


def probing_dots(
    table: pd.DataFrame,
    title: str = "Reading a concept off one column, five columns, or all of them",
) -> go.Figure:
    """Held-out AUC by concept, a dot a source, one panel a number of columns; dense probes stand in every panel.

    Args:
        table: from `evaluation.probe_table`.
        title: the figure's title.
    """
    sizes = [k for k in dict.fromkeys(table["k"]) if k > 0] or [-1]
    heads = [f"{k} column{'s' * (k > 1)}" if k > 0 else "all columns" for k in sizes]
    sources, concepts = list(dict.fromkeys(table["source"])), category_order(table["concept"])
    fig = make_subplots(rows=1, cols=len(sizes), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=heads)
    for i, source in enumerate(sources):
        name, first = short_label(source), True
        shift = 0.7 * ((i + 0.5) / len(sources) - 0.5)
        for panel, k in enumerate(sizes, start=1):
            part = table[(table["source"] == source) & table["k"].isin((k, -1))]
            if part.empty:
                continue
            fig.add_scatter(
                x=part["auc"],
                y=[concepts.index(c) + shift for c in part["concept"]],
                mode="markers",
                name=name,
                error_x=_bars(part, "auc", ""),
                showlegend=first,
                legendgroup=source,
                row=1,
                col=panel,
                cliponaxis=False,
                marker=dict(color=OKABE_ITO[i % 7], size=8, symbol=SYMBOLS[i % 5]),
                text=[category_title(c) for c in part["concept"]],
                hovertemplate=f"%{{text}}, {name}: %{{x:.3f}}<extra></extra>",
            )
            first = False
    for i in range(1, len(concepts)):
        fig.add_hline(i - 0.5, line=dict(color=PALE, width=1), layer="below")
    fig.add_vline(0.5, line=dict(color=GREY, dash="dot"))
    lowest = float(table["low"].min()) if len(table) else 0.5
    fig.update_xaxes(title="AUC (chance: 0.5)", range=[min(0.5, lowest) - 0.02, 1.02])
    fig.update_yaxes(
        tickvals=list(range(len(concepts))),
        ticktext=[category_title(c) for c in concepts],
        ticks="",
        range=[len(concepts) - 0.5, -0.5],
        showgrid=False,
    )
    fig.update_yaxes(title="concept", col=1).update_annotations(font=dict(size=14, color=INK))
    plot = max(14 * len(sources) * len(concepts), 120)  # pixels
    legend = dict(orientation="h", x=0.5, xanchor="center", y=-62 / plot, yanchor="top")
    return finish(
        fig,
        title,
        plot + 235,
        "on held-out units; bars: 95 % bootstrap over texts",
        margin=dict(t=115, b=120),
        legend=legend,
    )
