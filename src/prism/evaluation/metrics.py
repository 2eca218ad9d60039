"""How well an SAE stands in for the activation that it reads: one pure function for each measure.

`streaming.Sums` adds up what they say of each batch.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def l0(f: Float[Tensor, "tokens d_sae"]) -> float:
    """Mean over tokens of the number of active features.

    >>> l0(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5]]))
    1.5
    """
    return (f > 0).sum(-1).double().mean().item()


def mse(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """Mean over tokens of the squared error *summed* over `d_in`.

    >>> mse(torch.zeros(2, 3), torch.ones(2, 3))
    3.0

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"activations {tuple(x.shape)} and reconstruction {tuple(x_hat.shape)} differ in shape")
    return (x - x_hat).double().pow(2).sum(-1).mean().item()


def explained_variance(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """`1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖²` over the whole sample, in float64.

    Predicting the mean scores 0. (Leaving out the mean in the denominator flatters: see the tests.)

    >>> explained_variance(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]]))
    0.0

    Raises:
        ValueError: all activations are equal, so there is no variance to explain.
    """
    x, x_hat = x.double(), x_hat.double()
    return explained_share((x - x_hat).pow(2).sum().item(), (x - x.mean(0)).pow(2).sum().item())


def explained_share(residual: float, total: float) -> float:
    """`1 − residual / total`, two sums of squares; a ValueError where nothing varies."""
    if total <= 0:
        raise ValueError("the activations do not vary, so explained variance is undefined; give more tokens")
    return 1 - residual / total


def cosine(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """Mean cosine of activation and reconstruction.

    >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [5.0, 0.0]]))
    0.5
    """
    return torch.cosine_similarity(x.double(), x_hat.double(), dim=-1).mean().item()


def relative_reconstruction_bias(norm_hat: float, dot: float) -> float:
    """`E‖x̂‖² / E⟨x, x̂⟩`: below 1 means that reconstructions are too short (shrinkage); NaN where all are zero.

    Source: Rajamanoharan et al. 2024 (Gated SAEs), equation 10.

    >>> x, x_hat = torch.ones(3, 2), torch.ones(3, 2) / 2
    >>> relative_reconstruction_bias(x_hat.pow(2).sum().item(), (x * x_hat).sum().item())
    0.5

    Args:
        norm_hat, dot: ‖x̂‖² and ⟨x, x̂⟩, both summed over the same tokens.
    """
    return norm_hat / dot if dot else float("nan")


def density(f: Float[Tensor, "tokens d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """Share of tokens on which each feature fires; 0 is 'dead' in this sample.

    >>> density(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return ((f > 0).sum(0).double() / len(f)).numpy()


def ce_recovered(ce_clean: float, ce_sae: float, ce_ablated: float) -> float:
    """`(CE_ablated − CE_sae) / (CE_ablated − CE_clean)`: 1 is the intact model, 0 the ablated one.

    With zero-ablation this is the literature's 'loss recovered', which flatters on the residual stream; with
    mean-ablation it is the honest measure.

    >>> round(ce_recovered(4.694, 4.714, 13.08), 4)  # a published fixture: flattering, for a cost of 0.020 nats
    0.9976

    Returns:
        NaN if the ablation changes nothing, so that there is nothing to recover.
    """
    if ce_ablated == ce_clean:
        return float("nan")
    return (ce_ablated - ce_sae) / (ce_ablated - ce_clean)


def kl(clean: Float[Tensor, "... d_vocab"], other: Float[Tensor, "... d_vocab"]) -> float:
    """Mean KL(clean ‖ other) of next-token distributions given as logits (nats).

    >>> kl(torch.zeros(2, 3), torch.zeros(2, 3))
    0.0

    Raises:
        ValueError: no distribution to compare.
    """
    total, rows = 0.0, clean.reshape(-1, clean.shape[-1])
    if not len(rows):
        raise ValueError("no prediction to compare; give at least one text of two tokens")
    for p, q in zip(rows.split(256), other.reshape(rows.shape).split(256), strict=True):  # bounds the copies
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        total += (p.exp() * (p - q)).sum(-1).double().sum().item()
    return total / len(rows)


def bootstrap_counts(size: int, n: int, seed: int) -> Int[np.ndarray, "n size"]:
    """How often each of `size` samples is drawn in each of `n` resamples."""
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=n)


def paired_bootstrap(
    difference: Float[np.ndarray, " sequences"], weight: Float[np.ndarray, " sequences"], n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `Σ difference / Σ weight`, whole sequences resampled with replacement.

    Give it 20 sequences or more: of 10 it covers 89 %.

    Args:
        difference: summed over each sequence's tokens (nats); weight: its number of tokens.
        n: resamples.
    """
    difference, weight = difference[weight > 0], weight[weight > 0]  # sequences without a prediction say nothing
    size = len(difference)
    if size < 2:
        return float("nan"), float("nan")  # one sequence says nothing about the spread
    counts = bootstrap_counts(size, n, seed)
    return middle((counts @ difference) / (counts @ weight))


def middle(draws: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95 % of resampled values, those that are NaN left out; NaN where all are."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
