"""What `evaluate` found: measures with intervals, differences between two SAEs, and one table for many."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from prism.evaluation.metrics import bootstrap_counts, middle

RATIOS = {  # measure -> sums over sequences whose ratio it is (explained variance: 1 minus it)
    "l0": ("active", "tokens"),
    "mse": ("residual", "tokens"),
    "explained_variance": ("residual", "total"),
    "delta_ce": ("nats_sae", "predictions"),
    "mean_ablation_cost": ("nats_mean", "predictions"),
}


def _measure(unit: str, **settings):
    """A field of `Evaluation` that its table shows, with its unit."""
    return field(metadata={"unit": unit}, **settings)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured. Nats per token for the cross-entropies; None where it was not asked for."""

    n_tokens: int = _measure("tokens")
    d_sae: int = _measure("features")
    l0: float = _measure("features per token")
    mse: float = _measure("squared units per token")
    explained_variance: float = _measure("share")
    cosine: float = _measure("")
    relative_reconstruction_bias: float = _measure("1 is unbiased")
    dead: int = _measure("features")  # features that never fired on these tokens
    density: Float[np.ndarray, " d_sae"] = field(repr=False)
    # tokens that were left out (see `models.massive`); None where no token is
    massive: int | None = _measure("tokens left out", default=None)
    ce_clean: float | None = _measure("nats per token", default=None)
    delta_ce: float | None = _measure("nats per token", default=None)
    delta_ce_interval: tuple[float, float] | None = _measure("95 %, bootstrap over sequences", default=None)
    # what replacing the activation by its mean costs: all there is to recover
    mean_ablation_cost: float | None = _measure("nats per token", default=None)
    mean_ablation_interval: tuple[float, float] | None = _measure("95 %, bootstrap over sequences", default=None)
    ce_recovered_mean: float | None = _measure("against mean-ablation", default=None)
    ce_recovered_zero: float | None = _measure("against zero-ablation", default=None)
    kl: float | None = _measure("nats per token", default=None)
    per_sequence: pd.DataFrame | None = field(default=None, repr=False)  # sums, one row a sequence: for resampling

    def interval(self, measure: str, n: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval over sequences of a measure that `RATIOS` lists.

        (For explained variance the mean activation stays that of the whole sample.)

        Raises:
            ValueError: another measure, or one that was not measured.
        """
        return middle(_resampled(self, measure, n, seed))

    def to_frame(self) -> pd.DataFrame:
        """One row a measure, with its value and unit; densities are left out."""
        rows = []
        for one in fields(self):
            value = getattr(self, one.name)
            if "unit" in one.metadata and value is not None:
                rows.append((one.name, _show(value), one.metadata["unit"]))
        return pd.DataFrame(rows, columns=["measure", "value", "unit"]).set_index("measure")


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4f}" for v in value) + "]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _resampled(found: Evaluation, measure: str, n: int, seed: int) -> Float[np.ndarray, " n"]:
    """A measure on `n` resamples of the sequences; the same seed draws the same sequences for every SAE."""
    if measure not in RATIOS:
        raise ValueError(f"no interval for '{measure}'; choose from {', '.join(RATIOS)}")
    top, bottom = RATIOS[measure]
    sums = found.per_sequence
    if top not in sums:
        raise ValueError(f"'{measure}' was not measured; let `evaluate` have its cross-entropies and ablations")
    sums = sums[sums[bottom] != 0]  # a sequence without a prediction says nothing of any
    values = sums[top] - sums["nats_clean"] if top.startswith("nats") else sums[top]
    counts = bootstrap_counts(len(sums), n, seed)
    with np.errstate(invalid="ignore"):
        out = (counts @ values.to_numpy()) / (counts @ sums[bottom].to_numpy())
    return 1 - out if measure == "explained_variance" else out


def paired_difference(
    a: Evaluation, b: Evaluation, measure: str = "delta_ce", n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much larger a measure is for `a` than for `b`, with a 95 % interval: the same sequences resampled for both.

    Much of the spread between sequences is common to both SAEs and drops out, so this interval is narrower than the
    two SAEs' own intervals suggest.

    Args:
        measure: one that has an `Evaluation.interval`.

    Returns:
        The difference, its lower and its upper end.

    Raises:
        ValueError: evaluations of different tokens, or a measure without interval.
    """
    same = len(a.per_sequence) == len(b.per_sequence)
    if not same or not np.array_equal(a.per_sequence["tokens"], b.per_sequence["tokens"]):
        raise ValueError("the two evaluations are of different tokens; give both the same batch")
    difference = _resampled(a, measure, n, seed) - _resampled(b, measure, n, seed)
    return getattr(a, measure) - getattr(b, measure), *middle(difference)


def evaluation_table(found: dict[str, Evaluation], seed: int = 0) -> pd.DataFrame:
    """One row an SAE, numbers only: what to plot, and what to write to CSV.

    Returns:
        Indexed by name: d_sae, n_tokens, massive (where such tokens are left out), l0, l0_low, l0_high, the same for
        explained_variance and (where measured) delta_ce, then ce_recovered_mean, ce_recovered_zero, kl, cosine,
        relative_reconstruction_bias, dead_share.
    """
    rows = {}
    for name, one in found.items():
        row = {"d_sae": one.d_sae, "n_tokens": one.n_tokens}
        row |= {} if one.massive is None else {"massive": one.massive}
        for measure in ("l0", "explained_variance", "delta_ce"):
            if getattr(one, measure) is not None:
                low, high = one.interval(measure, seed=seed)
                row |= {measure: getattr(one, measure), f"{measure}_low": low, f"{measure}_high": high}
        for measure in ("ce_recovered_mean", "ce_recovered_zero", "kl", "cosine", "relative_reconstruction_bias"):
            if getattr(one, measure) is not None:
                row[measure] = getattr(one, measure)
        rows[name] = row | {"dead_share": one.dead / one.d_sae}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("SAE")
