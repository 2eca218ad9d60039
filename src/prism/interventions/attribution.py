"""Attribution to features: an activation taken apart into nodes, and gradients that estimate what each node does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from prism.analysis import confidence_interval

ERROR = -1  # stands for a feature's number in the node of an SAE's error
METHODS = ("gradient × activation", "integrated gradients", "size alone")  # ways to guess a node's effect
STEPS = 32  # points on the path of integrated gradients
Score = Callable[[Float[Tensor, "batch pos d_in"]], Float[Tensor, " batch"]]  # one number for each activation


@dataclass(frozen=True, eq=False)
class Nodes:
    """One prompt's activation as a sum of nodes: each active feature at each position, and the SAE's error there.

    A node adds `value · direction` at its position. An error node is of value 1, its direction is the error.

    Attributes:
        x: the activation of all positions.
        position: of each node.
        feature: of each node; `ERROR` for the error.
        value: what the node's activation is.
        off: what it is when the node is switched off: 0, a mean, or its value in another run.
        direction: the decoder row, or the error.
    """

    x: Float[Tensor, "pos d_in"]
    position: Int[Tensor, " nodes"]
    feature: Int[Tensor, " nodes"]
    value: Float[Tensor, " nodes"]
    off: Float[Tensor, " nodes"]
    direction: Float[Tensor, "nodes d_in"]

    def __len__(self) -> int:
        return len(self.value)

    @property
    def is_error(self) -> Bool[Tensor, " nodes"]:
        """Which nodes are errors."""
        return self.feature == ERROR

    @property
    def size(self) -> Float[Tensor, " nodes"]:
        """How far switching a node off moves the activation: `|value − off| · ‖direction‖`."""
        return (self.value - self.off).abs() * self.direction.norm(dim=1)

    def subset(self, chosen: Bool[Tensor, " nodes"]) -> Nodes:
        """Some of the nodes; the others stay as they are in `x`, whatever is done to these."""
        names = ("position", "feature", "value", "off", "direction")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def with_values(self, values: Float[Tensor, "batch nodes"]) -> Float[Tensor, "batch pos d_in"]:
        """The activation with the nodes at other values; differentiable. With their own values it is `x` itself."""
        moved, out = values - self.value, self.x.expand(len(values), -1, -1).clone()
        for position in self.position.unique():
            here = self.position == position
            out[:, position] = out[:, position] + moved[:, here] @ self.direction[here]
        return out


@torch.no_grad()
def take_apart(
    sae, x: Float[Tensor, "pos d_in"], keep: Bool[Tensor, " pos"], other: Float[Tensor, "pos d_in"] | None = None
) -> Nodes:
    """Split an activation into the features active in it and the error, each position for itself.

    The error as a node of its own: Marks et al. 2024 (arXiv 2403.19647).

    Args:
        sae: an SAE of the hook, or an `evaluation.Dictionary`.
        x: one prompt's activation.
        keep: positions to split; at the others (BOS) the activation stays as it is.
        other: another prompt's activation of the same shape. Then a node is off at its value *there*, the features
            that differ are the nodes, and with all nodes off the activation is `other`'s.

    Raises:
        ValueError: shapes that differ, or an SAE whose decoder is not `f W_dec + b_dec`.
    """
    if keep.shape != x.shape[:1] or (other is not None and other.shape != x.shape):
        raise ValueError(
            f"activation {tuple(x.shape)}, positions {tuple(keep.shape)}, other activation "
            f"{None if other is None else tuple(other.shape)}: give all for the same tokens"
        )
    f, error = _encode(sae, x[keep])
    f_off, error_off = (torch.zeros_like(f), torch.zeros_like(error)) if other is None else _encode(sae, other[keep])
    row, feature = (f != f_off).nonzero(as_tuple=True)
    places, n = keep.nonzero()[:, 0], len(error)
    return Nodes(
        x=x,
        position=torch.cat([places[row], places]),
        feature=torch.cat([feature, torch.full((n,), ERROR)]),
        value=torch.cat([f[row, feature], torch.ones(n)]),
        off=torch.cat([f_off[row, feature], torch.zeros(n)]),
        direction=torch.cat([sae.W_dec[feature], error - error_off]),
    )


def _encode(sae, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_sae"], Float[Tensor, "tokens d_in"]]:
    """Features and error."""
    f = sae.encode(x)
    rebuilt = sae.decode(f)
    if not torch.allclose(f @ sae.W_dec + sae.b_dec, rebuilt, rtol=1e-3, atol=1e-3 * float(x.norm(dim=1).mean())):
        raise ValueError(
            "this SAE rescales while it decodes, so its features' contributions are not f · W_dec; "
            "choose an SAE without normalisation of its input"
        )
    return f, x - rebuilt


def at_baseline(nodes: Nodes, features: Float[Tensor, " nodes"], error: Float[Tensor, "... d_in"]) -> Nodes:
    """The same nodes, switched off at other values than zero: for mean and resample ablation.

    Args:
        nodes: from `take_apart` without `other`.
        features: what each node's feature is when off; the entries of error nodes are not read.
        error: what the error is when off: one for all error nodes, or one for each.
    """
    direction = nodes.direction.clone()
    direction[nodes.is_error] -= error
    return replace(nodes, off=torch.where(nodes.is_error, 0.0, features), direction=direction)


@torch.no_grad()
def baseline_of(sae, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_in"]]:
    """Mean activation of every feature, and mean error, over some tokens: what `at_baseline` takes.

    Args:
        x: activations at positions like those that will be ablated; a feature's mean may depend on the position.
    """
    f_sum, error_sum = 0.0, 0.0
    for part in x.split(2_048):
        f, error = _encode(sae, part)
        f_sum, error_sum = f_sum + f.sum(0), error_sum + error.sum(0)
    return f_sum / len(x), error_sum / len(x)


def gradients(
    score: Score, nodes: Nodes, values: Float[Tensor, "batch nodes"] | None = None
) -> Float[Tensor, "batch nodes"]:
    """Derivative of the score by every node's value.

    Args:
        score: what is asked, as a function of the activation (see `ablation.scorer`).
        values: where to take it, one point a row; by default once, at the nodes' own values.
    """
    at = (nodes.value[None] if values is None else values).detach().clone().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(score(nodes.with_values(at)).sum(), at)[0]


def gradient_times_activation(score: Score, nodes: Nodes) -> Float[Tensor, " nodes"]:
    """`(value − off) · ∂score/∂value`: the effect of each node's ablation, to first order, from one backward pass.

    Where a node is off at its value in another run, this is attribution patching (Nanda 2023,
    neelnanda.io/mechanistic-interpretability/attribution-patching). Syed et al. 2023 (arXiv 2310.10348) do it for the
    edges between nodes.
    """
    return (nodes.value - nodes.off) * gradients(score, nodes)[0]


def integrated_gradients(score: Score, nodes: Nodes, steps: int = STEPS) -> Float[Tensor, " nodes"]:
    """`(value − off) ·` the mean derivative on the straight path from all nodes off to all on.

    It is *complete*: the sum over the nodes is score(all on) − score(all off), up to the error of the midpoint rule.
    Source: Sundararajan et al. 2017 (arXiv 1703.01365), section 3.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps; the path needs at least 1, and 32 are plenty for most")
    along = (torch.arange(steps) + 0.5) / steps
    path = nodes.off + along[:, None] * (nodes.value - nodes.off)
    return (nodes.value - nodes.off) * gradients(score, nodes, path).mean(0)


