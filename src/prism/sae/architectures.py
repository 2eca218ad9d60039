"""The six architectures, one small class each: ReLU + L1, TopK, BatchTopK, Matryoshka, Gated and JumpReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prism.sae.base import Entries, SaeConfig, SparseAutoencoder, where_true


def weighted_rows(
    table: Float[Tensor, "rows d"], index: Int[Tensor, "entries"], start: Int[Tensor, "groups"], weight: Tensor
) -> Float[Tensor, "groups d"]:
    """`out[g] = Σ weight[e] · table[index[e]]` over the entries `e` of group `g`: a sparse-dense product."""
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


def row_products(left: Float[Tensor, "batch d"], table: Float[Tensor, "rows d"], entries: Entries) -> Tensor:
    """`⟨left[row], table[feature]⟩` at each entry: the dense product `left tableᵀ`, where it is wanted only."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, table, entries.feature, entries.start, entries.row, 0
    )


class ReLU(SparseAutoencoder):
    """`f = ReLU(W_enc (x − b_dec) + b_enc)` with an L1 penalty (Bricken et al. 2023).

    Each activation is weighted by its decoder row's norm (Conerly et al. 2024), so that shrinking activations and
    growing rows gains nothing; at norm 1 that is plain L1.
    """

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """`Σ_i f_i ‖W_dec,i‖`, mean over tokens."""
        return (f @ self.W_dec.norm(dim=1)).mean()

    def entry_penalty(self, entries: Entries, values: Float[Tensor, "entries"]) -> Tensor:
        """The same, over entries."""
        return (values * self.W_dec.norm(dim=1)[entries.feature]).sum()

    def entry_gradients(self, entries, d_f, centred, sparsity):
        """As above; the penalty pulls every activation down by its row's norm, and each row by its activations."""
        norm, share = self.W_dec.norm(dim=1), sparsity / len(centred)
        total = torch.zeros_like(norm).index_add_(0, entries.feature, entries.value)
        self.W_dec.grad += (share * total / norm)[:, None] * self.W_dec
        return super().entry_gradients(entries, d_f + share * norm[entries.feature], centred, sparsity)


class TopK(SparseAutoencoder):
    """The `k` largest positive pre-activations of each token (Gao et al. 2024, eq. 3)."""

    revives, encoder_scale = True, 1.0

    def candidates(self, pre: Float[Tensor, "rows d_sae"], low: float = 0.0) -> Int[Tensor, "entries"]:
        """Flat positions of each row's `k` largest positive entries; within a row in any order."""
        value, index = pre.topk(min(self.config.k, pre.shape[1]), dim=1, sorted=False)
        flat = index + pre.shape[1] * torch.arange(len(pre), device=pre.device)[:, None]
        return flat[value > 0]


class BatchTopK(SparseAutoencoder):
    """The `batch · k` largest positive pre-activations of the whole batch (Bussmann et al. 2024, eq. 4).

    A token may use more than `k` features and another fewer. After training one threshold takes the batch's place
    (eq. 6): the activation above which `k` features a token are active on average.
    """

    revives, encoder_scale = True, 1.0
    in_units = ("b_enc", "b_dec", "threshold")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def low(self) -> float:
        """0 in training, afterwards the threshold."""
        return 0.0 if self.training else float(self.threshold)

    def cut(self, value: Float[Tensor, "entries"], rows: int) -> Tensor | float:
        """The batch's `rows · k`-th largest value, in training."""
        wanted = rows * self.config.k
        if not self.training or len(value) <= wanted:
            return 0.0
        return value.kthvalue(len(value) - wanted + 1).values


