"""Phase 6d: detection of every feature, describer by describer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from prism.analysis import confidence_interval
from prism.phases.phase_6d.methods import DESCRIBERS
from prism.visualization.style import BLUE, GREY, INK, ORANGE, PURPLE, finish

COLOURS = dict(zip(DESCRIBERS.values(), (ORANGE, BLUE, PURPLE, GREY), strict=True))


def describers_figure(table: pd.DataFrame, title: str, seed: int = 0) -> go.Figure:
    """Detection of every feature as a dot, describer by describer, with the mean and its 95 % interval.

    Args:
        table: from `judged`.
        title: the figure's title.
        seed: of the dots' places across, and of the intervals.
    """
    names = list(dict.fromkeys(table["of"]))
    panels = {"detection": "beside random silent windows", "detection_hard": "beside the same token, silent"}
    fig = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(panels.values()), horizontal_spacing=0.04)
    fig.update_annotations(font=dict(size=14, color=INK))
    rng = np.random.default_rng(seed)
    for column, score in enumerate(panels, start=1):
        for place, name in enumerate(names):
            values = table.loc[table["of"] == name, score].to_numpy(float)
            across = place + rng.uniform(-0.22, 0.22, len(values))
            dots = dict(size=7, color=COLOURS[name], opacity=0.45)
            text = table.loc[table["of"] == name, "feature"].astype(str)
            fig.add_scatter(
                x=across, y=values, mode="markers", marker=dots, text=text, hovertemplate="feature %{text}: %{y:.2f}"
            )
            low, high = confidence_interval(values, seed=seed) if len(values) > 1 else (values.mean(),) * 2
            bar = dict(
                type="data", array=[high - values.mean()], arrayminus=[values.mean() - low], width=8, thickness=2.5
            )
            mean = dict(size=12, color=INK, symbol="line-ew-open", line=dict(width=3))
            fig.add_scatter(x=[place], y=[values.mean()], error_y=bar, mode="markers", marker=mean)
            for trace in fig.data[-2:]:
                trace.update(xaxis=f"x{column}" if column > 1 else "x", yaxis=f"y{column}" if column > 1 else "y")
        fig.add_hline(0.5, line=dict(color=INK, dash="dot", width=1.5), row=1, col=column)
    ticks = [name.replace(" ", "<br>", 1) for name in names]
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False, ticks="")
    fig.update_yaxes(range=[-0.03, 1.03], dtick=0.25)
    fig.update_yaxes(title="detection (balanced accuracy)", col=1)
    return finish(fig, title, 470, "a dot: a feature; bars: mean, 95 %; dotted: 'always no'", showlegend=False)
