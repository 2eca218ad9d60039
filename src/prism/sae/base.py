"""What all SAEs share: settings, weights, the loss, and what a quick training step needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


class Entries(NamedTuple):
    """Entries of a sparse `[batch, d_sae]` matrix, row by row (CSR)."""

    feature: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    row: Int[Tensor, "entries"]
    start: Int[Tensor, "batch"]  # first entry of each row


def where_true(mask: Bool[Tensor, "..."]) -> Int[Tensor, "n"]:
    """Flat positions of the true entries, in order (NumPy's search is the quicker one on a CPU)."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


class SparseAutoencoder(nn.Module):
    """What every SAE here shares: `x̂ = f W_dec + b_dec`, with `f` a sparse function of `W_enc (x − b_dec) + b_enc`.

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

    @property
    def aux_k(self) -> int:
        """Dead features that the auxiliary loss lets fire on each token."""
        return self.config.aux_k or self.config.d_in // 2

    @property
    def widths(self) -> tuple[int, ...]:
        """How many leading features each reconstruction of the loss uses: all, but for Matryoshka."""
        return (self.config.d_sae,)

    # ---------------------------------------------------------------- the function, and its loss

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """`W_enc (x − b_dec) + b_enc`."""
        return (x - self.b_dec) @ self.encoder.T + self.b_enc

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        pre = self.pre_activations(x)
        keep = torch.zeros_like(pre).flatten()
        keep[self.select(pre.detach())] = 1
        return pre * keep.view_as(pre)

    def decode(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Reconstruction of the activations."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""] | float:
        """The sparsity term of the loss for coefficient 1; none where `k` sees to sparsity."""
        return 0.0

    def loss(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Float[Tensor, ""]:
        """Squared error summed over `d_in`, mean over tokens, plus `sparsity` × penalty, plus the auxiliary loss.

        The auxiliary loss (AuxK, Gao et al. 2024, appendix A.2) asks the strongest `aux_k` dead features of each
        token to rebuild what the living ones leave over: without it a feature that stopped firing has no gradient.

        Args:
            sparsity: coefficient of the penalty; by default the configured one.
        """
        f = self.encode(x)
        errors = [x - self.b_dec - f[:, :width] @ self.W_dec[:width] for width in self.widths]
        loss = sum(error.pow(2).sum(1).mean() for error in errors) / len(errors)
        loss = loss + (self.config.sparsity if sparsity is None else sparsity) * self.penalty(x, f)
        if not self.revives or dead is None or not len(dead):
            return loss
        value, index = self.pre_activations(x)[:, dead].topk(min(self.aux_k, len(dead)), dim=1)
        rebuilt = torch.einsum("bk,bkd->bd", value.relu(), self.W_dec[dead[index]])
        return loss + self.config.aux_coefficient * (errors[-1].detach() - rebuilt).pow(2).sum(1).mean()

    # ---------------------------------------------------------------- which entries matter

    def candidates(self, pre: Float[Tensor, "rows d_sae"], low: float = 0.0) -> Int[Tensor, "entries"]:
        """Flat positions, row by row, of all entries that can be active or get a gradient; looks at each row alone."""
        return where_true(pre > low)

    def cut(self, value: Float[Tensor, "entries"], rows: int) -> Tensor | float:
        """The smallest of the candidates' values that stays active in this batch."""
        return 0.0

    @property
    def low(self) -> float:
        """Pre-activations up to here are never active."""
        return 0.0

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions, row by row, of the entries that stay active."""
        found = self.candidates(pre, self.low)
        value = pre.flatten()[found]
        return found[value >= self.cut(value, len(pre))]

    # ---------------------------------------------------------------- the same over entries, for the quick step

    def entry_values(self, entries: Entries) -> Float[Tensor, "entries"]:
        """Feature activations at the entries, whose `value` is the pre-activation."""
        return entries.value

    def entry_penalty(self, entries: Entries, values: Float[Tensor, "entries"]) -> Tensor | float:
        """`penalty`, summed over tokens; `values` are the activations at the entries."""
        return 0.0

    def entry_gradients(
        self, entries: Entries, d_f: Float[Tensor, "entries"], centred: Float[Tensor, "batch d_in"], sparsity: float
    ) -> Float[Tensor, "entries"]:
        """From the loss's gradient at the activations to that at `W_enc (x − b_dec)`; adds to biases and the like."""
        self.b_enc.grad.index_add_(0, entries.feature, d_f)
        return d_f


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> None:
    """Make an SAE trained on `scale · x` read and rebuild `x` itself, with decoder rows still at norm 1."""
    for name in sae.in_units:
        tensor = getattr(sae, name)
        if name == "log_threshold":
            tensor -= np.log(scale)
        else:
            tensor /= scale
