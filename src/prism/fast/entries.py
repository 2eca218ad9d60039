"""A sparse code by its entries: the products with it, and what each architecture does at the entries."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.sae import SparseAutoencoder

SUMMED = 1_024  # features whose sums are made at once


class Entries(NamedTuple):
    """Entries of a sparse `[batch, d_sae]` matrix, row by row (CSR)."""

    feature: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    row: Int[Tensor, "entries"]
    start: Int[Tensor, "batch"]  # first entry of each row

    def only(self, keep: Bool[Tensor, "entries"] | Int[Tensor, "kept"] | slice) -> Entries:
        """Some of the entries, in the same order."""
        if isinstance(keep, Tensor) and keep.dtype == torch.bool:
            keep = keep.nonzero()[:, 0]
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


INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def _as_integers(dense: Float[Tensor, "..."]) -> Tensor:
    """The same bits as integers: from 0 up they are in the numbers' order, and what is below 0 stays below.

    NumPy compares them ten times faster than PyTorch compares bfloat16.
    """
    return dense.view(INTEGERS[dense.dtype])


def at_least(dense: Float[Tensor, "rows d"], bar: Float[Tensor, "rows 1"] | float) -> Int[Tensor, "entries"]:
    """Flat positions, in order, of the entries that are above 0 and not below a bar, which is 0 or more.

    The bar is rounded down to the numbers' format.
    """
    bar = torch.as_tensor(bar, device=dense.device)
    if dense.dtype == torch.bfloat16:  # its bits are the first half of float32's
        bar = (_as_integers(bar.float()) >> 16).to(torch.int16)
    else:
        bar = _as_integers(bar.to(dense.dtype))
    found = _as_integers(dense), bar.clamp_min(1)
    if dense.device.type != "cpu":
        return (found[0] >= found[1]).flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(found[0].numpy() >= found[1].numpy()))


def kth_largest(dense: Float[Tensor, "rows d"], k: int) -> Float[Tensor, "rows 1"]:
    """Of each row, a number that `k` of its entries reach: 0, or close below the `k`-th largest.

    The `k`-th largest of the maxima of groups is one, since `k` groups have an entry that reaches it.
    """
    d, groups = dense.shape[1], 16
    while d % groups or (groups > 1 and d // groups < 4 * k):
        groups //= 2
    whole = _as_integers(dense).view(len(dense), groups, d // groups)
    if k >= d:
        return dense.new_zeros(len(dense), 1)
    if dense.device.type == "cpu":
        best = torch.from_numpy(np.partition(whole.numpy().max(1), d // groups - k, axis=1)[:, [d // groups - k]])
    else:
        best = whole.amax(1).topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return best.clamp_min(0).view(dense.dtype)


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
    table: Float[Tensor, "batch d"],
    weight: Float[Tensor, "entries"],
    out: Float[Tensor, "features d"],
    first: int = 0,
) -> None:
    """`out[feature − first] = Σ weight · table[row]`: a product with the transposed code, into memory that is there."""
    order = entries.feature.argsort()
    row, weight, start = entries.row[order], weight[order], starts(entries.feature[order] - first, len(out))
    ends = [*start[::SUMMED].tolist(), len(row)]
    for i, (low, high) in enumerate(pairwise(ends)):  # fresh memory costs as much as the sum, unless a block is small
        block = slice(SUMMED * i, SUMMED * (i + 1))
        out[block] = weighted_rows(table, row[low:high], start[block] - low, weight[low:high])


def row_products(
    left: Float[Tensor, "batch d"], table: Float[Tensor, "rows d"], entries: Entries
) -> Float[Tensor, "entries"]:
    """`⟨left[row], table[feature]⟩` at each entry: the dense product `left tableᵀ`, where it is wanted only."""
    ends = torch.cat([entries.start, entries.start.new_tensor([len(entries.row)])])
    shape = (len(left), len(table))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that CSR is in beta, and goes unchecked
        pattern = torch.sparse_csr_tensor(ends, entries.feature, entries.feature.to(left.dtype), shape)
    return torch.sparse.sampled_addmm(pattern, left, table.T, beta=0.0).values()


class Rule:
    """What an architecture does at the entries, whose `value` is the pre-activation; the plain maths are its `sae`'s.

    By default every positive entry is active, at no penalty.
    """

    def __init__(self, sae: SparseAutoencoder):
        self.sae = sae
        self.widths = (sae.config.d_sae,)

    def floor(self) -> Float[Tensor, " d_sae"] | float:
        """What a pre-activation must exceed to be active or to get a gradient, whatever the batch."""
        return 0.0

    def first_guess(self, above: Float[Tensor, "rows d_sae"], over: Float[Tensor, "rows 1"] | float) -> float:
        """`low` of the first batch; the arguments are those of `bar`."""
        return 0.0

    def bar(
        self, above: Float[Tensor, "rows d_sae"], over: Float[Tensor, "rows 1"] | float, low: float
    ) -> Float[Tensor, "rows 1"] | float:
        """What entries must reach to be looked at: all that count do, if none below `low` does.

        Args:
            above: how far pre-activations are above their floor, or bounds of it that are at most `over` too large.
        """
        return low

    def chosen(self, entries: Entries, floor: Tensor | float) -> tuple[Entries, float]:
        """Those that are active or get a gradient, of entries that reached the bar; and the batch's cut, or 0."""
        floor = floor if isinstance(floor, float) else floor[entries.feature]
        return entries.only(entries.value > floor), 0.0

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

    def bar(self, above, over, low):
        # a bound may have been rounded up to bfloat16, by less than 2⁻⁸ of it
        down = 1 - 2.0**-8 if above.dtype == torch.bfloat16 else 1.0
        return (kth_largest(above, self.sae.config.k) * down - over).clamp_min(0)

    def chosen(self, entries, floor):
        place = torch.arange(len(entries.row), device=entries.row.device) - entries.start[entries.row]
        longest = 1 + int(place.max()) if len(place) else 0
        table = entries.value.new_full((len(entries.start), max(longest, self.sae.config.k)), -torch.inf)
        table[entries.row, place] = entries.value
        value, index = table.topk(self.sae.config.k, dim=1, sorted=False)
        return entries.only((index + entries.start[:, None])[value > 0]), 0.0


class BatchTopKRule(Rule):
    """The batch's `rows · k` largest, as in training."""

    def first_guess(self, above, over):
        """What twice as many entries as are wanted exceed."""
        guess = kth_largest(above.reshape(1, -1), 2 * len(above) * self.sae.config.k)
        return max(0.0, float(guess) - float(torch.as_tensor(over).max()))

    def chosen(self, entries, floor):
        wanted, positive = len(entries.start) * self.sae.config.k, entries.only(entries.value > 0)
        if len(positive.value) <= wanted:
            return positive, 0.0
        cut = positive.value.kthvalue(len(positive.value) - wanted + 1).values
        return positive.only(positive.value >= cut), float(cut)


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

    def floor(self):
        return self.sae.threshold - self.sae.config.bandwidth / 2

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
