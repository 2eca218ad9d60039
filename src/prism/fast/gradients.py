"""One training step's gradients over the active entries only: the twin of `sae.dense_gradients`.

In a sparse code 32 of thousands of features are active. Autograd nevertheless runs three more dense products of the
encoder's size: the decoder and two weight gradients. `SparseGradients` runs them over the entries with `embedding_bag`
(a weighted sum of rows).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism.fast.entries import RULES, Entries, at_least, by_feature, decoded, entries_at, row_products, starts
from prism.fast.screening import BLOCK, CROWDED, PAUSE, Screen, can_pay
from prism.sae import SparseAutoencoder
from prism.sae.base import Step

NEAR = 0.97  # share of the last batch's cut, below which an entry is not looked at


class SparseGradients:
    """`.grad` of `sae.loss(x, dead, sparsity)`, in training, with no dense product but the encoder's.

    Args:
        sae: any of `prism.sae`; its buffers are made here, once.
        batch: activations in a step, at most.
        screened: look for the active entries with a product in bfloat16 first, where that can pay; the same ones are
            found (see `screening`).
    """

    def __init__(self, sae: SparseAutoencoder, batch: int, screened: bool = False):
        self.sae, self.rule = sae, RULES[sae.config.architecture](sae)
        self.low: float | None = None  # entries below are not looked at; None before the first batch
        d_sae, d_in = sae.W_dec.shape
        self.block, where = max(1, min(batch, BLOCK // d_sae)), sae.W_dec.device
        self.screen = Screen(d_sae, d_in, batch, self.block, where) if screened and can_pay(sae.W_dec) else None
        self.pre: Tensor | None = None  # float32's buffer, made when it is needed
        self.grads = [torch.zeros_like(sae.W_dec) for _ in range(2)]  # of decoder and encoder, in every step
        self.pause = 0  # batches to come that a screen does not pay for
        self.batches = Counter()  # how many went which way

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
        """The entries that matter, and the pre-activations of dead features."""
        floor = self.rule.floor()
        screened = self._is_screened(centred, floor, revive)
        for guess, quick in ((self.low, screened), (None, screened), (0.0, False)):  # while the guess was too high
            looked_at, low, dead_pre = self._look(centred, floor, guess, revive, quick)
            entries, cut = self.rule.chosen(looked_at, floor)
            if cut >= low:
                break
            self.batches["looked at again"] += 1
        self.low = NEAR * cut or None  # entries far below the last cut cannot win: leaving them out is exact
        crowded = len(looked_at.value) > CROWDED * len(centred) * self.sae.config.d_sae
        if not quick:
            self.pause = max(self.pause - 1, int(crowded))
        elif crowded and (guess is not None or low == 0):  # not because it was a first guess, which is low
            self.pause = PAUSE
        return entries, dead_pre

    def _is_screened(self, centred: Tensor, floor: Tensor | float, revive: Tensor | None) -> bool:
        """Whether a screen is the quicker way to this batch's entries, and a bound holds; it is made ready then."""
        way = "float32"
        if self.screen and not self.pause and (revive is None or 2 * len(revive) < self.sae.config.d_sae):
            self.screen.load(self.sae.encoder, self.sae.b_enc - floor)
            way = "screened" if self.screen.covers(centred) else "no bound"
        self.batches[way] += 1
        return way == "screened"

    def _look(
        self, centred: Tensor, floor: Tensor | float, low: float | None, revive: Tensor | None, screened: bool
    ) -> tuple[Entries, float, Tensor | None]:
        """The entries that reach their bar, block by block, with the guess it rests on; `low` None makes a new one."""
        sae, found, dead_pre = self.sae, [], []
        block = self.block if screened else 2 * self.block  # float32's product is slower in small blocks
        if not screened and self.pre is None:
            self.pre = sae.W_dec.new_empty(block, sae.config.d_sae, requires_grad=False)
        for first in range(0, len(centred), block):
            part = slice(first, min(first + block, len(centred)))
            if screened:
                above, over = self.screen.bounds(part)
            else:
                above = torch.addmm(sae.b_enc - floor, centred[part], sae.encoder.T, out=self.pre[: part.stop - first])
                over = 0.0
            low = self.rule.first_guess(above, over) if low is None else low
            entries = entries_at(above, at_least(above, self.rule.bar(above, over, low)))
            found.append(entries._replace(row=entries.row + first))
            if revive is not None and not screened:
                dead_pre.append(above[:, revive])
        feature, value, row = (torch.cat([part[i] for part in found]) for i in range(3))
        entries = Entries(feature, value, row, starts(row, len(centred)))
        if screened:
            entries = entries._replace(value=row_products(centred, sae.encoder, entries) + sae.b_enc[feature])
            dead_pre = [torch.addmm(sae.b_enc[revive], centred, sae.encoder[revive].T)] if revive is not None else []
        elif not isinstance(floor, float):
            entries = entries._replace(value=value + floor[feature])
        return entries, low, torch.cat(dead_pre) if dead_pre else None

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
        d_f, slope, W_dec.grad = torch.empty_like(f.value), torch.zeros_like(centred), self.grads[0]
        for i in reversed(range(n)):
            slope = slope + errors[i] * (-2 / len(centred) / n)
            d_f[where[i]] = row_products(slope, W_dec, parts[i])
            by_feature(parts[i], slope, parts[i].value, W_dec.grad[slice(*bands[i])], bands[i][0])
        return error, slope.sum(0), d_f

    def _weights(self, entries: Entries, centred: Tensor, d_pre: Tensor) -> None:
        """`∂W_enc = ∂preᵀ (x − b_dec)`, and `b_dec`'s part of it with the opposite sign."""
        sae = self.sae
        by_feature(entries, centred, d_pre, self.grads[1])
        if sae.config.tied:
            sae.W_dec.grad += self.grads[1]
        else:
            sae.W_enc.grad = self.grads[1]
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
        part = torch.empty_like(rows)
        for matrix, table, weight in ((sae.W_dec, slope, entries.value), (sae.W_enc, centred, d_f)):
            by_feature(entries, table, weight, part)
            matrix.grad[dead] += part
        d_bias = torch.zeros(len(dead), dtype=d_f.dtype, device=d_f.device).index_add_(0, entries.feature, d_f)
        sae.b_enc.grad[dead] += d_bias
        sae.b_dec.grad -= d_bias @ sae.W_enc[dead]
