"""A sparse code by its entries: the products with it, and what each architecture does at the entries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.sae import SparseAutoencoder


class Entries(NamedTuple):
    """Entries of a sparse `[batch, d_sae]` matrix, row by row (CSR)."""

    feature: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    row: Int[Tensor, "entries"]
    start: Int[Tensor, "batch"]  # first entry of each row

    def only(self, keep: Bool[Tensor, "entries"] | Int[Tensor, "kept"] | slice) -> Entries:
        """Some of the entries, in the same order."""
        row = self.row[keep]
        return Entries(self.feature[keep], self.value[keep], row, starts(row, len(self.start)))


def entries_at(dense: Float[Tensor, "rows d_sae"], flat: Int[Tensor, "entries"]) -> Entries:
    """The entries of a dense matrix at flat positions (in order), as CSR."""
    row = flat.div(dense.shape[1], rounding_mode="floor")
    return Entries(flat - row * dense.shape[1], dense.flatten()[flat], row, starts(row, len(dense)))


def starts(sorted_ids: Int[Tensor, "n"], n: int) -> Int[Tensor, "groups"]:
    """Where each of `n` groups begins in a sorted list of group numbers."""
    counts = torch.bincount(sorted_ids, minlength=n)
    return counts.cumsum(0) - counts


def where_true(mask: Bool[Tensor, "..."]) -> Int[Tensor, "n"]:
    """Flat positions of the true entries, in order (NumPy's search is the quicker one on a CPU)."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def weighted_rows(
    table: Float[Tensor, "rows d"], index: Int[Tensor, "entries"], start: Int[Tensor, "groups"], weight: Tensor
) -> Float[Tensor, "groups d"]:
    """`out[g] = Σ weight[e] · table[index[e]]` over the entries `e` of group `g`: a sparse-dense product."""
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


