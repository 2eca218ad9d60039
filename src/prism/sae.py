"""Sparse autoencoders from scratch: TopK and BatchTopK behind one interface, and their export to SAELens."""

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
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class SaeConfig:
    """Shape and loss of one SAE."""

    d_in: int  # width of the activations that it reads
    d_sae: int = 4_096  # features
    architecture: str = "batch_topk"  # a name in ARCHITECTURES
    k: int = 32  # active features a token (BatchTopK: on average over a batch)
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
    """What every SAE here shares: `x̂ = W_decᵀ f + b_dec`, `f = select(W_enc (x − b_dec) + b_enc)`.

    Decoder rows are kept at norm 1 (the trainer sees to it), so a feature's activation is a length along its
    direction. The encoder starts as a copy of the decoder (Gao et al. 2024, appendix A.1).

    Attributes:
        W_enc: `[d_sae, d_in]`, one row a feature (SAELens stores its transpose).
        W_dec: `[d_sae, d_in]`, one unit row a feature.
        threshold: activation under which an entry was not kept, averaged over training.
    """

    def __init__(self, config: SaeConfig):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(config.d_sae, config.d_in, generator=generator), dim=1)
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def aux_k(self) -> int:
        """Dead features that the auxiliary loss lets fire on each token."""
        return self.config.aux_k or self.config.d_in // 2

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """`W_enc (x − b_dec) + b_enc`: the one dense product of a training step."""
        return F.linear(x - self.b_dec, self.W_enc, self.b_enc)

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions, in order, of the entries that stay active during training."""
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

    def loss(self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None) -> Float[Tensor, ""]:
        """Squared error summed over `d_in`, mean over tokens, plus the auxiliary loss of the dead features.

        The auxiliary loss (AuxK, Gao et al. 2024, appendix A.2) asks the strongest `aux_k` dead features of each
        token to rebuild what the living ones leave over: without it a feature that stopped firing has no gradient.
        """
        error = x - self(x)
        loss = error.pow(2).sum(1).mean()
        if dead is None or not len(dead):
            return loss
        value, index = self.pre_activations(x)[:, dead].topk(min(self.aux_k, len(dead)), dim=1)
        rebuilt = torch.einsum("bk,bkd->bd", value.relu(), self.W_dec[dead[index]])
        return loss + self.config.aux_coefficient * (error.detach() - rebuilt).pow(2).sum(1).mean()


class TopK(SparseAutoencoder):
    """The `k` largest positive pre-activations of each token (Gao et al. 2024, eq. 3)."""

    def select(self, pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "active"]:
        """Flat positions of each row's `k` largest positive entries."""
        value, index = pre.topk(min(self.config.k, pre.shape[1]), dim=1, sorted=False)
        flat = index + pre.shape[1] * torch.arange(len(pre), device=pre.device)[:, None]
        return flat[value > 0].sort().values

    def to_saelens(self, metadata: SAEMetadata | None = None) -> SAE:
        """The same function as a SAELens TopK SAE."""
        cfg = TopKSAEConfig(self.config.d_in, self.config.d_sae, k=self.config.k, metadata=metadata or SAEMetadata())
        return _filled(TopKSAE(cfg), self)


class BatchTopK(SparseAutoencoder):
    """The `batch · k` largest positive pre-activations of the whole batch (Bussmann et al. 2024, eq. 4).

    A token may use more than `k` features and another fewer. After training one threshold takes the batch's place
    (eq. 6): the running mean of the smallest activation kept.
    """

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
        """The same function after training, as a SAELens JumpReLU SAE with one threshold for all features."""
        cfg = JumpReLUSAEConfig(self.config.d_in, self.config.d_sae, metadata=metadata or SAEMetadata())
        sae = _filled(JumpReLUSAE(cfg), self)
        sae.threshold.data.fill_(float(self.threshold))
        return sae


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {"topk": TopK, "batch_topk": BatchTopK}


def make_sae(config: SaeConfig) -> SparseAutoencoder:
    """A freshly initialised SAE.

    Raises:
        ValueError: unknown architecture, or sizes that make no SAE.
    """
    if config.architecture not in ARCHITECTURES:
        raise ValueError(f"no architecture '{config.architecture}'; choose from {', '.join(ARCHITECTURES)}")
    if not 0 < config.k <= config.d_sae:
        raise ValueError(f"k is {config.k}; it must lie between 1 and d_sae = {config.d_sae}")
    return ARCHITECTURES[config.architecture](config)


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> None:
    """Make an SAE trained on `scale · x` read and rebuild `x` itself, with decoder rows still at norm 1."""
    for tensor in (sae.b_enc, sae.b_dec, sae.threshold):
        tensor.div_(scale)


@torch.no_grad()
def _filled(target: SAE, source: SparseAutoencoder) -> SAE:
    """Weights copied into a SAELens SAE."""
    target.W_enc.copy_(source.W_enc.T)
    for name in ("b_enc", "W_dec", "b_dec"):
        getattr(target, name).copy_(getattr(source, name))
    return target.eval()


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
