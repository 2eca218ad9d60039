"""Measuring an SAE on its model's tokens in bounded memory: `evaluate`, and splicing reconstructions into the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from prism.data import TokenBatch
from prism.evaluation.metrics import ce_recovered, explained_share, kl, paired_bootstrap
from prism.models import check_hook, harvest

ENCODE_TOKENS = 2_048  # tokens encoded at once: bounds the dense [tokens, d_sae] block


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured. Nats per token for the cross-entropies; None where it was not asked for."""

    n_tokens: int
    d_sae: int
    l0: float
    mse: float
    explained_variance: float
    cosine: float
    relative_reconstruction_bias: float
    dead: int  # features that never fired on these tokens
    density: Float[np.ndarray, " d_sae"] = field(repr=False)
    ce_clean: float | None = None
    delta_ce: float | None = None
    delta_ce_interval: tuple[float, float] | None = None
    mean_ablation_cost: float | None = None  # what replacing the activation by its mean costs: all there is to recover
    mean_ablation_interval: tuple[float, float] | None = None
    ce_recovered_mean: float | None = None
    ce_recovered_zero: float | None = None
    kl: float | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row a measure, with its value and unit; densities are left out."""
        units = {
            "n_tokens": "tokens", "d_sae": "features", "l0": "features per token", "mse": "squared units per token",
            "explained_variance": "share", "cosine": "", "relative_reconstruction_bias": "1 is unbiased",
            "dead": "features", "ce_clean": "nats per token", "delta_ce": "nats per token",
            "delta_ce_interval": "95 %, bootstrap over sequences", "mean_ablation_cost": "nats per token",
            "mean_ablation_interval": "95 %, bootstrap over sequences", "ce_recovered_mean": "against mean-ablation",
            "ce_recovered_zero": "against zero-ablation", "kl": "nats per token",
        }  # fmt: skip
        rows = []
        for name in (f.name for f in fields(self) if f.name != "density"):
            value = getattr(self, name)
            if value is not None:
                rows.append((name, _show(value), units[name]))
        return pd.DataFrame(rows, columns=["measure", "value", "unit"]).set_index("measure")


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4f}" for v in value) + "]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


class Sums:
    """Running float64 sums over tokens; the total variance is merged batch by batch (Chan et al. 1979).

    Args:
        d_in: channels of the activation; d_sae: features.
    """

    def __init__(self, d_in: int, d_sae: int):
        self.n, self.active = 0, 0
        self.residual = self.total = self.cosine = self.norm_hat = self.dot = 0.0
        self.mean = torch.zeros(d_in, dtype=torch.float64)
        self.fires = torch.zeros(d_sae, dtype=torch.int64)

    def add(self, x: Tensor, x_hat: Tensor, f: Tensor) -> None:
        """Add some tokens: activations, reconstructions `[tokens, d_in]` and features `[tokens, d_sae]`."""
        if not len(x):
            return
        x, x_hat, fires = x.double(), x_hat.double(), f > 0
        self.active += int(fires.sum())
        self.fires += fires.sum(0)
        self.residual += (x - x_hat).pow(2).sum().item()
        self.cosine += torch.cosine_similarity(x, x_hat, dim=-1).sum().item()
        self.norm_hat += x_hat.pow(2).sum().item()
        self.dot += (x * x_hat).sum().item()
        mean, n = x.mean(0), self.n + len(x)
        shift = mean - self.mean
        self.total += (x - mean).pow(2).sum().item() + shift.pow(2).sum().item() * self.n * len(x) / n
        self.mean += shift * len(x) / n
        self.n = n

    def measures(self) -> dict[str, object]:
        """All that `Evaluation` says without running the model any further."""
        return {
            "n_tokens": self.n, "d_sae": len(self.fires), "l0": self.active / self.n, "mse": self.residual / self.n,
            "explained_variance": explained_share(self.residual, self.total), "cosine": self.cosine / self.n,
            "relative_reconstruction_bias": self.norm_hat / self.dot if self.dot else float("nan"),
            "dead": int((self.fires == 0).sum()), "density": (self.fires.double() / self.n).numpy(),
        }  # fmt: skip


def splice(model, tokens: Tensor, hook_name: str, keep: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits `[batch, pos, d_vocab]` with one hook's activations changed at kept positions.

    Args:
        change: maps the kept activations `[tokens, d_in]` to what takes their place.
    """

    check_hook(model, hook_name)

    def hook(activation: Tensor, hook) -> Tensor:
        spliced = activation.clone()
        spliced[keep] = change(activation[keep]).to(activation.dtype)
        return spliced

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)], return_type="logits")


def _nats(logits: Tensor, tokens: Tensor, mask: Tensor) -> np.ndarray:
    """Cross-entropy summed over each sequence's masked predictions, float64 `[batch]`."""
    picked = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(-1)
    return -(picked.double() * mask).sum(1).numpy()


def _reconstruct(sae) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([sae.decode(sae.encode(part)) for part in x.split(ENCODE_TOKENS)])


