"""One training step's gradients, twice: by autograd in a few lines, and quickly over the active entries only.

In a sparse code 32 of thousands of features are active. Autograd nevertheless runs three more dense products of the
encoder's size: the decoder and two weight gradients. `SparseGradients` runs them over the entries with `embedding_bag`
(a weighted sum of rows), and a test holds it equal to autograd in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism.sae.architectures import BatchTopK, row_products, weighted_rows
from prism.sae.base import Entries, SparseAutoencoder

BLOCK = 2**25  # pre-activations held at once (128 MB): made once, since fresh memory costs as much as it holds
NEAR = 0.8  # share of the last batch's cut, below which an entry is not looked at


class Step(NamedTuple):
    """What one step saw."""

    error: float  # squared error a token, summed over d_in
    penalty: float  # sparsity term before its coefficient
    active: Entries  # the feature activations


def dense_gradients(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], dead: Tensor | None = None, sparsity: float | None = None
) -> Step:
    """`.grad` of `sae.loss(x, dead, sparsity)` by autograd: the definition."""
    sae.zero_grad(set_to_none=True)
    with torch.enable_grad():
        sae.loss(x, dead, sparsity).backward()
    with torch.no_grad():
        f = sae.encode(x)
        error = (x - sae.decode(f)).pow(2).sum(1).mean().item()
        return Step(error, float(sae.penalty(x, f)), entries_at(f, (f.flatten() > 0).nonzero()[:, 0]))


def entries_at(dense: Float[Tensor, "rows d_sae"], flat: Int[Tensor, "entries"]) -> Entries:
    """The entries of a dense matrix at flat positions (in order), as CSR."""
    row = flat.div(dense.shape[1], rounding_mode="floor")
    return Entries(flat - row * dense.shape[1], dense.flatten()[flat], row, _starts(row, len(dense)))


def _starts(sorted_ids: Int[Tensor, "n"], n: int) -> Int[Tensor, "groups"]:
    """Where each of `n` groups begins in a sorted list of group numbers."""
    counts = torch.bincount(sorted_ids, minlength=n)
    return counts.cumsum(0) - counts


def _only(entries: Entries, keep: Tensor, values: Tensor | None = None) -> Entries:
    """Some of the entries, with other values if given."""
    row = entries.row[keep]
    return Entries(
        entries.feature[keep],
        (entries.value if values is None else values)[keep],
        row,
        _starts(row, len(entries.start)),
    )


class SparseGradients:
    """`.grad` of `sae.loss(x, dead, sparsity)` with no dense product but the encoder's.

    Args:
        sae: any of `prism.sae`; its buffers are made here, once.
        batch: activations in a step, at most.
    """

    def __init__(self, sae: SparseAutoencoder, batch: int):
        self.sae = sae
        self.low: float | None = None  # entries up to here are not looked at; None before the first batch
        rows = max(1, min(batch, BLOCK // sae.config.d_sae))
        self.pre = sae.W_dec.new_empty(rows, sae.config.d_sae, requires_grad=False)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Step:
        """One batch's gradients."""
        sae = self.sae
        sparsity = sae.config.sparsity if sparsity is None else sparsity
        revive = dead if sae.revives and dead is not None and len(dead) else None
        for parameter in sae.parameters():  # the matrices get theirs whole, the vectors in parts
            parameter.grad = torch.zeros_like(parameter) if parameter.ndim == 1 else None
        centred = x - sae.b_dec
        entries, dead_pre = self._encode(centred, revive)
        values = sae.entry_values(entries)
        error, slope, d_f = self._decode(centred, entries, values)
        d_pre = sae.entry_gradients(entries, d_f, centred, sparsity)
        self._weights(entries, centred, d_pre)
        sae.b_dec.grad += slope
        if revive is not None:
            self._revive(centred, error, revive, dead_pre)
        penalty = float(sae.entry_penalty(entries, values)) / len(x)
        return Step(error.pow(2).sum(1).mean().item(), penalty, _only(entries, values > 0, values))

    def _encode(self, centred: Tensor, revive: Tensor | None) -> tuple[Entries, Tensor | None]:
        """The entries that matter, found block by block, and the pre-activations of dead features."""
        sae, found, dead_pre = self.sae, [], []
        for first in range(0, len(centred), len(self.pre)):
            part = centred[first : first + len(self.pre)]
            pre = torch.addmm(sae.b_enc, part, sae.encoder.T, out=self.pre[: len(part)])
            if self.low is None:
                self.low = self._first_guess(pre)
            found.append(entries_at(pre, sae.candidates(pre, self.low)))
            if revive is not None:
                dead_pre.append(pre[:, revive])
        rows = torch.cat([part.row + i * len(self.pre) for i, part in enumerate(found)])
        feature, value = (torch.cat([part[i] for part in found]) for i in (0, 1))
        wanted = len(centred) * sae.config.k
        if self.low > 0 and len(value) < wanted:  # the guess was too high: look at every positive entry
            self.low = 0.0
            return self._encode(centred, revive)
        cut = sae.cut(value, len(centred))
        self.low = NEAR * float(cut)  # entries far below the last cut cannot win: leaving them out is exact
        entries = Entries(feature, value, rows, _starts(rows, len(centred)))
        entries = entries if float(cut) == 0 else _only(entries, value >= cut)
        return entries, (torch.cat(dead_pre) if dead_pre else None)

    def _first_guess(self, pre: Tensor) -> float:
        """Before any cut is known: what twice as many entries as are wanted exceed, for a k over the whole batch."""
        wanted = 2 * len(pre) * self.sae.config.k
        if not isinstance(self.sae, BatchTopK) or wanted >= pre.numel():
            return 0.0
        return max(0.0, float(pre.flatten().kthvalue(pre.numel() - wanted).values))

    def _decode(self, centred: Tensor, entries: Entries, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sets `W_dec.grad`; returns the whole code's error, `∂b_dec` of the decoder, and `∂f` at the entries.

        Matryoshka's prefixes are taken as bands of features, each added to the reconstruction of the one before it;
        a band feels the errors of all the prefixes that hold it.
        """
        sae, widths = self.sae, self.sae.widths
        bands = [0, *widths]
        parts = [torch.arange(len(values), device=values.device)] if len(widths) == 1 else [
            ((entries.feature >= low) & (entries.feature < high)).nonzero()[:, 0]
            for low, high in zip(bands, widths, strict=False)
        ]  # fmt: skip
        error, errors, kept = centred, [], []
        for part in parts:
            kept.append(entries._replace(value=values) if len(parts) == 1 else _only(entries, part, values))
            error = error - weighted_rows(sae.W_dec, kept[-1].feature, kept[-1].start, kept[-1].value)
            errors.append(error)
        d_f, grads, slope = torch.empty_like(values), [], torch.zeros_like(centred)
        for band in reversed(range(len(parts))):
            slope = slope + errors[band] * (-2 / len(centred) / len(widths))
            d_f[parts[band]] = row_products(slope, sae.W_dec, kept[band])
            order = kept[band].feature.argsort()
            grads.append(_by_feature(kept[band], order, slope, kept[band].value, bands[band], bands[band + 1]))
        sae.W_dec.grad = grads[0] if len(grads) == 1 else torch.cat(grads[::-1])
        return error, slope.sum(0), d_f

    def _weights(self, entries: Entries, centred: Tensor, d_pre: Tensor) -> None:
        """`∂W_enc = ∂preᵀ (x − b_dec)`, and `b_dec`'s part of it with the opposite sign."""
        sae = self.sae
        grad = _by_feature(entries, entries.feature.argsort(), centred, d_pre, 0, sae.config.d_sae)
        if sae.config.tied:
            sae.W_dec.grad += grad
        else:
            sae.W_enc.grad = grad
        total = torch.zeros_like(sae.b_enc).index_add_(0, entries.feature, d_pre)
        sae.b_dec.grad -= total @ sae.encoder

    def _revive(self, centred: Tensor, error: Tensor, dead: Tensor, dead_pre: Tensor) -> None:
        """Adds the auxiliary loss's gradients: dead features are asked to rebuild the error."""
        sae = self.sae
        value, index = dead_pre.topk(min(sae.aux_k, len(dead)), dim=1)
        flat = (index + len(dead) * torch.arange(len(error), device=index.device)[:, None])[value > 0].sort().values
        entries = entries_at(dead_pre, flat)  # `feature` counts within the dead ones
        rows = sae.W_dec[dead]
        left = error - weighted_rows(rows, entries.feature, entries.start, entries.value)
        slope = left * (-2 * sae.config.aux_coefficient / len(error))
        d_f = row_products(slope, rows, entries)
        order = entries.feature.argsort()
        sae.W_dec.grad[dead] += _by_feature(entries, order, slope, entries.value, 0, len(dead))
        sae.W_enc.grad[dead] += _by_feature(entries, order, centred, d_f, 0, len(dead))
        d_bias = torch.zeros(len(dead), dtype=d_f.dtype, device=d_f.device).index_add_(0, entries.feature, d_f)
        sae.b_enc.grad[dead] += d_bias
        sae.b_dec.grad -= d_bias @ sae.W_enc[dead]


def _by_feature(
    entries: Entries, order: Tensor, table: Tensor, weight: Tensor, low: int, high: int
) -> Float[Tensor, "features d"]:
    """`Σ weight · table[row]` for each of the features `low` to `high`: a product with the transposed code.

    Args:
        order: sorts the entries by feature.
    """
    start = _starts(entries.feature[order] - low, high - low)
    return weighted_rows(table, entries.row[order], start, weight[order])


MOST_ACTIVE = 800  # active features a token, above which the dense way is the quicker one


def sparse_gradients(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], dead: Tensor | None = None, sparsity: float | None = None
) -> Step:
    """`dense_gradients`, over the entries only; for one call (a training run keeps a `SparseGradients`)."""
    return SparseGradients(sae, len(x))(x, dead, sparsity)
