"""Phase 1, a first look: its figure of dense against sparse, and its exercises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.visualization.style import BLUE, VERMILLION, as_array, finish


def dense_vs_sparse(activation: Float[np.ndarray, " d_in"], features: Float[np.ndarray, " d_sae"]) -> go.Figure:
    """One token twice, a line for each number: the model's activation above, the SAE's features below.

    Args:
        activation: of the token, all channels.
        features: the SAE's feature activations of the same token.

    Raises:
        ValueError: one of them is empty.
    """
    panels = {"activation": (as_array(activation), BLUE), "features": (as_array(features), VERMILLION)}
    if not all(values.size for values, _ in panels.values()):
        raise ValueError("no numbers to draw: give the activation and the features of one token")
    heads = [
        f"Its {name}: {len(values):,} numbers, {np.count_nonzero(values):,} of them not zero"
        for name, (values, _) in panels.items()
    ]
    fig = make_subplots(2, 1, subplot_titles=heads, vertical_spacing=0.28)
    for row, (name, (values, colour)) in enumerate(panels.items(), start=1):
        at = values.nonzero()[0]
        fig.add_trace(_lines(at, values[at], name, colour), row, 1)
        fig.update_xaxes(title="feature" if row == 2 else "channel", range=[-1, len(values)], row=row)
    fig.update_yaxes(title="value")
    return finish(fig, "One token, dense and sparse", 540, showlegend=False)


def _lines(at: np.ndarray, values: np.ndarray, name: str, colour: str) -> go.Scatter:
    """A vertical line from 0 to each value, as one trace with gaps."""
    gaps = np.full(len(at), np.nan)
    return go.Scatter(
        x=np.repeat(at, 3),
        y=np.stack([np.zeros(len(at)), values, gaps], axis=1).ravel(),
        mode="lines",
        name=name,
        line=dict(color=colour, width=1.5),
        hovertemplate="%{x}: %{y:.2f}<extra></extra>",
    )


# --- exercises -------------------------------------------------------------------------------------------------------


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 1, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("1", fire, silent, activation)


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two texts of different length, with a loud BOS and a loud padding position."""
    f = torch.tensor([[[9.0, 9, 9, 9], [1, 0, 0, 2], [2, 3, 0, 0]], [[9, 9, 9, 9], [0, 0, 4, 0], [7, 7, 7, 0]]])
    keep = torch.tensor([[False, True, True], [False, True, False]])
    return f, keep


def l0_without_bos(f: torch.Tensor, keep: torch.Tensor) -> float:
    """Mean number of active features over kept positions."""
    return (f[keep] > 0).sum(-1).float().mean().item()


def check_l0_without_bos(answer: Callable) -> Callable:
    """Check exercise 2."""
    mistakes = {
        "You counted BOS and padding; use `keep` to leave them out.": lambda f, keep: (f > 0).sum(-1).float().mean(),
        "You averaged over texts first; every kept token counts the same.": lambda f, keep: torch.stack(
            [(x[m] > 0).sum(-1).float().mean() for x, m in zip(f, keep, strict=True)]
        ).mean(),
        "You summed activations; count how many are above zero.": lambda f, keep: f[keep].sum(-1).mean(),
        "That is a share; L0 is a count, so do not divide by d_sae.": lambda f, keep: (f[keep] > 0).float().mean(),
        "You added up over all tokens; L0 is the mean per token.": lambda f, keep: (f[keep] > 0).sum().float(),
    }
    f, keep = _features()
    return check(answer, l0_without_bos, [(f, keep), (f[:1], keep[:1])], mistakes)


def ev(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """Explained variance around the mean of x."""
    return 1 - ((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


def check_ev(answer: Callable) -> Callable:
    """Check exercise 3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) + 5
    x_hat = x + 0.3 * torch.randn(50, 6, generator=generator)
    mean = x.mean(0).expand_as(x)
    uncentred = (
        "You divided by the uncentred sum of squares: a predictor that always answers with the mean would score "
        f"{1 - ((x - mean).pow(2).sum() / x.pow(2).sum()).item():.2f} here instead of 0. Subtract x.mean(0) below."
    )
    mistakes = {
        uncentred: lambda x, y: 1 - ((x - y).pow(2).sum() / x.pow(2).sum()).item(),
        "That is the share *un*explained; take it from 1.": lambda x, y: (
            (x - y).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        ).item(),
        "The mean must be taken per channel, x.mean(0), not over all numbers at once.": lambda x, y: (
            1 - ((x - y).pow(2).sum() / (x - x.mean()).pow(2).sum()).item()
        ),
        "Sum the squares first and divide once; you averaged the ratio over channels.": lambda x, y: (
            (1 - (x - y).pow(2).sum(0) / (x - x.mean(0)).pow(2).sum(0)).mean().item()
        ),
        "Square the differences; you used absolute values.": lambda x, y: (
            1 - ((x - y).abs().sum() / (x - x.mean(0)).abs().sum()).item()
        ),
    }
    scale = torch.tensor([1.0, 5, 1, 1, 9, 1])
    return check(answer, ev, [(x * scale, x_hat * scale), (x, mean)], mistakes)


def text_activation(f: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Each text's activation of each feature: the maximum over kept positions."""
    return (f * keep[..., None]).amax(dim=1)


def check_text_activation(answer: Callable) -> Callable:
    """Check exercise 4."""
    mistakes = {
        "BOS or padding won the maximum; multiply by `keep` (or mask with it) first.": lambda f, keep: f.amax(dim=1),
        "That is the mean over tokens; a feature that fires once would fade in a long text. Take the maximum.": (
            lambda f, keep: torch.stack([x[m].mean(0) for x, m in zip(f, keep, strict=True)])
        ),
        "The maximum ran over the features; it should run over positions (dim 1).": (
            lambda f, keep: (f * keep[..., None]).amax(dim=2)
        ),
        "The maximum ran over the texts; it should run over positions (dim 1).": (
            lambda f, keep: (f * keep[..., None]).amax(dim=0)
        ),
        "That is the sum over tokens; it grows with length. Take the maximum.": (
            lambda f, keep: (f * keep[..., None]).sum(dim=1)
        ),
    }
    f, keep = _features()
    return check(answer, text_activation, [(f, keep), (f[1:], keep[1:])], mistakes)
