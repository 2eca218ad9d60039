"""Figures of phase 2: rankings, specialists with their null and confirmation."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.analysis import Null
from prism.visualization.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    SEQUENTIAL,
    VERMILLION,
    as_array,
    category_colours,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)


def top_features_bars(
    frames: Mapping[str, pd.DataFrame],
    title: str = "The strongest features of each text",
    columns: int = 2,
) -> go.Figure:
    """Small multiples: the strongest features of several texts.

    Args:
        frames: label of a text -> columns `feature` and `activation`, strongest first; a `category` column holding
            one category colours the panel.
        title: the figure's title.
        columns: panels in a row.
    """
    rows, depth = -(-len(frames) // columns), max(len(frame) for frame in frames.values())
    height = 150 + rows * (depth * 26 + 70)
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=[short_label(label, 52) for label in frames],
        shared_xaxes="all",
        horizontal_spacing=0.13,
        vertical_spacing=62 / (height - 150),
    )
    longest = max(frame["activation"].max() for frame in frames.values())
    for panel, frame in enumerate(frames.values()):
        first = frame["category"].iloc[0] if "category" in frame else None
        fig.add_trace(
            go.Bar(
                x=frame["activation"],
                y=[f"feature {f}" for f in frame["feature"]],
                orientation="h",
                cliponaxis=False,
                marker_color=category_colours([first]).get(first, BLUE) if first else BLUE,
                text=frame["activation"],
                texttemplate="%{text:.1f}",
                textposition="outside",
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            ),
            panel // columns + 1,
            panel % columns + 1,
        )
    fig.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    fig.update_xaxes(range=[0, longest * 1.12], showticklabels=True)
    fig.update_xaxes(title="activation (maximum over the text's tokens)", title_font_size=13, row=rows)
    return _panel_titles(finish(fig, title, height, showlegend=False))


def _panel_titles(fig: go.Figure, size: int = 14) -> go.Figure:
    return fig.update_annotations(font=dict(size=size, color=INK))


def category_heatmap(
    values: Float[np.ndarray, "features texts"],
    labels: Sequence[object],
    categories: Sequence[str],
    scale: str = "log1p",
    title: str = "Each feature on each text",
) -> go.Figure:
    """Features × texts, the texts sorted into bands by category.

    Args:
        values: activation of each feature on each text (its maximum over the text's tokens).
        labels: one label per feature.
        categories: one category per text; any order, the figure sorts.
        scale: 'log1p' for log(1 + activation), 'feature' for each feature's share of its own maximum.
        title: the figure's title.

    Raises:
        ValueError: an unknown scale, or labels or categories that do not match the array's shape.
    """
    values, categories = as_array(values), list(categories)
    if scale not in ("log1p", "feature"):
        raise ValueError(f"scale is {scale!r}: choose 'log1p' or 'feature'")
    if values.shape != (len(labels), len(categories)):
        raise ValueError(
            f"values are {values.shape}, but there are {len(labels)} labels and {len(categories)} texts: "
            "values need the shape (features, texts)"
        )
    names = category_order(categories)
    order = sorted(range(len(categories)), key=lambda text: names.index(categories[text]))
    values = values[:, order]
    shown = np.log1p(values) if scale == "log1p" else values / np.maximum(values.max(1, keepdims=True), 1e-9)
    bar = "log(1 + activation)" if scale == "log1p" else "share of the feature's maximum"
    fig = go.Figure(
        go.Heatmap(
            z=shown,
            colorscale=SEQUENTIAL,
            zmin=0,
            customdata=values.round(2),
            colorbar=colour_bar(bar),
            hovertemplate="text %{x}<br>%{y}: %{customdata:.2f}<extra></extra>",
        )
    )
    slanted = _category_bands(fig, [categories[text] for text in order])
    fig.update_xaxes(
        title="texts, sorted by category",
        showticklabels=False,
        ticks="",
        showgrid=False,
        range=[-0.5, len(order) - 0.5],
    )
    fig.update_yaxes(
        title="feature",
        tickvals=list(range(len(labels))),
        ticktext=[short_label(x, 40) for x in labels],
        autorange="reversed",
        ticks="",
        showgrid=False,
        tickfont=dict(size=12),
    )
    top = 150 if slanted else 110
    return finish(fig, title, top + 60 + max(22 * len(labels), 180), margin=dict(t=top))


def _category_bands(fig: go.Figure, categories: list[str]) -> bool:
    """A strip of colour and a title above each run of texts of one category; True if the titles had to be slanted."""
    colours, names = category_colours(categories), category_order(categories)
    lines = {name: textwrap.wrap(category_title(name), 14, break_long_words=False) for name in names}
    pixels = {name: 700 * categories.count(name) / len(categories) for name in names}
    slanted = any(6.8 * max(map(len, lines[name])) > pixels[name] for name in names)
    style = dict(textangle=-32, xanchor="left") if slanted else dict(xanchor="center")
    for name in names:
        first, count = categories.index(name), categories.count(name)
        left, right = first - 0.5, first + count - 0.5
        fig.add_shape(
            type="rect",
            x0=left,
            x1=right,
            yref="paper",
            ysizemode="pixel",
            yanchor=1,
            y0=4,
            y1=13,
            fillcolor=colours[name],
            line=dict(color="white", width=2),
        )
        text = (" " if slanted else "<br>").join(short_label(line) for line in lines[name])
        fig.add_annotation(
            x=(left + right) / 2,
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=14,
            text=text,
            showarrow=False,
            font=dict(size=12),
            **style,
        )
        if first:
            fig.add_vline(left, line=dict(color=GREY, width=1))
    return slanted


def category_bars(
    frame: pd.DataFrame,
    value: str = "mean activation",
    shared: bool = True,
    columns: int = 4,
    title: str = "Where each feature fires",
) -> go.Figure:
    """Small multiples: one panel a feature, one bar a category.

    Args:
        frame: one row per feature (the index), one column per category; means or shares.
        value: what the numbers are, with their unit: the title of the x axis.
        shared: one scale for all panels, or each panel its own.
        columns: panels in a row.
    """
    names, columns = category_order(frame.columns), min(columns, len(frame))
    rows = -(-len(frame) // columns)
    height = 140 + rows * (22 * len(names) + 60)
    heads = [
        f"feature {index}" if isinstance(index, (int, np.integer)) else short_label(index, 30) for index in frame.index
    ]
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=heads,
        shared_yaxes=True,
        shared_xaxes="all" if shared else False,
        horizontal_spacing=0.03,
        vertical_spacing=58 / (height - 140) if rows > 1 else 0,
    )
    colours = category_colours(names)
    for panel, (_, row) in enumerate(frame[names].iterrows()):
        fig.add_trace(
            go.Bar(
                x=row.to_numpy(float),
                y=[category_title(name) for name in names],
                orientation="h",
                marker=dict(color=[colours[name] for name in names], line=dict(color=GREY, width=0.5)),
                hovertemplate="%{y}: %{x:.3g}<extra></extra>",
            ),
            panel // columns + 1,
            panel % columns + 1,
        )
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickfont=dict(size=13))
    fig.update_xaxes(rangemode="tozero", showticklabels=True, tickfont=dict(size=12), nticks=4)
    middle = (len(frame) - (rows - 1) * columns + 1) // 2  # once: four would run into each other
    fig.update_xaxes(title=dict(text=value, font=dict(size=13)), row=rows, col=middle)
    subtitle = "" if shared else "each panel has its own scale"
    return _panel_titles(finish(fig, title, height, subtitle, showlegend=False))


def null_figure(
    null: Null,
    observed: Mapping[str, float],
    title: str = "The best specialist, against the best by chance",
) -> go.Figure:
    """Per category: what the whole search finds when labels are shuffled, and what it found in truth.

    Args:
        null: from `analysis.permutation_null`: the maximum specialist score over all features, for each permutation.
        observed: category -> best specialist score with the true labels; a category left out gets no marker.
        title: the figure's title.
    """
    names = category_order(null.categories)
    scores = null.scores[:, [null.categories.index(name) for name in names]]
    low, q05, middle, q95, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1], axis=0, method="nearest")
    titles = [category_title(name) for name in names]
    found = [observed.get(name) for name in names]
    fig = go.Figure(
        [
            _segments(low, high, titles, "shuffled labels: all permutations", PALE, 12),
            _segments(q05, q95, titles, "5th to 95th percentile", "#aab2bb", 12),
            go.Scatter(
                x=middle,
                y=titles,
                mode="markers",
                name="median",
                hovertemplate="null median %{x:g}<extra></extra>",
                marker=dict(symbol="line-ns", size=14, line=dict(width=3, color=INK)),
            ),
            go.Scatter(
                x=found,
                y=titles,
                mode="markers",
                name="observed best",
                cliponaxis=False,
                marker=dict(symbol="diamond", size=13, color=VERMILLION, line=dict(color="white", width=1)),
                hovertemplate="%{y}: observed %{x:g}<extra></extra>",
            ),
        ]
    )
    fig.update_xaxes(title="specialist score (texts inside the category that fire − texts outside)")
    fig.update_yaxes(title="category", categoryarray=titles, autorange="reversed", showgrid=False)
    subtitle = f"{len(scores):,} permutations of the text labels, each searched over all features"
    return finish(fig, title, 190 + 44 * len(names), subtitle, margin=dict(t=115))


def _segments(starts, stops, ys: Sequence[str], name: str, colour: str, width: int) -> go.Scatter:
    """Horizontal segments as one trace, with gaps between them."""
    x = [value for start, stop in zip(starts, stops, strict=True) for value in (start, stop, None)]
    return go.Scatter(
        x=x,
        y=[y for y in ys for _ in range(3)],
        mode="lines",
        name=name,
        connectgaps=False,
        line=dict(color=colour, width=width),
        hovertemplate="%{x:g}<extra></extra>",
    )


def confirmation_figure(
    frame: pd.DataFrame,
    discover: str = "found_score",
    confirm: str = "score",
    title: str = "Do the specialists hold on texts the search never saw?",
) -> go.Figure:
    """Each found feature's specialist score on the texts it was found on, and on held-out texts.

    Args:
        frame: from `analysis.confirm`: columns `category`, `feature`, the two scores and, if there, `held` (whether
            the test on the held-out texts passed, which fills the marker); rows in any order.
        discover: the column with the score on the texts searched.
        confirm: the column with the score on the held-out texts.
        title: the figure's title.
    """
    names = category_order(frame["category"])
    ordered = frame.assign(_rank=[names.index(c) for c in frame["category"]]).sort_values(
        ["_rank", discover], ascending=[True, False], kind="stable"
    )
    first = ~ordered["_rank"].duplicated()
    rows = list(range(len(ordered)))
    heads = [
        f"<b>{short_label(category_title(c))}</b>  {f}" if head else str(f)
        for c, f, head in zip(ordered["category"], ordered["feature"], first, strict=True)
    ]
    fig = go.Figure(_segments(ordered[discover], ordered[confirm], rows, "", "#aab2bb", 3))
    fig.update_traces(showlegend=False, hoverinfo="skip", hovertemplate=None)
    held = ordered["held"].to_numpy(bool) if "held" in ordered else np.ones(len(ordered), bool)
    kinds = [
        (discover, "texts searched", "circle-open", 14, INK, np.ones(len(ordered), bool)),
        (confirm, "held-out texts" + (": held" if "held" in ordered else ""), "circle", 7, BLUE, held),
        (confirm, "held-out texts: did not hold", "x", 7, VERMILLION, ~held),
    ]
    for column, name, symbol, size, colour, kept in kinds:
        at = np.flatnonzero(kept)
        fig.add_scatter(
            x=ordered[column].iloc[at],
            y=at,
            mode="markers",
            name=name,
            showlegend=len(at) > 0,
            marker=dict(symbol=symbol, size=size, color=colour, line=dict(width=2, color=colour)),
            cliponaxis=False,
            customdata=[heads[row] for row in at],
            hovertemplate="%{customdata}: %{x:g} on " + name + "<extra></extra>",
        )
    for row in np.flatnonzero(first.to_numpy())[1:]:
        fig.add_hline(row - 0.5, line=dict(color=PALE, width=1), layer="below")
    fig.add_vline(0, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="specialist score (texts inside the category that fire − texts outside)")
    fig.update_yaxes(
        title="feature, by category",
        tickvals=rows,
        ticktext=heads,
        tickfont=dict(size=12),
        ticks="",
        range=[len(rows) - 0.4, -0.6],
        showgrid=False,
    )
    return finish(fig, title, 170 + 21 * len(rows))
