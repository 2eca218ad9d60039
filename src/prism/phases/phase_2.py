"""Phase 2, feature exploration: its figures of specialists and of their null, and its exercises."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from prism.analysis.specialist_search import Null
from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.visualization.style import (
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


# --- exercises -------------------------------------------------------------------------------------------------------


def specialist_score(fires: np.ndarray, inside: np.ndarray) -> int:
    """Texts inside the category that fire, minus texts outside it that fire."""
    return int((fires & inside).sum()) - int((fires & ~inside).sum())


def check_specialist_score(answer: Callable) -> Callable:
    """Check exercise 1."""
    fires = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    inside = np.arange(15) < 10
    mistakes = {
        "You counted only the texts inside; subtract those outside that fire.": lambda f, i: int((f & i).sum()),
        "You subtracted the silent texts inside; subtract the texts outside that fire.": (
            lambda f, i: int((f & i).sum()) - int((~f & i).sum())
        ),
        "The sign is the wrong way round: inside minus outside.": (
            lambda f, i: int((f & ~i).sum()) - int((f & i).sum())
        ),
        "You subtracted shares; the score counts texts.": lambda f, i: f[i].mean() - f[~i].mean(),
        "You counted all texts outside; count only those that fire.": (
            lambda f, i: int((f & i).sum()) - int((~i).sum())
        ),
    }
    return check(answer, specialist_score, [(fires, inside), (~fires, inside)], mistakes)


def p_value(score: float, null: np.ndarray) -> float:
    """Permutation p-value with the true labelling counted as one of the permutations."""
    return (1 + (np.asarray(null) >= score).sum()) / (1 + len(null))


def check_p_value(answer: Callable) -> Callable:
    """Check exercise 2."""
    null = np.array([3, 4, 4, 5, 6, 6, 7, 5, 4])
    mistakes = {
        "This can be 0, which no permutation test can show; add 1 above and below.": (
            lambda o, n: (np.asarray(n) >= o).mean()
        ),
        "A shuffle that ties counts as well: use >=, not >.": lambda o, n: (1 + (n > o).sum()) / (1 + len(n)),
        "That is the share *below*; p is the share at least as large.": lambda o, n: (1 + (n < o).sum()) / (1 + len(n)),
        "Add 1 to the number of shuffles too.": lambda o, n: (1 + (n >= o).sum()) / len(n),
        "The test is one-sided: do not double it.": lambda o, n: 2 * (1 + (n >= o).sum()) / (1 + len(n)),
    }
    return check(answer, p_value, [(6, null), (8, null), (2, null)], mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("2", fire, silent, activation)
