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
    SEQUENTIAL,
    VERMILLION,
    as_array,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)


def category_heatmap(
    values: Float[np.ndarray, "features texts"], labels: Sequence[object], categories: Sequence[str], title: str
) -> go.Figure:
    """Features × texts, each feature as a share of its own maximum, the texts sorted into bands by category.

    Args:
        values: activation of each feature on each text (its maximum over the text's tokens).
        labels: one label per feature.
        categories: one category per text; any order, the figure sorts.
        title: the figure's title.

    Raises:
        ValueError: labels or categories that do not match the array's shape.
    """
    values, categories = as_array(values), list(categories)
    if values.shape != (len(labels), len(categories)):
        raise ValueError(
            f"values are {values.shape}, but there are {len(labels)} labels and {len(categories)} texts: "
            "values need the shape (features, texts)"
        )
    names = category_order(categories)
    order = sorted(range(len(categories)), key=lambda text: names.index(categories[text]))
    values = values[:, order]
    heat = go.Heatmap(
        z=values / np.maximum(values.max(1, keepdims=True), 1e-9),
        colorscale=SEQUENTIAL,
        zmin=0,
        customdata=values.round(2),
        colorbar=colour_bar("share of the feature's maximum"),
        hovertemplate="text %{x}<br>%{y}: %{customdata:.2f}<extra></extra>",
    )
    fig = go.Figure(heat)
    _category_bands(fig, [categories[text] for text in order])
    fig.update_xaxes(title="texts, sorted by category", showticklabels=False, ticks="", showgrid=False)
    fig.update_xaxes(range=[-0.5, len(order) - 0.5])
    fig.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=[short_label(x, 40) for x in labels], autorange="reversed"
    )
    fig.update_yaxes(ticks="", showgrid=False, tickfont=dict(size=12))
    return finish(fig, title, 170 + max(22 * len(labels), 180), margin=dict(t=110))


def _category_bands(fig: go.Figure, categories: list[str]) -> None:
    """A title above each run of texts of one category, and a line between two runs."""
    for name in category_order(categories):
        first, count = categories.index(name), categories.count(name)
        head = "<br>".join(textwrap.wrap(category_title(name), 11, break_long_words=False))
        fig.add_annotation(
            x=first + (count - 1) / 2, y=1, yref="paper", yanchor="bottom", text=head, showarrow=False, yshift=4
        )
        if first:
            fig.add_vline(first - 0.5, line=dict(color=GREY, width=1))


def null_figure(null: Null, observed: Mapping[str, float]) -> go.Figure:
    """What the whole search finds when labels are shuffled, as bars, and what it found in truth, as diamonds.

    Args:
        null: from `analysis.permutation_null`.
        observed: category -> best specialist score with the true labels.
    """
    scores, shares = np.unique(null.scores.max(1), return_counts=True)
    shares = shares / shares.sum()
    at: dict[float, list[str]] = {}
    for name, score in observed.items():
        at.setdefault(score, []).append(name)
    fig = go.Figure(
        [
            go.Bar(
                x=scores,
                y=shares,
                name="shuffled labels",
                marker_color=GREY,
                hovertemplate="best score %{x:+d} in %{y:.1%} of shuffles<extra></extra>",
            ),
            go.Scatter(
                x=[*at],
                y=[0.02 * max(shares)] * len(at),
                text=["<br>".join(names) for names in at.values()],
                mode="markers+text",
                textposition="top center",
                name="true labels: the best of each category",
                cliponaxis=False,
                marker=dict(symbol="diamond", size=13, color=VERMILLION, line=dict(color="white", width=1)),
            ),
        ]
    )
    fig.update_xaxes(title="specialist score (texts inside the category that fire − texts outside)", dtick=1)
    fig.update_xaxes(range=[min(scores[0], *at) - 1, max(scores[-1], *at) + 1])
    fig.update_yaxes(title="share of shuffles", tickformat=".0%")
    subtitle = f"{len(null.scores):,} shuffles of the text labels, each searched over all features and categories"
    return finish(fig, "The best by chance, and the best in truth", 400, subtitle, margin=dict(t=115))


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
