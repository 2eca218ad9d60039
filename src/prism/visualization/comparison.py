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
    SEQUENTIAL,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


def fidelity_figure(
    table: pd.DataFrame, groups: Mapping[str, str] | None = None,
    title: str = "What a reconstruction keeps, at how many active features",
) -> go.Figure:  # fmt: skip
    """Explained variance and ΔCE over L0, a point an SAE, with intervals. Better is up on the left, down on the right.

    Args:
        table: from `evaluation.evaluation_table`.
        groups: name -> group; a group shares colour and symbol. By default all are of one.
        title: the figure's title.
    """
    measures = {"explained_variance": "explained variance (share)", "delta_ce": "ΔCE (nats per token)"}
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    wide = bool(table["l0"].max() > 4 * table["l0"].min())  # too narrow a range leaves a log axis without ticks
    kinds = [(groups or {}).get(name, "SAE") for name in table.index]
    for column, (measure, words) in enumerate(measures.items(), start=1):
        for i, kind in enumerate(dict.fromkeys(kinds)):
            part = table[[k == kind for k in kinds]]
            y, x = part[measure], part["l0"]
            fig.add_scatter(
                x=x, y=y, row=1, col=column, mode="markers", name=short_label(kind), legendgroup=kind,
                showlegend=column == 1, marker=dict(size=10, color=OKABE_ITO[i % 7], symbol=SYMBOLS[i % 7]),
                text=[short_label(name) for name in part.index], error_y=_bars(part, measure),
                error_x=_bars(part, "l0"), hovertemplate="%{text}: L0 %{x:.1f}, %{y:.3f}<extra></extra>",
            )  # fmt: skip
        fig.update_xaxes(title=f"L0 (active features per token{', log scale' * wide})", row=1, col=column,
                         type="log" if wide else "linear")  # fmt: skip
        fig.update_yaxes(title=words, row=1, col=column)
    return finish(fig, title, 430, "bars: 95 % bootstrap over sequences", margin=dict(t=110))


def _bars(part: pd.DataFrame, measure: str) -> dict:
    return dict(type="data", symmetric=False, array=part[f"{measure}_high"] - part[measure], thickness=1.5, width=3,
                arrayminus=part[measure] - part[f"{measure}_low"])  # fmt: skip


