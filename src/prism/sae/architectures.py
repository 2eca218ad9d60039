"""The architectures, each as its paper writes it: ReLU + L1, TopK, BatchTopK, Matryoshka, Gated and JumpReLU.

`x` is an activation, `f` its features, `z = W_enc (x − b_dec) + b_enc` the pre-activations; `x̂ = f W_dec + b_dec`. Some
papers leave `b_dec` out of `z`, or name it `b_pre`; here it is in `z` always.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prism.sae.base import SaeConfig, SparseAutoencoder


class ReLU(SparseAutoencoder):
    """The classic (Bricken et al. 2023, 'Problem setup'), with the penalty of Conerly et al. 2024.

        f = ReLU(z),   L = ‖x − x̂‖² + λ Σ_i f_i ‖W_dec,i‖₂

    Each activation is weighted by its decoder row's norm, so that shrinking activations and growing rows gains nothing;
    at norm 1 that is plain L1.
    """

    def activation(self, pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """`ReLU(z)`."""
        return pre.relu()

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`Σ_i f_i ‖W_dec,i‖₂`, mean over tokens."""
        return (f @ self.W_dec.norm(dim=1)).mean()


class TopK(SparseAutoencoder):
    """The `k` largest pre-activations of each token, as far as they are positive (Gao et al. 2024, eq. 3).

        f = TopK(z),   L = ‖x − x̂‖² + α ‖e − ê‖²   with   e = x − x̂,   ê = f_dead W_dec

    A feature that is never among the `k` gets no gradient, so it stays dead. The second term (AuxK, appendix A.2) asks
    the `aux_k` strongest dead features of each token to rebuild together what the living ones leave over.
    """

    revives, encoder_scale = True, 1.0

    @property
    def aux_k(self) -> int:
        """Dead features that the auxiliary loss lets fire on each token."""
        return self.config.aux_k or self.config.d_in // 2

    def activation(self, pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """`TopK(z)`."""
        value, index = pre.relu().topk(self.config.k, dim=1)
        return torch.zeros_like(pre).scatter(1, index, value)

    def loss(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Float[Tensor, ""]:
        """`‖x − x̂‖² + α ‖e − ê‖²`, mean over tokens; the second term only where features are dead."""
        loss = super().loss(x)
        if dead is None or not len(dead):
            return loss
        with torch.no_grad():
            e = x - self.b_dec - self.encode(x) @ self.W_dec
        value, index = self.pre_activations(x)[:, dead].topk(min(self.aux_k, len(dead)), dim=1)
        rebuilt = torch.einsum("bk,bkd->bd", value.relu(), self.W_dec[dead[index]])
        return loss + self.config.aux_coefficient * (e - rebuilt).pow(2).sum(1).mean()


class BatchTopK(TopK):
    """The `n · k` largest pre-activations of a batch of `n` tokens together (Bussmann et al. 2024, eq. 4).

        f = BatchTopK(z),   after training   f_i = z_i if z_i > θ else 0

    A token may use more than `k` features and another fewer; the loss is TopK's. So that a token's features do not hang
    on its batch, one threshold takes the batch's place after training (eq. 6): there the mean of the smallest
    activations of the batches, here the one above which `k` features a token are active on average
    (`training.loop.calibrate`).
    """

    in_units = ("b_enc", "b_dec", "threshold")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))

    def activation(self, pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """`BatchTopK(z)` in training, afterwards what exceeds the threshold."""
        if not self.training:
            return pre * (pre > self.threshold)
        f = pre.relu()
        return f * (f >= f.flatten().topk(len(f) * self.config.k).values[-1])


class Matryoshka(BatchTopK):
    """BatchTopK whose first features must rebuild the activation alone, too (Bussmann et al. 2025, eq. 3).

        L = Σ_m ‖x − (f_1…m W_dec,1…m + b_dec)‖² + L_aux   over nested prefixes of m features

    So general features come first and are not split up into the later, narrower ones. The sum is a mean here, on one
    scale with the other architectures.
    """

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested prefixes `m`, in features."""
        return tuple(sorted({max(1, round(share * self.config.d_sae)) for share in self.config.prefixes}))

    def error(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """The prefixes' squared errors: mean over prefixes and tokens."""
        errors = [x - self.b_dec - f[:, :m] @ self.W_dec[:m] for m in self.widths]
        return sum(error.pow(2).sum(1).mean() for error in errors) / len(errors)


class Gated(SparseAutoencoder):
    """Whether a feature fires and how strongly are decided apart (Rajamanoharan et al. 2024a, eq. 6 to 8).

        f = 1[π > 0] ⊙ ReLU(W_mag (x − b_dec) + b_mag)   with   π = W_gate (x − b_dec) + b_gate,  W_mag = e^r ⊙ W_gate
        L = ‖x − x̂(f)‖² + λ ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖²

    The penalty is on the gate alone, so it does not shrink magnitudes. The last term, through a decoder that gets no
    gradient from it, trains the gate. `W_gate` is `W_enc` here, `b_gate` is `b_enc`, and `r` is `r_mag`.
    """

    in_units = ("b_enc", "b_mag", "b_dec")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        magnitude = (x - self.b_dec) @ (self.encoder.T * self.r_mag.exp()) + self.b_mag
        return (self.pre_activations(x) > 0) * magnitude.relu()

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`‖ReLU(π)‖₁`, mean over tokens."""
        return self.pre_activations(x).relu().sum(1).mean()

    def loss(
        self, x: Float[Tensor, "batch d_in"], dead: Int[Tensor, "n_dead"] | None = None, sparsity: float | None = None
    ) -> Float[Tensor, ""]:
        """`‖x − x̂(f)‖² + λ ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖²`, mean over tokens."""
        frozen = self.pre_activations(x).relu() @ self.W_dec.detach() + self.b_dec.detach()
        return super().loss(x, dead, sparsity) + (x - frozen).pow(2).sum(1).mean()


FIRST_THRESHOLD = 0.1  # of a JumpReLU feature, for inputs of mean norm sqrt(d_in)


class Jump(torch.autograd.Function):
    """`H(z − θ)` or `z H(z − θ)`, whose gradient on `θ` is estimated in a window (Rajamanoharan et al. 2024b, eq. 11).

        ∂/∂θ H(z − θ) := −1/ε K((z − θ)/ε),   ∂/∂θ z H(z − θ) := −θ/ε K((z − θ)/ε)

    Neither has a useful gradient on the threshold, so both use the one that a threshold would have if the activations
    near it were spread evenly over a window of width `ε`: `K` is 1 from −½ to ½.
    """

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float, counts: bool) -> Tensor:
        """The count `H(z − θ)` if `counts`, else the activation `z H(z − θ)`."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.counts = bandwidth, counts
        return (z > threshold).to(z.dtype) * (1 if counts else z)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """The window's estimate on the threshold; the activation passes its own gradient on, the count none."""
        z, threshold = ctx.saved_tensors
        window = ((z - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        d_threshold = -(grad * window * (1 if ctx.counts else threshold)).sum(0)
        return (None if ctx.counts else grad * (z > threshold)), d_threshold, None, None


class JumpReLU(SparseAutoencoder):
    """A learned threshold for each feature, and an L0 penalty (Rajamanoharan et al. 2024b, eq. 9).

    f = JumpReLU_θ(z) = z ⊙ H(z − θ),   L = ‖x − x̂‖² + λ ‖f‖₀   with   ‖f‖₀ = Σ_i H(z_i − θ_i)
    """

    in_units = ("b_enc", "b_dec", "log_threshold")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.log_threshold = nn.Parameter(torch.full((config.d_sae,), FIRST_THRESHOLD).log())

    @property
    def threshold(self) -> Float[Tensor, "d_sae"]:
        """`θ`: what each feature's pre-activation must exceed."""
        return self.log_threshold.exp().to(self.b_enc.dtype)

    def activation(self, pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """`z ⊙ H(z − θ)`."""
        return Jump.apply(pre, self.threshold, self.config.bandwidth, False)

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`‖f‖₀`, mean over tokens."""
        return Jump.apply(self.pre_activations(x), self.threshold, self.config.bandwidth, True).sum(1).mean()


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    "relu": ReLU,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "gated": Gated,
    "jumprelu": JumpReLU,
    "matryoshka": Matryoshka,
}


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