def decoded(entries: Entries, table: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
    """The code times a table of one row a feature, such as `W_dec`."""
    return weighted_rows(table, entries.feature, entries.start, entries.value)


def by_feature(
    entries: Entries,
    order: Int[Tensor, "entries"],
    table: Float[Tensor, "batch d"],
    weight: Float[Tensor, "entries"],
    low: int,
    high: int,
) -> Float[Tensor, "features d"]:
    """`Σ weight · table[row]` for each of the features `low` to `high`: a product with the transposed code.

    Args:
        order: sorts the entries by feature.
    """
    return weighted_rows(table, entries.row[order], starts(entries.feature[order] - low, high - low), weight[order])


def row_products(
    left: Float[Tensor, "batch d"], table: Float[Tensor, "rows d"], entries: Entries
) -> Float[Tensor, "entries"]:
    """`⟨left[row], table[feature]⟩` at each entry: the dense product `left tableᵀ`, where it is wanted only."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, table, entries.feature, entries.start, entries.row, 0
    )


class Rule:
    """What an architecture does at the entries, whose `value` is the pre-activation; the plain maths are its `sae`'s.

    By default every positive entry is active, at no penalty.
    """

    def __init__(self, sae: SparseAutoencoder):
        self.sae = sae
        self.widths = (sae.config.d_sae,)

    def candidates(self, pre: Float[Tensor, "rows d_sae"], low: float) -> Int[Tensor, "entries"]:
        """Flat positions, row by row, of all entries that can be active or get a gradient; looks at each row alone.

        Args:
            low: nothing up to here can be active.
        """
        return where_true(pre > low)

    def first_guess(self, pre: Float[Tensor, "rows d_sae"]) -> float:
        """`low` of the first batch."""
        return 0.0

    def cut(self, value: Float[Tensor, "entries"], rows: int) -> Tensor | float:
        """The smallest of the candidates' values that stays active in this batch."""
        return 0.0

    def values(self, entries: Entries) -> Float[Tensor, "entries"]:
        """`encode`: feature activations at the entries."""
        return entries.value

    def penalty(self, entries: Entries, values: Float[Tensor, "entries"]) -> Tensor | float:
        """`penalty`, summed over tokens; `values` are the activations at the entries."""
        return 0.0

    def gradients(
        self, entries: Entries, d_f: Float[Tensor, "entries"], centred: Float[Tensor, "batch d_in"], sparsity: float
    ) -> Float[Tensor, "entries"]:
        """From the loss's gradient at the activations to that at `W_enc (x − b_dec)`; adds to biases and the like."""
        self.sae.b_enc.grad.index_add_(0, entries.feature, d_f)
        return d_f


class ReLURule(Rule):
    """The penalty pulls every activation down by its row's norm, and each row by its activations."""

    def penalty(self, entries, values):
        return (values * self.sae.W_dec.norm(dim=1)[entries.feature]).sum()

    def gradients(self, entries, d_f, centred, sparsity):
        W_dec = self.sae.W_dec
        norm, share = W_dec.norm(dim=1), sparsity / len(centred)
        total = torch.zeros_like(norm).index_add_(0, entries.feature, entries.value)
        W_dec.grad += (share * total / norm)[:, None] * W_dec
        return super().gradients(entries, d_f + share * norm[entries.feature], centred, sparsity)


class TopKRule(Rule):
    """Each row's `k` largest, within a row in any order."""

    def candidates(self, pre, low):
        value, index = pre.topk(self.sae.config.k, dim=1, sorted=False)
        flat = index + pre.shape[1] * torch.arange(len(pre), device=pre.device)[:, None]
        return flat[value > 0]


class BatchTopKRule(Rule):
    """The batch's `rows · k` largest, as in training."""

    def first_guess(self, pre):
        """What twice as many entries as are wanted exceed."""
        wanted = 2 * len(pre) * self.sae.config.k
        return 0.0 if wanted >= pre.numel() else max(0.0, float(pre.flatten().kthvalue(pre.numel() - wanted).values))

    def cut(self, value, rows):
        wanted = rows * self.sae.config.k
        return 0.0 if len(value) <= wanted else value.kthvalue(len(value) - wanted + 1).values


class MatryoshkaRule(BatchTopKRule):
    """Several reconstructions: `widths` are the leading features that each uses."""

    def __init__(self, sae):
        super().__init__(sae)
        self.widths = sae.widths


class GatedRule(Rule):
    """The entries are those where the gate is open."""

    def _magnitude(self, entries: Entries) -> tuple[Tensor, Tensor]:
        sae, shared = self.sae, entries.value - self.sae.b_enc[entries.feature]
        return shared, sae.r_mag.exp()[entries.feature] * shared + sae.b_mag[entries.feature]

    def values(self, entries):
        return self._magnitude(entries)[1].relu()

    def penalty(self, entries, values):
        return entries.value.sum()

    def gradients(self, entries, d_f, centred, sparsity):
        """Two ways down: through the magnitude, and through the gate's penalty and frozen reconstruction."""
        sae, (shared, magnitude) = self.sae, self._magnitude(entries)
        d_magnitude = d_f * (magnitude > 0)
        through = d_magnitude * sae.r_mag.exp()[entries.feature]
        sae.b_mag.grad.index_add_(0, entries.feature, d_magnitude)
        sae.r_mag.grad.index_add_(0, entries.feature, through * shared)
        slope = -2 / len(centred) * (centred - decoded(entries, sae.W_dec))
        d_gate = sparsity / len(centred) + row_products(slope, sae.W_dec, entries)
        sae.b_enc.grad.index_add_(0, entries.feature, d_gate)
        return through + d_gate


class JumpReLURule(Rule):
    """Entries above their threshold, or so little below it that they move it."""

    def candidates(self, pre, low):
        return where_true(pre > self.sae.threshold - self.sae.config.bandwidth / 2)

    def values(self, entries):
        return entries.value * (entries.value > self.sae.threshold[entries.feature])

    def penalty(self, entries, values):
        return (values > 0).sum()

    def gradients(self, entries, d_f, centred, sparsity):
        """Activations pass their gradient on; thresholds get theirs from the entries in the window."""
        log_threshold = self.sae.log_threshold
        threshold, width = self.sae.threshold[entries.feature], self.sae.config.bandwidth
        window = (entries.value - threshold).abs() < width / 2
        d_threshold = -(threshold * d_f + sparsity / len(centred)) * window / width
        log_threshold.grad.index_add_(0, entries.feature, (d_threshold * threshold).to(log_threshold.dtype))
        return super().gradients(entries, d_f * (entries.value > threshold), centred, sparsity)


RULES: dict[str, type[Rule]] = {
    "relu": ReLURule,
    "topk": TopKRule,
    "batch_topk": BatchTopKRule,
    "matryoshka": MatryoshkaRule,
    "gated": GatedRule,
    "jumprelu": JumpReLURule,
}
