"""Figures of phase 4's comparison: the scores of many neurons and features, and one of each side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML
from plotly.subplots import make_subplots

from prism.analysis import Pair, example_rows, purity
from prism.analysis.monosemanticity import CONTROL, FEATURE, NEURON
from prism.features import FeatureMatrix
from prism.visualization.style import BLUE, GREY, INK, VERMILLION, category_title, finish
from prism.visualization.tokens import example, templates

SCORE_TITLES = {
    "category_purity": "category purity",
    "token_purity": "token purity",
    "category_entropy": "category entropy",
    "token_entropy": "token entropy",
    "intruder": "intruder found<br>(by characters)",
    "intruder_embedding": "intruder found<br>(by embeddings)",
}
UNITS = {"purity": "share of the examples", "entropy": "bits", "intruder": "share of the draws (dotted: chance)"}
KIND_COLOURS = {NEURON: VERMILLION, FEATURE: BLUE, CONTROL: GREY}
CHANCE = 0.2  # of the intruder test, one window in five


def unit_scores_figure(
    frame: pd.DataFrame,
    scores: Sequence[str] | None = None,
    pair: Pair | None = None,
    title: str = "Is a feature about one thing more often than a neuron is?",
) -> go.Figure:
    """Every unit as a dot, score by score: neurons, features and random tokens side by side, the medians as bars.

    Args:
        frame: from `analysis.compare_units`.
        scores: columns of it, up to four; by default the purities and the intruder tests that were run.
        pair: from `analysis.choose_pair`; its two units get a ring.
        title: the figure's title.

    Raises:
        ValueError: a score that the frame has not.
    """
    known = [name for name in SCORE_TITLES if name in frame and not frame[name].isna().any()]
    scores = [name for name in known if "entropy" not in name] if scores is None else list(scores)
    if unknown := [name for name in scores if name not in known]:
        raise ValueError(f"no score '{unknown[0]}' in this frame; choose from {', '.join(known)}")
    fig = make_subplots(1, len(scores), subplot_titles=[SCORE_TITLES[name] for name in scores], horizontal_spacing=0.07)
    fig.update_annotations(font=dict(size=14, color=INK))
    kinds = [kind for kind in KIND_COLOURS if (frame["kind"] == kind).any()]
    for column, score in enumerate(scores, start=1):
        parts = {kind: frame[frame["kind"] == kind] for kind in kinds}
        for trace in _strips(parts, score, pair):
            fig.add_trace(trace, 1, column)
        medians = {kind: float(part[score].median()) for kind, part in parts.items()}
        _axes(fig, score, column, medians)
    counts = ", ".join(f"{(frame['kind'] == kind).sum():,} {_plural(kind)}" for kind in kinds)
    ring = "; rings: the pair shown as an example" if pair is not None else ""
    return finish(
        fig, title, 480, f"{counts}; bars and bold numbers: medians{ring}", showlegend=False, margin=dict(t=130, b=80)
    )


def _plural(kind: str) -> str:
    return "sets of random tokens" if kind == CONTROL else f"{kind}s"


def _strips(parts: Mapping[str, pd.DataFrame], score: str, pair: Pair | None) -> Iterator[go.Scatter]:
    """A panel: for each kind its dots, its median, and a ring round the unit of the pair."""
    levels = {kind: np.round(part[score].to_numpy(float) * 40) for kind, part in parts.items()}
    units = [level for kind, level in levels.items() if kind != CONTROL] or list(levels.values())
    most = max(np.unique(level, return_counts=True)[1].max() for level in units)  # the control would make these thin
    for place, (kind, part) in enumerate(parts.items()):
        values, units = part[score].to_numpy(float), part["unit"].to_numpy(np.int32)
        x, middle = place + 0.4 * _spread(levels[kind], most), float(np.median(values))
        yield go.Scatter(
            x=x,
            y=values,
            mode="markers",
            customdata=units,
            name=kind,  # numbers are smaller than texts
            hovertemplate=f"{kind} %{{customdata}}: %{{y:.3g}}",
            marker=dict(size=4, color=KIND_COLOURS[kind], opacity=0.6),
            cliponaxis=False,
        )
        yield go.Scatter(
            x=[place - 0.42, place + 0.42],
            y=[middle] * 2,
            mode="lines",
            name=f"{kind}: median",
            line=dict(color=INK, width=3),
            hovertemplate="median %{y:.3g}",
        )
        chosen = np.flatnonzero(part["unit"] == getattr(pair, kind, None))
        if chosen.size:
            ring = dict(size=12, symbol="circle-open", color=INK, line=dict(width=2.5))
            words = [f"{kind} {unit}" for unit in units[chosen]]
            yield go.Scatter(
                x=x[chosen],
                y=values[chosen],
                mode="markers",
                name="the pair",
                marker=ring,
                text=words,
                hovertemplate="%{text}: %{y:.3g}",
            )


def _spread(levels: np.ndarray, most: int) -> np.ndarray:
    """Sideways places from −1 to 1: dots of one level lie side by side, wide as a histogram's bar; `most` fill it."""
    out = np.zeros(len(levels))
    for level in np.unique(levels):
        at = np.flatnonzero(levels == level)
        width = min(1.0, (len(at) - 1) / max(most - 1, 1))
        out[at] = np.linspace(-width, width, len(at)) if len(at) > 1 else 0.0
    return out


