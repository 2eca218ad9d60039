"""Figures, token shading, feature pages and the feature explorer: data in, a plotly Figure or HTML out."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets as widgets
import networkx as nx
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import HTML
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.analysis import Null, specialists, strongest
from prism.data import CATEGORIES, CATEGORY_TITLES
from prism.features import FeatureMatrix

WIDTH = 900  # pixels: what a notebook cell shows at full size
ULTRALOW = 1e-6  # firings per token below which a feature counts as 'ultralow'
WINDOW = 12  # tokens of context on either side of an example's strongest token
INK, GREY, PALE = "#222222", "#7f8790", "#e3e6ea"
# Okabe & Ito (2008), the palette that stays distinct under every common colour blindness.
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, YELLOW = OKABE_ITO = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")  # fmt: skip
CATEGORY_COLOURS = dict(zip(CATEGORIES, OKABE_ITO, strict=True))
SEQUENTIAL = [[0.0, "#f4f6f8"], [0.15, "#cfe4f3"], [0.45, "#56B4E9"], [0.75, "#0072B2"], [1.0, "#002b45"]]


# ---------------------------------------------------------------- style


def use_style() -> None:
    """Make 'prism' plotly's default template, and show figures as JSON, with a PNG beside it if `PRISM_PNG=1`.

    A PNG is what GitHub shows of a notebook; it needs a Chromium or Chrome on this machine.
    """
    pio.templates["prism"] = _template()
    pio.templates.default = "prism"
    pio.renderers["png"].width = WIDTH
    pio.renderers["png"].scale = 0.8  # a notebook with its pictures stays below 1 MB
    pio.renderers.default = "plotly_mimetype+png" if os.environ.get("PRISM_PNG") == "1" else "plotly_mimetype"


def _template() -> go.layout.Template:
    axis = dict(gridcolor=PALE, linecolor=GREY, zeroline=False, ticks="outside", tickcolor=PALE, ticklabelstandoff=4,
                automargin=True, title=dict(font=dict(size=14), standoff=10))  # fmt: skip
    title = dict(x=0, xref="paper", xanchor="left", y=1, yref="container", yanchor="top", pad=dict(t=16),
                 font=dict(size=18), subtitle=dict(font=dict(size=13, color="#5a6169")))  # fmt: skip
    return go.layout.Template(layout=dict(
        font=dict(family="Open Sans, Helvetica, Arial, sans-serif", size=14, color=INK),
        paper_bgcolor="white", plot_bgcolor="white", colorway=list(OKABE_ITO), width=WIDTH,
        margin=dict(l=70, r=30, t=90, b=60), xaxis=axis, yaxis=axis, title=title,
        legend=dict(orientation="h", x=1, xanchor="right", y=1.01, yanchor="bottom", font=dict(size=13)),
        hoverlabel=dict(font=dict(size=13)), bargap=0.15,
    ))  # fmt: skip


def _finish(fig: go.Figure, title: str, height: int, subtitle: str = "", **layout) -> go.Figure:
    margin = dict(t=95 if subtitle else 75) | layout.pop("margin", {})
    titles = dict(text=title, subtitle=dict(text=subtitle))
    size = dict(width=WIDTH, height=max(height, 300), margin=margin)
    return fig.update_layout(template=_template(), title=titles, **size, **layout)


def category_title(name: str) -> str:
    """The words a figure uses for a category; a category that is not one of the seven keeps its own name."""
    return CATEGORY_TITLES.get(name, str(name))


def category_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each category: the seven always have their own, others take the palette in turn."""
    others = [name for name in dict.fromkeys(names) if name not in CATEGORY_COLOURS]
    return CATEGORY_COLOURS | {name: OKABE_ITO[i % len(OKABE_ITO)] for i, name in enumerate(others)}


def category_order(names: Iterable[str]) -> list[str]:
    """The distinct categories in their fixed order, ones that are not of the seven after them."""
    present = list(dict.fromkeys(names))
    return [c for c in CATEGORIES if c in present] + [c for c in present if c not in CATEGORIES]


def _label(value: object, width: int = 60) -> str:
    """Text for a figure: plotly would read `<b>` as bold, and a long label pushes the axes aside."""
    return escape(textwrap.shorten(str(value), width, placeholder=" …") or " ", quote=False)


