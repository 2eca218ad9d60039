"""Histograms as SVG for pages without scripts: bars only, so that the labels around them keep their size."""

from __future__ import annotations

from html import escape

import numpy as np
from jaxtyping import Float


def activation_bars(column: Float[np.ndarray, " tokens"], bins: int = 40) -> str:
    """How strongly a unit fires where it does: a histogram from 0 to its maximum; empty if it never fires.

    Args:
        column: activation on every token.
    """
    active = column[column > 0]
    if not active.size:
        return ""
    counts, edges = np.histogram(active, bins, range=(0, float(active.max())))
    hovers = [f"{low:.2f} to {high:.2f}: {c:,} tokens" for low, high, c in zip(edges, edges[1:], counts, strict=False)]
    label = (f"Histogram of {len(active):,} activations from 0 to {active.max():.2f}; half of them are below "
             f"{np.median(active):.2f}")  # fmt: skip
    return _bars(counts, hovers, label) + _ends("0", "activation", f"{active.max():.2f}")


def density_bars(density: Float[np.ndarray, " d_sae"], feature: int, bins: int = 40) -> str:
    """One feature's density, as a line, among those of all features that fire (logarithmic); empty if it never fires.

    Args:
        density: share of tokens that each feature fires on.
        feature: the one to mark.
    """
    if not density[feature] > 0:
        return ""
    logs = np.log10(density[density > 0])
    low, high = float(logs.min()), max(float(logs.max()), float(logs.min()) + 1e-6)
    counts, edges = np.histogram(logs, bins, range=(low, high))
    shares = [f"{10**edge:.3%}" for edge in edges]
    hovers = [f"{a} to {b}: {c:,} features" for a, b, c in zip(shares, shares[1:], counts, strict=False)]
    place = (float(np.log10(density[feature])) - low) / (high - low) * (bins - 0.3)
    mark = f'<rect x="{place:.2f}" y="0" width=".3" height="100" style="fill:var(--ink)"/>'
    label = f"Histogram of the densities of {len(logs):,} features from {shares[0]} to {shares[-1]}; this one: "
    bars = _bars(counts, hovers, f"{label}{density[feature]:.3%}", mark)
    return bars + _ends(shares[0], "share of tokens, logarithmic", shares[-1])


def _bars(counts: np.ndarray, hovers: list[str], label: str, mark: str = "") -> str:
    bars = "".join(
        f'<rect x="{i}" y="{100 - 100 * c / counts.max():.1f}" width=".9" height="{100 * c / counts.max():.1f}" '
        f'style="fill:var(--bar)"><title>{escape(hover)}</title></rect>'
        for i, (c, hover) in enumerate(zip(counts, hovers, strict=True)) if c
    )  # fmt: skip
    head = f'viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}"'
    return f"<svg {head}>{bars}{mark}</svg>"


def _ends(left: str, middle: str, right: str) -> str:
    return f'<div class="ends"><span>{left}</span><span>{middle}</span><span>{right}</span></div>'
