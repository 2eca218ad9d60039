"""Changes of an activation by a feature: add, clamp, suppress, project out; and their cost in cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.data import TokenBatch
from prism.device import beside
from prism.evaluation.predictions import Change, Predictions, at_kept, changing, counted, logit_rows
from prism.models import unless_massive


def add(direction: Float[Tensor, " d_in"], amount: float) -> Change:
    """Add `amount` times a direction, as it is, to every activation: the plain form of steering (Turner et al. 2023).

    With a feature's decoder row and an amount in units of the feature, this is the feature's own contribution.
    """
    return lambda x: x + amount * direction.to(x)


def clamp(sae, features: int | Sequence[int], value: float | Sequence[float]) -> Change:
    """Set features to a value and leave all else, the SAE's error included, as it was (Templeton et al. 2024).

    `x + (value − f(x)) · d`, with `f` the features' activations and `d` their decoder rows. Massive tokens of the
    residual stream, on which no feature counts as firing, stay as they are.

    Args:
        sae: an SAELens SAE of the hook.
        features: one feature or several.
        value: the activation that they get, or one for each.

    Raises:
        IndexError: no such feature.
    """
    chosen = torch.as_tensor(features).reshape(-1)
    if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < sae.cfg.d_sae):
        wrong = next(int(f) for f in chosen if not 0 <= f < sae.cfg.d_sae)
        raise IndexError(f"no feature {wrong}; choose from 0 to {sae.cfg.d_sae - 1}")
    wanted = torch.as_tensor(value, dtype=torch.float32)

    def change(x: Tensor) -> Tensor:
        here = beside(sae, x.device)
        f = here.encode(x)
        moved = f.clone()
        moved[:, chosen] = wanted.to(f)
        changed = x + here.decode(moved).to(x) - here.decode(f).to(x)  # a decoder that rescales does so to both
        return unless_massive(sae, x, changed)

    return change


def suppress(sae, features: int | Sequence[int]) -> Change:
    """Set features to zero: `clamp` at 0, the ablation of features."""
    return clamp(sae, features, 0.0)


def project_out(direction: Float[Tensor, " d_in"], *, mean: Float[Tensor, " d_in"]) -> Change:
    """Take a direction's variation out of every activation, whether a feature put it there or not.

    `x − ((x − μ)·u) u` with `u` the unit direction: every activation gets the mean's part along it. Without `μ` the
    change would also take the mean's part away, which in a stream that is mostly its mean is another blow.

    Args:
        mean: of the activations on ordinary text, massive tokens left out: `kept_activations(…).mean(0)`. (An SAE's
            `b_dec` is none: on `mini` it lies a quarter of the mean's length away from it.)
    """
    unit = direction / direction.norm()
    return lambda x: x - ((x - mean.to(x)) @ unit.to(x))[:, None] * unit.to(x)


@contextmanager
def edited(model, hook_name: str, change: Change, keep: Bool[Tensor, "batch pos"] | None = None) -> Iterator[None]:
    """Within the block, every forward pass of the model has the hook's activations changed.

    Args:
        keep: positions to change, of the very shape of the tokens that are run; None changes all of them.

    Raises:
        ValueError: no such hook; or no pass called it.
    """
    with changing(model, hook_name, at_kept(keep, change)):
        yield


@torch.no_grad()
def change_cost(model, batch: TokenBatch, hook_name: str, change: Change) -> pd.DataFrame:
    """What a change costs on ordinary text: cross-entropy of each sequence with and without it.

    Args:
        batch: held-out text; the change is made at its kept positions, and predictions between those are counted.

    Returns:
        One row a sequence: tokens (predictions), clean, changed (nats, summed over them). The cost per token is
        `(changed − clean).sum() / tokens.sum()`; resample the rows for its interval (`paired_bootstrap`).
    """
    rows, size = [], logit_rows(model, batch, [hook_name])
    parts = (batch[start : start + size] for start in range(0, len(batch), size))
    for part, mask in zip(parts, counted(batch).split(size), strict=True):
        seen = Predictions(model, part.tokens, [hook_name])
        states = {"clean": seen.clean, "changed": seen.changed(hook_name, part.keep, change)}
        rows.append(pd.DataFrame({"tokens": mask.sum(1).numpy(), **seen.measure(states, mask)[0]}))
    return pd.concat(rows, ignore_index=True)


def matched_sets(
    mass: Float[np.ndarray, " d_sae"], chosen: Sequence[int], n: int = 5, nearest: int = 20, seed: int = 0
) -> Int[np.ndarray, "n features"]:
    """Random features to stand beside chosen ones: for each, another of about the same activation mass.

    Args:
        mass: of each feature, what makes two of them alike: the sum of its activations over the texts at hand.
        chosen: features that no set may contain.
        n: sets.
        nearest: each partner is drawn from so many living features that are nearest in log mass.
        seed: of the draws.

    Raises:
        ValueError: too few other living features.
    """
    rng, logs = np.random.default_rng(seed), np.log(np.maximum(np.asarray(mass, dtype=float), 1e-12))
    free = np.setdiff1d(np.flatnonzero(np.asarray(mass) > 0), chosen)
    if len(free) < len(chosen):
        raise ValueError(f"{len(free)} other features fire; {len(chosen)} are needed for a matched set")
    sets = np.empty((n, len(chosen)), dtype=int)
    for row in sets:
        left = free.copy()
        for place, feature in enumerate(chosen):
            near = left[np.argsort(np.abs(logs[left] - logs[feature]), kind="stable")[:nearest]]
            row[place] = rng.choice(near)
            left = left[left != row[place]]
    return sets
