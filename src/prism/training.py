"""Training SAEs quickly: one dense product a step, everything else over the active entries only.

In a TopK code 32 of thousands of features are active. Autograd nevertheless runs three more dense products of the
encoder's size: the decoder and two weight gradients. `sparse_gradients` runs them over the active entries with
`embedding_bag` (a weighted sum of rows), and is held equal to autograd by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from tqdm.auto import tqdm

from prism.data import corpus_batch, load_corpus
from prism.models import harvest
from prism.sae import BatchTopK, Codes, ReLU, SaeConfig, SparseAutoencoder, fold_scale, make_sae, save_saelens


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run."""

    tokens: int = 4_000_000  # activations trained on, in all
    batch: int = 2_048  # activations a step
    lr: float = 3e-3  # Adam, for inputs of mean norm sqrt(d_in)
    warmup_share: float = 0.05  # first share of the steps, over which the learning rate rises
    decay_share: float = 0.25  # last share of the steps, over which it falls to zero
    sparsity_warmup_share: float = 0.1  # first share of the steps, over which the sparsity penalty rises
    dead_after: int = 250_000  # activations without firing after which a feature counts as dead
    resample_every: int = 500_000  # activations between resamplings of dead features; for SAEs without AuxK
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return max(1, self.tokens // self.batch)

    def lr_scale(self, step: int) -> float:
        """Learning-rate factor at a step: linear warm-up, constant, linear decay to zero."""
        rise = (step + 1) / max(1.0, self.warmup_share * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return min(1.0, rise, fall)

    def strength(self, step: int) -> float:
        """Factor of the sparsity penalty at a step."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup_share * self.steps))


def sparse_rows(pre: Float[Tensor, "batch d_sae"], flat: Int[Tensor, "active"]) -> Codes:
    """The entries of a dense matrix at flat positions (in order), as CSR."""
    row = flat.div(pre.shape[1], rounding_mode="floor")
    return Codes(flat - row * pre.shape[1], pre.flatten()[flat], row, _starts(row, len(pre)))


def _starts(sorted_ids: Int[Tensor, "n"], n: int) -> Int[Tensor, "groups"]:
    """Where each of `n` groups begins in a sorted list of group numbers."""
    counts = torch.bincount(sorted_ids, minlength=n)
    return counts.cumsum(0) - counts


def weighted_rows(
    table: Float[Tensor, "rows d"], index: Int[Tensor, "active"], start: Int[Tensor, "groups"], weight: Tensor
) -> Float[Tensor, "groups d"]:
    """`out[g] = Σ weight[e] · table[index[e]]` over the entries `e` of group `g`: a sparse-dense product."""
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


@torch.no_grad()
def add_gradients(
    sae: SparseAutoencoder,
    centred: Float[Tensor, "batch d_in"],
    codes: Codes,
    slope: Float[Tensor, "batch d_in"],
    pull: Float[Tensor, "active"] | float = 0.0,
) -> None:
    """Add to `.grad` of the weights what follows from `slope`, the loss's gradient at the reconstruction.

    With `f` the codes and `s` the slope: `∂W_dec = fᵀ s`; `∂f = s W_decᵀ + pull` at the active entries; `∂W_enc = ∂fᵀ
    (x − b_dec)`; `∂b_enc = Σ ∂f`; and `b_dec` feels the decoder as `Σ s` and the encoder as `−∂b_enc W_enc`.
    """
    d_code = pull + torch.ops.aten._embedding_bag_per_sample_weights_backward(
        slope, sae.W_dec, codes.feature, codes.start, codes.row, 0
    )
    order = codes.feature.argsort()
    row, start = codes.row[order], _starts(codes.feature[order], sae.config.d_sae)
    sae.W_dec.grad += weighted_rows(slope, row, start, codes.value[order])
    sae.encoder.grad += weighted_rows(centred, row, start, d_code[order])
    d_bias = torch.zeros_like(sae.b_enc).index_add_(0, codes.feature, d_code)
    sae.b_enc.grad += d_bias
    sae.b_dec.grad -= d_bias @ sae.encoder


class Step(NamedTuple):
    """What one training step saw."""

    error: float  # squared error a token, summed over d_in
    codes: Codes


@torch.no_grad()
def sparse_gradients(
    sae: SparseAutoencoder,
    x: Float[Tensor, "batch d_in"],
    dead: Int[Tensor, "n_dead"] | None = None,
    strength: float = 1.0,
) -> Step:
    """The gradients of `sae.loss(x, dead, strength)`, without a dense product but the encoder's."""
    for parameter in sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    centred = x - sae.b_dec
    pre = F.linear(centred, sae.encoder, sae.b_enc)
    codes = sparse_rows(pre, sae.select(pre))
    pull = _add_penalty(sae, codes, strength / len(x)) if isinstance(sae, ReLU) else 0.0
    for width in sae.widths:
        part = codes if width == sae.config.d_sae else _prefix(codes, width, len(x))
        error = centred - weighted_rows(sae.W_dec, part.feature, part.start, part.value)
        slope = error * (-2 / len(x) / len(sae.widths))
        sae.b_dec.grad += slope.sum(0)
        add_gradients(sae, centred, part, slope, pull)
    if sae.revives and dead is not None and len(dead):
        value, index = pre[:, dead].topk(min(sae.aux_k, len(dead)), dim=1)
        flat = (dead[index] + pre.shape[1] * torch.arange(len(x), device=x.device)[:, None])[value > 0].sort().values
        revived = sparse_rows(pre, flat)
        left = error - weighted_rows(sae.W_dec, revived.feature, revived.start, revived.value)
        add_gradients(sae, centred, revived, left * (-2 * sae.config.aux_coefficient / len(x)))
    return Step(error.pow(2).sum(1).mean().item(), codes)


def _prefix(codes: Codes, width: int, n_rows: int) -> Codes:
    """The entries of the first `width` features."""
    keep = codes.feature < width
    row = codes.row[keep]
    return Codes(codes.feature[keep], codes.value[keep], row, _starts(row, n_rows))


def _add_penalty(sae: ReLU, codes: Codes, share: float) -> Float[Tensor, "active"]:
    """Gradient of the norm-weighted L1 term: the decoder's part is added, the codes' part returned."""
    norm = sae.W_dec.norm(dim=1)
    total = torch.zeros_like(norm).index_add_(0, codes.feature, codes.value)
    sae.W_dec.grad += (sae.config.sparsity * share * total / norm)[:, None] * sae.W_dec
    return sae.config.sparsity * share * norm[codes.feature]


def dense_gradients(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], dead: Tensor | None = None, strength: float = 1.0
) -> Step:
    """The same by autograd: the definition that `sparse_gradients` is held equal to, and the way for the others."""
    sae.zero_grad(set_to_none=True)
    with torch.enable_grad():
        sae.loss(x, dead, strength).backward()
    with torch.no_grad():
        f = sae.encode(x)
        codes = sparse_rows(f, (f.flatten() > 0).nonzero()[:, 0])
        return Step((x - sae.decode(f)).pow(2).sum(1).mean().item(), codes)


MOST_ENTRIES = 800  # active features a token, above which the dense way is the quicker one


def gradients(
    sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], dead: Tensor | None = None, strength: float = 1.0,
    last_l0: float = 0.0,
) -> Step:  # fmt: skip
    """The quicker of the two ways for this SAE at this sparsity."""
    quick = sae.over_entries and last_l0 < MOST_ENTRIES
    return (sparse_gradients if quick else dense_gradients)(sae, x, dead, strength)


