"""Figures of phase 1: dense against sparse, densities, the pooling trap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREY, INK, ULTRALOW, VERMILLION, as_array, finish, short_label


def dense_vs_sparse(
    activations: Float[np.ndarray, " n"],
    features: Float[np.ndarray, " m"],
    title: str = "The same tokens as dense activations and as sparse features",
) -> go.Figure:
    """Two value distributions side by side, with the share of non-zeros that each holds.

    Args:
        activations: a sample of the model's activations, all channels together.
        features: a sample of SAE feature activations of the same tokens.
        title: the figure's title.

    Raises:
        ValueError: a sample is empty.
    """
    panels = {
        "Activations": (as_array(activations).ravel(), BLUE),
        "Features": (as_array(features).ravel(), VERMILLION),
    }
    if not all(values.size for values, _ in panels.values()):
        raise ValueError("a sample is empty: give at least one activation and one feature value")
    heads = [f"{name}: {np.mean(values != 0):.2%} non-zero" for name, (values, _) in panels.items()]
    fig = make_subplots(1, 2, subplot_titles=heads, shared_yaxes=True, horizontal_spacing=0.06)
    for column, (name, (values, colour)) in enumerate(panels.items(), start=1):
        for trace in _value_bars(values, name, colour):
            fig.add_trace(trace, 1, column)
    fig.update_xaxes(title="value (the central 99.8 %)")
    fig.update_yaxes(type="log", exponentformat="power", dtick=1)
    fig.update_yaxes(title="share of values in the bin (log scale)", col=1)
    return finish(
        fig, title, 430, barmode="overlay", bargap=0.02, margin=dict(t=90, b=90), legend=dict(y=-0.2, yanchor="top")
    )


def _value_bars(values: np.ndarray, name: str, colour: str, bins: int = 50) -> list[go.Bar]:
    """Shares of the non-zero values by bin, and one bar of its own for the exact zeros, left of the bins or on 0."""
    nonzero = values[values != 0]
    low, high = np.quantile(nonzero, [0.001, 0.999]) if nonzero.size else (0.0, 1.0)
    low = 0.0 if low > 0 else low
    counts, edges = np.histogram(nonzero, bins, range=(low, max(high, low + 1e-6)))
    step, kept = edges[1] - edges[0], counts > 0
    bars = [
        go.Bar(
            x=(edges[:-1] + step / 2)[kept],
            y=counts[kept] / values.size,
            width=step,
            marker_color=colour,
            name=f"{name}: non-zero",
            hovertemplate="around %{x:.3g}: %{y:.3%}<extra></extra>",
        )
    ]
    zeros = 1 - nonzero.size / values.size
    if zeros:
        bars.append(
            go.Bar(
                x=[-step if low == 0 else 0.0],
                y=[zeros],
                width=step,
                marker_color=GREY,
                name=f"{name}: exactly 0",
                hovertemplate="exactly 0: %{y:.2%}<extra></extra>",
            )
        )
    return bars


def density_histogram(
    density: Float[np.ndarray, " d_sae"],
    n_tokens: int,
    title: str = "How often each feature fires",
) -> go.Figure:
    """Histogram of log10 firing density over the live features; the dead ones are counted in the subtitle.

    Args:
        density: share of tokens on which each feature fires.
        n_tokens: tokens in the sample, without which 'dead' means nothing. The axis begins at one firing among them;
            the bound of 'ultralow' is drawn only where the sample is large enough to see it.
        title: the figure's title.
    """
    density = as_array(density).astype(float)
    live, dead = density[density > 0], int((density == 0).sum())
    rarest = -np.log10(n_tokens)
    edges = np.arange(rarest - 0.125, 0.26, 0.25)  # no bin without a possible count
    counts = np.histogram(np.log10(live), edges)[0]
    fig = go.Figure(
        go.Bar(
            x=edges[:-1] + 0.125,
            y=counts,
            width=0.25,
            marker_color=BLUE,
            hovertemplate="density around 10^%{x:.2f}: %{y} features<extra></extra>",
        )
    )
    marks = {f"one token in {n_tokens:,}": (rarest, GREY)}
    if 1 / n_tokens < ULTRALOW:  # a smaller sample cannot see such features
        marks["ultralow: < 10<sup>−6</sup>"] = (np.log10(ULTRALOW), VERMILLION)
    for text, (x, colour) in marks.items():
        fig.add_vline(x, line=dict(color=colour, dash="dash", width=2))
        fig.add_annotation(
            x=x,
            y=1.02,
            yref="paper",
            yanchor="bottom",
            xanchor="left",
            text=text,
            showarrow=False,
            font=dict(color=colour, size=13),
        )
    fig.update_xaxes(
        title="log10 density (share of tokens on which a feature fires)", range=[rarest - 0.3, 0.2], dtick=1
    )
    fig.update_yaxes(title="features")
    share = dead / max(density.size, 1)
    subtitle = (
        f"{dead:,} of {density.size:,} features ({share:.1%}) are dead: they fire on none of {n_tokens:,} "
        f"tokens; median density of the others {np.median(live) if live.size else 0:.2g}"
    )
    return finish(fig, title, 420, subtitle, bargap=0, margin=dict(t=112))


def pooling_trap_figure(
    frame: pd.DataFrame,
    published_l0: float | None = None,
    title: str = "Active features, by what the SAE is fed",
) -> go.Figure:
    """Active features per input, by what the SAE was fed: bars from 0, or dots on a log scale if they differ widely.

    Args:
        frame: columns `variant` ('token by token', 'mean-pooled first', …) and `active_features` (mean per input).
        published_l0: the L0 that the SAE's publisher reports, drawn as a line.
        title: the figure's title.
    """
    values = frame["active_features"].to_numpy(float)
    names = [short_label(variant) for variant in frame["variant"]]
    wide = bool(values.max() > 12 * max(values.min(), 1))  # a bar on a log axis has no foot, so its length says nothing
    style = dict(x=names, y=values, hovertemplate="%{x}: %{y:,.1f} active features<extra></extra>")
    colours = [BLUE] + [VERMILLION] * (len(frame) - 1)
    dots = go.Scatter(mode="markers", marker=dict(color=colours, size=18), cliponaxis=False, **style)
    fig = go.Figure(dots if wide else go.Bar(marker_color=colours, width=0.55, **style))
    high = max(*values, published_l0 or 1, 1)
    place = (lambda value: float(np.log10(max(value, 1)))) if wide else float
    for name, value in zip(names, values, strict=True):  # annotations, so that the line below never runs through them
        fig.add_annotation(
            x=name,
            y=place(value),
            yanchor="bottom",
            yshift=12 if wide else 2,
            showarrow=False,
            text=f"{value:,.0f}" if value >= 10 else f"{value:.1f}",
            font=dict(size=16),
            bgcolor="white",
            borderpad=1,
        )
    if published_l0:
        fig.add_hline(published_l0, line=dict(color=INK, dash="dash", width=1.5), layer="below")
        fig.add_annotation(
            x=1,
            xref="paper",
            xanchor="left",
            y=place(published_l0),
            xshift=6,
            align="left",
            text=f"published<br>L0: {published_l0:g}",
            showarrow=False,
            font=dict(size=13),
        )
    reach = [0, np.log10(high) + 0.35] if wide else [0, 1.15 * high]
    scale = dict(type="log", dtick=1) if wide else {}
    fig.update_yaxes(title=f"active features per input{', log scale' * wide}", range=reach, **scale)
    fig.update_xaxes(title="what the SAE is fed", tickfont=dict(size=15))
    return finish(fig, title, 440, margin=dict(r=100 if published_l0 else 30))