def density_curves(
    densities: Mapping[str, Float[np.ndarray, " d_sae"]], n_tokens: int,
    title: str = "How often features fire, SAE by SAE",
) -> go.Figure:  # fmt: skip
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
        fig.add_scatter(x=10 ** (edges[:-1] + 0.125), y=counts, mode="lines", line=line,
                        name=f"{short_label(name)} ({1 - len(live) / len(density):.0%} dead)",
                        hovertemplate=f"{short_label(name)}: %{{y:.1%}} near %{{x:.1g}}<extra></extra>")  # fmt: skip
    fig.update_xaxes(title="density (share of tokens on which a feature fires, log scale)", type="log")
    fig.update_yaxes(title="share of the SAE's features", tickformat=".0%", rangemode="tozero")
    return finish(fig, title, 440, f"{n_tokens:,} tokens", margin=dict(r=250, t=95),
                  legend=dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top"))  # fmt: skip


def specialist_grid(
    scores: pd.DataFrame, passed: pd.DataFrame,
    title: str = "The best specialist of each SAE and category, on fresh texts",
) -> go.Figure:  # fmt: skip
    """A cell a pair of SAE and category: the held-out score of its best specialist; a ring marks those that passed.

    Args:
        scores: SAEs as index, categories as columns; NaN where the search found none.
        passed: the same shape, True where search null and held-out test were both passed.
        title: the figure's title.
    """
    order = category_order(scores.columns)
    values, marks = scores[order].to_numpy(dtype=float), passed[order].to_numpy(dtype=bool)
    text = [["" if np.isnan(v) else f"{v:+.0f}{' ●' if m else ''}" for v, m in zip(*row, strict=True)]
            for row in zip(values, marks, strict=True)]  # fmt: skip
    names = [short_label(name, 34) for name in scores.index]
    fig = go.Figure(go.Heatmap(z=values, x=[category_title(c) for c in order], y=names, text=text, zmin=0,
                               zmax=max(float(np.nanmax(values, initial=1)), 1.0),
                               texttemplate="%{text}", colorscale=SEQUENTIAL, xgap=2, ygap=2, hoverongaps=False,
                               colorbar=colour_bar("held-out score (texts)"),
                               hovertemplate="%{y}, %{x}: %{z:+.0f}<extra></extra>"))  # fmt: skip
    fig.update_xaxes(title="category", showgrid=False, ticks="")
    fig.update_yaxes(title="SAE", autorange="reversed", showgrid=False, ticks="")
    return finish(fig, title, 190 + 38 * len(names), "●: beats the search's null and holds on fresh texts",
                  margin=dict(l=150, b=90))  # fmt: skip


def splitting_graph(
    edges: pd.DataFrame, parents: Sequence[int] | None = None, most: int = 8,
    title: str = "Features of the narrow SAE and their children in the wide one",
) -> go.Figure:  # fmt: skip
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
            fig.add_scatter(x=[0, 1], y=[middle, place], mode="lines", showlegend=False,
                            line=dict(width=1 + 7 * share, color="rgba(0,114,178,0.45)"), hoverinfo="skip")  # fmt: skip
            words = f"{child}: cosine {cosine:.2f}, on {share:.0%} of its firings"
            texts.append((1.03, place, words, "left"))
            place += 1
        texts.append((-0.03, middle, f"feature {parent}", "right"))
        place += 0.8
    fig.add_scatter(x=[0 if a == "right" else 1 for *_, a in texts], y=[y for _, y, *_ in texts], mode="markers",
                    marker=dict(size=8, color=BLUE), hoverinfo="skip", showlegend=False)  # fmt: skip
    for x, y, words, anchor in texts:
        fig.add_annotation(x=x, y=y, text=words, xanchor=anchor, showarrow=False, font=dict(size=12))
    fig.update_xaxes(title="left: narrow SAE; right: wide SAE", range=[-0.35, 1.75], showticklabels=False, ticks="",
                     showgrid=False)  # fmt: skip
    fig.update_yaxes(title="", autorange="reversed", showticklabels=False, ticks="", showgrid=False)
    return finish(fig, title, int(130 + 22 * place), "thicker: fires on a larger share of the parent's firings")


def probing_bars(
    table: pd.DataFrame, title: str = "Reading a concept off one column, five columns, or all of them",
) -> go.Figure:  # fmt: skip
    """Held-out AUC by concept, one bar a source, one panel a number of columns; dense probes stand in every panel.

    Args:
        table: from `evaluation.probe_table`.
        title: the figure's title.
    """
    sizes = [k for k in dict.fromkeys(table["k"]) if k > 0] or [-1]
    heads = [f"{k} column{'s' * (k > 1)}" if k > 0 else "all columns" for k in sizes]
    fig = make_subplots(rows=len(sizes), cols=1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=heads)
    for i, source in enumerate(dict.fromkeys(table["source"])):
        name, first = short_label(source), True
        for panel, k in enumerate(sizes, start=1):
            part = table[(table["source"] == source) & table["k"].isin((k, -1))]
            if part.empty:
                continue
            bars = dict(type="data", symmetric=False, array=part["high"] - part["auc"], thickness=1, width=2,
                        arrayminus=part["auc"] - part["low"])  # fmt: skip
            fig.add_bar(x=[category_title(c) for c in part["concept"]], y=part["auc"], name=name, error_y=bars,
                        marker_color=OKABE_ITO[i % 7], showlegend=first, legendgroup=source, row=panel, col=1,
                        hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>")  # fmt: skip
            first = False
    fig.add_hline(y=0.5, line=dict(color=GREY, dash="dot"))
    fig.update_xaxes(title="concept", row=len(sizes))
    fig.update_yaxes(title="AUC (chance: 0.5)", range=[0.4, 1.02])
    return finish(fig, title, 170 + 210 * len(sizes), "on held-out units; bars: 95 % bootstrap over texts",
                  barmode="group", margin=dict(t=135), legend=dict(y=1.07))  # fmt: skip