def _array(values: object) -> np.ndarray:
    """A float numpy array from a list, a numpy array or a torch tensor (with or without gradient)."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


# ---------------------------------------------------------------- figures: phase 1


def dense_vs_sparse(
    activations: Float[np.ndarray, " n"], features: Float[np.ndarray, " m"],
    title: str = "The same tokens as dense activations and as sparse features",
) -> go.Figure:  # fmt: skip
    """Two value distributions side by side, with the share of non-zeros that each holds.

    Args:
        activations: a sample of the model's activations, all channels together.
        features: a sample of SAE feature activations of the same tokens.
        title: the figure's title.

    Raises:
        ValueError: a sample is empty.
    """
    panels = {"Activations": (_array(activations).ravel(), BLUE), "Features": (_array(features).ravel(), VERMILLION)}
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
    return _finish(fig, title, 430, barmode="overlay", bargap=0.02, margin=dict(t=90, b=90),
                   legend=dict(y=-0.2, yanchor="top"))  # fmt: skip


def _value_bars(values: np.ndarray, name: str, colour: str, bins: int = 50) -> list[go.Bar]:
    """Shares of the non-zero values by bin, and one bar of its own for the exact zeros, left of the bins or on 0."""
    nonzero = values[values != 0]
    low, high = np.quantile(nonzero, [0.001, 0.999]) if nonzero.size else (0.0, 1.0)
    low = 0.0 if low > 0 else low
    counts, edges = np.histogram(nonzero, bins, range=(low, max(high, low + 1e-6)))
    step, kept = edges[1] - edges[0], counts > 0
    bars = [go.Bar(x=(edges[:-1] + step / 2)[kept], y=counts[kept] / values.size, width=step, marker_color=colour,
                   name=f"{name}: non-zero", hovertemplate="around %{x:.3g}: %{y:.3%}<extra></extra>")]  # fmt: skip
    zeros = 1 - nonzero.size / values.size
    if zeros:
        bars.append(go.Bar(x=[-step if low == 0 else 0.0], y=[zeros], width=step, marker_color=GREY,
                           name=f"{name}: exactly 0", hovertemplate="exactly 0: %{y:.2%}<extra></extra>"))  # fmt: skip
    return bars


def density_histogram(
    density: Float[np.ndarray, " d_sae"], n_tokens: int, title: str = "How often each feature fires",
) -> go.Figure:  # fmt: skip
    """Histogram of log10 firing density over the live features; the dead ones are counted in the subtitle.

    Args:
        density: share of tokens on which each feature fires.
        n_tokens: tokens in the sample, without which 'dead' means nothing.
        title: the figure's title.
    """
    density = _array(density).astype(float)
    live, dead = density[density > 0], int((density == 0).sum())
    left = min(np.log10(ULTRALOW), -np.log10(n_tokens)) - 1.1
    counts, edges = np.histogram(np.log10(live), np.linspace(left, 0, 60))
    fig = go.Figure(go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges), marker_color=BLUE,
                           hovertemplate="density around 10^%{x:.2f}: %{y} features<extra></extra>"))  # fmt: skip
    marks = {"ultralow: < 10<sup>−6</sup>": (np.log10(ULTRALOW), VERMILLION),
             f"one token in {n_tokens:,}": (-np.log10(n_tokens), GREY)}  # fmt: skip
    lowest = min(x for x, _ in marks.values())
    for text, (x, colour) in marks.items():  # the left mark's words stand to its left, so that the two never meet
        side = dict(xanchor="right", xshift=-5) if x == lowest else dict(xanchor="left", xshift=5)
        fig.add_vline(x, line=dict(color=colour, dash="dash", width=2))
        fig.add_annotation(x=x, y=1, yref="paper", yanchor="top", text=text, showarrow=False,
                           font=dict(color=colour, size=13), **side)  # fmt: skip
    fig.update_xaxes(title="log10 density (share of tokens on which a feature fires)", range=[left, 0.05], dtick=1)
    fig.update_yaxes(title="features")
    share = dead / max(density.size, 1)
    subtitle = (f"{dead:,} of {density.size:,} features ({share:.1%}) are dead: they fire on none of {n_tokens:,} "
                f"tokens; median density of the others {np.median(live) if live.size else 0:.2g}")  # fmt: skip
    return _finish(fig, title, 420, subtitle, bargap=0)


def pooling_trap_figure(
    frame: pd.DataFrame, published_l0: float | None = None, title: str = "Active features, by what the SAE is fed",
) -> go.Figure:  # fmt: skip
    """Active features per input, on a log scale, by what the SAE was fed.

    Args:
        frame: columns `variant` ('token by token', 'mean-pooled first', …) and `active_features` (mean per input).
        published_l0: the L0 that the SAE's publisher reports, drawn as a line.
        title: the figure's title.
    """
    values = frame["active_features"].astype(float)
    colours = [BLUE] + [VERMILLION] * (len(frame) - 1)
    names = [_label(variant) for variant in frame["variant"]]
    fig = go.Figure(go.Bar(x=names, y=values, marker_color=colours, width=0.55,
                           hovertemplate="%{x}: %{y:,.1f} active features<extra></extra>"))  # fmt: skip
    for name, value in zip(names, values, strict=True):  # annotations, so that the line below never runs through them
        fig.add_annotation(x=name, y=np.log10(max(value, 1)), yanchor="bottom", yshift=2, showarrow=False,
                           text=f"{value:,.0f}" if value >= 10 else f"{value:.1f}", font=dict(size=16),
                           bgcolor="white", borderpad=1)  # fmt: skip
    top = max(values.max(), published_l0 or 1, 10)
    if published_l0:
        fig.add_hline(published_l0, line=dict(color=INK, dash="dash", width=1.5), layer="below")
        fig.add_annotation(x=1, xref="paper", xanchor="left", y=np.log10(published_l0), xshift=6, align="left",
                           text=f"published<br>L0: {published_l0:g}", showarrow=False, font=dict(size=13))  # fmt: skip
    fig.update_xaxes(title="what the SAE is fed", tickfont=dict(size=15))
    fig.update_yaxes(title="active features per input (log scale)", type="log", dtick=1)
    fig.update_yaxes(range=[0, np.log10(top) + 0.25])
    return _finish(fig, title, 440, margin=dict(r=100 if published_l0 else 30))


# ---------------------------------------------------------------- figures: phase 2


def top_features_bars(
    frames: Mapping[str, pd.DataFrame], title: str = "The strongest features of each text", columns: int = 2,
) -> go.Figure:  # fmt: skip
    """Small multiples: the strongest features of several texts.

    Args:
        frames: label of a text -> columns `feature` and `activation`, strongest first; a `category` column holding
            one category colours the panel.
        title: the figure's title.
        columns: panels in a row.
    """
    rows, depth = -(-len(frames) // columns), max(len(frame) for frame in frames.values())
    height = 150 + rows * (depth * 26 + 70)
    fig = make_subplots(rows, columns, subplot_titles=[_label(label, 52) for label in frames], shared_xaxes="all",
                        horizontal_spacing=0.13, vertical_spacing=62 / (height - 150))  # fmt: skip
    longest = max(frame["activation"].max() for frame in frames.values())
    for panel, frame in enumerate(frames.values()):
        first = frame["category"].iloc[0] if "category" in frame else None
        fig.add_trace(go.Bar(
            x=frame["activation"], y=[f"feature {f}" for f in frame["feature"]], orientation="h", cliponaxis=False,
            marker_color=category_colours([first]).get(first, BLUE) if first else BLUE, text=frame["activation"],
            texttemplate="%{text:.1f}", textposition="outside", hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        ), panel // columns + 1, panel % columns + 1)  # fmt: skip
    fig.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    fig.update_xaxes(range=[0, longest * 1.12], showticklabels=True)
    fig.update_xaxes(title="activation (maximum over the text's tokens)", title_font_size=13, row=rows)
    return _panel_titles(_finish(fig, title, height, showlegend=False))


def _panel_titles(fig: go.Figure, size: int = 14) -> go.Figure:
    return fig.update_annotations(font=dict(size=size, color=INK))


def category_heatmap(
    values: Float[np.ndarray, "features texts"], labels: Sequence[object], categories: Sequence[str],
    scale: str = "log1p", title: str = "Each feature on each text",
) -> go.Figure:  # fmt: skip
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
    values, categories = _array(values), list(categories)
    if scale not in ("log1p", "feature"):
        raise ValueError(f"scale is {scale!r}: choose 'log1p' or 'feature'")
    if values.shape != (len(labels), len(categories)):
        raise ValueError(f"values are {values.shape}, but there are {len(labels)} labels and {len(categories)} texts: "
                         "values need the shape (features, texts)")  # fmt: skip
    names = category_order(categories)
    order = sorted(range(len(categories)), key=lambda text: names.index(categories[text]))
    values = values[:, order]
    shown = np.log1p(values) if scale == "log1p" else values / np.maximum(values.max(1, keepdims=True), 1e-9)
    bar = "log(1 + activation)" if scale == "log1p" else "share of the feature's maximum"
    fig = go.Figure(go.Heatmap(
        z=shown, colorscale=SEQUENTIAL, zmin=0, customdata=values.round(2),
        colorbar=_colour_bar(bar),
        hovertemplate="text %{x}<br>%{y}: %{customdata:.2f}<extra></extra>",
    ))  # fmt: skip
    slanted = _category_bands(fig, [categories[text] for text in order])
    fig.update_xaxes(title="texts, sorted by category", showticklabels=False, ticks="", showgrid=False,
                     range=[-0.5, len(order) - 0.5])  # fmt: skip
    fig.update_yaxes(title="feature", tickvals=list(range(len(labels))), ticktext=[_label(lab, 40) for lab in labels],
                     autorange="reversed", ticks="", showgrid=False, tickfont=dict(size=12))  # fmt: skip
    top = 150 if slanted else 110
    return _finish(fig, title, top + 60 + max(22 * len(labels), 180), margin=dict(t=top))


def _colour_bar(title: str) -> dict:
    return dict(title=dict(text=title, side="right", font=dict(size=14)), thickness=14, outlinewidth=0)


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
        fig.add_shape(type="rect", x0=left, x1=right, yref="paper", ysizemode="pixel", yanchor=1, y0=4, y1=13,
                      fillcolor=colours[name], line=dict(color="white", width=2))  # fmt: skip
        text = (" " if slanted else "<br>").join(_label(line) for line in lines[name])
        fig.add_annotation(x=(left + right) / 2, y=1, yref="paper", yanchor="bottom", yshift=14, text=text,
                           showarrow=False, font=dict(size=12), **style)  # fmt: skip
        if first:
            fig.add_vline(left, line=dict(color=GREY, width=1))
    return slanted


def category_bars(
    frame: pd.DataFrame, value: str = "mean activation", shared: bool = True, columns: int = 4,
    title: str = "Where each feature fires",
) -> go.Figure:  # fmt: skip
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
    heads = [f"feature {index}" if isinstance(index, (int, np.integer)) else _label(index, 30) for index in frame.index]
    fig = make_subplots(rows, columns, subplot_titles=heads, shared_yaxes=True, shared_xaxes="all" if shared else False,
                        horizontal_spacing=0.03, vertical_spacing=58 / (height - 140) if rows > 1 else 0)  # fmt: skip
    colours = category_colours(names)
    for panel, (_, row) in enumerate(frame[names].iterrows()):
        fig.add_trace(go.Bar(
            x=row.to_numpy(float), y=[category_title(name) for name in names], orientation="h",
            marker=dict(color=[colours[name] for name in names], line=dict(color=GREY, width=0.5)),
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        ), panel // columns + 1, panel % columns + 1)  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickfont=dict(size=13))
    fig.update_xaxes(rangemode="tozero", showticklabels=True, tickfont=dict(size=12), nticks=4)
    fig.update_xaxes(title=dict(text=value, font=dict(size=13)), row=rows)
    subtitle = "" if shared else "each panel has its own scale"
    return _panel_titles(_finish(fig, title, height, subtitle, showlegend=False))


def null_figure(
    null: Null, observed: Mapping[str, float], title: str = "The best specialist, against the best by chance",
) -> go.Figure:  # fmt: skip
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
    fig = go.Figure([
        _segments(low, high, titles, "shuffled labels: all permutations", PALE, 12),
        _segments(q05, q95, titles, "5th to 95th percentile", "#aab2bb", 12),
        go.Scatter(x=middle, y=titles, mode="markers", name="median", hovertemplate="null median %{x:g}<extra></extra>",
                   marker=dict(symbol="line-ns", size=14, line=dict(width=3, color=INK))),
        go.Scatter(x=found, y=titles, mode="markers", name="observed best", cliponaxis=False,
                   marker=dict(symbol="diamond", size=13, color=VERMILLION, line=dict(color="white", width=1)),
                   hovertemplate="%{y}: observed %{x:g}<extra></extra>"),
    ])  # fmt: skip
    fig.update_xaxes(title="specialist score (texts inside the category that fire − texts outside)")
    fig.update_yaxes(title="category", categoryarray=titles, autorange="reversed", showgrid=False)
    subtitle = f"{len(scores):,} permutations of the text labels, each searched over all features"
    return _finish(fig, title, 190 + 44 * len(names), subtitle, margin=dict(t=115))


def _segments(starts, stops, ys: Sequence[str], name: str, colour: str, width: int) -> go.Scatter:
    """Horizontal segments as one trace, with gaps between them."""
    x = [value for start, stop in zip(starts, stops, strict=True) for value in (start, stop, None)]
    return go.Scatter(x=x, y=[y for y in ys for _ in range(3)], mode="lines", name=name, connectgaps=False,
                      line=dict(color=colour, width=width), hovertemplate="%{x:g}<extra></extra>")  # fmt: skip


def confirmation_figure(
    frame: pd.DataFrame, discover: str = "found_score", confirm: str = "score",
    title: str = "Do the specialists hold on texts the search never saw?",
) -> go.Figure:  # fmt: skip
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
        ["_rank", discover], ascending=[True, False], kind="stable")  # fmt: skip
    first = ~ordered["_rank"].duplicated()
    rows = list(range(len(ordered)))
    heads = [f"<b>{_label(category_title(c))}</b>  {f}" if head else str(f)
             for c, f, head in zip(ordered["category"], ordered["feature"], first, strict=True)]  # fmt: skip
    fig = go.Figure(_segments(ordered[discover], ordered[confirm], rows, "", "#aab2bb", 3))
    fig.update_traces(showlegend=False, hoverinfo="skip", hovertemplate=None)
    held = ordered["held"].to_numpy(bool) if "held" in ordered else np.ones(len(ordered), bool)
    kinds = [(discover, "texts searched", "circle-open", 14, INK, np.ones(len(ordered), bool)),
             (confirm, "held-out texts" + (": held" if "held" in ordered else ""), "circle", 7, BLUE, held),
             (confirm, "held-out texts: did not hold", "x", 7, VERMILLION, ~held)]  # fmt: skip
    for column, name, symbol, size, colour, kept in kinds:
        at = np.flatnonzero(kept)
        fig.add_scatter(x=ordered[column].iloc[at], y=at, mode="markers", name=name, showlegend=len(at) > 0,
                        marker=dict(symbol=symbol, size=size, color=colour, line=dict(width=2, color=colour)),
                        cliponaxis=False, customdata=[heads[row] for row in at],
                        hovertemplate="%{customdata}: %{x:g} on " + name + "<extra></extra>")  # fmt: skip
    for row in np.flatnonzero(first.to_numpy())[1:]:
        fig.add_hline(row - 0.5, line=dict(color=PALE, width=1), layer="below")
    fig.add_vline(0, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="specialist score (texts inside the category that fire − texts outside)")
    fig.update_yaxes(title="feature, by category", tickvals=rows, ticktext=heads, tickfont=dict(size=12), ticks="",
                     range=[len(rows) - 0.4, -0.6], showgrid=False)  # fmt: skip
    return _finish(fig, title, 170 + 21 * len(rows))


def coactivation_heatmap(
    frame: pd.DataFrame, measure: str = "Jaccard overlap", title: str = "Which features fire together",
) -> go.Figure:  # fmt: skip
    """A square of co-activation; the diagonal is left blank, since a feature always fires with itself.

    Args:
        frame: square, the features as index and as columns.
        measure: what the numbers are, for the colour bar.
        title: the figure's title.
    """
    values = frame.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)
    names = [_label(name, 30) for name in frame.index]
    fig = go.Figure(go.Heatmap(z=values, colorscale=SEQUENTIAL, zmin=0, xgap=1, ygap=1, hoverongaps=False,
                               colorbar=_colour_bar(measure),
                               hovertemplate="%{y} with %{x}: %{z:.3f}<extra></extra>"))  # fmt: skip
    ticks = dict(tickvals=list(range(len(names))), ticktext=names, ticks="", showgrid=False, tickfont=dict(size=12))
    side = int(np.clip(24 * len(names), 300, 640))
    fig.update_xaxes(title="feature", tickangle=-60 if len(names) > 8 else 0, **ticks)
    fig.update_yaxes(title="feature", autorange="reversed", **ticks)
    return _finish(fig, title, side + 165, margin=dict(l=110, r=WIDTH - 110 - side, b=90))


def coactivation_network(
    edges: pd.DataFrame, nodes: pd.DataFrame, seed: int = 0, title: str = "Features that fire together",
) -> go.Figure:  # fmt: skip
    """A graph of co-active features in a spring layout: near and thickly joined means often together.

    Args:
        edges: columns `source`, `target` (features), `jaccard` (0 to 1) and, if at hand, `count` (tokens together).
        nodes: columns `feature` and `category`; an optional `label` is shown on hover.
        seed: of the layout, so that the picture is the same on every run.
        title: the figure's title.

    Raises:
        ValueError: an edge names a feature that is not among the nodes.
    """
    graph = nx.Graph()
    graph.add_nodes_from(nodes["feature"].tolist())
    missing = set(edges["source"]) | set(edges["target"])
    if missing := sorted(missing - set(graph)):
        raise ValueError(f"edges name features that are not among the nodes: {missing[:5]}; add them to `nodes`")
    graph.add_weighted_edges_from(edges[["source", "target", "jaccard"]].itertuples(index=False), weight="jaccard")
    place = _spread(nx.spring_layout(graph, weight="jaccard", seed=seed, iterations=200))
    fig = go.Figure()
    _edge_traces(fig, edges, place)
    _node_traces(fig, nodes, place)
    axis = dict(showgrid=False, zeroline=False, showticklabels=False, ticks="", title_font_size=13)
    fig.update_xaxes(title="position has no unit: the layout pulls joined features together", **axis)
    fig.update_yaxes(title="", **axis)
    return _finish(fig, title, 680, f"{len(nodes)} features, {len(edges)} pairs", margin=dict(l=30, r=210, b=50),
                   legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))  # fmt: skip


def _spread(place: dict, rounds: int = 300) -> dict:
    """Push apart nodes that stand so close that their labels would overlap; the rest of the layout stays."""
    if len(place) < 2:
        return place
    points = np.array(list(place.values()))
    points = (points - points.mean(0)) / max(np.abs(points - points.mean(0)).max(), 1e-9)
    near = min(0.2, 1.3 / np.sqrt(len(points)))
    for _ in range(rounds):
        apart = points[:, None] - points[None]
        distance = np.maximum(np.linalg.norm(apart, axis=-1), 1e-6)
        push = np.where(distance < near, (near - distance) / distance, 0.0)
        np.fill_diagonal(push, 0)
        points = points + 0.25 * (apart * push[..., None]).sum(1)
    return dict(zip(place, points, strict=True))


def _edge_traces(fig: go.Figure, edges: pd.DataFrame, place: dict, steps: int = 4) -> None:
    """Edges in a few widths, one trace each, so that the legend can say what a width means; hover at the middle."""
    if edges.empty:
        return
    bounds = np.linspace(edges["jaccard"].min(), edges["jaccard"].max() + 1e-9, steps + 1)
    digits = 2 if bounds[-1] >= 0.2 else 3
    bucket = np.clip(np.digitize(edges["jaccard"], bounds) - 1, 0, steps - 1)
    for step in range(steps):
        part = edges[bucket == step]
        ends = [(place[a], place[b]) for a, b in zip(part["source"], part["target"], strict=True)]
        fig.add_scatter(x=[x for a, b in ends for x in (a[0], b[0], None)], mode="lines", hoverinfo="skip",
                        y=[y for a, b in ends for y in (a[1], b[1], None)], visible=bool(ends), legendgroup="edges",
                        legendgrouptitle_text="Jaccard overlap",
                        name=f"{bounds[step]:.{digits}f} – {bounds[step + 1]:.{digits}f}",
                        line=dict(width=1 + 2.2 * step, color="rgba(90,97,105,0.45)"))  # fmt: skip
    middles = np.array([(place[a] + place[b]) / 2 for a, b in zip(edges["source"], edges["target"], strict=True)])
    counts = [f"<br>{c:,} tokens together" for c in edges["count"]] if "count" in edges else [""] * len(edges)
    hover = [f"{a} – {b}<br>Jaccard {j:.3f}{c}" for a, b, j, c in
             zip(edges["source"], edges["target"], edges["jaccard"], counts, strict=True)]  # fmt: skip
    fig.add_scatter(x=middles[:, 0], y=middles[:, 1], mode="markers", marker=dict(size=12, opacity=0), text=hover,
                    hovertemplate="%{text}<extra></extra>", showlegend=False)  # fmt: skip


def _node_traces(fig: go.Figure, nodes: pd.DataFrame, place: dict) -> None:
    colours = category_colours(nodes["category"])
    for name in category_order(nodes["category"]):
        part = nodes[nodes["category"] == name]
        labels = part["label"] if "label" in part else [""] * len(part)
        hover = [f"feature {f}<br>{_label(lab)}" for f, lab in zip(part["feature"], labels, strict=True)]
        fig.add_scatter(
            x=[place[f][0] for f in part["feature"]], y=[place[f][1] for f in part["feature"]], mode="markers+text",
            text=part["feature"].astype(str), textposition="top center", textfont=dict(size=12), cliponaxis=False,
            customdata=hover, hovertemplate="%{customdata}<extra>%{fullData.name}</extra>", legendgroup="nodes",
            legendgrouptitle_text="category", name=category_title(name),
            marker=dict(size=17, color=colours[name], line=dict(color="white", width=1.5)),
        )  # fmt: skip


# ---------------------------------------------------------------- tokens as HTML


def link(address: str, text: str) -> str:
    """An HTML link, for the cells of a table."""
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def visible(token: str) -> str:
    """A token with its white space made visible (· ↵ ⇥), control characters replaced, and escaped for HTML."""
    marks = {"\n": "↵", " ": "·", "\t": "⇥"}
    return escape("".join(marks.get(c, chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in token))


def token_shading(
    tokens: Sequence[str], activations: Float[np.ndarray, " pos"], title: str = "",
    maximum: float | None = None, start: int = 0,
) -> str:  # fmt: skip
    """A text as HTML, each token shaded by how strongly a feature fires on it; hovering shows token and value.

    Args:
        tokens: the text, token by token.
        activations: one value per token; a value of 0 leaves the token unshaded.
        title: a line above the text.
        maximum: the activation that gets the full colour; by default the largest one here.
        start: position of the first token, for the hover text.

    Raises:
        ValueError: as many activations as tokens are needed.
    """
    values = np.nan_to_num(_array(activations))
    if values.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens but activations of shape {values.shape}: give one value per token")
    shares = np.clip(values / maximum if maximum else values / max(values.max(initial=0), 1e-9), 0, 1)
    spans = [_span(*row) for row in zip(tokens, values, shares, range(start, start + len(tokens)), strict=True)]
    head = f'<div style="font-weight:600;margin-bottom:4px">{escape(title)}</div>' if title else ""
    return (f'<div class="prism-tokens" dir="ltr" style="margin:6px 0">{head}<div style="font-family:ui-monospace,'
            f'Menlo,Consolas,monospace;font-size:13px;line-height:1.75;overflow-wrap:anywhere">{"".join(spans)}'
            "</div></div>")  # fmt: skip


def _span(token: str, value: float, share: float, position: int) -> str:
    """One token. Past 0.65 it is bold, and black: the orange is too bright for the light text of a dark page."""
    hover = f"{visible(token)} · activation {value:.3f} · position {position}"
    tag, ink = ("b", ";color:#000") if share > 0.65 else ("span", "")
    style = f' style="background:rgba(230,159,0,{share:.2f});border-radius:2px{ink}"' if share >= 0.005 else ""
    return f'<{tag} title="{hover}"{style}>{visible(token).replace("↵", "↵<br>")}</{tag}><wbr>'


# ---------------------------------------------------------------- one feature: numbers


@dataclass(frozen=True)
class FeatureSummary:
    """What a feature matrix says about one feature."""

    feature: int
    density: float  # share of tokens
    firings: int  # tokens
    n_tokens: int
    maximum: float  # activation
    top_token_share: float  # share of the 20 strongest firings that fall on their most common token
    categories: pd.DataFrame  # category, texts, share_firing, mean_max; empty if the texts have no categories
    examples: pd.DataFrame  # row, text, position, token, activation, category: the k strongest texts


def summarise_feature(matrix: FeatureMatrix, feature: int, k: int = 10) -> FeatureSummary:
    """Density, maximum, category profile and strongest texts of one feature.

    Args:
        matrix: sparse features of many tokens.
        feature: column, 0 to d_sae − 1.
        k: examples, at most one per text.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    column, table = matrix.column(feature), matrix.table
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    examples = table.iloc[order].reset_index(drop=True).assign(row=order, activation=column[order])
    tokens = examples["token"].head(20)
    return FeatureSummary(
        feature=int(feature), density=len(order) / max(len(column), 1), firings=len(order), n_tokens=len(column),
        maximum=float(column.max(initial=0)), categories=_category_profile(column, table),
        top_token_share=float(tokens.value_counts(normalize=True).iloc[0]) if len(tokens) else 0.0,
        examples=examples.drop_duplicates("text").head(k).reset_index(drop=True),
    )  # fmt: skip


