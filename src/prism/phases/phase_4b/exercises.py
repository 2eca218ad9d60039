"""The exercises of phase 4b."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float

from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """Of each token's pre-activations `[batch, d_sae]` the `k` largest, if positive; zero elsewhere."""
    value, index = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, index, value.relu())


def check_topk(answer: Callable) -> Callable:
    """Check exercise 1."""

    def kept(pre: torch.Tensor, k: int, by: torch.Tensor, dim: int = 1) -> torch.Tensor:
        index = by.topk(min(k, by.shape[dim]), dim=dim).indices
        return pre * torch.zeros_like(pre).scatter(dim, index, 1.0)

    def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
        return kept(pre.reshape(1, -1), k * len(pre), pre.reshape(1, -1)).view_as(pre).relu()

    mistakes = {
        "You took the k largest of each feature over the tokens; take them of each token, along the last axis.": (
            lambda pre, k: kept(pre, k, pre, 0).relu()
        ),
        "You chose by absolute value; a strongly negative pre-activation must not win a place.": (
            lambda pre, k: kept(pre, k, pre.abs())
        ),
        "You chose by absolute value and then dropped the negative ones, so fewer than k are left. Choose by value.": (
            lambda pre, k: kept(pre, k, pre.abs()).relu()
        ),
        "Negative values got through: one token here has fewer than k positive ones. Add a ReLU.": (
            lambda pre, k: kept(pre, k, pre)
        ),
        "One too many: where a cut is made *at* the (k + 1)-th value, `>=` keeps it too.": (
            lambda pre, k: kept(pre, k + 1, pre).relu()
        ),
        "One too few: where a cut is made *at* the k-th value, `>` drops it.": (
            lambda pre, k: kept(pre, k - 1, pre).relu()
        ),
        "You took batch × k over the whole batch: that is BatchTopK. Here every token has its own k.": batch_topk,
        "That says which features are active; return their values.": lambda pre, k: (topk(pre, k) > 0).float(),
        "That is the k values alone; put them back at their features' places in a [batch, d_sae] of zeros.": (
            lambda pre, k: pre.topk(k, dim=1).values.relu()
        ),
        "You kept every positive value: that is ReLU. Keep only k of them.": lambda pre, k: pre.relu(),
    }
    pre = torch.tensor(
        [
            [0.5, -3.0, 2.0, 1.0, 0.1, 1.5, -0.2, 0.3],
            [-1.0, 0.4, -0.5, -2.0, -0.3, -0.1, -4.0, -0.9],
            [3.0, 2.5, 0.2, 4.0, 3.5, -5.0, 1.1, 2.2],
            [0.6, -0.7, 1.2, 0.9, -1.3, 0.8, 1.4, 0.7],
            [1.7, 0.15, -2.1, 2.6, 0.45, 1.9, -0.6, -1.1],
        ]
    )
    return check(answer, topk, [(pre, 3), (pre[:2], 2), (pre, 1)], mistakes)


def nested_error(
    x: Float[torch.Tensor, "batch d_in"],
    f: Float[torch.Tensor, "batch d_sae"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
    b_dec: Float[torch.Tensor, " d_in"],
    widths: Sequence[int],
) -> torch.Tensor:
    """Squared error, summed over `d_in`, of each prefix of `m` features; mean over tokens and prefixes."""
    errors = [(x - b_dec - f[:, :m] @ W_dec[:m]).pow(2).sum(1).mean() for m in widths]
    return sum(errors) / len(errors)


def check_nested_error(answer: Callable) -> Callable:
    """Check exercise 2."""

    def each(x, f, W, b, widths, part=slice):
        return [(x - b - f[:, part(m)] @ W[part(m)]).pow(2).sum(1).mean() for m in widths]

    mistakes = {
        "You used all features each time; prefix m has the first m of them alone.": (
            lambda x, f, W, b, w: (x - b - f @ W).pow(2).sum(1).mean()
        ),
        "Each prefix must rebuild the whole activation: add b_dec every time.": (
            lambda x, f, W, b, w: sum((x - f[:, :m] @ W[:m]).pow(2).sum(1).mean() for m in w) / len(w)
        ),
        "You took the last m features; general ones come first.": (
            lambda x, f, W, b, w: sum(each(x, f, W, b, w, lambda m: slice(-m, None))) / len(w)
        ),
        "That is the sum over prefixes; here it is their mean.": lambda x, f, W, b, w: sum(each(x, f, W, b, w)),
        "Sum the squared error over d_in and average over tokens only.": (
            lambda x, f, W, b, w: sum((x - b - f[:, :m] @ W[:m]).pow(2).mean() for m in w) / len(w)
        ),
        "That is the error of the smallest prefix alone.": lambda x, f, W, b, w: each(x, f, W, b, w)[0],
    }
    draw = torch.Generator().manual_seed(0)
    x, f, W, b = (torch.randn(*shape, generator=draw) for shape in ((6, 4), (6, 8), (8, 4), (4,)))
    cases = [(x, f.relu(), W, b, (2, 4, 8)), (x, f.relu(), W, 2 * b, (1, 8))]
    return check(answer, nested_error, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("4b", fire, silent, activation)
