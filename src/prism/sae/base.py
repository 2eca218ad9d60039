"""What all SAEs share: settings, weights, the loss, and its gradients by autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class SaeConfig:
    """Shape and loss of one SAE. Training scales activations to mean norm sqrt(d_in); coefficients mean that scale."""

    d_in: int  # width of the activations that it reads
    d_sae: int = 4_096  # features
    architecture: str = "batch_topk"  # a name in ARCHITECTURES
    k: int = 32  # TopK family: active features a token (BatchTopK: on average over a batch)
    sparsity: float = 1.0  # ReLU, Gated: weight of the L1 term; JumpReLU: of the L0 term (loss a feature and token)
    tied: bool = False  # ReLU: the encoder is the decoder's transpose
    bandwidth: float = 0.1  # JumpReLU: width of the window in which a threshold gets a gradient
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # Matryoshka: nested shares of the features
    aux_k: int = 0  # dead features that rebuild the error together; 0: half of d_in, as in Gao et al. 2024
    aux_coefficient: float = 1 / 32  # weight of that auxiliary loss (Gao et al. 2024, appendix A.2)
    seed: int = 0


class SparseAutoencoder(nn.Module):
    """What every SAE here shares; `σ` and the sparsity term `S` are the architecture's.

        f = σ(W_enc (x − b_dec) + b_enc),   x̂ = f W_dec + b_dec,   L = ‖x − x̂‖² + λ S

    Decoder rows are kept at norm 1 (the trainer sees to it), so a feature's activation is a length along its
    direction. The encoder starts as a copy of the decoder (Gao et al. 2024, appendix A.1), scaled down by
    `d_in / d_sae` where every positive entry is active: half of all features then rebuild about half of `x` together,
    and not many times too much.

    Attributes:
        W_enc: `[d_sae, d_in]`, one row a feature (SAELens stores its transpose).
        W_dec: `[d_sae, d_in]`, one unit row a feature.
        revives: an auxiliary loss keeps features alive; else the trainer resamples dead ones.
        in_units: the tensors that scale with the activations.
    """

    revives = False
    encoder_scale: float | None = None  # of the start; None: d_in / d_sae
    in_units: tuple[str, ...] = ("b_enc", "b_dec")

    def __init__(self, config: SaeConfig):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(config.d_sae, config.d_in, generator=generator), dim=1)
        self.W_dec = nn.Parameter(directions)
        if not config.tied:
            scale = self.encoder_scale or min(1.0, config.d_in / config.d_sae)
            self.W_enc = nn.Parameter(directions * scale)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def encoder(self) -> nn.Parameter:
        """The encoder's weights: `W_enc`, or `W_dec` itself where the two are tied."""
        return self.W_dec if self.config.tied else self.W_enc

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """`W_enc (x − b_dec) + b_enc`."""
        return (x - self.b_dec) @ self.encoder.T + self.b_enc

    def activation(self, pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """`σ`: what of the pre-activations stays."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        return self.activation(self.pre_activations(x))

    def decode(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Reconstruction of the activations."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    def error(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`‖x − x̂‖²`, mean over tokens."""
        return (x - self.b_dec - f @ self.W_dec).pow(2).sum(1).mean()

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""] | float:
        """`S`, mean over tokens; none where `k` sees to sparsity."""
        return 0.0

    def loss(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Float[Tensor, ""]:
        """`‖x − x̂‖² + λ S`, summed over `d_in`, mean over tokens; and what else an architecture adds.

        Args:
            dead: features that have not fired for long; only an SAE that revives them looks at it.
            sparsity: `λ`; by default the configured one.
        """
        f = self.encode(x)
        return self.error(x, f) + (self.config.sparsity if sparsity is None else sparsity) * self.penalty(x, f)


class Step(NamedTuple):
    """What one training step saw."""

    error: float  # squared error a token, summed over d_in
    penalty: float  # sparsity term before its coefficient
    fires: Int[Tensor, "d_sae"]  # tokens on which each feature fired


def dense_gradients(
    sae: SparseAutoencoder,
    x: Float[Tensor, "batch d_in"],
    dead: Int[Tensor, "n_dead"] | None = None,
    sparsity: float | None = None,
) -> Step:
    """`.grad` of `sae.loss(x, dead, sparsity)` by autograd: the definition."""
    sae.zero_grad(set_to_none=True)
    with torch.enable_grad():
        sae.loss(x, dead, sparsity).backward()
    with torch.no_grad():
        f = sae.encode(x)
        error = (x - sae.decode(f)).pow(2).sum(1).mean().item()
        return Step(error, float(sae.penalty(x, f)), (f > 0).sum(0))


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> None:
    """Make an SAE trained on `scale · x` read and rebuild `x` itself, with decoder rows still at norm 1."""
    for name in sae.in_units:
        tensor = getattr(sae, name)
        if name == "log_threshold":
            tensor -= np.log(scale)
        else:
            tensor /= scale