def _category_profile(column: np.ndarray, table: pd.DataFrame) -> pd.DataFrame:
    if "category" not in table:
        return pd.DataFrame(columns=["category", "texts", "share_firing", "mean_max"])
    texts = pd.DataFrame({"text": table["text"].to_numpy(), "category": table["category"].to_numpy(), "max": column})
    peaks = texts.groupby("text", sort=False).agg(category=("category", "first"), max=("max", "max"))
    profile = peaks.groupby("category", sort=False, observed=True)["max"].agg(
        texts="size", share_firing=lambda peak: float((peak > 0).mean()), mean_max="mean")  # fmt: skip
    return profile.loc[category_order(profile.index)].reset_index()


def top_logits(
    decoder_row: Float[np.ndarray, " d_in"], unembed: Float[np.ndarray, "d_in d_vocab"], tokens: Sequence[str],
    k: int = 10,
) -> pd.DataFrame:  # fmt: skip
    """The tokens that a feature's direction writes towards and away from: its decoder row through the unembedding.

    Logits mean something only relative to each other, so their mean over the vocabulary is taken off. The final layer
    norm and the later layers are left out ('direct' effect; logit lens, nostalgebraist 2020).

    Args:
        decoder_row: the feature's direction.
        unembed: the model's unembedding.
        tokens: the vocabulary by token id.
        k: tokens on each side.

    Returns:
        Columns `side` ('top', 'bottom'), `token_id`, `token`, `logit`; each side's strongest first.

    Raises:
        ValueError: the shapes do not fit.

    >>> top_logits([1.0, 0.0], [[3.0, 0.0, -3.0], [9.0, 9.0, 9.0]], ["a", "b", "c"], k=1)["token"].tolist()
    ['a', 'c']
    """
    row, unembed = _array(decoder_row), _array(unembed)
    if unembed.ndim != 2 or row.shape != unembed.shape[:1] or len(tokens) < unembed.shape[1]:
        raise ValueError(f"decoder row {row.shape}, unembedding {unembed.shape} and {len(tokens)} tokens do not fit: "
                         "give (d_in,), (d_in, d_vocab) and d_vocab tokens")  # fmt: skip
    logits = row @ unembed
    logits = logits - logits.mean()
    order = np.argsort(-logits, kind="stable")
    ids = np.concatenate([order[:k], order[::-1][:k]])
    sides = ["top"] * len(order[:k]) + ["bottom"] * len(order[:k])
    return pd.DataFrame({"side": sides, "token_id": ids, "token": [tokens[i] for i in ids], "logit": logits[ids]})


