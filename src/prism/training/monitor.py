"""What a training run shows and keeps: a live view, and a log."""

from __future__ import annotations

import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import display
from tqdm.auto import tqdm

COLUMNS = ("step", "tokens", "loss", "mse", "l0", "explained_variance", "dead", "lr", "sparsity", "tokens_per_second")
SHOWN = {"loss": "loss", "explained_variance": "explained variance", "l0": "L0", "dead": "dead features"}


class Monitor:
    """Collects what each step reports; shows it as curves in a notebook and as a progress bar elsewhere.

    Args:
        label: title of the live view; None shows nothing.
        every: steps between two rows of the log.
    """

    def __init__(self, label: str | None = None, every: int = 10):
        self.label, self.every = label, every
        self.rows: list[dict] = []
        self._view = self._bar = None

    def start(self, steps: int, batch: int, first: int = 0) -> None:
        """A run begins (or goes on) at step `first`."""
        self.steps, self.batch, self.first = steps, batch, first
        self.rows = [row for row in self.rows if row["step"] < first]
        self._began = self._shown = time.perf_counter()
        if self.label is None:
            return
        shell = get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            self._view = widgets.HTML()
            display(self._view)
        else:
            total = steps * batch
            self._bar = tqdm(total=total, initial=first * batch, unit="tok", unit_scale=True, desc=self.label)

    def record(self, step: int, **values: float) -> None:
        """One finished step; every few are kept, and shown at most twice a second."""
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self.batch)
        if step % self.every and step != self.steps - 1:
            return
        speed = (step + 1 - self.first) * self.batch / (now - self._began)
        self.rows.append({"step": step, "tokens": (step + 1) * self.batch, **values, "tokens_per_second": speed})
        if now - self._shown > 0.5 or step == self.steps - 1:
            self._shown = now
            self._show(self.rows[-1])

    def _show(self, row: dict) -> None:
        if self._bar is not None:
            self._bar.set_postfix(
                loss=f"{row['loss']:.2f}",
                ev=f"{row['explained_variance']:.3f}",
                l0=f"{row['l0']:.1f}",
                dead=row["dead"],
                refresh=False,
            )
        if self._view is not None:
            self._view.value = self._page(row)

    def _page(self, row: dict) -> str:
        """The live view: one line of numbers, and a small curve for each measure."""
        left = (self.steps * self.batch - row["tokens"]) / row["tokens_per_second"]
        head = (
            f"<b>{self.label}</b> · {row['tokens']:,} of {self.steps * self.batch:,} activations · "
            f"{row['tokens_per_second']:,.0f}/s · {left:.0f} s left"
        )
        curves = "".join(_curve(title, [r[name] for r in self.rows]) for name, title in SHOWN.items())
        return f"{head}<div style='display:flex;gap:18px;flex-wrap:wrap'>{curves}</div>"

    def frame(self) -> pd.DataFrame:
        """The log so far: one row every `every` steps, columns as in `COLUMNS`."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def close(self) -> None:
        """The run is over, well or not: the live view goes, in a notebook one line stays."""
        if self._bar is not None:
            self._bar.close()
        if self._view is not None:
            self._view.close()
            if self.rows:
                row = self.rows[-1]
                print(
                    f"{self.label}: {row['tokens']:,} activations, loss {row['loss']:.2f}, L0 {row['l0']:.1f}, "
                    f"explained variance {row['explained_variance']:.3f}, {row['dead']:,} dead"
                )
        self._view = self._bar = None


def _curve(title: str, values: list[float], width: int = 170, height: int = 46) -> str:
    """A line chart of a few hundred bytes, with its last value."""
    y = np.nan_to_num(np.asarray(values, dtype=float)[:: max(1, len(values) // 150)])
    low, high = float(y.min()), float(y.max())
    up = (height - 4) * (1 - (y - low) / (high - low or 1)) + 2
    across = np.linspace(2, width - 2, max(2, len(y)))
    points = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(across, up, strict=False))
    return (
        f"<div style='font-size:12px'>{title}: {values[-1]:.4g}<br><svg width='{width}' height='{height}'>"
        f"<polyline points='{points}' fill='none' stroke='#0072B2' stroke-width='1.5'/></svg></div>"
    )