def batches_of(activations: np.ndarray, config: TrainConfig) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Random batches without replacement, epoch after epoch, as float32.

    Args:
        activations: `[samples, d_in]`, an array or a memory map of any float type.

    Raises:
        ValueError: fewer activations than one batch.
    """
    if len(activations) < config.batch:
        raise ValueError(f"{len(activations)} activations do not fill one batch of {config.batch}")
    rng = np.random.default_rng(config.seed)
    while True:
        order = rng.permutation(len(activations))
        for start in range(0, len(order) - config.batch + 1, config.batch):
            yield torch.from_numpy(activations[np.sort(order[start : start + config.batch])].astype(np.float32))


def train(
    activations: np.ndarray,
    sae: SaeConfig,
    config: TrainConfig | None = None,
    way: Callable[..., Step] | None = None,
    progress: str | None = None,
) -> SparseAutoencoder:
    """Train an SAE on activations; inputs are scaled to mean norm `sqrt(d_in)`, and the scale folded in at the end.

    Args:
        activations: `[samples, d_in]`, visited in random order as often as `config.tokens` asks for.
        way: `sparse_gradients` or `dense_gradients`; by default the quicker one at each step.
        progress: label of the progress bar; none without one.

    Raises:
        ValueError: activations of another width, or fewer than one batch.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    config = config or TrainConfig()
    if activations.shape[1] != sae.d_in:
        raise ValueError(f"activations are {activations.shape[1]} wide; this SAE reads {sae.d_in}")
    sample = torch.from_numpy(activations[:: max(1, len(activations) // 20_000)].astype(np.float32))
    scale = float(sae.d_in**0.5 / sample.norm(dim=1).mean())
    model = make_sae(sae).train()
    model.b_dec.data = sample.mean(0) * scale
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(0.9, 0.999), fused=True)
    quiet, l0 = torch.zeros(sae.d_sae), float(sae.d_sae)  # activations since each feature last fired; active a token
    batches = batches_of(activations, config)
    resample_steps = max(1, config.resample_every // config.batch)
    bar = tqdm(total=config.steps * config.batch, unit="tok", unit_scale=True, desc=progress, disable=progress is None)
    for step in range(config.steps):
        x = next(batches) * scale
        dead = (quiet > config.dead_after).nonzero()[:, 0]
        found = (way or partial(gradients, last_l0=l0))(model, x, dead, config.strength(step))
        if not np.isfinite(found.error):
            raise FloatingPointError(f"the loss became {found.error} at step {step}")
        _step(model, optimizer, config.lr * config.lr_scale(step))
        l0 = len(found.codes.value) / len(x)
        quiet += len(x)
        quiet[found.codes.feature] = 0
        if isinstance(model, BatchTopK) and len(found.codes.value):
            model.threshold.lerp_(found.codes.value.min(), 0.01 if step else 1.0)
        early = step < 0.7 * config.steps  # later a newborn feature would not settle before the decay ends
        if not model.revives and len(dead) and early and step % resample_steps == resample_steps - 1:
            resample(model, optimizer, x, dead)
            quiet[dead] = 0
        bar.update(len(x))
        if step % 50 == 0:
            bar.set_postfix(mse=f"{found.error:.2f}", l0=f"{l0:.1f}", dead=len(dead), refresh=False)
    bar.close()
    if isinstance(model, BatchTopK):
        calibrate(model, sample * scale)
    fold_scale(model, scale)
    return model.eval()


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "batch d_in"],
    dead: Int[Tensor, "n_dead"],
) -> None:
    """Point dead features at badly rebuilt activations (Bricken et al. 2023, appendix 'Neuron resampling').

    Each gets the direction of one activation, drawn with the square of its loss; a small encoder (a fifth of the
    living features' mean norm), no bias, and no memory in the optimiser.
    """
    loss = (x - sae(x)).pow(2).sum(1)
    generator = torch.Generator().manual_seed(int(dead.sum()))
    chosen = loss.square().double().multinomial(len(dead), replacement=True, generator=generator)
    rows = F.normalize(x[chosen] - sae.b_dec, dim=1)
    alive = torch.ones(sae.config.d_sae, dtype=torch.bool)
    alive[dead] = False
    size = sae.encoder[alive].norm(dim=1).mean() if alive.any() else torch.tensor(1.0)
    sae.W_dec[dead] = rows
    if not sae.config.tied:
        sae.W_enc[dead] = 0.2 * size * rows
    sae.b_enc[dead] = 0
    for parameter in sae.parameters():
        if parameter.shape[:1] == (sae.config.d_sae,) and parameter in optimizer.state:
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][name][dead] = 0