def co_active(matrix: FeatureMatrix, feature: int, k: int = 10) -> pd.DataFrame:
    """The features that fire most often on the same tokens: columns `feature`, `jaccard`, `count` (tokens)."""
    rows = np.flatnonzero(matrix.column(feature))
    together = matrix.values[rows].getnnz(axis=0)
    either = len(rows) + np.asarray(matrix.firing_counts()) - together
    jaccard = together / np.maximum(either, 1)
    jaccard[feature] = -1
    best = [other for other in np.argsort(-jaccard, kind="stable")[:k] if together[other] and other != feature]
    return pd.DataFrame({"feature": best, "jaccard": jaccard[best], "count": together[best]})


def decoder_neighbours(decoder: Float[np.ndarray, "d_sae d_in"], feature: int, k: int = 10) -> pd.DataFrame:
    """The features whose decoder rows point the same way: columns `feature`, `cosine`."""
    decoder = _array(decoder)
    norms = np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    cosine = decoder @ decoder[feature] / (norms * norms[feature])
    best = [other for other in np.argsort(-cosine, kind="stable") if other != feature][:k]
    return pd.DataFrame({"feature": best, "cosine": cosine[best]})


# ---------------------------------------------------------------- one feature: HTML

PAGE_STYLE = """
.prism-page{--bg:#fff;--ink:#1d2329;--soft:#5a6169;--line:#dfe3e8;--bar:#0072B2;font:15px/1.5 system-ui,sans-serif;
 background:var(--bg);color:var(--ink);max-width:1040px;margin:0 auto;padding:20px;box-sizing:border-box}
.prism-page h1{font-size:24px;margin:0 0 4px}
.prism-page h2{font-size:16px;margin:24px 0 8px}.prism-page h3{font-size:14px;margin:14px 0 2px}
.prism-page p,.prism-page small{color:var(--soft);margin:0 0 6px;font-size:13px}.prism-page a{color:inherit}
.prism-page .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:0 32px}
.prism-page .stats{display:flex;flex-wrap:wrap;gap:8px 28px;margin:12px 0}
.prism-page .stats b{display:block;font-size:18px}
.prism-page table{color:inherit;border-collapse:collapse;width:100%;font-size:13px}
.prism-page td{padding:3px 6px 3px 0;border-bottom:1px solid var(--line)}
.prism-page td:last-child{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.prism-page .track{width:38%}.prism-page .track div{height:10px;border-radius:2px;min-width:1px}
.prism-page code{font-family:ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.prism-page svg{display:block;width:100%;height:90px;border-bottom:1px solid var(--soft)}
.prism-page .ends{display:flex;justify-content:space-between;font-size:12px;color:var(--soft)}
.prism-page .example{border-bottom:1px solid var(--line);padding:4px 0}
@media(prefers-color-scheme:dark){.prism-page{--bg:#15191e;--ink:#e8ebee;--soft:#a5adb6;--line:#323941;--bar:#56B4E9}}
"""


