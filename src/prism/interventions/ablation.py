"""Real effects: nodes ablated or patched, one at a time or in sets, and the model run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.device import beside
from prism.evaluation.predictions import changing
from prism.interventions.attribution import (
    METHODS,
    Nodes,
    Score,
    agreement,
    gradient_times_activation,
    integrated_gradients,
)
from prism.interventions.changes import Change
from prism.models import check_hook

POSITIONS = 2**11  # run at once, over all copies of a prompt: bounds activations and attention patterns
Metric = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]]  # of the last position's logits


def logit_difference(answer: int, rival: int) -> Metric:
    """Logit of one token minus that of another: above 0 where the model prefers the first."""
    return lambda logits: logits[:, answer] - logits[:, rival]


def log_probability(answer: int) -> Metric:
    """Log-probability of a token (nats)."""
    return lambda logits: logits.log_softmax(-1)[:, answer]


def probability(answer: int) -> Metric:
    """Probability of a token: it saturates, so its gradient fades where the model is sure."""
    return lambda logits: logits.softmax(-1)[:, answer]


def scorer(model, hook_name: str, tokens: Int[Tensor, " pos"], metric: Metric) -> Score:
    """The metric of the prediction after a prompt, as a function of a hook's activation in it.

    The prompt runs once up to the hook, whatever the number of activations: from there on their batch takes its
    place (one row of anything earlier is broadcast over it).

    Args:
        tokens: the prompt, BOS in front, no padding.
        metric: of the logits of its last position.

    Raises:
        ValueError: no such hook.
    """
    check_hook(model, hook_name)

    def score(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, " batch"]:
        with changing(model, hook_name, lambda activation: x.to(activation)):
            logits = model(tokens[None].to(model.cfg.device), return_type="logits", logits_to_keep=1)
        return metric(logits[:, -1].float().cpu())

    return score


@torch.no_grad()
def scores_with(score: Score, nodes: Nodes, values: Float[Tensor, "batch nodes"]) -> Float[Tensor, " batch"]:
    """The score with the nodes at given values, one run a row, in parts that bound the memory."""
    at_once = max(1, POSITIONS // len(nodes.x))
    return torch.cat([score(nodes.with_values(part)) for part in values.split(at_once)])


def ablation_effects(score: Score, nodes: Nodes) -> Float[Tensor, " nodes"]:
    """What each node does: score as it is − score with that node alone switched off. One run of the model a node."""
    return joint_effects(score, nodes, torch.eye(len(nodes), dtype=torch.bool))


def joint_effects(score: Score, nodes: Nodes, sets: Bool[Tensor, "batch nodes"]) -> Float[Tensor, " batch"]:
    """What sets of nodes do together: score as it is − score with all nodes of a set switched off.

    Raises:
        ValueError: sets of another number of nodes.
    """
    if sets.shape[1:] != nodes.value.shape:
        raise ValueError(f"sets of {tuple(sets.shape)} for {len(nodes)} nodes; give one column for each node")
    clean = scores_with(score, nodes, nodes.value[None])
    return clean - scores_with(score, nodes, torch.where(sets, nodes.off, nodes.value))


def top_set(values: Float[Tensor, " nodes"], k: int) -> Bool[Tensor, " nodes"]:
    """The `k` nodes of largest value; all of them if there are no more."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:k]] = True
    return chosen