@torch.no_grad()
def calibrate(sae: SparseAutoencoder, sample: Float[Tensor, "batch d_in"]) -> None:
    """Set the threshold under which `k` features a token are active on average over a sample.

    The running mean of training lags behind weights that still move; this reads it off the finished SAE.
    """
    rows = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))]
    pre = sae.pre_activations(rows[: max(1, 2**25 // sae.config.d_sae)]).flatten()  # 128 MB at most
    kept = min(len(pre) - 1, sae.config.k * len(pre) // sae.config.d_sae)
    sae.threshold.fill_(pre.kthvalue(len(pre) - kept).values.clamp(min=0))


@torch.no_grad()
def _step(model: SparseAutoencoder, optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One update that leaves decoder rows at norm 1 (Bricken et al. 2023, appendix).

    The part of the gradient along a row would only change its norm: it is taken out before, so that Adam's
    memory does not fill with it.
    """
    grad, rows = model.W_dec.grad, model.W_dec
    grad -= (grad * rows).sum(1, keepdim=True) * rows
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    rows.div_(rows.norm(dim=1, keepdim=True))


def train_for_model(model, name: str, corpus: str, hook_name: str, context: int, n_tokens: int, folder: Path) -> None:
    """Train an SAE of modest size on one hook of a model and save it in SAELens' format.

    Args:
        name: what the metadata calls the model.
        corpus: name for `data.load_corpus`; its texts are read by the model's own tokenizer.
        n_tokens: activations to harvest (BOS and padding left out); training passes over them four times.
    """
    batch = corpus_batch(load_corpus(corpus), model.tokenizer, context, n_tokens)
    stream = zip(harvest(model, batch.tokens, hook_name), batch.keep.split(32), strict=True)
    activations = np.concatenate([x[keep].half().numpy() for x, keep in stream])[:n_tokens]
    d_in = activations.shape[1]
    config = TrainConfig(tokens=4 * len(activations), dead_after=len(activations) // 2)
    trained = train(activations, SaeConfig(d_in, 8 * d_in), config, progress=f"SAE at {hook_name}")
    text = f"{len(activations):,} tokens of the corpus '{corpus}'"
    save_saelens(trained, folder, metadata_of(trained, config, name, hook_name, context, text))


def metadata_of(
    sae: SparseAutoencoder, config: TrainConfig, model: str, hook_name: str, context: int, text: str
) -> SAEMetadata:
    """What SAELens keeps beside an SAE's weights: trained without weight processing, BOS in front but left out."""
    return SAEMetadata(
        model_name=model,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=context,
        prepend_bos=True,
        exclude_special_tokens=False,  # end tokens between documents are trained on, position 0 is not
        model_from_pretrained_kwargs={},
        training_samples=config.steps * config.batch,
        training_data=text,
        training_architecture=sae.config.architecture,
    )
