"""`encode` of a SAELens SAE in one buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from sae_lens import JumpReLUSAE, StandardSAE
from torch import Tensor


def buffered_encoder(sae, rows: int) -> Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_sae"]]:
    """`sae.encode`, done in one buffer where the SAE is a product and a threshold: the same numbers, in less time.

    Three fresh blocks of `[tokens, d_sae]` for each chunk cost a quarter of what the product itself costs.

    Args:
        sae: of SAELens; its weights and hooks are looked at now.
        rows: tokens in a chunk, at most. A chunk's features hold until the next one.
    """
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in getattr(sae, "modules", list)())
    if type(sae) not in (StandardSAE, JumpReLUSAE) or type(sae.activation_fn) is not torch.nn.ReLU or hooked:
        return lambda x: sae.encode(x).float()
    buffer = sae.W_enc.new_empty(rows, sae.cfg.d_sae)

    def encode(x: Tensor) -> Tensor:
        features = torch.mm(sae.process_sae_in(x), sae.W_enc, out=buffer[: len(x)]).add_(sae.b_enc).relu_()
        if type(sae) is JumpReLUSAE:
            features.mul_(features > sae.threshold)
        return features.float()

    return encode
