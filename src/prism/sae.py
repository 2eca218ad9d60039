"""Sparse autoencoders from scratch: six architectures behind one interface, and their export to SAELens."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class SaeConfig:
    """Shape and loss of one SAE. Activations are scaled to mean norm sqrt(d_in) in training; coefficients mean that."""

    d_in: int  # width of the activations that it reads
    d_sae: int = 4_096  # features
    architecture: str = "batch_topk"  # a name in ARCHITECTURES
    k: int = 32  # TopK family: active features a token (BatchTopK: on average over a batch)
    sparsity: float = 1.0  # ReLU, Gated: weight of the L1 term; JumpReLU: of the L0 term (loss a feature and token)
    tied: bool = False  # ReLU: the encoder is the decoder's transpose
    bandwidth: float = 0.05  # JumpReLU: width of the window in which the threshold gets a gradient
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # Matryoshka: nested shares of the features
    aux_k: int = 0  # dead features that rebuild the error together; 0: half of d_in, as in Gao et al. 2024
    aux_coefficient: float = 1 / 32  # weight of that auxiliary loss (Gao et al. 2024, appendix A.2)
    seed: int = 0


class Codes(NamedTuple):
    """Active entries of a sparse `[batch, d_sae]` matrix, row by row (CSR)."""

    feature: Int[Tensor, "active"]
    value: Float[Tensor, "active"]
    row: Int[Tensor, "active"]
    start: Int[Tensor, "batch"]  # first entry of each row


class SparseAutoencoder(nn.Module):
    """What every SAE here shares: `x̂ = W_decᵀ f + b_dec`, with `f` a sparse function of `W_enc (x − b_dec) + b_enc`.

    Decoder rows are kept at norm 1 (the trainer sees to it), so a feature's activation is a length along its
    direction. The encoder starts as a copy of the decoder (Gao et al. 2024, appendix A.1).

    Attributes:
        W_enc: `[d_sae, d_in]`, one row a feature (SAELens stores its transpose).
        W_dec: `[d_sae, d_in]`, one unit row a feature.
        threshold: activation under which an entry was not kept, averaged over training.
    """

    over_entries = True  # the gradients can be had over the active entries alone (`training.sparse_gradients`)
    revives = False  # the auxiliary loss keeps features alive; else the trainer resamples them
    in_units = ("b_enc", "b_dec", "threshold")  # what scales with the activations

    def __init__(self, config: SaeConfig):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(config.d_sae, config.d_in, generator=generator), dim=1)
        self.W_dec = nn.Parameter(directions)
        if not config.tied:
            self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("threshold", torch.zeros(()))

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

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """`W_enc (x − b_dec) + b_enc`: the one dense product of a quick training step."""
        return F.linear(x - self.b_dec, self.encoder, self.b_enc)

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions, in order, of the entries that stay active."""
        raise NotImplementedError

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
        """The sparsity term of the loss, coefficient included; none where `k` sees to sparsity."""
        return 0.0

    def loss(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, strength: float = 1.0
    ) -> Float[Tensor, ""]:
        """Squared error summed over `d_in`, mean over tokens, plus `strength` × penalty, plus the auxiliary loss.

        The auxiliary loss (AuxK, Gao et al. 2024, appendix A.2) asks the strongest `aux_k` dead features of each
        token to rebuild what the living ones leave over: without it a feature that stopped firing has no gradient.
        """
        f = self.encode(x)
        errors = [x - self.b_dec - f[:, :width] @ self.W_dec[:width] for width in self.widths]
        loss = sum(error.pow(2).sum(1).mean() for error in errors) / len(errors) + strength * self.penalty(x, f)
        if not self.revives or dead is None or not len(dead):
            return loss
        value, index = self.pre_activations(x)[:, dead].topk(min(self.aux_k, len(dead)), dim=1)
        rebuilt = torch.einsum("bk,bkd->bd", value.relu(), self.W_dec[dead[index]])
        return loss + self.config.aux_coefficient * (errors[-1].detach() - rebuilt).pow(2).sum(1).mean()

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """The same function as a SAELens SAE."""
        raise NotImplementedError

    @torch.no_grad()
    def _fill(self, target: SAE, *names: str) -> SAE:
        """Weights copied into a SAELens SAE."""
        target.W_enc.copy_(self.encoder.T)
        for name in ("W_dec", "b_dec", *names):
            getattr(target, name).copy_(getattr(self, name))
        return target.eval()

    def _sizes(self, metadata: SAEMetadata | None) -> dict:
        return {"d_in": self.config.d_in, "d_sae": self.config.d_sae, "metadata": metadata or SAEMetadata()}


