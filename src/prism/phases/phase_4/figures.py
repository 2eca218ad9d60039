"""Figures of phase 4: training runs' curves, and broken runs beside a healthy one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.visualization.style import BLUE, INK, OKABE_ITO, finish, short_label

CURVES = {"loss": "loss (log scale)", "explained_variance": "explained variance", "dead": "dead features"}
MEASURES = {
    "loss": "loss<br>(log)",
    "explained_variance": "explained<br>variance",
    "l0": "L0<br>(log)",
    "dead": "dead<br>features",
    "decoder_norm": "decoder<br>norm",
    "activation": "mean<br>activation",
    "largest_input_norm": "largest input<br>norm (log)",
}
LOGARITHMIC = ("loss", "l0", "largest_input_norm")
LOWEST_EV = -0.1  # a panel goes no lower: one leap to −5 would flatten all other curves
PALE = "#b4bac1"


def training_curves(logs: Mapping[str, pd.DataFrame], title: str = "Loss, fit and dead features over training"):
    """Loss, explained variance and dead features over the steps; one line a run.

    Args:
        logs: label -> the run's log, `Monitor.frame()`.
        title: the figure's title.
    """
    fig = make_subplots(1, 3, subplot_titles=list(CURVES.values()), horizontal_spacing=0.08)
    for colour, (label, log) in zip(OKABE_ITO, logs.items(), strict=False):
        for column, name in enumerate(CURVES, start=1):
            line = _line(log, name, label, dict(color=colour, width=2))
            fig.add_trace(line.update(name=short_label(label), showlegend=column == 1), 1, column)
    for column, name in enumerate(CURVES, start=1):
        fig.update_yaxes(**_axis(pd.concat([log[name] for log in logs.values()]), name), col=column)
    fig.update_annotations(font=dict(size=14, color=INK))
    fig.update_xaxes(title=dict(text="step", font=dict(size=13)))
    legend = dict(x=0, xanchor="left", y=-0.25, yanchor="top")
    return finish(fig, title, 380, legend=legend, showlegend=True, margin=dict(b=85))


def diagnosis_figure(frame: pd.DataFrame, title: str = "Six broken runs in blue, the healthy one in grey") -> go.Figure:
    """A column a run, a row a measure; the healthy run in grey in every panel, and one scale along each row.

    Args:
        frame: from `exercises.load_broken_runs`: columns `run`, `step` and the measures.
        title: the figure's title.
    """
    logs = dict(list(frame.groupby("run")))
    behind, size = logs.pop("healthy"), (len(MEASURES), frame["run"].nunique() - 1)
    heads = [f"<b>{run}</b>" for run in logs]
    gaps = dict(horizontal_spacing=0.012, vertical_spacing=0.016)
    fig = make_subplots(*size, shared_xaxes=True, shared_yaxes=True, column_titles=heads, **gaps)
    for row, (name, words) in enumerate(MEASURES.items(), start=1):
        for column, (run, log) in enumerate(logs.items(), start=1):
            for part, label, line in (
                (behind, "healthy", dict(color=PALE, width=5)),
                (log, run, dict(color=BLUE, width=1.8)),
            ):
                fig.add_trace(_line(part, name, label, line), row, column)
        fig.update_yaxes(**_axis(frame[name], name), row=row)
        fig.update_yaxes(title=dict(text=words, font=dict(size=13), standoff=6), row=row, col=1)
    fig.update_annotations(font=dict(size=15, color=INK))
    fig.update_yaxes(tickfont=dict(size=11), automargin=False)
    fig.update_xaxes(tickfont=dict(size=11), nticks=4)
    fig.update_xaxes(title=dict(text="step", font=dict(size=13)), row=len(MEASURES))
    note = f"one scale along each row; explained variance is cut off below −{-LOWEST_EV:g}"
    return finish(fig, title, 130 + 95 * len(MEASURES), note, margin=dict(t=105, l=105))


def _line(log: pd.DataFrame, name: str, label: str, line: dict) -> go.Scatter:
    """One measure of one run; a logarithmic axis has no place for 0, so a gap is there."""
    y = log[name].where(log[name] > 0) if name in LOGARITHMIC else log[name]
    hover = f"{short_label(label)}, step %{{x}}: %{{y:.4g}}<extra></extra>"
    return go.Scatter(x=log["step"], y=y, mode="lines", line=line, hovertemplate=hover, showlegend=False)


def _axis(values: pd.Series, name: str) -> dict:
    """What the axis of a measure is like."""
    low, high = float(values.min()), float(values.max())
    if name in LOGARITHMIC:
        return _log_axis(values[values > 0].to_numpy(float))
    if name == "explained_variance":
        return dict(range=[max(LOWEST_EV, low - 0.05), min(1.05, high + 0.05)], nticks=4)
    return dict(range=[-0.05 * (high or 1), high + 0.08 * (high or 1)], nticks=4)  # a line at zero is seen too


def _log_axis(values: Float[np.ndarray, " n"]) -> dict:
    """A log axis over the values with ticks at 1, 2 and 5 of each decade: more in a narrow range, fewer in a wide."""
    low, high = (float(np.log10(v)) for v in (values.min(), values.max())) if len(values) else (0.0, 1.0)
    low, high = (low - 0.3, high + 0.3) if high - low < 0.3 else (low, high)
    digits = (1, 1.5, 2, 3, 4, 5, 7) if high - low < 0.8 else (1, 2, 5) if high - low < 2 else (1,)
    marks = [m * 10.0**e for e in range(-9, 13) for m in digits if low <= np.log10(m * 10.0**e) <= high]
    edge = 0.06 * (high - low)
    return dict(type="log", range=[low - edge, high + edge], tickvals=marks, ticktext=[f"{m:,.10g}" for m in marks])
