"""Figures of phase 2: which features fire together."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from prism.visualization.style import (
    GREY,
    SEQUENTIAL,
    WIDTH,
    category_colours,
    category_order,
    category_title,
    colour_bar,
    finish,
    short_label,
)


def coactivation_heatmap(
    frame: pd.DataFrame,
    categories: Sequence[str] | None = None,
    measure: str = "Jaccard overlap",
    title: str = "Which features fire together",
) -> go.Figure:
    """A square of co-activation; the diagonal is left blank, since a feature always fires with itself.

    Args:
        frame: square, the features as index and as columns.
        categories: one a feature; written beside its number, with a line wherever the next has another.
        measure: what the numbers are, for the colour bar.
        title: the figure's title.
    """
    values = frame.to_numpy(dtype=float, copy=True)
    np.fill_diagonal(values, np.nan)
    kinds = list(categories) if categories is not None else None
    names = [short_label(f"{name} · {kinds[i]}" if kinds else name, 30) for i, name in enumerate(frame.index)]
    fig = go.Figure(
        go.Heatmap(
            z=values,
            colorscale=SEQUENTIAL,
            zmin=0,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            colorbar=colour_bar(measure),
            hovertemplate="%{y} with %{x}: %{z:.3f}<extra></extra>",
        )
    )
    for i in range(1, len(kinds or ())):
        if kinds[i] != kinds[i - 1]:
            fig.add_hline(i - 0.5, line=dict(color=GREY, width=1)).add_vline(i - 0.5, line=dict(color=GREY, width=1))
    ticks = dict(tickvals=list(range(len(names))), ticktext=names, ticks="", showgrid=False, tickfont=dict(size=12))
    side = int(np.clip(24 * len(names), 300, 600))
    fig.update_xaxes(title="feature", tickangle=-60 if len(names) > 8 or kinds else 0, **ticks)
    fig.update_yaxes(title="feature", autorange="reversed", **ticks)
    left, bottom = (170, 140) if kinds else (110, 90)
    return finish(
        fig,
        title,
        side + 95 + bottom,
        "the diagonal is left out: a feature always fires with itself",
        margin=dict(l=left, r=WIDTH - left - side, b=bottom),
    )


def coactivation_network(
    edges: pd.DataFrame,
    nodes: pd.DataFrame,
    seed: int = 0,
    title: str = "Features that fire together",
) -> go.Figure:
    """A graph of co-active features in a spring layout: near and thickly joined means often together.

    Features without a partner are not drawn (unless none has one); the subtitle counts them.

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
    joined = set(edges["source"]) | set(edges["target"]) or set(graph)
    graph.remove_nodes_from(set(graph) - joined)
    nodes, alone = nodes[nodes["feature"].isin(joined)], int((~nodes["feature"].isin(joined)).sum())
    graph.add_weighted_edges_from(edges[["source", "target", "jaccard"]].itertuples(index=False), weight="jaccard")
    place = _spread(nx.spring_layout(graph, weight="jaccard", seed=seed, iterations=200))
    fig = go.Figure()
    _edge_traces(fig, edges, place)
    _node_traces(fig, nodes, place)
    axis = dict(showgrid=False, zeroline=False, showticklabels=False, ticks="", title_font_size=13)
    fig.update_xaxes(title="position has no unit: the layout pulls joined features together", **axis)
    fig.update_yaxes(title="", **axis)
    subtitle = f"{len(edges)} pairs among {len(nodes)} features; {alone} features without a partner are not drawn"
    return finish(
        fig,
        title,
        420 + 8 * min(len(nodes), 32),
        subtitle,
        margin=dict(l=30, r=210, b=50),
        legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"),
    )


def _spread(place: dict, rounds: int = 300) -> dict:
    """Push apart nodes that stand so close that their labels would overlap; the rest of the layout stays."""
    if len(place) < 2:
        return place
    points = np.array(list(place.values()))
    points = (points - points.mean(0)) / max(np.abs(points - points.mean(0)).max(), 1e-9)
    near = min(0.3, 1.3 / np.sqrt(len(points)))
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
        fig.add_scatter(
            x=[x for a, b in ends for x in (a[0], b[0], None)] or [None],
            mode="lines",
            hoverinfo="skip",
            y=[y for a, b in ends for y in (a[1], b[1], None)] or [None],
            legendgroup="edges",
            legendgrouptitle_text="Jaccard overlap",
            name=f"{bounds[step]:.{digits}f} – {bounds[step + 1]:.{digits}f}",
            line=dict(width=2 + 2.5 * step, color="rgba(90,97,105,0.6)"),
        )
    middles = np.array([(place[a] + place[b]) / 2 for a, b in zip(edges["source"], edges["target"], strict=True)])
    counts = [f"<br>{c:,} tokens together" for c in edges["count"]] if "count" in edges else [""] * len(edges)
    hover = [
        f"{a} – {b}<br>Jaccard {j:.3f}{c}"
        for a, b, j, c in zip(edges["source"], edges["target"], edges["jaccard"], counts, strict=True)
    ]
    fig.add_scatter(
        x=middles[:, 0],
        y=middles[:, 1],
        mode="markers",
        marker=dict(size=12, opacity=0),
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _node_traces(fig: go.Figure, nodes: pd.DataFrame, place: dict) -> None:
    colours = category_colours(nodes["category"])
    for name in category_order(nodes["category"]):
        part = nodes[nodes["category"] == name]
        labels = part["label"] if "label" in part else [""] * len(part)
        hover = [f"feature {f}<br>{short_label(lab)}" for f, lab in zip(part["feature"], labels, strict=True)]
        fig.add_scatter(
            x=[place[f][0] for f in part["feature"]],
            y=[place[f][1] for f in part["feature"]],
            mode="markers+text",
            text=part["feature"].astype(str),
            textposition="top center",
            textfont=dict(size=12),
            cliponaxis=False,
            customdata=hover,
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
            legendgroup="nodes",
            legendgrouptitle_text="category",
            name=category_title(name),
            marker=dict(size=17, color=colours[name], line=dict(color="white", width=1.5)),
        )