class Matryoshka(BatchTopK):
    """BatchTopK whose first features must rebuild the activation alone, too (Bussmann et al. 2025, eq. 3).

    The loss is the mean of the squared errors of nested prefixes of the dictionary, so that general features come
    first and are not split up into the later, narrower ones.
    """

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested prefixes, in features."""
        return tuple(sorted({max(1, round(share * self.config.d_sae)) for share in self.config.prefixes}))


class Gated(SparseAutoencoder):
    """Whether a feature fires and how strongly are decided apart (Rajamanoharan et al. 2024a, eq. 6 to 8).

    `f = [π > 0] · ReLU(e^r s + b_mag)` with `s = W_enc (x − b_dec)`, `π = s + b_enc`. The L1 term is on `ReLU(π)`
    alone, so it does not shrink magnitudes; an auxiliary reconstruction from `ReLU(π)` through a frozen decoder
    trains the gate.
    """

    in_units = ("b_enc", "b_mag", "b_dec")  # b_enc is the gate's bias

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
        """The shared loss plus the squared error of the frozen decoder's reconstruction from `ReLU(π)`."""
        frozen = self.pre_activations(x).relu() @ self.W_dec.detach() + self.b_dec.detach()
        return super().loss(x, dead, sparsity) + (x - frozen).pow(2).sum(1).mean()

    def entry_penalty(self, entries: Entries, values: Float[Tensor, "entries"]) -> Tensor:
        """The same, over entries: they are those where the gate is open."""
        return entries.value.sum()

    def _magnitude(self, entries: Entries) -> tuple[Tensor, Tensor]:
        shared = entries.value - self.b_enc[entries.feature]
        return shared, self.r_mag.exp()[entries.feature] * shared + self.b_mag[entries.feature]

    def entry_values(self, entries: Entries) -> Float[Tensor, "entries"]:
        """`ReLU(e^r s + b_mag)` where the gate is open."""
        return self._magnitude(entries)[1].relu()

    def entry_gradients(self, entries, d_f, centred, sparsity):
        """Two ways down: through the magnitude, and through the gate's penalty and frozen reconstruction."""
        shared, magnitude = self._magnitude(entries)
        d_magnitude = d_f * (magnitude > 0)
        through = d_magnitude * self.r_mag.exp()[entries.feature]
        self.b_mag.grad.index_add_(0, entries.feature, d_magnitude)
        self.r_mag.grad.index_add_(0, entries.feature, through * shared)
        slope = -2 / len(centred) * (centred - weighted_rows(self.W_dec, entries.feature, entries.start, entries.value))
        d_gate = sparsity / len(centred) + row_products(slope, self.W_dec, entries)
        self.b_enc.grad.index_add_(0, entries.feature, d_gate)
        return through + d_gate


FIRST_THRESHOLD = 0.1  # of a JumpReLU feature, for inputs of mean norm sqrt(d_in)


class Jump(torch.autograd.Function):
    """`[z > θ]` or `z [z > θ]`, whose gradient on `θ` is estimated in a window (Rajamanoharan et al. 2024b, eq. 11).

    Neither has a useful gradient on the threshold, so both use the one that a threshold would have if the
    activations near it were spread evenly over a window of width `bandwidth`.
    """

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float, counts: bool) -> Tensor:
        """The count `[z > θ]` if `counts`, else the activation `z [z > θ]`."""
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
    """A learned threshold for each feature, and an L0 penalty (Rajamanoharan et al. 2024b, eq. 9)."""

    in_units = ("b_enc", "b_dec", "log_threshold")

    def __init__(self, config: SaeConfig):
        super().__init__(config)
        self.log_threshold = nn.Parameter(torch.full((config.d_sae,), FIRST_THRESHOLD).log())

    @property
    def threshold(self) -> Float[Tensor, "d_sae"]:
        """Activation that each feature must exceed."""
        return self.log_threshold.exp().to(self.b_enc.dtype)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations, dense; differentiable."""
        return Jump.apply(self.pre_activations(x), self.threshold, self.config.bandwidth, False)

    def penalty(self, x: Float[Tensor, "batch d_in"], f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """L0, mean over tokens."""
        return Jump.apply(self.pre_activations(x), self.threshold, self.config.bandwidth, True).sum(1).mean()

    def entry_penalty(self, entries: Entries, values: Float[Tensor, "entries"]) -> Tensor:
        """The same, over entries."""
        return (values > 0).sum()

    def candidates(self, pre: Float[Tensor, "rows d_sae"], low: float = 0.0) -> Int[Tensor, "entries"]:
        """Flat positions of the entries above their threshold, or so little below it that they move it."""
        return where_true(pre > self.threshold - self.config.bandwidth / 2)

    def entry_values(self, entries: Entries) -> Float[Tensor, "entries"]:
        """`z [z > θ]`."""
        return entries.value * (entries.value > self.threshold[entries.feature])

    def entry_gradients(self, entries, d_f, centred, sparsity):
        """Activations pass their gradient on; thresholds get theirs from the entries in the window."""
        threshold, width = self.threshold[entries.feature], self.config.bandwidth
        window = (entries.value - threshold).abs() < width / 2
        d_threshold = -(threshold * d_f + sparsity / len(centred)) * window / width
        self.log_threshold.grad.index_add_(0, entries.feature, (d_threshold * threshold).to(self.log_threshold.dtype))
        return super().entry_gradients(entries, d_f * (entries.value > threshold), centred, sparsity)


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