@torch.no_grad()
def splice_check(model, sae, batch: TokenBatch, batch_size: int | None = None) -> float:
    """Largest change of any sequence's mean CE when `x̂ + (x − x̂)` is put in place of `x` (nats; should be below 1e-5).

    It tests the plumbing: hook, positions and shapes, not the SAE's quality.
    """
    worst, batch_size = 0.0, batch_size or logit_rows(model, batch)
    hook_name, rebuild = sae.cfg.metadata.hook_name, _reconstruct(sae)
    for part in _parts(batch, batch_size):
        mask = part.keep[:, :-1] & part.keep[:, 1:]
        clean = _nats(model(part.tokens, return_type="logits"), part.tokens, mask)
        same = splice(model, part.tokens, hook_name, part.keep, lambda x: rebuild(x) + (x - rebuild(x)))
        change = np.abs(_nats(same, part.tokens, mask) - clean) / np.maximum(mask.sum(1).numpy(), 1)
        worst = max(worst, float(change.max()))
    return worst


def logit_rows(model, batch: TokenBatch) -> int:
    """Sequences whose logits fill 128 MB (at least 1, at most 16): a large vocabulary needs small batches."""
    return max(1, min(16, 2**25 // (batch.tokens.shape[1] * model.cfg.d_vocab)))


def _parts(batch: TokenBatch, batch_size: int) -> Iterator[TokenBatch]:
    return (batch[start : start + batch_size] for start in range(0, len(batch), batch_size))


@torch.no_grad()
def evaluate(
    model, sae, batch: TokenBatch, batch_size: int | None = None, with_ce: bool = True, ablations: bool = True,
    with_kl: bool = True, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Measure an SAE on tokens of its model, in bounded memory.

    Args:
        batch: tokens with BOS in front (see `data.tokenize` and `data.corpus_batch`).
        batch_size: sequences at a time; by default as many as `logit_rows` says.
        with_ce: also the cross-entropies, which need whole forward passes.
        ablations: also CE under zero- and mean-ablation (mean over the kept tokens of this batch).
        with_kl: also KL(clean ‖ spliced).
        seed: of the bootstrap.

    Raises:
        ValueError: no kept token, activations that are not finite, or an SAE whose hook or width does not fit.
    """
    if batch.n_tokens == 0:
        raise ValueError("the batch keeps no token; give at least one text")
    batch_size = batch_size or logit_rows(model, batch)
    sums = _stream(model, sae, batch, batch_size)
    measured = sums.measures()
    if with_ce:
        measured |= _cross_entropies(model, sae, batch, batch_size, sums.mean.float(), ablations, with_kl, seed)
    return Evaluation(**measured)


def _stream(model, sae, batch: TokenBatch, batch_size: int) -> Sums:
    """First pass: everything that needs activations but no logits."""
    sums = Sums(sae.cfg.d_in, sae.cfg.d_sae)
    activations = harvest(model, batch.tokens, sae.cfg.metadata.hook_name, batch_size)
    for x, keep in zip(activations, batch.keep.split(batch_size), strict=True):
        if x.shape[-1] != sae.cfg.d_in:
            raise ValueError(f"the hook gives {x.shape[-1]} numbers a token, the SAE reads {sae.cfg.d_in}; wrong SAE?")
        if not torch.isfinite(x[keep]).all():
            raise ValueError("activations are NaN or infinite; check the model's weights and its number format")
        for part in x[keep].split(ENCODE_TOKENS):
            f = sae.encode(part)
            sums.add(part, sae.decode(f), f)
    return sums


def _cross_entropies(
    model, sae, batch: TokenBatch, batch_size: int, mean: Tensor, ablations: bool, with_kl: bool, seed: int
) -> dict[str, object]:
    """Second pass: CE of the clean, the spliced and the ablated model, and KL."""
    hook_name = sae.cfg.metadata.hook_name
    changes = {"sae": _reconstruct(sae)}
    if ablations:
        changes |= {"zero": torch.zeros_like, "mean": lambda x: mean.expand_as(x)}
    nats: dict[str, list[np.ndarray]] = {name: [] for name in ("clean", *changes)}
    weights, kl_sum = [], 0.0
    for part in _parts(batch, batch_size):
        mask = part.keep[:, :-1] & part.keep[:, 1:]
        clean = model(part.tokens, return_type="logits")
        nats["clean"].append(_nats(clean, part.tokens, mask))
        for name, change in changes.items():
            logits = splice(model, part.tokens, hook_name, part.keep, change)
            nats[name].append(_nats(logits, part.tokens, mask))
            if name == "sae" and with_kl and mask.any():
                kl_sum += kl(clean[:, :-1], logits[:, :-1], mask) * int(mask.sum())
        weights.append(mask.sum(1).double().numpy())
    weight, total = np.concatenate(weights), {name: np.concatenate(parts) for name, parts in nats.items()}
    n = weight.sum()
    ce = {name: float(values.sum() / n) for name, values in total.items()}
    out = {"ce_clean": ce["clean"], "delta_ce": ce["sae"] - ce["clean"]}
    out["delta_ce_interval"] = paired_bootstrap(total["sae"] - total["clean"], weight, seed=seed)
    if ablations:
        out["mean_ablation_cost"] = ce["mean"] - ce["clean"]
        out["mean_ablation_interval"] = paired_bootstrap(total["mean"] - total["clean"], weight, seed=seed)
        out |= {f"ce_recovered_{name}": ce_recovered(ce["clean"], ce["sae"], ce[name]) for name in ("mean", "zero")}
    return out | ({"kl": kl_sum / n} if with_kl else {})
