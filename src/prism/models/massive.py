"""Massive activations: tokens whose residual stream is a hundred times longer than the others', and which no feature
explains (Sun et al. 2024, arXiv 2402.17762)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from prism.data import TokenBatch
from prism.models.harvesting import activations_at

FACTOR = 4.0  # a token is massive where the residual stream is so many times longer than its median


def residual_hook(hook_name: str) -> str:
    """The residual stream before the block that a hook lies in: where massive tokens are told."""
    return f"blocks.{hook_name.split('.')[1]}.hook_resid_pre"


def norm_limit(model, batch: TokenBatch, hook_name: str) -> float:
    """Norm of the residual stream above which a token would be massive: a multiple of the batch's median."""
    norms = torch.cat(list(_norms(model, batch, residual_hook(hook_name))))
    return FACTOR * float(norms[batch.keep].median())


def massive_norm(sae) -> float | None:
    """Norm of the residual stream above which a token is massive, as stored with an SAE; None if nothing is."""
    return getattr(getattr(sae.cfg, "metadata", None), "massive_norm", None)


def is_massive(norms: Float[Tensor, "..."], limit: float) -> Bool[Tensor, "..."]:
    """Which norms of the residual stream are massive; one that is not finite is not, for it is an error to be said."""
    return (norms > limit) & norms.isfinite()


def unless_massive(
    sae, x: Float[Tensor, "tokens d_in"], changed: Float[Tensor, "tokens d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """What is changed, but massive tokens as they were, where the SAE reads the residual stream and so can tell."""
    limit, hook_name = massive_norm(sae), getattr(getattr(sae.cfg, "metadata", None), "hook_name", "") or ""
    if limit is None or not hook_name.endswith(".hook_resid_pre"):
        return changed
    return torch.where(is_massive(x.float().norm(dim=-1, keepdim=True), limit), x, changed)


def ordinary(model, sae, batch: TokenBatch) -> TokenBatch:
    """The batch without its massive tokens: `keep` is False there, as it is at BOS and padding.

    A token is massive where the residual stream before the SAE's block is longer than the constant that is stored with
    the SAE (metadata `massive_norm`: four times the median of its training sample), whichever hook of that block the
    SAE reads. An SAE that has no such constant leaves every token in. (Costs a forward pass up to that block.)
    """
    limit = massive_norm(sae)
    return batch if limit is None else without_massive(model, batch, sae.cfg.metadata.hook_name, limit)


def without_massive(model, batch: TokenBatch, hook_name: str, limit: float | None) -> TokenBatch:
    """The same for a constant that is given; None leaves every token in."""
    if limit is None or not batch.n_tokens:
        return batch
    massive = torch.cat([is_massive(norms, limit) for norms in _norms(model, batch, residual_hook(hook_name))])
    return TokenBatch(batch.tokens, batch.keep & ~massive)


def _norms(model, batch: TokenBatch, hook_name: str, batch_size: int = 16) -> Iterator[Float[Tensor, "batch pos"]]:
    starts = range(0, len(batch), batch_size)
    for i in tqdm(starts, desc="massive tokens", unit="batch", leave=False, disable=len(starts) <= 20):
        yield activations_at(model, batch.tokens[i : i + batch_size], [hook_name])[hook_name].norm(dim=-1)