def _axes(fig: go.Figure, score: str, column: int, medians: Mapping[str, float]) -> None:
    unit = next(words for part, words in UNITS.items() if part in score)
    labels = [f"<b>{value:.2f}</b><br>{kind.replace(' ', '<br>')}" for kind, value in medians.items()]
    fig.update_xaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[-0.55, len(labels) - 0.45],
        ticks="",
        tickangle=0,
        showgrid=False,
        tickfont=dict(size=12),
        col=column,
    )
    fig.update_yaxes(title=dict(text=unit, font=dict(size=13), standoff=4), tickfont=dict(size=12), col=column)
    if "entropy" in score:
        fig.update_yaxes(rangemode="tozero", col=column)
    else:
        fig.update_yaxes(range=[0, 1.04], dtick=0.2, col=column)
    if score.startswith("intruder"):
        fig.add_hline(CHANCE, line=dict(color=INK, dash="dot", width=1.5), row=1, col=column)


def before_after(
    neurons: FeatureMatrix,
    features: FeatureMatrix,
    pair: Pair,
    k: int = 20,
    shown: int = 8,
    which: str = "top",
    seed: int = 0,
) -> HTML:
    """A neuron's texts on the left, a feature's on the right: before and after the SAE.

    Args:
        neurons: from `analysis.neuron_features`.
        features: of the SAE, on the same tokens.
        pair: from `analysis.choose_pair`, or any `Pair`.
        k: examples that the line above the texts counts.
        shown: how many of them are shown, the first ones.
        which: 'top' or 'any', as in `analysis.example_rows`.
        seed: of 'any'.

    Returns:
        An object that a notebook displays; `.data` holds the HTML. It follows the reader's light or dark setting.

    Raises:
        ValueError, IndexError: as `analysis.example_rows`.
    """
    units = [
        _examples(f"Neuron {pair.neuron}", neurons, pair.neuron, k, shown, which, seed),
        _examples(f"Feature {pair.feature}", features, pair.feature, k, shown, which, seed),
    ]
    page = templates().get_template("before_after.html")
    return HTML(page.render(units=units, kind="top" if which == "top" else "sampled", k=k))


def _examples(
    head: str, matrix: FeatureMatrix, unit: int, k: int, shown: int, which: str, seed: int
) -> dict[str, object]:
    """One unit: how far its examples agree, and the first of them."""
    rows = example_rows(matrix, [unit], k, which, seed)
    scores, column = purity(rows, matrix.table).iloc[0], matrix.column(unit)
    return {
        "head": head,
        "density": f"{np.mean(column > 0):.1%}",
        "category": category_title(scores["category"]),
        "category_purity": f"{scores['category_purity']:.0%}",
        "token": scores["token"],
        "token_purity": f"{scores['token_purity']:.0%}",
        "examples": [example(matrix, column, row) for row in rows[0, :shown]],
    }
