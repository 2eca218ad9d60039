"""Figures of phase 4: a training run's curves, and broken runs beside a healthy one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, INK, OKABE_ITO, finish, short_label

COLOURS = (*OKABE_ITO[:6], INK)  # yellow is too pale for a line
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
        line = dict(color=COLOURS[i % 7], width=2)
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
        frame: from `exercises.load_broken_runs`: columns `run`, `step` and the measures.
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
