"""Phase 6c's figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from prism.features import FeatureMatrix
from prism.visualization.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, finish, short_label
from prism.visualization.tokens import marked


def depth_strip(
    matrices: Mapping[str, FeatureMatrix], features: Mapping[str, int], rows: slice, title: str = "One text"
) -> go.Figure:
    """The tokens of one passage, shaded by a feature of each SAE; the SAEs one under another.

    Args:
        matrices: of the same tokens.
        features: SAE's name -> feature.
        rows: the passage's rows in the matrices.
        title: the figure's title.
    """
    columns = {name: matrices[name].column(feature) for name, feature in features.items()}
    tokens = [short_label(marked(token), 12) for token in next(iter(matrices.values())).table["token"].iloc[rows]]
    fig = go.Figure()
    fig.add_heatmap(
        z=[column[rows] / max(column.max(), 1e-9) for column in columns.values()],
        y=[f"{name}, {feature} " for name, feature in features.items()],
        text=[tokens] * len(columns),
        texttemplate="%{text}",
        textfont=dict(size=11),
        colorscale=[[0.0, "#f4f6f8"], [1.0, ORANGE]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=6,
        showscale=False,
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return finish(fig, title, 300, "darker: more of the strongest activation that the feature has in our texts")


def match_figure(
    r: pd.Series,
    token: pd.Series,
    named: pd.Series,
    title: str = "A match, and what the token alone gives",
) -> go.Figure:
    """A point a feature: the correlation with its partner upwards, the control's across; above the line is context.

    Args:
        r, token: of each feature (the index), with its partner and by the token alone.
        named: features to name, drawn in colour; the index has the words.
        title: the figure's title.
    """
    fig = go.Figure()
    labels = {feature: f"{short_label(word)} {feature}" for word, feature in named.items()}
    words = [labels.get(feature, "") for feature in r.index]
    for shown, colour, size in ((False, GREY, 3), (True, VERMILLION, 9)):
        some = [n for n, word in enumerate(words) if bool(word) == shown]
        fig.add_scatter(
            x=np.asarray(token)[some],
            y=np.asarray(r)[some],
            mode="markers+text" if shown else "markers",
            text=[words[n] for n in some],
            textposition=["top left", "bottom center"] * len(words),
            marker=dict(size=size, color=colour, opacity=1 if shown else 0.5),
        )
    fig.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="correlation by the token alone", range=[-0.1, 1.02])
    fig.update_yaxes(title="correlation with the partner", range=[-0.1, 1.06])
    return finish(fig, title, 460, "above the line: more than the token gives", showlegend=False)


def share_curves(
    found: Mapping[str, Float[np.ndarray, " features"]],
    controls: Mapping[str, Float[np.ndarray, " features"]],
    bar: float,
    title: str = "How many features have a partner that correlates so much?",
) -> go.Figure:
    """The share of features whose correlation lies above each threshold: a line a place, a band for all controls.

    Args:
        found: place -> each feature's correlation with its partner there.
        controls: place -> the same for the control.
        bar: drawn as a vertical line.
        title: the figure's title.
    """
    at, fig = np.linspace(0, 1, 41), go.Figure()
    band = np.array([_above(controls[name], at) for name in found])
    for edge, fill in ((band.min(axis=0), None), (band.max(axis=0), "tonexty")):
        fig.add_scatter(x=at, y=edge, mode="lines", line=dict(color=GREY, width=0.5), fill=fill, showlegend=bool(fill))
    fig.data[1].name = "the token alone, all places"
    for i, name in enumerate(found):
        line = dict(color=(GREEN, BLUE, VERMILLION, ORANGE)[i % 4], width=2.5)
        fig.add_scatter(x=at, y=_above(found[name], at), mode="lines", name=short_label(name), line=line)
    fig.add_vline(bar, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="correlation with the partner, on fresh texts", range=[0, 1])
    fig.update_yaxes(title="features above it (%)", range=[0, 100])
    return finish(fig, title, 420, f"grey: partners by the token alone, contexts exchanged; vertical line: {bar:g}")


def _above(values: Float[np.ndarray, " features"], at: Float[np.ndarray, " bars"]) -> Float[np.ndarray, " bars"]:
    """Per cent of the values above each bar."""
    return 100 * (np.asarray(values)[:, None] > at).mean(axis=0)
