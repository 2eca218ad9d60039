"""Figures of phase 0: directions and their overlaps, phases, recovery of known directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from prism.visualization.style import (
    BLUE,
    DIVERGING,
    GREEN,
    GREY,
    INK,
    OKABE_ITO,
    ORANGE,
    PALE,
    PURPLE,
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
PHASE_COLOURS = ("#dfe3e8", ORANGE, BLUE, INK)
METHODS = {"SAE": (BLUE, "circle"), "ICA": (GREEN, "x"), "PCA": (PURPLE, "diamond"), "random": (GREY, "triangle-up")}
STARTS = (BLUE, VERMILLION)  # of SAEs: at random, as in the figure of all methods, and at the truth


def direction_arrows(
    weights: Float[np.ndarray, "models 2 features"],
    heads: Sequence[str],
    shortest: float = 0.7,
    columns: int = 4,
) -> go.Figure:
    """Small multiples: the columns of each model's `W` as numbered arrows in its two hidden dimensions.

    Args:
        weights: one `W` for each panel.
        heads: one title for each panel.
        shortest: a feature whose column is shorter gets no arrow; its number stands at the bottom.
        columns: panels in a row.

    Raises:
        ValueError: not two hidden dimensions, or as many heads as models are missing.
    """
    weights = as_array(weights)
    if weights.ndim != 3 or weights.shape[1] != 2 or len(weights) != len(heads):
        raise ValueError(
            f"weights are {weights.shape} with {len(heads)} heads: need (models, 2, features) and a head for each model"
        )
    reach = 1.45 * max(1.0, float(np.linalg.norm(weights, axis=1).max()))
    fig, rows, places = _panels(heads, columns, 0.03, 0.16)
    for W, (row, column) in zip(weights, places, strict=True):
        circle = dict(type="circle", x0=-1, y0=-1, x1=1, y1=1, line=dict(color=PALE, width=1.5), layer="below")
        fig.add_shape(**circle, row=row, col=column)
        long = np.linalg.norm(W, axis=0) > shortest
        for i in np.flatnonzero(long):
            fig.add_traces(_arrow(i, W[:, i]), row, column)
        if not long.all():
            given_up = "given up: " + ", ".join(str(i + 1) for i in np.flatnonzero(~long))
            fig.add_scatter(
                x=[0], y=[-0.9 * reach], mode="text", text=[given_up], row=row, col=column, hoverinfo="skip"
            )
        _square(fig, row, column, "dimension 2")
    ticks = dict(range=[-reach, reach], tickvals=[-1, 0, 1], showgrid=False, zeroline=True, zerolinecolor=PALE)
    fig.update_xaxes(title="dimension 1", constrain="domain", **ticks)
    fig.update_yaxes(**ticks).update_annotations(font=dict(size=14, color=INK))
    return finish(fig, "Each arrow is one feature", 110 + rows * 245, margin=dict(t=90, b=60), showlegend=False)


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


def _arrow(i: int, end: Float[np.ndarray, " 2"]) -> list[go.Scatter]:
    """An arrow from the origin, and the feature's number beyond its head."""
    colour, beyond = OKABE_ITO[i % len(OKABE_ITO)], end * (1 + 0.3 / np.linalg.norm(end))
    words = f"feature {i + 1}: (%{{x:.2f}}, %{{y:.2f}})<extra></extra>"
    head = dict(color=colour, size=[0, 14], angleref="previous", opacity=1, symbol=["circle", "arrow"])
    line = dict(color=colour, width=3)
    number = dict(mode="text", text=[f"<b>{i + 1}</b>"], textfont=dict(color=colour), hoverinfo="skip")
    return [
        go.Scatter(x=[0, end[0]], y=[0, end[1]], mode="lines+markers", line=line, marker=head, hovertemplate=words),
        go.Scatter(x=beyond[:1], y=beyond[1:], **number),
    ]