def explore_feature(matrix: FeatureMatrix, feature: int, k: int = 10) -> HTML:
    """One feature at a glance: density, maximum, category profile, and its strongest texts around their top token.

    Args:
        matrix: sparse features of many tokens.
        feature: column, 0 to d_sae − 1.
        k: texts shown.

    Returns:
        An object that a notebook displays; `.data` holds the HTML.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    body = _stats(summary) + _profile_section(summary) + _example_section(matrix, summary)
    return HTML(f'<style>{PAGE_STYLE}</style><div class="prism-page"><h1>Feature {summary.feature}</h1>{body}</div>')


def feature_page(
    feature: int, matrix: FeatureMatrix, decoder: Float[np.ndarray, "d_sae d_in"] | None = None,
    unembed: Float[np.ndarray, "d_in d_vocab"] | None = None, vocabulary: Sequence[str] | None = None,
    title: str = "", link: str | None = None, k: int = 10,
) -> str:  # fmt: skip
    """A page about one feature that needs no network and no scripts.

    Args:
        feature: column of the matrix.
        matrix: sparse features of many tokens.
        decoder: the SAE's decoder, for the nearest directions (and, with the next two, for the logits).
        unembed: the model's unembedding.
        vocabulary: the tokens by id.
        title: where the feature comes from (model, SAE, sample).
        link: the same feature elsewhere (Neuronpedia); only http and https addresses are linked.
        k: examples, logits and neighbours shown.

    Returns:
        A complete HTML document.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    column = matrix.column(feature)
    panels = [_histogram_section(column), _profile_section(summary)]
    if decoder is not None and unembed is not None and vocabulary is not None:
        panels += _logit_sections(top_logits(_array(decoder)[feature], unembed, vocabulary, k))
    panels.append(_table_section("Fires together with", "share of tokens with either feature that have both (Jaccard)",
                                 co_active(matrix, feature, k), "jaccard"))  # fmt: skip
    if decoder is not None:
        panels.append(_table_section("Nearest directions", "cosine of the decoder rows",
                                     decoder_neighbours(decoder, feature, k), "cosine"))  # fmt: skip
    body = (_header(feature, title, link) + _stats(summary) + f'<div class="grid">{"".join(panels)}</div>'
            + _example_section(matrix, summary) + _quantile_section(matrix, column))  # fmt: skip
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width,initial-scale=1"><title>Feature {feature}</title><style>body{{margin:0}}'
            "@media(prefers-color-scheme:dark){body{background:#15191e}}"
            f'{PAGE_STYLE}</style></head><body><main class="prism-page">{body}</main></body></html>')  # fmt: skip


