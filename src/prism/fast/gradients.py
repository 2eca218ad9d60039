"""One training step's gradients over the active entries only: the twin of `sae.dense_gradients`.

In a sparse code 32 of thousands of features are active. Autograd nevertheless runs three more dense products of the
encoder's size: the decoder and two weight gradients. `SparseGradients` runs them over the entries with `embedding_bag`
(a weighted sum of rows).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism.fast.entries import RULES, Entries, by_feature, decoded, entries_at, row_products, starts
from prism.sae import SparseAutoencoder
from prism.sae.base import Step

BLOCK = 2**25  # pre-activations held at once (128 MB): made once, since fresh memory costs as much as it holds
NEAR = 0.8  # share of the last batch's cut, below which an entry is not looked at


class SparseGradients:
    """`.grad` of `sae.loss(x, dead, sparsity)`, in training, with no dense product but the encoder's.

    Args:
        sae: any of `prism.sae`; its buffers are made here, once.
        batch: activations in a step, at most.
    """

    def __init__(self, sae: SparseAutoencoder, batch: int):
        self.sae, self.rule = sae, RULES[sae.config.architecture](sae)
        self.low: float | None = None  # entries up to here are not looked at; None before the first batch
        rows = max(1, min(batch, BLOCK // sae.config.d_sae))
        self.pre = sae.W_dec.new_empty(rows, sae.config.d_sae, requires_grad=False)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Step:
        """One batch's gradients."""
        sae, rule = self.sae, self.rule
        sparsity = sae.config.sparsity if sparsity is None else sparsity
        revive = dead if sae.revives and dead is not None and len(dead) else None
        for parameter in sae.parameters():  # the matrices get theirs whole, the vectors in parts
            parameter.grad = torch.zeros_like(parameter) if parameter.ndim == 1 else None
        centred = x - sae.b_dec
        entries, dead_pre = self._encode(centred, revive)
        values = rule.values(entries)
        error, slope, d_f = self._decode(centred, entries._replace(value=values))
        self._weights(entries, centred, rule.gradients(entries, d_f, centred, sparsity))
        sae.b_dec.grad += slope
        if revive is not None:
            self._revive(centred, error, revive, dead_pre)
        fires = torch.bincount(entries.feature[values > 0], minlength=sae.config.d_sae)
        return Step(error.pow(2).sum(1).mean().item(), float(rule.penalty(entries, values)) / len(x), fires)

    def _encode(self, centred: Tensor, revive: Tensor | None) -> tuple[Entries, Tensor | None]:
        """The entries that matter, found block by block, and the pre-activations of dead features."""
        sae, rule, found, dead_pre = self.sae, self.rule, [], []
        for first in range(0, len(centred), len(self.pre)):
            part = centred[first : first + len(self.pre)]
            pre = torch.addmm(sae.b_enc, part, sae.encoder.T, out=self.pre[: len(part)])
            if self.low is None:
                self.low = rule.first_guess(pre)
            found.append(entries_at(pre, rule.candidates(pre, self.low)))
            if revive is not None:
                dead_pre.append(pre[:, revive])
        feature, value = (torch.cat([part[i] for part in found]) for i in (0, 1))
        row = torch.cat([part.row + i * len(self.pre) for i, part in enumerate(found)])
        if self.low > 0 and len(value) < len(centred) * sae.config.k:  # the guess was too high: look at all positive
            self.low = 0.0
            return self._encode(centred, revive)
        cut = rule.cut(value, len(centred))
        self.low = NEAR * float(cut)  # entries far below the last cut cannot win: leaving them out is exact
        entries = Entries(feature, value, row, starts(row, len(centred)))
        entries = entries if float(cut) == 0 else entries.only(value >= cut)
        return entries, (torch.cat(dead_pre) if dead_pre else None)

    def _decode(self, centred: Tensor, f: Entries) -> tuple[Tensor, Tensor, Tensor]:
        """Sets `W_dec.grad`; returns the whole code's error, `∂b_dec` of the decoder, and `∂f` at the entries.

        Matryoshka's prefixes are taken as bands of features, each added to the reconstruction of the one before it;
        a band feels the errors of all the prefixes that hold it.
        """
        W_dec, widths, n = self.sae.W_dec, self.rule.widths, len(self.rule.widths)
        bands = list(pairwise((0, *widths)))
        where = (
            [slice(None)]
            if n == 1
            else [((f.feature >= low) & (f.feature < high)).nonzero()[:, 0] for low, high in bands]
        )
        parts, error, errors = [f.only(entries) for entries in where], centred, []
        for part in parts:
            error = error - decoded(part, W_dec)
            errors.append(error)
        d_f, grads, slope = torch.empty_like(f.value), [], torch.zeros_like(centred)
        for i in reversed(range(n)):
            slope = slope + errors[i] * (-2 / len(centred) / n)
            d_f[where[i]] = row_products(slope, W_dec, parts[i])
            grads.append(by_feature(parts[i], parts[i].feature.argsort(), slope, parts[i].value, *bands[i]))
        W_dec.grad = grads[0] if n == 1 else torch.cat(grads[::-1])
        return error, slope.sum(0), d_f

    def _weights(self, entries: Entries, centred: Tensor, d_pre: Tensor) -> None:
        """`∂W_enc = ∂preᵀ (x − b_dec)`, and `b_dec`'s part of it with the opposite sign."""
        sae = self.sae
        grad = by_feature(entries, entries.feature.argsort(), centred, d_pre, 0, sae.config.d_sae)
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
        slope = (error - decoded(entries, rows)) * (-2 * sae.config.aux_coefficient / len(error))
        d_f = row_products(slope, rows, entries)
        order = entries.feature.argsort()
        sae.W_dec.grad[dead] += by_feature(entries, order, slope, entries.value, 0, len(dead))
        sae.W_enc.grad[dead] += by_feature(entries, order, centred, d_f, 0, len(dead))
        d_bias = torch.zeros(len(dead), dtype=d_f.dtype, device=d_f.device).index_add_(0, entries.feature, d_f)
        sae.b_enc.grad[dead] += d_bias
        sae.b_dec.grad -= d_bias @ sae.W_enc[dead]