def gram_heatmaps(
    weights: Float[np.ndarray, "models hidden features"],
    heads: Sequence[str],
    title: str = "What comes back at each output when one feature is put in",
    columns: int = 4,
) -> go.Figure:
    """Small multiples of `WᵀW`: on the diagonal how much of a feature comes back, beside it what it does to others.

    Args:
        weights: one `W` for each panel.
        heads: one title for each panel.
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
    height = 150 + rows * min(280, 700 // min(columns, len(grams))) + (rows - 1) * 60
    return finish(fig, title, height, margin=dict(t=80, b=70), coloraxis=axis)


def sweep_lines(frame: pd.DataFrame, title: str) -> go.Figure:
    """Features per dimension along a sweep of p: each model's mean over runs, with bars from the least to the most.

    Args:
        frame: one row for each run: columns `p`, above 0, `model` and `features_per_dimension`.
        title: the figure's title.
    """
    fig = go.Figure()
    for i, (name, part) in enumerate(frame.groupby("model", sort=False)):
        runs = part.groupby("p")["features_per_dimension"].agg(["mean", "min", "max"])
        up, down = runs["max"] - runs["mean"], runs["mean"] - runs["min"]
        fig.add_scatter(
            x=runs.index,
            y=runs["mean"],
            mode="lines+markers",
            name=short_label(name),
            line=dict(color=OKABE_ITO[i % 7], dash="dash" if i else "solid", width=2.5),
            marker=dict(symbol="square" if i else "circle", size=9),
            cliponaxis=False,
            error_y=dict(type="data", symmetric=False, array=up, arrayminus=down, thickness=1.5, width=4),
            hovertemplate=f"{short_label(name)} at %{{x:g}}: %{{y:.3g}}<extra></extra>",
        )
    values = sorted(frame["p"].unique())
    ticks = dict(tickvals=values, ticktext=[f"{value:g}" for value in values])
    fig.update_xaxes(title="p, the chance that a feature is active (log scale)", type="log", **ticks)
    fig.update_yaxes(title="features represented per dimension", rangemode="tozero")
    counts = frame.groupby(["model", "p"]).size().max()
    return finish(fig, title, 440, f"mean over {counts} runs; bars from the lowest to the highest", margin=dict(t=112))


def phase_diagram(
    measured: Int[np.ndarray, "chances ratios"],
    predicted: Int[np.ndarray, "chances ratios"],
    chances: Float[np.ndarray, " chances"],
    ratios: Float[np.ndarray, " ratios"],
    curve: Float[np.ndarray, " ratios"] | None = None,
) -> go.Figure:
    """A map of what became of feature 2 in trained models, and the borders that theory puts between the cells.

    Args:
        measured: phase of each trained model, an index into `PHASES`.
        predicted: the same from theory.
        chances: that a feature is active, one for each row.
        ratios: importance of feature 2 relative to feature 1, one for each column.
        curve: a chance for each ratio, drawn in place of the borders between cells.

    Raises:
        ValueError: the maps' shapes and the axes do not match.
    """
    measured, predicted = np.asarray(measured), np.asarray(predicted)
    x, y = np.log10(as_array(ratios)), np.log10(as_array(chances))
    if not measured.shape == predicted.shape == (len(y), len(x)):
        shapes = f"{measured.shape} and {predicted.shape}"
        raise ValueError(f"maps of shape {shapes} for {len(y)} chances and {len(x)} ratios")
    scale = [[edge, colour] for i, colour in enumerate(PHASE_COLOURS) for edge in (i / 4, (i + 1) / 4)]
    words = [[PHASES[phase] for phase in row] for row in measured]
    look = dict(zmin=-0.5, zmax=3.5, colorscale=scale, showscale=False, xgap=1, ygap=1)
    fig = go.Figure(
        go.Heatmap(z=measured, x=x, y=y, customdata=words, hovertemplate="%{customdata}<extra></extra>", **look)
    )
    for phase in np.unique(measured):
        square = dict(symbol="square", size=13, color=PHASE_COLOURS[phase])
        fig.add_scatter(x=[None], y=[None], mode="markers", name=PHASES[phase], marker=square)
    if curve is None:
        lines, name = _borders(predicted, x, y), "border on paper"
    else:
        lines, name = (x, np.log10(np.clip(as_array(curve), 1e-9, None))), "your border"
    fig.add_scatter(x=lines[0], y=lines[1], mode="lines", line=dict(color=INK, width=3), name=name, hoverinfo="skip")
    half = [abs(axis[1] - axis[0]) / 2 if len(axis) > 1 else 0.5 for axis in (x, y)]
    fig.update_xaxes(title="r, importance of feature 2 ÷ feature 1 (log scale)", showgrid=False, **_decades(x, half[0]))
    fig.update_yaxes(title="p, chance of being active (log scale)", showgrid=False, **_decades(y, half[1]))
    legend = dict(orientation="h", x=0, xanchor="left", y=1.02, yanchor="bottom")
    return finish(fig, "What happens to the second feature", 500, margin=dict(t=112), legend=legend)


def _borders(phases: Int[np.ndarray, "rows columns"], x: np.ndarray, y: np.ndarray) -> tuple[list, list]:
    """Line segments, None between them, along the edges of neighbouring cells that differ."""
    across, down = [], []
    step_x, step_y = (axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in (x, y))
    for row, column in np.argwhere(phases[:, 1:] != phases[:, :-1]):
        across += [x[column] + step_x / 2] * 2 + [None]
        down += [y[row] - step_y / 2, y[row] + step_y / 2, None]
    for row, column in np.argwhere(phases[1:] != phases[:-1]):
        across += [x[column] - step_x / 2, x[column] + step_x / 2, None]
        down += [y[row] + step_y / 2] * 2 + [None]
    return across, down


def _decades(logs: Float[np.ndarray, " n"], half: float) -> dict:
    """Ticks at 1, 2 and 5 of each decade, and the ends, for an axis in log10 whose cells reach half a step further."""
    low, high = float(np.min(logs)), float(np.max(logs))
    marks = np.log10([m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)])
    marks = marks[(low - 0.01 <= marks) & (marks <= high + 0.01)]
    return dict(tickvals=marks, ticktext=[f"{10**mark:g}" for mark in marks], range=[low - half, high + half])


def matched_cosines_figure(
    cosines: Mapping[str, Float[np.ndarray, " directions"]],
    nearest: Float[np.ndarray, " directions"],
) -> go.Figure:
    """Points, one column for each true direction: the cosine with its partner in each method.

    Args:
        cosines: method of `METHODS` -> from `methods.matched_cosines`; the first one's order is that of the columns.
        nearest: the first method's largest cosine with each direction, whoever the row is a partner of.
    """
    order = np.argsort(-as_array(next(iter(cosines.values()))), kind="stable")
    fig, x = go.Figure(), np.arange(1, len(order) + 1)
    look = dict(symbol="circle-open", size=11, color=INK)
    first = short_label(next(iter(cosines)))
    fig.add_scatter(x=x, y=as_array(nearest)[order], mode="markers", name=f"{first}: nearest row", marker=look)
    for name, values in cosines.items():
        colour, symbol = METHODS[name]
        label = f"{short_label(name)}: partner, mean {np.mean(values):.2f}"
        look = dict(color=colour, symbol=symbol, size=7)
        fig.add_scatter(x=x, y=as_array(values)[order], mode="markers", name=label, marker=look)
    fig.update_traces(customdata=order, hovertemplate="true direction %{customdata}: %{y:.2f}")
    fig.update_xaxes(title=f"the true directions, in the order of the {first}'s partners", showgrid=False)
    lowest = min(float(np.min(values)) for values in cosines.values())
    fig.update_yaxes(title="cosine with the true direction", range=[min(0.0, lowest) - 0.04, 1.04])
    legend = dict(orientation="h", x=0, xanchor="left", y=1.02, yanchor="bottom")
    return finish(
        fig, "How close does each method come to each true direction?", 460, margin=dict(t=125), legend=legend
    )


def start_lines(frame: pd.DataFrame) -> go.Figure:
    """A panel for each p: one line for each world and start, from the MCC after short training to that after long.

    Args:
        frame: columns `p`, `start`, `world`, `steps` and `mcc`.
    """
    panels = list(frame.groupby("p"))
    fig = make_subplots(1, len(panels), subplot_titles=[f"p = {p:g}" for p, _ in panels], shared_yaxes=True)
    for column, (_, part) in enumerate(panels, 1):
        for colour, (start, runs) in zip(STARTS, part.groupby("start", sort=False), strict=True):
            for world, line in runs.groupby("world"):
                look = dict(color=colour, dash="solid" if colour == STARTS[0] else "dash", width=2)
                shown = dict(name=short_label(start), legendgroup=start, showlegend=column == 1 and not world)
                steps = [f"{n:,}" for n in line["steps"]]
                fig.add_scatter(x=steps, y=line["mcc"], mode="lines+markers", line=look, row=1, col=column, **shown)
    fig.update_xaxes(title="training steps", type="category").update_yaxes(range=[0, 1.04])
    fig.update_yaxes(title="MCC with the true directions", col=1).update_annotations(font=dict(size=15, color=INK))
    legend = dict(orientation="h", x=0, xanchor="left", y=1.12, yanchor="bottom")
    return finish(fig, "Does training end at the true directions?", 420, margin=dict(t=125), legend=legend)
