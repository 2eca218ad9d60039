"""Figures of phase 4: training curves, the architectures' fronts, broken runs beside a healthy one, densities."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, GREY, INK, OKABE_ITO, ULTRALOW, as_array, finish, short_label

COLOURS = (*OKABE_ITO[:6], INK)  # yellow is too pale for a line
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross")
CURVES = {
    "loss": "loss (log scale)",
    "l0": "L0: active features a token (log scale)",
    "explained_variance": "explained variance",
    "dead": "dead features",
}
MEASURES = {
    "loss": "loss<br>(log)",
    "explained_variance": "explained<br>variance",
    "l0": "L0<br>(log)",
    "dead": "dead<br>features",
    "decoder_norm": "decoder<br>norm",
    "activation": "mean<br>activation",
    "input_norm": "mean input<br>norm",
    "largest_input_norm": "largest input<br>norm (log)",
}
AXIS_TITLES = {
    "l0": "L0: active features a token (log scale)",
    "explained_variance": "explained variance",
    "delta_ce": "ΔCE: rise of the loss (nats a token)",
    "dead": "dead features",
}
LOWEST_EV = -0.1  # a panel goes no lower: one leap to −5 would flatten all other curves


def _logarithmic(name: str) -> bool:
    return name in ("loss", "l0", "largest_input_norm")


def _ev_range(values: pd.Series) -> list[float]:
    return [max(LOWEST_EV, float(values.min()) - 0.05), min(1.05, float(values.max()) + 0.05)]


def training_curves(
    logs: Mapping[str, pd.DataFrame],
    title: str = "Loss, sparsity, fit and dead features over training",
) -> go.Figure:
    """Loss, L0, explained variance and dead features over the steps; one line a run.

    Args:
        logs: label -> the run's log (`Monitor.frame()`, or a run of `load_broken_runs`); one to seven read well.
        title: the figure's title.

    Raises:
        ValueError: no log, or one without a column that is drawn.
    """
    _refuse_missing(logs, ("step", *CURVES))
    fig = make_subplots(2, 2, subplot_titles=list(CURVES.values()), horizontal_spacing=0.1, vertical_spacing=0.16)
    for i, (label, log) in enumerate(logs.items()):
        line = dict(color=COLOURS[i % 7], dash=DASHES[i // 7 % 4], width=2)
        for panel, name in enumerate(CURVES):
            fig.add_trace(
                go.Scatter(
                    x=log["step"],
                    y=_drawable(log[name], name),
                    mode="lines",
                    line=line,
                    name=short_label(label),
                    legendgroup=label,
                    showlegend=panel == 0,
                    hovertemplate=f"{short_label(label)}, step %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                panel // 2 + 1,
                panel % 2 + 1,
            )
    fig.update_annotations(font=dict(size=14, color=INK))
    for name, axis in (("loss", (1, 1)), ("l0", (1, 2))):
        values = np.concatenate([_drawable(log[name], name).dropna() for log in logs.values()])
        fig.update_yaxes(**_log_axis(values), row=axis[0], col=axis[1])
    fig.update_yaxes(range=_ev_range(pd.concat([log["explained_variance"] for log in logs.values()])), row=2, col=1)
    fig.update_yaxes(**_count_axis(max(log["dead"].max() for log in logs.values())), row=2, col=2)
    fig.update_xaxes(title=dict(text="step", font=dict(size=13)), row=2)
    legend = dict(x=0, xanchor="left", y=-0.13, yanchor="top")
    cut = any(log["explained_variance"].min() < LOWEST_EV for log in logs.values())
    note = f"explained variance is cut off below −{-LOWEST_EV:g}" if cut else ""
    return finish(fig, title, 590, note, margin=dict(b=110), legend=legend, showlegend=len(logs) > 1)


def _refuse_missing(logs: Mapping[str, pd.DataFrame], columns: tuple[str, ...]) -> None:
    if not logs:
        raise ValueError("no log to draw: give at least one")
    for label, log in logs.items():
        if missing := [name for name in columns if name not in log]:
            raise ValueError(f"the log '{label}' has no column '{missing[0]}'; a log needs {', '.join(columns)}")


def _drawable(values: pd.Series, name: str) -> pd.Series:
    """A logarithmic axis has no place for 0: a gap there."""
    return values.where(values > 0) if _logarithmic(name) else values


def _log_axis(values: Float[np.ndarray, " n"]) -> dict:
    """A log axis over the values with ticks at 1, 2 and 5 of each decade: more in a narrow range, fewer in a wide."""
    low, high = (float(np.log10(v)) for v in (values.min(), values.max())) if len(values) else (0.0, 1.0)
    low, high = (low - 0.3, high + 0.3) if high - low < 0.3 else (low, high)
    digits = (1, 1.5, 2, 3, 4, 5, 7) if high - low < 0.8 else (1, 2, 5) if high - low < 2 else (1,)
    marks = [m * 10.0**e for e in range(-9, 13) for m in digits if low <= np.log10(m * 10.0**e) <= high]
    edge = 0.06 * (high - low)
    return dict(type="log", range=[low - edge, high + edge], tickvals=marks, ticktext=[f"{m:,.10g}" for m in marks])


def _count_axis(most: float) -> dict:
    """An axis from 0 for whole numbers: no ticks between them."""
    return dict(range=[0, 1.08 * max(most, 1)], dtick=1) if most < 5 else dict(rangemode="tozero")


def diagnosis_figure(
    frame: pd.DataFrame,
    healthy: str = "healthy",
    title: str = "Six broken runs, the healthy one in grey behind",
) -> go.Figure:
    """A column a run, a row a measure; the healthy run in grey in every panel, and one scale along each row.

    Args:
        frame: from `exercises.phase_4.load_broken_runs`: columns `run`, `step` and the measures.
        healthy: the run that is drawn behind all others.
        title: the figure's title.

    Raises:
        ValueError: no run of that name, or no other.
    """
    logs = dict(list(frame.groupby("run")))
    if healthy not in logs or len(logs) < 2:
        raise ValueError(f"runs are {', '.join(logs)}: there must be '{healthy}' and at least one other")
    behind, names = logs.pop(healthy), [name for name in MEASURES if name in frame]
    heads = [f"<b>{short_label(run)}</b>" for run in logs]
    fig = make_subplots(
        len(names),
        len(logs),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.012,
        vertical_spacing=0.016,
        column_titles=heads,
    )
    for row, name in enumerate(names, start=1):
        for column, (run, log) in enumerate(logs.items(), start=1):
            for part, colour, words in ((behind, "#b4bac1", healthy), (log, BLUE, run)):
                fig.add_trace(
                    go.Scatter(
                        x=part["step"],
                        y=_drawable(part[name], name),
                        mode="lines",
                        showlegend=False,
                        line=dict(color=colour, width=3 if part is behind else 1.6),
                        hovertemplate=f"{short_label(words)}, step %{{x}}: %{{y:.4g}}<extra></extra>",
                    ),
                    row,
                    column,
                )
        fig.update_yaxes(**_measure_axis(frame[name], name), row=row)
        fig.update_yaxes(title=dict(text=MEASURES[name], font=dict(size=13), standoff=6), row=row, col=1)
    fig.update_annotations(font=dict(size=15, color=INK))
    fig.update_yaxes(tickfont=dict(size=11), automargin=False)
    fig.update_xaxes(tickfont=dict(size=11), nticks=4)
    fig.update_xaxes(title=dict(text="step", font=dict(size=13)), row=len(names))
    cut = "explained_variance" in frame and frame["explained_variance"].min() < LOWEST_EV
    note = "one scale along each row" + (f"; explained variance is cut off below −{-LOWEST_EV:g}" if cut else "")
    return finish(fig, title, 130 + 95 * len(names), note, margin=dict(t=105, l=105))


def _measure_axis(values: pd.Series, name: str) -> dict:
    if _logarithmic(name):
        return _log_axis(_drawable(values, name).dropna().to_numpy(float))
    if name == "explained_variance":
        return dict(range=_ev_range(values), nticks=4)
    low, high = float(values.min()), float(values.max())
    low = 0.0 if name != "input_norm" else low - 0.1 * (high - low)
    return dict(range=[low, high + 0.08 * (high - low or 1)], nticks=4)


def front_figure(
    frame: pd.DataFrame,
    x: str = "l0",
    y: str = "explained_variance",
    label: str | Mapping[str, str] = "member",
    title: str = "What each architecture reaches at each sparsity",
) -> go.Figure:
    """One line an architecture through its points; x in powers of two, error bars where the frame has an interval.

    Args:
        frame: one row an SAE: `member`, x and y; `<y>_low` and `<y>_high` if there are intervals.
        x: column of the horizontal axis, above 0.
        y: column of the vertical axis.
        label: the column that names a line, or member -> the words for it.
        title: the figure's title.

    Raises:
        ValueError: a column that the frame has not.
    """
    by = label if isinstance(label, str) else "member"
    words = {} if isinstance(label, str) else dict(label)
    if missing := [name for name in (by, x, y) if name not in frame]:
        raise ValueError(f"no column '{missing[0]}' in this frame; it has {', '.join(map(str, frame.columns))}")
    fig, spread = go.Figure(), {f"{y}_low", f"{y}_high"} <= set(frame)
    last = frame.sort_values(x).groupby(by, sort=False)[y].last()  # the legend stands in the order of the lines' ends
    place = {name: rank for rank, name in enumerate(last.sort_values(ascending=False).index)}
    for i, (name, part) in enumerate(frame.groupby(by, sort=False)):
        part, colour = part.sort_values(x), COLOURS[i % 7]
        bars = (
            dict(
                type="data",
                symmetric=False,
                thickness=1.5,
                width=4,
                array=part[f"{y}_high"] - part[y],
                arrayminus=part[y] - part[f"{y}_low"],
            )
            if spread
            else None
        )
        fig.add_scatter(
            x=part[x],
            y=part[y],
            error_y=bars,
            mode="lines+markers",
            name=_wrapped(words.get(name, name)),
            legendrank=place[name],
            line=dict(color=colour, width=2.5, dash=DASHES[i // 7 % 4]),
            marker=dict(size=9, symbol=SYMBOLS[i % 7] + ("-open" if i >= 7 else "")),
            hovertemplate=f"{short_label(words.get(name, name))}<br>{x} %{{x:.4g}}, {y} %{{y:.4g}}<extra></extra>",
        )
    fig.update_xaxes(title=AXIS_TITLES.get(x, x), **_log2_axis(frame[x].to_numpy(float)))
    fig.update_yaxes(title=AXIS_TITLES.get(y, y))
    legend = dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top")
    return finish(fig, title, 470, "bars: 95 % intervals" if spread else "", legend=legend, showlegend=True)


def _wrapped(name: object, width: int = 22) -> str:
    """A name beside a figure, over as many lines as it needs."""
    return "<br>".join(short_label(line) for line in textwrap.wrap(str(name), width)) or " "


def _log2_axis(values: Float[np.ndarray, " n"]) -> dict:
    """A log axis with a tick at each power of two."""
    low, high = np.log2(values.min()), np.log2(values.max())
    marks = [2.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1)]
    edge = max(0.15, 0.06 * (high - low))
    ends = [(end * np.log10(2)) for end in (low - edge, high + edge)]
    return dict(type="log", range=ends, tickvals=marks, ticktext=[f"{mark:g}" for mark in marks])


def density_humps(
    densities: Mapping[str, Float[np.ndarray, " d_sae"]],
    n_tokens: int | None = None,
    title: str = "How often the features of each SAE fire",
) -> go.Figure:
    """A histogram of log10 density for each SAE, below one another on one scale; each notes its dead share.

    Args:
        densities: name -> share of tokens on which each feature fires; widths may differ.
        n_tokens: tokens in the sample, whose rarest possible density is then marked.
        title: the figure's title.

    Raises:
        ValueError: nothing to draw.
    """
    if not densities:
        raise ValueError("no densities to draw: give at least one SAE's")
    values = {name: as_array(part).astype(float) for name, part in densities.items()}
    lowest = min([np.log10(part[part > 0].min()) for part in values.values() if (part > 0).any()] or [-4.0])
    left = max(np.log10(ULTRALOW) - 2, min(lowest, -np.log10(n_tokens) if n_tokens else 0.0) - 0.25)
    edges = np.linspace(left, 0, 60)
    fig = make_subplots(len(values), 1, shared_xaxes=True, vertical_spacing=min(0.04, 0.3 / len(values)))
    for row, (name, density) in enumerate(values.items(), start=1):
        live = density[density > 0]
        shares = np.histogram(np.log10(live), edges)[0] / max(density.size, 1)
        top = max(float(shares.max()), 1e-9)
        fig.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=shares,
                width=np.diff(edges),
                showlegend=False,
                marker=dict(color=COLOURS[(row - 1) % 7], line=dict(width=0)),
                hovertemplate="density around 10^%{x:.2f}: %{y:.2%}<extra></extra>",
            ),
            row,
            1,
        )
        words = (
            f"<b>{_wrapped(name)}</b><br>{np.mean(density == 0):.1%} of {density.size:,} dead<br>"
            f"median of the others {np.median(live) if live.size else 0:.2g}"
        )
        fig.add_annotation(
            x=1.015,
            xref="paper",
            xanchor="left",
            y=top / 2,
            align="left",
            text=words,
            showarrow=False,
            font=dict(size=13),
            row=row,
            col=1,
        )
        fig.layout.annotations[-1].update(xref="paper", x=1.015)  # add_annotation(row=...) puts it on the panel's axis
        fig.update_yaxes(range=[0, 1.1 * top], row=row)
        if n_tokens:
            fig.add_vline(-np.log10(n_tokens), line=dict(color=GREY, dash="dash", width=1.5), row=row, col=1)
    fig.update_yaxes(tickformat=".0%", nticks=4, tickfont=dict(size=12))
    fig.update_yaxes(title=dict(text="share of features", font=dict(size=13)), row=(len(values) + 1) // 2)
    fig.update_xaxes(range=[left, 0.05], dtick=1)
    fig.update_xaxes(title="log10 density (share of tokens on which a feature fires)", row=len(values))
    notes = ["each row has its own scale"] * (len(values) > 1)
    notes += [f"dashed: one token in {n_tokens:,}, below which nothing can be seen"] if n_tokens else []
    return finish(fig, title, 130 + 95 * len(values), "; ".join(notes), bargap=0, margin=dict(r=205))
