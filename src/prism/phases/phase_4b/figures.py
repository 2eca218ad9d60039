"""The figures of phase 4b: learning rates, explained variance against L0, densities, a feature before four signs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.evaluation import Evaluation
from prism.models import FAMILY
from prism.phases.phase_4b.methods import keeps_all
from prism.visualization.style import BLUE, GREY, OKABE_ITO, SEQUENTIAL, VERMILLION, colour_bar, finish

PENALISED = ("relu", "gated", "jumprelu")  # their L0 comes from a penalty, whose weight is steered


def rates_figure(rates: pd.DataFrame, title: str = "All six explain most at the highest rate tried") -> go.Figure:
    """Explained variance at each learning rate: those that set their number of active features, and those that do not.

    Args:
        rates: from `learning_rates`.
        title: the figure's title.
    """
    fig = make_subplots(1, 2, shared_yaxes=True, subplot_titles=["keep the largest K", "penalised"])
    for colour, (name, part) in zip(OKABE_ITO, rates.groupby("architecture", sort=False), strict=False):
        column = 2 if name in PENALISED else 1
        fig.add_scatter(
            x=part["lr"],
            y=part["explained_variance"],
            mode="lines+markers+text",
            line=dict(color=colour, width=2.5),
            marker=dict(size=8),
            text=[f"L0 {l0:.0f}" for l0 in part["l0"]] if column == 2 else None,
            textposition="top center" if name == "gated" else "bottom center",
            textfont=dict(size=11, color=colour),
            hovertemplate=f"{name}: %{{y:.3f}} at %{{x}}<extra></extra>",
            name=FAMILY[name].title,
            row=1,
            col=column,
        )
    fig.update_xaxes(type="log", range=[-3.2, -1.8], tickvals=[1e-3, 3e-3, 1e-2], ticktext=["0.001", "0.003", "0.01"])
    fig.update_xaxes(title="learning rate")
    fig.update_yaxes(title="explained variance", col=1)
    others = rates.loc[~rates["architecture"].isin(PENALISED), "l0"]
    below = (
        f"short runs; L0 is {others.min():.0f} to {others.max():.0f} on the left, and beside each point on the right"
    )
    legend = dict(orientation="h", x=0, xanchor="left", y=-0.2, yanchor="top")
    return finish(fig, title, 480, below, legend=legend, showlegend=True, margin=dict(t=120, b=110))


def tradeoff_figure(curves: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Explained variance against L0: a line an SAE, from cut down to whole (its marker); seeds in grey.

    Args:
        curves: name of a member of the family -> from `cut_down`, the whole SAE last.
    """
    whole = pd.DataFrame({name: curve.iloc[-1] for name, curve in curves.items()}).T
    order = whole["explained_variance"].sort_values(ascending=False).index
    colours = dict(zip((name for name in curves if "-" not in name), OKABE_ITO, strict=False))
    fig = go.Figure()
    for name in order:
        fig.add_scatter(
            x=curves[name]["l0"],
            y=curves[name]["explained_variance"],
            mode="lines+markers",
            line=dict(color=colours.get(name, GREY), width=2.5, dash="solid" if name in colours else "dot"),
            marker=dict(size=[0] * (len(curves[name]) - 1) + [11], opacity=1, line=dict(width=0)),
            hovertemplate=f"{FAMILY[name].title}: %{{y:.3f}} at L0 %{{x:.1f}}<extra></extra>",
            name=FAMILY[name].title,
        )
    fig.update_xaxes(title="L0 (active features a token)")
    fig.update_yaxes(title="explained variance")
    title = f"{FAMILY[order[-1]].title} explains least, {FAMILY[order[0]].title} most"
    below = (
        f"dots: as trained, L0 {whole['l0'].min():.0f} to {whole['l0'].max():.0f}; lines: cut down to their strongest"
    )
    legend = dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top")
    return finish(fig, title, 480, below + " activations", legend=legend, showlegend=True)


def densities_figure(found: Mapping[str, Evaluation]) -> go.Figure:
    """Histograms of the features' log density, a panel an SAE; the silent ones are a bar of their own.

    Args:
        found: name of a member of the family -> what was measured, of `relu` and `matryoshka` at least.
    """
    titles = [FAMILY[name].title for name in found]
    rows = -(-len(found) // 3)
    fig = make_subplots(rows, 3, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.16)
    tokens = next(iter(found.values())).n_tokens
    lowest = np.floor(np.log10(1 / tokens) / 0.25) * 0.25  # the first bin has what fired once
    edges, silent = np.arange(lowest, 0.01, 0.25), lowest - 0.85
    for i, one in enumerate(found.values()):
        fires = one.density[one.density > 0]
        count = np.histogram(np.log10(fires), edges)[0]
        place = dict(row=i // 3 + 1, col=i % 3 + 1)
        fig.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=count, width=0.23, marker_color=BLUE, **place)
        fig.add_bar(x=[silent], y=[one.dead], width=0.35, marker_color=VERMILLION, text=[one.dead], **place)
    ticks = range(int(np.ceil(lowest)), 1)
    fig.update_xaxes(tickvals=[silent, *ticks], ticktext=["never", *(f"{100 * 10.0**t:g}" for t in ticks)], tickangle=0)
    fig.update_xaxes(title="% of tokens (log)", row=rows)
    fig.update_yaxes(title="features", col=1)
    fig.update_traces(textposition="outside", textfont=dict(size=12), constraintext="none", cliponaxis=False)
    title = f"{found['relu'].dead} features of ReLU are silent, {found['matryoshka'].dead} of Matryoshka"
    return finish(fig, title, 280 * rows, f"how often features fire on {tokens:,} tokens", showlegend=False)


def signs_figure(by_sign: pd.DataFrame) -> go.Figure:
    """Mean activation of each SAE's features (rows, the nearest of each SAE first) before each sign (columns)."""
    labels = [f"{FAMILY[name].title} · {feature}" for name, feature in by_sign.index]
    fig = go.Figure(
        go.Heatmap(
            z=by_sign.to_numpy(),
            x=list(by_sign.columns),
            y=labels,
            colorscale=SEQUENTIAL,
            zmin=0,
            texttemplate="%{z:.0f}",
            xgap=2,
            ygap=2,
            colorbar=colour_bar("mean activation"),
        )
    )
    fig.update_yaxes(autorange="reversed", type="category")
    fig.update_xaxes(type="category", title="sign in the sum, such as '12 * 3 = '")
    whole = keeps_all(by_sign).groupby(level=0).any()
    title = f"In {whole.sum()} of {len(whole)} SAEs one feature serves all four signs"
    below = "the two nearest features of each SAE; 'serves': before each sign at least half of its largest value"
    return finish(fig, title, 130 + 26 * len(labels), below, margin=dict(l=230))
