"""Dictionaries that nobody trained as an SAE, behind an SAE's interface: whatever they also pass is no evidence.

All are fitted on a sample of activations, best other tokens than those that they are measured on.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from prism.evaluation.streaming import TOKENS_AT_ONCE


class Dictionary(torch.nn.Module):
    """Unit directions of which the `k` largest coordinates of each token are kept: `x̂ = scale · f W_dec + b_dec`.

    Activations are never negative, as an SAE's. A direction that may count both ways stands in `W_dec` twice, once
    with each sign, so that L0 and densities mean what they mean for an SAE.

    Args:
        directions: one unit row a feature.
        centre: the point that they start from.
        k: active features a token.
        metadata: of an SAE at the same hook (`sae.cfg.metadata`): the hook's name and the model's weight processing.
        title: what it is, in a few words.

    Raises:
        ValueError: `k` below 1, or widths that differ.
    """

    def __init__(
        self,
        directions: Float[Tensor, "d_sae d_in"],
        centre: Float[Tensor, " d_in"],
        k: int,
        metadata: SAEMetadata,
        title: str = "",
    ):
        if k < 1 or directions.shape[1] != len(centre):
            raise ValueError(
                f"k = {k}, directions of width {directions.shape[1]}, a centre of width {len(centre)}; "
                "need k of at least 1 and one width"
            )
        super().__init__()
        self.register_buffer("W_dec", directions.float())
        self.register_buffer("b_dec", centre.float())
        self.scale = 1.0  # what activations are multiplied by
        self.title = title
        self.k = min(k, len(directions))
        self.cfg = SimpleNamespace(d_in=directions.shape[1], d_sae=len(directions), metadata=metadata)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """The `k` largest coordinates, where they are above zero."""
        value, index = ((x - self.b_dec) @ self.W_dec.T).topk(self.k, dim=-1)
        return self.scale * x.new_zeros(*x.shape[:-1], self.cfg.d_sae).scatter(-1, index, value.relu())

    @torch.no_grad()
    def decode(self, f: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_in"]:
        """Reconstruction of the activations."""
        return f @ self.W_dec + self.b_dec


def pca(x: Float[Tensor, "tokens d_in"], k: int, metadata: SAEMetadata) -> Dictionary:
    """Principal axes; of each token, the `k` coordinates of largest size. With `k = d_in` it rebuilds `x` exactly."""
    centred = (x - x.mean(0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T  # the largest first
    return Dictionary(torch.cat([axes, -axes]), x.mean(0), k, metadata, title="PCA")


def random_directions(
    x: Float[Tensor, "tokens d_in"], k: int, metadata: SAEMetadata, d_sae: int, seed: int = 0
) -> Dictionary:
    """As many random unit directions as an SAE has features, encoder their transpose, TopK.

    One scale for all activations is fitted by least squares, `Σ⟨x − mean, f W⟩ / Σ‖f W‖²`, since the overlap of
    random directions makes the sum too long.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(d_sae, x.shape[1], generator=generator), dim=1)
    out = Dictionary(directions, x.mean(0), k, metadata, title="random directions")
    dot = norm = 0.0
    for part in x.split(TOKENS_AT_ONCE):
        rebuilt = out.encode(part) @ out.W_dec
        dot += ((part - out.b_dec) * rebuilt).sum().item()
        norm += rebuilt.pow(2).sum().item()
    out.scale = dot / norm if norm else 1.0
    return out
