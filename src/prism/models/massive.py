"""Massive activations: tokens whose residual stream is a hundred times longer than the others', and which no feature
explains (Sun et al. 2024, arXiv 2402.17762)."""

from __future__ import annotations

from functools import lru_cache

import torch
from tqdm.auto import tqdm

from prism.data import TokenBatch
from prism.models.harvesting import activations_at

FACTOR = 4.0  # a token is massive where the residual stream is so many times longer than its median


def residual_hook(hook_name: str) -> str:
    """The residual stream before the block that a hook lies in: where massive tokens are told."""
    return f"blocks.{hook_name.split('.')[1]}.hook_resid_pre"


def norm_limit(model, batch: TokenBatch, hook_name: str) -> float:
    """Norm of the residual stream above which a token would be massive: a multiple of the batch's median."""
    residual = residual_hook(hook_name)
    parts = [activations_at(model, batch.tokens[i : i + 16], [residual])[residual] for i in range(0, len(batch), 16)]
    return FACTOR * float(torch.cat(parts)[batch.keep].norm(dim=-1).median())


def massive_norm(sae) -> float | None:
    """Norm of the residual stream above which a token is massive, as stored with an SAE; None if nothing is."""
    return getattr(sae.cfg.metadata, "massive_norm", None)


def ordinary(model, sae, batch: TokenBatch, batch_size: int = 16) -> TokenBatch:
    """The batch without its massive tokens: `keep` is False there, as it is at BOS and padding.

    A token is massive where the residual stream before the SAE's block is longer than the constant that is stored with
    the SAE (metadata `massive_norm`: four times the median of its training sample), whichever hook of that block the
    SAE reads. An SAE that has no such constant leaves every token in.
    """
    return without_massive(model, batch, sae.cfg.metadata.hook_name, massive_norm(sae), batch_size)


def without_massive(
    model, batch: TokenBatch, hook_name: str, limit: float | None, batch_size: int = 16
) -> TokenBatch:
    """The same for a constant that is given; None leaves every token in."""
    if limit is None or not batch.n_tokens:
        return batch
    below = _below(_Same(model, batch.tokens), residual_hook(hook_name), float(limit), batch_size)
    return TokenBatch(batch.tokens, batch.keep & below)


class _Same:
    """A model and tokens, equal to another pair where the model is the same and the tokens are equal."""

    def __init__(self, model, tokens: torch.Tensor):
        self.model, self.tokens = model, tokens
        self.key = (id(model), tuple(tokens.shape), tokens.cpu().numpy().tobytes())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key


@lru_cache(maxsize=16)
def _below(of: _Same, hook_name: str, limit: float, batch_size: int) -> torch.Tensor:
    """Where the residual stream is not longer than the limit: bool `[batch, pos]`; kept for the next question."""
    starts = range(0, len(of.tokens), batch_size)
    bar = tqdm(starts, desc="massive tokens", unit="batch", leave=False, disable=len(starts) <= 20)
    parts = [activations_at(of.model, of.tokens[i : i + batch_size], [hook_name])[hook_name] for i in bar]
    return torch.cat([x.norm(dim=-1) <= limit for x in parts])
