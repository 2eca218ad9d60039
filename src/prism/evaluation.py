"""How well an SAE stands in for the activation that it reads: one definition for each measure.

Pure functions first, then `evaluate`, which streams them over tokens in bounded memory. BOS and padding are left out
everywhere: activations there are passed on unchanged, and predictions made from there are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prism.data import TokenBatch
from prism.models import check_hook, harvest, weight_processing

ENCODE_TOKENS = 2_048  # tokens encoded at once: bounds the dense [tokens, d_sae] block


def l0(f: Float[Tensor, "tokens d_sae"]) -> float:
    """Mean over tokens of the number of active features.

    >>> l0(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5]]))
    1.5
    """
    return (f > 0).sum(-1).double().mean().item()


def mse(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """Mean over tokens of the squared error *summed* over `d_in`.

    >>> mse(torch.zeros(2, 3), torch.ones(2, 3))
    3.0

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"activations {tuple(x.shape)} and reconstruction {tuple(x_hat.shape)} differ in shape")
    return (x - x_hat).double().pow(2).sum(-1).mean().item()


def explained_variance(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """`1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖²` over the whole sample, in float64.

    Predicting the mean scores 0. (Leaving out the mean in the denominator flatters: see the tests.)

    >>> explained_variance(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]]))
    0.0

    Raises:
        ValueError: all activations are equal, so there is no variance to explain.
    """
    x, x_hat = x.double(), x_hat.double()
    return _explained((x - x_hat).pow(2).sum().item(), (x - x.mean(0)).pow(2).sum().item())


def _explained(residual: float, total: float) -> float:
    if total <= 0:
        raise ValueError("the activations do not vary, so explained variance is undefined; give more tokens")
    return 1 - residual / total


def cosine(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """Mean cosine of activation and reconstruction.

    >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [5.0, 0.0]]))
    0.5
    """
    return torch.cosine_similarity(x.double(), x_hat.double(), dim=-1).mean().item()


def relative_reconstruction_bias(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> float:
    """`E‖x̂‖² / E⟨x, x̂⟩`: below 1 means that reconstructions are too short (shrinkage).

    Source: Rajamanoharan et al. 2024 (Gated SAEs), equation 10.

    >>> relative_reconstruction_bias(torch.ones(2, 2), torch.ones(2, 2) / 2)
    0.5
    """
    return (x_hat.double().pow(2).sum() / (x.double() * x_hat.double()).sum()).item()


def density(f: Float[Tensor, "tokens d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """Share of tokens on which each feature fires; 0 is 'dead' in this sample.

    >>> density(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return (f > 0).double().mean(0).numpy()


def matched_cosines(
    decoder: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_directions d_in"]
) -> Float[np.ndarray, " n_directions"]:
    """Cosine of each true direction with its partner among the decoder's rows, one row a direction.

    The pairing is the one with the largest sum of cosines (Hungarian algorithm), so no row can stand for two
    directions. The sign counts: a feature only ever adds its row, so the opposite direction is another feature.

    Returns:
        In the order of `directions`; 0 for those left without a row where there are fewer rows than directions.

    Raises:
        ValueError: widths that differ, nothing to match, or a row without a direction (zero or not finite).
    """
    rows, truth = (torch.as_tensor(x).detach().double() for x in (decoder, directions))
    if rows.shape[-1] != truth.shape[-1] or not len(rows) or not len(truth):
        raise ValueError(f"decoder {tuple(rows.shape)} and directions {tuple(truth.shape)} need rows of one width")
    norms = torch.cat([rows.norm(dim=1), truth.norm(dim=1)])
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise ValueError("a row is zero or not finite, so it has no direction; leave such rows out")
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (truth / truth.norm(dim=1, keepdim=True)).T
    chosen, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
    out = np.zeros(len(truth))
    out[partners] = cosines.numpy()[chosen, partners]
    return out


def mcc(decoder: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_directions d_in"]) -> float:
    """Mean max cosine of true directions with decoder rows, one to one: 1 where every direction was found.

    For a method whose rows have no sign (PCA, ICA), give each row and its opposite.

    >>> mcc(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.eye(2))
    1.0

    Raises:
        ValueError: see `matched_cosines`.
    """
    return float(matched_cosines(decoder, directions).mean())


def ce_recovered(ce_clean: float, ce_sae: float, ce_ablated: float) -> float:
    """`(CE_ablated − CE_sae) / (CE_ablated − CE_clean)`: 1 is the intact model, 0 the ablated one.

    With zero-ablation this is the literature's 'loss recovered', which flatters on the residual stream; with
    mean-ablation it is the honest measure.

    >>> round(ce_recovered(4.694, 4.714, 13.08), 4)  # a published fixture: flattering, for a cost of 0.020 nats
    0.9976

    Returns:
        NaN if the ablation changes nothing, so that there is nothing to recover.
    """
    if ce_ablated == ce_clean:
        return float("nan")
    return (ce_ablated - ce_sae) / (ce_ablated - ce_clean)


def kl(
    clean: Float[Tensor, "... d_vocab"], other: Float[Tensor, "... d_vocab"], mask: Bool[Tensor, ...] | None = None
) -> float:
    """Mean KL(clean ‖ other) of next-token distributions given as logits (nats).

    >>> kl(torch.zeros(2, 3), torch.zeros(2, 3))
    0.0
    """
    if mask is not None:
        clean, other = clean[mask], other[mask]
    total, rows = 0.0, clean.reshape(-1, clean.shape[-1])
    for p, q in zip(rows.split(256), other.reshape(rows.shape).split(256), strict=True):  # bounds the copies
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        total += (p.exp() * (p - q)).sum(-1).double().sum().item()
    return total / len(rows)


def paired_bootstrap(
    difference: Float[np.ndarray, " sequences"], weight: Float[np.ndarray, " sequences"], n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `Σ difference / Σ weight`, whole sequences resampled with replacement.

    Args:
        difference: summed over each sequence's tokens (nats); weight: its number of tokens.
        n: resamples.
    """
    difference, weight = difference[weight > 0], weight[weight > 0]  # sequences without a prediction say nothing
    size = len(difference)
    if size < 2:
        return float("nan"), float("nan")  # one sequence says nothing about the spread
    counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=n)
    low, high = np.quantile((counts @ difference) / (counts @ weight), [0.025, 0.975])
    return float(low), float(high)


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
            "explained_variance": _explained(self.residual, self.total), "cosine": self.cosine / self.n,
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


class PreflightError(ValueError):
    """An SAE and a model that do not belong together; the message says why."""


@torch.no_grad()
def preflight(model, sae, batch: TokenBatch, published_l0: float | None = None) -> pd.DataFrame:
    """Whether an SAE belongs to a model: six checks before anything is measured.

    Args:
        batch: some tokens with BOS in front; 16 sequences are enough.
        published_l0: what the SAE's makers state; None skips that check.

    Returns:
        One row a check: check, found, wanted, ok.

    Raises:
        PreflightError: a check failed; the message names it, with what was found and what was wanted.
    """
    metadata, rows = sae.cfg.metadata, []

    def check(name: str, found, wanted, ok: bool) -> None:
        rows.append((name, str(found), str(wanted), ok))
        if not ok:
            raise PreflightError(f"preflight of the SAE at '{metadata.hook_name}' failed at {name}: "
                                 f"found {found}, wanted {wanted}")  # fmt: skip

    try:
        check_hook(model, metadata.hook_name)
    except ValueError as error:
        check("hook point", metadata.hook_name, error, False)
    check("hook point", metadata.hook_name, "a hook point of the model", True)
    stream = zip(harvest(model, batch.tokens, metadata.hook_name), batch.keep.split(32), strict=True)
    x = torch.cat([part[keep] for part, keep in stream])
    check("width", x.shape[1], sae.cfg.d_in, x.shape[1] == sae.cfg.d_in)
    processing = getattr(model, "weight_processing", None)
    wanted = weight_processing(sae)
    names = [", ".join(k for k, on in (p or {}).items() if on) or "unknown" for p in (processing, wanted)]
    check("weight processing", *names, processing == wanted)
    bos = model.tokenizer.bos_token_id
    first = bool((batch.tokens[:, 0] == bos).all()) and not bool(batch.keep[:, 0].any())
    check("BOS", "in front, not counted" if first else "missing or counted", "in front, not counted", first)
    drift = splice_check(model, sae, batch)
    check("splice check", f"{drift:.1e} nats", "below 1e-4", drift < 1e-4)
    found = sum(int((sae.encode(part) > 0).sum()) for part in x.split(ENCODE_TOKENS)) / len(x)
    if published_l0:
        check("L0", f"{found:.1f}", f"{published_l0 / 2:g} to {published_l0 * 2:g} (published: {published_l0:g})",
              published_l0 / 2 <= found <= published_l0 * 2)  # fmt: skip
    else:
        check("L0", f"{found:.1f}", "more than 0 (none published)", found > 0)
    return pd.DataFrame(rows, columns=["check", "found", "wanted", "ok"])


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