class ReLU(SparseAutoencoder):
    """`f = ReLU(W_enc (x − b_dec) + b_enc)` with an L1 penalty (Bricken et al. 2023).

    Each activation is weighted by its decoder row's norm (Conerly et al. 2024), so that shrinking activations and
    growing rows gains nothing; at norm 1 that is plain L1.
    """

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions of all positive entries."""
        return (pre.flatten() > 0).nonzero()[:, 0]

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`sparsity · Σ_i f_i ‖W_dec,i‖`, mean over tokens."""
        return self.config.sparsity * (f @ self.W_dec.norm(dim=1)).mean()

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """A SAELens 'standard' SAE."""
        return self._fill(StandardSAE(StandardSAEConfig(**self._sizes(metadata))), "b_enc")


class TopK(SparseAutoencoder):
    """The `k` largest positive pre-activations of each token (Gao et al. 2024, eq. 3)."""

    revives = True

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions of each row's `k` largest positive entries."""
        value, index = pre.topk(min(self.config.k, pre.shape[1]), dim=1, sorted=False)
        flat = index + pre.shape[1] * torch.arange(len(pre), device=pre.device)[:, None]
        return flat[value > 0].sort().values

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """A SAELens 'topk' SAE."""
        return self._fill(TopKSAE(TopKSAEConfig(**self._sizes(metadata), k=self.config.k)), "b_enc")


class BatchTopK(SparseAutoencoder):
    """The `batch · k` largest positive pre-activations of the whole batch (Bussmann et al. 2024, eq. 4).

    A token may use more than `k` features and another fewer. After training one threshold takes the batch's place
    (eq. 6): the activation above which `k` features a token are active on average.
    """

    revives = True

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions of the batch's `batch · k` largest positive entries in training; above the threshold after."""
        flat = pre.flatten()
        if not self.training:
            return (flat > self.threshold).nonzero()[:, 0]
        wanted = len(pre) * self.config.k
        # entries far below the last threshold cannot win: looking at the others alone is exact, and quick
        found = (flat > 0.8 * self.threshold).nonzero()[:, 0]
        if len(found) < wanted:
            found = (flat > 0).nonzero()[:, 0]
        if len(found) > wanted:
            value = flat[found]
            found = found[value >= value.kthvalue(len(value) - wanted + 1).values]
        return found

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """A SAELens 'jumprelu' SAE with one threshold for all features."""
        sae = self._fill(JumpReLUSAE(JumpReLUSAEConfig(**self._sizes(metadata))), "b_enc")
        sae.threshold.data.fill_(float(self.threshold))
        return sae


class Matryoshka(BatchTopK):
    """BatchTopK whose first features must rebuild the activation alone, too (Bussmann et al. 2025, eq. 3).

    The loss is the mean of the squared errors of nested prefixes of the dictionary, so that general features come
    first and are not split up into the later, narrower ones.
    """

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested prefixes, in features."""
        return tuple(max(1, round(share * self.config.d_sae)) for share in self.config.prefixes)


class Gated(SparseAutoencoder):
    """Whether a feature fires and how strongly are decided apart (Rajamanoharan et al. 2024a, eq. 6 to 8).

    `f = [π > 0] · ReLU(e^r π' + b_mag)` with `π = W_enc (x − b_dec) + b_gate`, `π' = W_enc (x − b_dec)`. The L1 term
    is on `ReLU(π)` alone, so it does not shrink magnitudes; an auxiliary reconstruction from `ReLU(π)` through a
    frozen decoder trains the gate.
    """

    over_entries = False
    in_units = ("b_enc", "b_mag", "b_dec", "threshold")  # b_enc is the gate's bias

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        shared = F.linear(x - self.b_dec, self.encoder)
        return (shared + self.b_enc > 0) * (self.r_mag.exp() * shared + self.b_mag).relu()

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`sparsity · ‖ReLU(π)‖₁` plus the frozen decoder's squared error from `ReLU(π)`, mean over tokens."""
        gate = self.pre_activations(x).relu()
        frozen = gate @ self.W_dec.detach() + self.b_dec.detach()
        return self.config.sparsity * gate.sum(1).mean() + (x - frozen).pow(2).sum(1).mean()

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """A SAELens 'gated' SAE."""
        sae = self._fill(GatedSAE(GatedSAEConfig(**self._sizes(metadata))), "r_mag", "b_mag")
        sae.b_gate.data.copy_(self.b_enc.data)
        return sae


