"""The figure of phase 5: one text's features, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from prism.visualization.style import SEQUENTIAL, as_array, colour_bar, finish, short_label
from prism.visualization.tokens import visible


def sentence_heatmap(
    shares: Float[np.ndarray, "features tokens"],
    tokens: Sequence[str],
    labels: Sequence[object],
    title: str = "Your sentence, token by token",
) -> go.Figure:
    """Features × the tokens of a text.

    Args:
        shares: each feature's activation on each token, as a share of its largest one in a sample.
        tokens: the text, token by token.
        labels: one a feature.
        title: the figure's title.

    Raises:
        ValueError: tokens or labels that do not match the array's shape.
    """
    shares = as_array(shares)
    if shares.shape != (len(labels), len(tokens)):
        raise ValueError(
            f"shares are {shares.shape}, but there are {len(labels)} labels and {len(tokens)} tokens: "
            "they need the shape (features, tokens)"
        )
    fig = go.Figure(
        go.Heatmap(
            z=shares,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar=colour_bar("share of its maximum"),
            hovertemplate="%{y}, token %{x}: %{z:.2f}<extra></extra>",
        )
    )
    size = 13 if len(tokens) <= 45 else 10
    fig.update_xaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[visible(token) for token in tokens],
        side="top",
        tickangle=-60,
        showgrid=False,
        ticks="",
        tickfont=dict(size=size),
    )
    fig.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[short_label(label, 40) for label in labels],
        autorange="reversed",
        ticks="",
        showgrid=False,
        tickfont=dict(size=12),
    )
    return finish(fig, title, 190 + 26 * len(labels), margin=dict(t=140, b=20))