def _header(feature: int, title: str, link: str | None) -> str:
    safe = link is not None and link.lower().startswith(("https://", "http://"))
    anchor = f' · <a href="{escape(link)}" rel="noopener">the same feature on Neuronpedia</a>' if safe else ""
    return f"<h1>Feature {feature}</h1><p>{escape(title)}{anchor}</p>"


def _stats(summary: FeatureSummary) -> str:
    if not summary.firings:
        return f"<p>This feature fires on none of the {summary.n_tokens:,} tokens: it is dead in this sample.</p>"
    cells = {"density": f"{summary.density:.3%}", "fires on": f"{summary.firings:,} of {summary.n_tokens:,} tokens",
             "maximum": f"{summary.maximum:.2f}", "top 20: same token": f"{summary.top_token_share:.0%}"}  # fmt: skip
    boxes = "".join(f"<div><small>{name}</small><b>{value}</b></div>" for name, value in cells.items())
    return f'<div class="stats">{boxes}</div>'


def _section(head: str, note: str, body: str) -> str:
    return f"<section><h2>{head}</h2><p>{note}</p>{body}</section>" if body else ""


def _histogram_section(column: np.ndarray, bins: int = 40) -> str:
    """An SVG of bars only; its labels are HTML, so that they keep their size on a narrow screen."""
    active = column[column > 0]
    if not active.size:
        return ""
    counts, edges = np.histogram(active, bins, range=(0, float(active.max())))
    bars = "".join(
        f'<rect x="{i}" y="{100 - 100 * c / counts.max():.1f}" width=".9" height="{100 * c / counts.max():.1f}" '
        f'style="fill:var(--bar)"><title>{edges[i]:.2f} to {edges[i + 1]:.2f}: {c:,} tokens</title></rect>'
        for i, c in enumerate(counts) if c
    )  # fmt: skip
    svg = f'<svg viewBox="0 0 {bins} 100" preserveAspectRatio="none" role="img">{bars}</svg>'
    ends = f'<div class="ends"><span>0</span><span>activation</span><span>{active.max():.2f}</span></div>'
    return _section("Activations", f"where it fires; the tallest bar is {counts.max():,} tokens", svg + ends)