class _Step(torch.autograd.Function):
    """`[z > θ]`, whose gradient on `θ` is estimated in a window (Rajamanoharan et al. 2024b, eq. 11).

    With `value` 1 it counts (for the L0 term); with `value` z it is the JumpReLU itself.
    """

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float, jump: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.jump = bandwidth, jump
        return (z > threshold).to(z.dtype) * (z if jump else 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, threshold = ctx.saved_tensors
        window = ((z - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        d_threshold = -(grad * window * (threshold if ctx.jump else 1)).sum(0)
        return (grad * (z > threshold) if ctx.jump else None), d_threshold, None, None


class JumpReLU(SparseAutoencoder):
    """A learned threshold for each feature, and an L0 penalty (Rajamanoharan et al. 2024b).

    Neither the jump nor the count has a useful gradient on the threshold, so both use a straight-through estimator:
    the gradient that a threshold would have if activations near it were spread evenly over a window.
    """

    over_entries = False
    in_units = ("b_enc", "b_dec", "threshold")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        del self.threshold
        self.log_threshold = nn.Parameter(torch.full((config.d_sae,), 0.1).log())

    @property
    def threshold(self) -> Float[Tensor, "d_sae"]:
        """Activation that each feature must exceed."""
        return self.log_threshold.exp()

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        return _Step.apply(self.pre_activations(x), self.threshold, self.config.bandwidth, True)

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`sparsity · L0`, mean over tokens."""
        counted = _Step.apply(self.pre_activations(x), self.threshold, self.config.bandwidth, False)
        return self.config.sparsity * counted.sum(1).mean()

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """A SAELens 'jumprelu' SAE."""
        return self._fill(JumpReLUSAE(JumpReLUSAEConfig(**self._sizes(metadata))), "b_enc", "threshold")


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    "relu": ReLU, "topk": TopK, "batch_topk": BatchTopK, "gated": Gated, "jumprelu": JumpReLU, "matryoshka": Matryoshka,
}  # fmt: skip


def make_sae(config: SaeConfig) -> SparseAutoencoder:
    """A freshly initialised SAE.

    Raises:
        ValueError: unknown architecture, or settings that make no SAE.
    """
    if config.architecture not in ARCHITECTURES:
        raise ValueError(f"no architecture '{config.architecture}'; choose from {', '.join(ARCHITECTURES)}")
    if not 0 < config.k <= config.d_sae:
        raise ValueError(f"k is {config.k}; it must lie between 1 and d_sae = {config.d_sae}")
    if config.tied and config.architecture != "relu":
        raise ValueError(f"only 'relu' can tie its weights, not '{config.architecture}'")
    if list(config.prefixes) != sorted(set(config.prefixes)) or config.prefixes[-1] != 1 or config.prefixes[0] <= 0:
        raise ValueError(f"prefixes are {config.prefixes}; they must rise from above 0 to 1")
    return ARCHITECTURES[config.architecture](config)


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> None:
    """Make an SAE trained on `scale · x` read and rebuild `x` itself, with decoder rows still at norm 1."""
    for name in sae.in_units:
        if name == "threshold" and isinstance(sae, JumpReLU):
            sae.log_threshold -= torch.tensor(scale).log()
        else:
            getattr(sae, name).div_(scale)


def save_saelens(sae: SparseAutoencoder, folder: Path, metadata: SAEMetadata) -> None:
    """Write a trained SAE to a folder in SAELens' format, float16: `SAE.load_from_disk(folder)` reads it.

    The files are written to a temporary folder first, so that a full disk leaves what stood there.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        weights, cfg = sae.to_saelens(metadata).save_model(temporary)
        save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)
        settings = json.loads(Path(cfg).read_text()) | {"dtype": "float16"}
        Path(cfg).write_text(json.dumps(settings, indent=1) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        for file in (weights, cfg):
            os.replace(file, folder / Path(file).name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
