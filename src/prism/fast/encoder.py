"""`encode` of a SAELens SAE, as its entries above zero."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens import JumpReLUSAE, StandardSAE
from torch import Tensor

from prism.fast.entries import Entries, at_least, entries_at, row_products
from prism.fast.screening import CROWDED, PAUSE, Screen, can_pay


class SparseEncoder:
    """`sae.encode` of a chunk of tokens at a time.

    Where the SAE is a product and a threshold, its dense features are made in one buffer: three fresh blocks for each
    chunk cost a quarter of what the product itself costs. Or they are not made at all: a screen tells which can be
    above the threshold (see `screening`), and only those are computed, in float32.

    Args:
        sae: of SAELens; its weights and hooks are looked at now.
        rows: tokens in a chunk, at most.
        screened: use a screen where it can pay.
    """

    def __init__(self, sae, rows: int, screened: bool = False):
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in getattr(sae, "modules", list)())
        self.sae, self.rows, self.buffer, self.screen, self.pause = sae, rows, None, None, 0
        self.plain = type(sae) in (StandardSAE, JumpReLUSAE) and type(sae.activation_fn) is torch.nn.ReLU and not hooked
        if self.plain and screened and can_pay(sae.W_enc):
            self.W = sae.W_enc.T.contiguous()
            self.floor = sae.threshold.clamp_min(0) if type(sae) is JumpReLUSAE else torch.zeros_like(sae.b_enc)
            self.screen = Screen(*self.W.shape, rows, rows, self.W.device)
            self.screen.load(self.W, sae.b_enc - self.floor)

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> Entries:
        """The features above zero.

        Raises:
            ValueError: features that are NaN.
        """
        if self.screen is not None and (found := self._screened(self.sae.process_sae_in(x))) is not None:
            return found
        features = self._dense(x) if self.plain else self.sae.encode(x).float()
        if features.sum().isnan():  # none is below zero
            raise ValueError("the SAE's features are NaN though its input is not; check the SAE's weights")
        return entries_at(features, at_least(features, 0.0))

    def _screened(self, x: Float[Tensor, "tokens d_in"]) -> Entries | None:
        """None where a screen does not hold, or finds so many that it does not pay."""
        self.pause = max(0, self.pause - 1)
        if self.pause or not self.screen.covers(x):
            return None
        bounds, _ = self.screen.bounds(slice(0, len(x)))
        flat = at_least(bounds, 0.0)
        if len(flat) > CROWDED * bounds.numel():
            self.pause = PAUSE
            return None
        found = entries_at(bounds, flat)
        found = found._replace(value=row_products(x, self.W, found) + self.sae.b_enc[found.feature])
        return found.only(found.value > self.floor[found.feature])

    def _dense(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        sae = self.sae
        if self.buffer is None:
            self.buffer = sae.W_enc.new_empty(self.rows, sae.cfg.d_sae)
        features = torch.mm(sae.process_sae_in(x), sae.W_enc, out=self.buffer[: len(x)]).add_(sae.b_enc).relu_()
        if type(sae) is JumpReLUSAE:
            features.mul_(features > sae.threshold)
        return features.float()