def _profile_section(summary: FeatureSummary) -> str:
    if summary.categories.empty or not summary.firings:
        return ""
    colours = category_colours(summary.categories["category"])
    rows = "".join(
        f'<tr><td>{escape(category_title(row.category))}</td><td class="track">'
        f'<div style="width:{100 * row.share_firing:.0f}%;background:{colours[row.category]}"></div></td>'
        f"<td>{row.share_firing:.0%} · {row.mean_max:.2f}</td></tr>"
        for row in summary.categories.itertuples()
    )  # fmt: skip
    note = "share of texts on which it fires · mean of the texts' maxima"
    return _section("Categories", note, f"<table>{rows}</table>")


def _logit_sections(logits: pd.DataFrame) -> list[str]:
    note = "direct effect on the next token, relative to the mean"
    heads = {"top": "Writes towards", "bottom": "Writes away from"}
    return [_section(head, note, _rows((f"<code>{visible(r.token)}</code>", f"{r.logit:+.2f}")
                                       for r in logits[logits["side"] == side].itertuples()))
            for side, head in heads.items()]  # fmt: skip


def _table_section(head: str, note: str, frame: pd.DataFrame, value: str) -> str:
    pairs = zip(frame["feature"], frame[value], strict=True)
    return _section(head, note, _rows((f"feature {feature}", f"{number:.3f}") for feature, number in pairs))


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    """A two-column table of HTML that is already escaped; nothing if there are no rows."""
    rows = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in pairs)
    return f"<table>{rows}</table>" if rows else ""