def random_sets(n_nodes: int, k: int, n: int, seed: int = 0) -> Bool[Tensor, "n n_nodes"]:
    """`n` sets of `k` nodes, each drawn without replacement."""
    order = torch.rand(n, n_nodes, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order.argsort(1) < k


def matched_set(
    chosen: Bool[Tensor, " nodes"], size: Float[Tensor, " nodes"], seed: int = 0, nearest: int = 5
) -> Bool[Tensor, " nodes"]:
    """As many other nodes, each of about the size of one that was chosen: a control for the strength of a change.

    For each chosen node in turn, one of the `nearest` free nodes by size is drawn. Where too few nodes are free, the
    set is smaller.
    """
    rng, free = np.random.default_rng(seed), (~chosen).nonzero()[:, 0].tolist()
    drawn = []
    for node in chosen.nonzero()[:, 0].tolist():
        if not free:
            break
        free.sort(key=lambda other: abs(float(size[other] - size[node])))  # noqa: B023 (used at once)
        drawn.append(free.pop(int(rng.integers(min(nearest, len(free))))))
    out = torch.zeros_like(chosen)
    out[drawn] = True
    return out


def ablate(sae, features: Sequence[int], off: Float[Tensor, " features"]) -> Change:
    """Features switched off wherever they are active, and left silent where they are silent, all else as it was.

    What `joint_effects` does to nodes, as a change of the running model. (`clamp` also sets silent features: to a mean
    that is usual at some positions, that is an addition at the others.)

    Args:
        features: numbers of features.
        off: what each becomes.
    """
    chosen = torch.as_tensor(features, dtype=torch.long)

    def change(x: Tensor) -> Tensor:
        here = beside(sae, x.device)
        f = here.encode(x)
        moved = f.clone()
        moved[:, chosen] = torch.where(f[:, chosen] > 0, off.to(f), 0.0)
        return x + here.decode(moved).to(x) - here.decode(f).to(x)

    return change


def same_length(change: Change, direction: Float[Tensor, " d_in"]) -> Change:
    """A control for a change: every activation is moved as far as `change` moves it, but along another direction."""
    unit = direction / direction.norm()
    return lambda x: x + (change(x) - x).norm(dim=1, keepdim=True) * unit.to(x)


def noise_for_errors(nodes: Nodes, seed: int = 0) -> Nodes:
    """The nodes with each error's direction replaced by noise of its length: what an error of no meaning would do.

    Source of the control: Gurnee 2024, 'SAE reconstruction errors are (empirically) pathological'.
    """
    noise = torch.randn(nodes.direction.shape, generator=torch.Generator().manual_seed(seed))
    noise *= (nodes.direction.norm(dim=1) / noise.norm(dim=1))[:, None]
    return replace(nodes, direction=torch.where(nodes.is_error[:, None], noise, nodes.direction))


def effect_table(score: Score, nodes: Nodes) -> pd.DataFrame:
    """Every single node: both estimates, its size, and its real effect.

    Returns:
        Columns: those of `METHODS`, ablation (all float), is_error.
    """
    columns = (gradient_times_activation(score, nodes), integrated_gradients(score, nodes), nodes.size)
    named = dict(zip(METHODS, columns, strict=True)) | {"ablation": ablation_effects(score, nodes)}
    return pd.DataFrame({k: v.double().numpy() for k, v in named.items()}).assign(is_error=nodes.is_error.numpy())


def sums_against_sets(
    score: Score,
    nodes: Nodes,
    effects: pd.DataFrame,
    rules: Sequence[str],
    sizes: Sequence[int],
    n: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Do summed effects of single nodes foretell what random sets do together?

    Args:
        effects: from `effect_table`.
        rules: its columns to sum.
        sizes: of the sets; those with all nodes or more are left out.
        n: random sets of each size.

    Returns:
        One row a rule and size: rule, size, and what `agreement` says of the sums and the joint effects.
    """
    rows = []
    for size in (k for k in sizes if k < len(nodes)):
        sets = random_sets(len(nodes), size, n, seed)
        joint = joint_effects(score, nodes, sets).numpy()
        rows += [
            {"rule": rule, "size": size, **agreement(sets.numpy() @ effects[rule].to_numpy(), joint)} for rule in rules
        ]
    return pd.DataFrame(rows, columns=["rule", "size", "rank", "sign", "weighted_sign"])


def best_sets(
    score: Score,
    nodes: Nodes,
    ranked: Mapping[str, Float[Tensor, " nodes"]],
    sizes: Sequence[int],
    matched: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Joint effect of the best nodes by several rules, and of nodes matched in size to those of one rule.

    Args:
        ranked: rule -> a value for each node; the largest come first.
        sizes: of the sets.
        matched: the rule whose sets get a matched control, under the name 'matched in size'.

    Returns:
        One row a rule and size: rule, size, effect.
    """
    sets = {(rule, k): top_set(torch.as_tensor(values), k) for rule, values in ranked.items() for k in sizes}
    sets |= {("matched in size", k): matched_set(sets[matched, k], nodes.size, seed) for k in sizes}
    effects = joint_effects(score, nodes, torch.stack(list(sets.values()))).tolist()
    return pd.DataFrame([(*key, x) for key, x in zip(sets, effects, strict=True)], columns=["rule", "size", "effect"])
