"""Figures of phase 0: directions and their overlaps, phases, recovery of known directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from prism.visualization.style import (
    DIVERGING,
    GREY,
    INK,
    OKABE_ITO,
    PALE,
    VERMILLION,
    as_array,
    colour_bar,
    finish,
    short_label,
)

PHASES = (
    "not represented: feature 1 alone",
    "superposition: one axis, opposite ends",
    "dedicated dimension: feature 2 alone",
    "none of these",
)
PHASE_COLOURS = ("#dfe3e8", "#E69F00", "#0072B2", "#222222")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up")


def direction_arrows(
    weights: Float[np.ndarray, "models 2 features"],
    heads: Sequence[str],
    title: str = "One arrow a feature, in the plane that all of them share",
    columns: int = 4,
) -> go.Figure:
    """Small multiples: the columns of each model's `W` as arrows in its two hidden dimensions.

    Args:
        weights: one `W` a panel.
        heads: one title a panel.
        title: the figure's title.
        columns: panels in a row.

    Raises:
        ValueError: not two hidden dimensions, or as many heads as models are missing.
    """
    weights = as_array(weights)
    if weights.ndim != 3 or weights.shape[1] != 2 or len(weights) != len(heads):
        raise ValueError(
            f"weights are {weights.shape} with {len(heads)} heads: need (models, 2, features) and a head for each model"
        )
    reach = 1.3 * max(1.0, float(np.linalg.norm(weights, axis=1).max()))
    fig, rows, places = _panels(heads, columns, 0.03, 0.16)
    for panel, (W, (row, column)) in enumerate(zip(weights, places, strict=True)):
        fig.add_shape(
            type="circle",
            x0=-1,
            y0=-1,
            x1=1,
            y1=1,
            line=dict(color=PALE, width=1.5),
            layer="below",
            row=row,
            col=column,
        )
        for trace in _arrows(W, panel == 0):
            fig.add_trace(trace, row, column)
        _square(fig, row, column, "dimension 2")
    ticks = dict(range=[-reach, reach], tickvals=[-1, 0, 1], showgrid=False, zeroline=True, zerolinecolor=PALE)
    fig.update_xaxes(title="dimension 1", constrain="domain", **ticks)
    fig.update_yaxes(**ticks).update_annotations(font=dict(size=14, color=INK))
    legend = dict(orientation="h", x=0.5, xanchor="center", y=-90 / (rows * 235), yanchor="top")
    return finish(fig, title, 160 + rows * 235, margin=dict(t=90, b=110), legend=legend)


def _panels(heads: Sequence[str], columns: int, across: float, down: float) -> tuple[go.Figure, int, list[tuple]]:
    """Small multiples with their heads: the figure, its number of rows, and each panel's row and column."""
    columns = min(columns, len(heads))
    rows = -(-len(heads) // columns)
    titles = [short_label(head, 40) for head in heads]
    fig = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=across, vertical_spacing=down / rows)
    return fig, rows, [(panel // columns + 1, panel % columns + 1) for panel in range(len(heads))]


def _square(fig: go.Figure, row: int, column: int, title: str) -> None:
    """One scale for both axes of a panel; the leftmost says what goes up."""
    x_axis = fig.get_subplot(row, column).xaxis.plotly_name.replace("axis", "")
    fig.update_yaxes(scaleanchor=x_axis, title=title if column == 1 else None, row=row, col=column)


def _arrows(W: Float[np.ndarray, "2 features"], legend: bool) -> list[go.Scatter]:
    """An arrow from the origin for each column; one too short to see is a dot there."""
    traces = []
    for i, (x, y) in enumerate(W.T):
        colour, visible = OKABE_ITO[i % len(OKABE_ITO)], np.hypot(x, y) > 0.25
        traces.append(
            go.Scatter(
                x=[0, x],
                y=[0, y],
                mode="lines+markers",
                name=f"feature {i + 1}",
                showlegend=legend,
                legendgroup=str(i),
                line=dict(color=colour, width=3),
                hovertemplate=f"feature {i + 1}: (%{{x:.2f}}, %{{y:.2f}})<extra></extra>",
                marker=dict(
                    color=colour,
                    size=[0, 14] if visible else [0, 7],
                    angleref="previous",
                    opacity=1,
                    symbol=["circle", "arrow" if visible else "circle"],
                ),
            )
        )
    return traces


def gram_heatmaps(
    weights: Float[np.ndarray, "models hidden features"],
    heads: Sequence[str],
    title: str = "What comes back at each output when one feature is put in",
    columns: int = 4,
) -> go.Figure:
    """Small multiples of `WᵀW`: on the diagonal how much of a feature comes back, beside it what it does to others.

    Args:
        weights: one `W` a panel.
        heads: one title a panel.
        title: the figure's title.
        columns: panels in a row.
    """
    weights = as_array(weights)
    grams = np.einsum("kmi,kmj->kij", weights, weights)
    names = [str(i + 1) for i in range(grams.shape[1])]
    fig, rows, places = _panels(heads, columns, 0.05, 0.2)
    for gram, (row, column) in zip(grams, places, strict=True):
        written = dict(texttemplate="%{z:.1f}", textfont=dict(size=11)) if len(gram) <= 6 else {}
        fig.add_trace(
            go.Heatmap(
                z=gram.round(3),
                x=names,
                y=names,
                coloraxis="coloraxis",
                **written,
                hovertemplate="in %{x}, out %{y}: %{z:.2f}<extra></extra>",
            ),
            row,
            column,
        )
        _square(fig, row, column, "feature out")
    limit = float(max(1.0, np.abs(grams).max()))
    plain = dict(showgrid=False, ticks="", constrain="domain", type="category")
    fig.update_xaxes(title="feature in", **plain)
    fig.update_yaxes(autorange="reversed", **plain).update_annotations(font=dict(size=14, color=INK))
    axis = dict(colorscale=DIVERGING, cmin=-limit, cmax=limit, colorbar=colour_bar("entry of WᵀW"))
    height = 150 + rows * (700 // min(columns, len(grams))) + (rows - 1) * 60
    return finish(fig, title, height, margin=dict(t=80, b=70), coloraxis=axis)


def sweep_lines(
    frame: pd.DataFrame,
    y: str,
    y_title: str,
    title: str,
    x: str = "density",
    by: str = "model",
    x_title: str = "chance that a feature is active (log scale)",
    line: tuple[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> go.Figure:
    """A measure along a sweep, one line a model or method: the mean over runs, with bars from the least to the most.

    Args:
        frame: one row a run: columns `x`, `by` and `y`.
        y: the measure's column.
        y_title: the measure, with its unit.
        title: the figure's title.
        x: the swept quantity's column, above 0.
        by: the lines' column.
        x_title: the swept quantity, with its unit.
        line: a horizontal line to hold the others against: its height and its words.
        y_range: ends of the vertical axis; by default what fits.
    """
    fig = go.Figure()
    for i, (name, part) in enumerate(frame.groupby(by, sort=False)):
        runs = part.groupby(x)[y].agg(["mean", "min", "max"])
        fig.add_scatter(
            x=runs.index,
            y=runs["mean"],
            mode="lines+markers",
            name=short_label(name),
            marker_symbol=SYMBOLS[i % 5],
            line=dict(color=OKABE_ITO[i % 7], dash=DASHES[i % 4], width=2.5),
            marker_size=9,
            cliponaxis=False,
            error_y=dict(
                type="data",
                symmetric=False,
                array=runs["max"] - runs["mean"],
                arrayminus=runs["mean"] - runs["min"],
                thickness=1.5,
                width=4,
            ),
            hovertemplate=f"{short_label(name)} at %{{x:g}}: %{{y:.3g}}<extra></extra>",
        )
    values = sorted(frame[x].unique())
    if line:
        fig.add_scatter(
            x=[values[0], values[-1]],
            y=[line[0]] * 2,
            mode="lines",
            name=short_label(line[1]),
            line=dict(color=GREY, dash="dot", width=2),
            hoverinfo="skip",
        )
    fig.update_xaxes(title=x_title, type="log", tickvals=values, ticktext=[f"{value:g}" for value in values])
    fig.update_yaxes(title=y_title, range=y_range, rangemode="tozero")
    counts = frame.groupby([by, x]).size()
    return finish(
        fig, title, 440, f"mean over {counts.max()} runs; bars from the lowest to the highest", margin=dict(t=112)
    )


def phase_diagram(
    measured: Int[np.ndarray, "densities ratios"],
    predicted: Int[np.ndarray, "densities ratios"],
    densities: Float[np.ndarray, " densities"],
    ratios: Float[np.ndarray, " ratios"],
    title: str = "What happens to the second feature: trained models, and pencil and paper",
) -> go.Figure:
    """Two maps of the same plane, trained and predicted: each cell's colour says what became of feature 2.

    Args:
        measured: phase of each trained model, an index into `PHASES`.
        predicted: the same from theory.
        densities: chance that a feature is active, one a row.
        ratios: importance of feature 2 relative to feature 1, one a column.
        title: the figure's title.

    Raises:
        ValueError: the maps' shapes and the axes do not match.
    """
    maps = {"trained": np.asarray(measured), "predicted": np.asarray(predicted)}
    densities, ratios = as_array(densities), as_array(ratios)
    if any(phases.shape != (len(densities), len(ratios)) for phases in maps.values()):
        shapes = " and ".join(str(phases.shape) for phases in maps.values())
        raise ValueError(f"maps of shape {shapes} for {len(densities)} densities and {len(ratios)} ratios")
    scale = [[edge, colour] for i, colour in enumerate(PHASE_COLOURS) for edge in (i / 4, (i + 1) / 4)]
    fig = make_subplots(1, 2, subplot_titles=list(maps), shared_yaxes=True, horizontal_spacing=0.05)
    for column, phases in enumerate(maps.values(), start=1):
        words = [[PHASES[phase] for phase in row] for row in phases]
        fig.add_trace(
            go.Heatmap(
                z=phases,
                x=np.log10(ratios),
                y=np.log10(densities),
                zmin=-0.5,
                zmax=3.5,
                colorscale=scale,
                customdata=words,
                showscale=False,
                xgap=1,
                ygap=1,
                hovertemplate="%{customdata}<extra></extra>",
            ),
            1,
            column,
        )
    differ = np.argwhere(maps["trained"] != maps["predicted"])
    if len(differ):
        fig.add_scatter(
            x=np.log10(ratios)[differ[:, 1]],
            y=np.log10(densities)[differ[:, 0]],
            mode="markers",
            marker=dict(symbol="x-thin", size=10, line=dict(width=2.5, color=VERMILLION)),
            row=1,
            col=1,
            name="differs from the prediction",
            hoverinfo="skip",
            legendrank=2_000,
        )
    shown = [phase for phase in range(4) if any((phases == phase).any() for phases in maps.values())]
    for phase in shown:
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=PHASES[phase],
            marker=dict(symbol="square", size=13, color=PHASE_COLOURS[phase]),
        )
    axes = {"x": _decades(ratios), "y": _decades(densities)}
    fig.update_xaxes(title="importance of feature 2 ÷ feature 1 (log scale)", showgrid=False, **axes["x"])
    fig.update_yaxes(showgrid=False, **axes["y"])
    fig.update_yaxes(title="chance that a feature is active (log scale)", col=1)
    fig.update_annotations(font=dict(size=15, color=INK))
    legend = dict(orientation="h", x=0.5, xanchor="center", y=-0.2, yanchor="top")
    return finish(fig, title, 500, margin=dict(t=90, b=115), legend=legend)


def _decades(values: Float[np.ndarray, " n"]) -> dict:
    """Axis ticks at 1, 2 and 5 of each decade, for an axis in log10."""
    low, high = float(np.min(values)), float(np.max(values))
    marks = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5) if low * 0.99 <= m * 10.0**e <= high * 1.01]
    return dict(tickvals=np.log10(marks), ticktext=[f"{mark:g}" for mark in marks])


def matched_cosines_figure(
    cosines: Mapping[str, Float[np.ndarray, " directions"]],
    title: str = "How close is each true direction's partner?",
) -> go.Figure:
    """One line a method: the cosine of each true direction with its partner, the best first.

    Args:
        cosines: method -> from `methods.matched_cosines`.
        title: the figure's title.
    """
    fig = go.Figure()
    for i, (name, values) in enumerate(cosines.items()):
        ordered = np.sort(as_array(values))[::-1]
        fig.add_scatter(
            x=np.arange(1, len(ordered) + 1),
            y=ordered.round(4),
            mode="lines",
            name=f"{short_label(name)}: mean {ordered.mean():.2f}",
            line=dict(color=OKABE_ITO[i % 7], dash=DASHES[i % 4], width=3),
            hovertemplate="direction %{x}: %{y:.2f}<extra></extra>",
        )
    fig.update_xaxes(title="true directions, the best matched first", rangemode="tozero")
    fig.update_yaxes(title="cosine with its one-to-one partner", range=[min(0.0, _lowest(cosines)), 1.04])
    return finish(fig, title, 400, margin=dict(t=92))


def _lowest(cosines: Mapping[str, np.ndarray]) -> float:
    return min(float(np.min(values)) for values in cosines.values()) - 0.04