def _example(matrix: FeatureMatrix, column: np.ndarray, row: int) -> str:
    """The window around one token of the table, never across the end of its text, with value and category."""
    texts = matrix.table["text"].to_numpy()
    window = np.arange(max(row - WINDOW, 0), min(row + WINDOW + 1, len(texts)))
    window = window[texts[window] == texts[row]]
    part = matrix.table.iloc[window]
    category = f" · {escape(category_title(part['category'].iloc[0]))}" if "category" in part else ""
    start, maximum = int(part["position"].iloc[0]), float(column.max())
    shading = token_shading(part["token"].tolist(), column[window], maximum=maximum, start=start)
    return f'<div class="example"><small>{column[row]:.2f} · text {texts[row]}{category}</small>{shading}</div>'


def _example_section(matrix: FeatureMatrix, summary: FeatureSummary) -> str:
    column = matrix.column(summary.feature)
    body = "".join(_example(matrix, column, row) for row in summary.examples["row"])
    return _section("Strongest texts", f"{WINDOW} tokens either side of the strongest one; one example a text", body)


def _quantile_section(matrix: FeatureMatrix, column: np.ndarray, groups: int = 5, each: int = 2) -> str:
    """Examples from top to bottom of the range: what a feature means at half strength is part of what it means."""
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    if len(order) < 2 * groups:
        return ""
    parts = []
    for part in np.array_split(order, groups):
        chosen = part[np.linspace(0, len(part) - 1, each + 2).astype(int)[1:-1]]
        parts.append(f"<h3>{column[part[0]]:.2f} to {column[part[-1]]:.2f}</h3>")
        parts += [_example(matrix, column, row) for row in dict.fromkeys(chosen)]
    note = f"the firings in {groups} groups of equal size, {each} from each"
    return _section("Across the range", note, "".join(parts))


# ---------------------------------------------------------------- the explorer


def explore(matrix: FeatureMatrix, page: Callable[[int], str] | None = None, per_category: int = 5) -> widgets.VBox:
    """A widget to walk through features: type a number or pick a category's strongest.

    Args:
        matrix: sparse features of many tokens.
        page: feature -> HTML; by default what `explore_feature` shows.
        per_category: features offered for each category.

    Returns:
        A box whose children are the number, the choice and the view. A bad number shows a sentence in the view.
    """
    render = page or (lambda feature: explore_feature(matrix, feature).data)
    options = _featured(matrix, per_category)
    first = options[0][1] if options else 0
    number = widgets.IntText(value=first, description="feature")
    choice = widgets.Dropdown(options=options, value=first if options else None, description="or pick")
    view = widgets.HTML()

    def show(feature: int) -> None:
        try:
            view.value = render(matrix.check_feature(feature))
        except (IndexError, ValueError) as error:
            view.value = f"<p>{escape(str(error))}</p>"

    number.observe(lambda change: show(change["new"]), "value")
    choice.observe(lambda change: change["new"] is not None and setattr(number, "value", change["new"]), "value")
    show(number.value)
    return widgets.VBox([number, choice, view])


def _featured(matrix: FeatureMatrix, per_category: int) -> list[tuple[str, int]]:
    """Features worth a look: each category's specialists; without categories or specialists, the strongest."""
    if "category" in matrix.table and len(found := specialists(matrix, k=per_category)):
        pairs = zip(found["category"], found["feature"], strict=True)
        return [(f"{category_title(name)} · {feature}", int(feature)) for name, feature in pairs]
    return [(f"strongest · {feature}", int(feature)) for feature in strongest(matrix, 4 * per_category)["feature"]]
