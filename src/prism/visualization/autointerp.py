"""Figures of phase 6d: how well explanations hold on text that they were not made from."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, finish

PANELS = {
    "detection": "detection:<br>does it fire here?",
    "detection_hard": "detection, hard:<br>same token elsewhere",
    "fuzzing": "fuzzing:<br>is this the token?",
    "fuzzing_hard": "fuzzing, hard:<br>same token elsewhere",
}
COLOURS = (BLUE, VERMILLION, ORANGE, GREEN, PURPLE, SKY)  # in the order of the populations
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def explanation_scores(
    summary: pd.DataFrame, title: str = "Explanations on held-out text: own against another unit's"
) -> go.Figure:
    """Mean scores of every population, with intervals, beside those under shuffled explanations.

    Args:
        summary: from `autointerp.summarise`.
        title: the figure's title.

    Raises:
        ValueError: an empty summary.
    """
    scores = [name for name in PANELS if (summary["score"] == name).any()]
    if not scores:
        raise ValueError("the summary holds no score; make it with autointerp.summarise")
    names = list(dict.fromkeys(summary["population"]))
    fig = make_subplots(
        1, len(scores), shared_yaxes=True, subplot_titles=[PANELS[name] for name in scores], horizontal_spacing=0.02
    )
    fig.update_annotations(font=dict(size=14, color=INK))
    for column, score in enumerate(scores, start=1):
        part = summary[summary["score"] == score].set_index("population").reindex(names).dropna().reset_index()
        colours = [COLOURS[names.index(name) % len(COLOURS)] for name in part["population"]]
        error = dict(
            type="data",
            symmetric=False,
            array=part["high"] - part["mean"],
            thickness=2,
            width=4,
            arrayminus=part["mean"] - part["low"],
            color=GREY,
        )
        fig.add_scatter(
            x=part["mean"],
            y=part["population"],
            mode="markers",
            error_x=error,
            cliponaxis=False,
            marker=dict(size=11, color=colours),
            name="own explanation",
            showlegend=column == 1,
            legendgroup="own",
            hovertemplate="%{y}: %{x:.3f}",
            row=1,
            col=column,
        )
        fig.add_scatter(
            x=part["shuffled"],
            y=part["population"],
            mode="markers",
            cliponaxis=False,
            marker=dict(size=11, symbol="x-thin", color=INK, line=dict(width=2, color=INK)),
            name="another unit's explanation",
            showlegend=column == 1,
            legendgroup="other",
            hovertemplate="%{y}, shuffled: %{x:.3f}",
            row=1,
            col=column,
        )
        fig.add_vline(0.5, line=dict(color=INK, dash="dot", width=1.5), row=1, col=column)
    low = min(summary["low"].min(), summary["shuffled"].min(), 0.48)
    fig.update_xaxes(range=[low - 0.02, summary["high"].max() + 0.03], dtick=0.1, tickformat=".1f")
    fig.update_xaxes(title=dict(text="balanced accuracy", font=dict(size=12)), tickfont=dict(size=12))
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return finish(
        fig,
        title,
        190 + 55 * len(names),
        "bars: 95 % over units; dotted: 'always no'",
        margin=dict(t=150, l=150),
        legend=dict(y=1.24),
    )


def score_by_length(
    table: pd.DataFrame, title: str = "How long a list of tokens must be to describe a unit"
) -> go.Figure:
    """Mean detection against the number of tokens that an explanation may list, a line for each population.

    Args:
        table: columns population, terms (tokens allowed), mean, low, high.
        title: the figure's title.
    """
    return _lines(
        table,
        "terms",
        title,
        dict(
            title="tokens that the explanation may list (log scale)",
            type="log",
            tickvals=sorted(table["terms"].unique()),
        ),
        "detection (balanced accuracy)",
        0.5,
    )


def found_figure(table: pd.DataFrame, title: str = "How often firings are found, by their strength") -> go.Figure:
    """Share of firing windows that the rules detect, against the strength of the firing.

    Args:
        table: columns population, quantile (0 the weakest), mean, low, high.
        title: the figure's title.
    """
    shown = table.assign(quantile=table["quantile"] + 1)
    return _lines(
        shown,
        "quantile",
        title,
        dict(title="quantile of the activation (1: weakest firings)", dtick=1),
        "share of firing windows found",
        None,
    )


def _lines(table: pd.DataFrame, x: str, title: str, x_axis: Mapping, y_title: str, chance: float | None) -> go.Figure:
    """A line with an error bar at each point for every population."""
    fig = go.Figure()
    for place, (name, part) in enumerate(table.groupby("population", sort=False)):
        colour = COLOURS[place % len(COLOURS)]
        error = dict(
            type="data",
            symmetric=False,
            array=part["high"] - part["mean"],
            arrayminus=part["mean"] - part["low"],
            thickness=1.2,
            width=3,
        )
        fig.add_scatter(
            x=part[x],
            y=part["mean"],
            error_y=error,
            mode="lines+markers",
            name=str(name),
            marker=dict(size=8, symbol=SYMBOLS[place % len(SYMBOLS)]),
            line=dict(color=colour, width=2),
            hovertemplate="%{y:.3f}",
        )
    if chance is not None:
        fig.add_hline(chance, line=dict(color=INK, dash="dot", width=1.5))
    fig.update_xaxes(**x_axis)
    fig.update_yaxes(title=y_title)
    return finish(fig, title, 430, "bars: 95 % over units" + ("; dotted: 'always no'" if chance is not None else ""))