def agreement(estimate: Float[np.ndarray, " n"], exact: Float[np.ndarray, " n"]) -> dict[str, float]:
    """How well estimated effects match real ones.

    Returns:
        rank: Spearman's correlation. sign: share of equal signs. weighted_sign: the same with each weighed by the
        size of its real effect, so that nodes that do nothing do not count as tosses of a coin. NaN where nothing
        varies.

    >>> agreement(np.array([1.0, 2.0, -9.0]), np.array([2.0, 4.0, 1.0]))
    {'rank': 1.0, 'sign': 0.6666666666666666, 'weighted_sign': 0.8571428571428571}
    """
    estimate, exact = np.asarray(estimate, dtype=float), np.asarray(exact, dtype=float)
    if estimate.shape != exact.shape:
        raise ValueError(f"{estimate.shape} estimates of {exact.shape} effects; give one for each")
    flat = len(exact) < 2 or np.ptp(estimate) == 0 or np.ptp(exact) == 0
    same, weight = np.sign(estimate) == np.sign(exact), np.abs(exact)
    return {
        "rank": float("nan") if flat else float(spearmanr(estimate, exact).statistic),
        "sign": float(same.mean()) if len(same) else float("nan"),
        "weighted_sign": float((same * weight).sum() / weight.sum()) if weight.sum() else float("nan"),
    }


def agreement_table(effects: Sequence[pd.DataFrame], method: str) -> pd.DataFrame:
    """`agreement` of one method with ablation, one row a prompt.

    Args:
        effects: one `ablation.effect_table` a prompt.
        method: a column of them.

    Returns:
        Columns strength (rank correlation of the absolute values, which is all that can be asked of a size), rank,
        sign, weighted_sign.
    """
    found = pd.DataFrame([agreement(f[method], f["ablation"]) for f in effects])
    found.insert(0, "strength", [agreement(f[method].abs(), f["ablation"].abs())["rank"] for f in effects])
    return found


def mean_interval(values: Float[np.ndarray, " n"], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % interval (`analysis.confidence_interval`), NaN left out; NaN throughout where nothing is left."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    return float(values.mean()), *confidence_interval(values, seed=seed)


def mean_intervals(rows: pd.DataFrame, by: Sequence[str], panels: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`mean_interval` of some columns in each group of rows.

    Args:
        rows: one row a sample (a prompt, a pair) and group.
        by: columns that make the groups.
        panels: columns to average.

    Returns:
        The columns of `by`, panel (which column), value, low, high.
    """
    out = [
        (*np.atleast_1d(np.array(key, dtype=object)), panel, *mean_interval(part[panel], seed))
        for key, part in rows.groupby(list(by), sort=False)
        for panel in panels
    ]
    return pd.DataFrame(out, columns=[*by, "panel", "value", "low", "high"]).infer_objects()


def feature_totals(nodes: Nodes, values: Float[Tensor, " nodes"], d_sae: int) -> Float[Tensor, " d_sae"]:
    """Nodes' values summed over positions, one number a feature; errors left out."""
    found = ~nodes.is_error
    return torch.zeros(d_sae).index_add_(0, nodes.feature[found], values[found])


def node_table(nodes: Nodes, tokens: Sequence[str], **columns: Float[Tensor, " nodes"]) -> pd.DataFrame:
    """One row a node, to read: position, token, node ('feature 12' or 'error'), feature, value, and given columns.

    Args:
        tokens: the prompt as strings, one a position.
        columns: further numbers, one a node.
    """
    position, feature = nodes.position.tolist(), nodes.feature.tolist()
    return pd.DataFrame(
        {
            "position": position,
            "token": [tokens[p] for p in position],
            "node": ["error" if f == ERROR else f"feature {f}" for f in feature],
            "feature": feature,
            "value": nodes.value.numpy(),
            **{name: np.asarray(values) for name, values in columns.items()},
        }
    )
