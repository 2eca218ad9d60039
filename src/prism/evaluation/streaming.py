"""Measuring an SAE on its model's tokens in bounded memory: `evaluate`, and splicing reconstructions into the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prism.data import TokenBatch
from prism.device import beside
from prism.evaluation import metrics
from prism.evaluation.predictions import Predictions, counted, logit_rows
from prism.evaluation.results import Evaluation
from prism.models import check_hook, harvest_kept, massive_norm, ordinary, residual_hook, without_massive

TOKENS_AT_ONCE = 2_048  # tokens encoded at once: bounds the dense [tokens, d_sae] block
CLEAN = ("clean", "")  # stands for the model as it is


class Sums:
    """Running float64 sums over tokens; the total variance is merged batch by batch (Chan et al. 1979).

    Args:
        d_in: channels of the activation; d_sae: features.
    """

    def __init__(self, d_in: int, d_sae: int):
        self.n = 0
        self.active = self.residual = self.total = self.cosine = self.norm_hat = self.dot = 0.0
        self.mean, self.fires = torch.zeros(d_in, dtype=torch.float64), np.zeros(d_sae)

    def add(self, x: Tensor, x_hat: Tensor, f: Tensor) -> None:
        """Add some tokens: activations, reconstructions `[tokens, d_in]` and features `[tokens, d_sae]`."""
        if not len(x):
            return
        x, x_hat, fires = x.cpu().double(), x_hat.cpu().double(), (f > 0).cpu()
        self.active += len(x) * metrics.l0(fires)
        self.fires += len(x) * metrics.density(fires)
        self.residual += len(x) * metrics.mse(x, x_hat)
        self.cosine += len(x) * metrics.cosine(x, x_hat)
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
            "n_tokens": self.n,
            "d_sae": len(self.fires),
            "l0": self.active / self.n,
            "mse": self.residual / self.n,
            "explained_variance": metrics.explained_share(self.residual, self.total),
            "cosine": self.cosine / self.n,
            "relative_reconstruction_bias": metrics.relative_reconstruction_bias(self.norm_hat, self.dot),
            "dead": int((self.fires == 0).sum()),
            "density": self.fires / self.n,
        }


class SequenceSums:
    """The same sums for each sequence by itself, so that whole sequences can be resampled.

    Args:
        n: sequences.
        d_in: channels of the activation.
    """

    def __init__(self, n: int, d_in: int):
        self.tokens, self.active, self.residual, self.power = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
        self.sum = torch.zeros(n, d_in, dtype=torch.float64)

    def add(self, rows: Tensor, x: Tensor, x_hat: Tensor, f: Tensor) -> None:
        """Add some tokens; `rows` says which sequence each is of."""
        x, x_hat = x.cpu().double(), x_hat.cpu().double()
        self.sum.index_add_(0, rows, x)
        for total, values in (
            (self.tokens, torch.ones(len(x), dtype=torch.float64)),
            (self.active, (f > 0).sum(1).cpu().double()),
            (self.residual, (x - x_hat).pow(2).sum(1)),
            (self.power, x.pow(2).sum(1)),
        ):
            total.index_add_(0, rows, values)

    def frame(self, mean: Tensor) -> pd.DataFrame:
        """One row a sequence: tokens, active features, residual and total sum of squares, the latter about `mean`."""
        total = self.power - 2 * self.sum @ mean + self.tokens * mean.pow(2).sum()
        columns = {"tokens": self.tokens, "active": self.active, "residual": self.residual, "total": total}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def _constant(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x).expand_as(x)


def _reconstruct(sae) -> Callable[[Tensor], Tensor]:
    def rebuilt(x: Tensor) -> Tensor:
        here = beside(sae, x.device)
        return torch.cat([here.decode(here.encode(part)) for part in x.split(TOKENS_AT_ONCE)])

    return rebuilt


@torch.no_grad()
def splice_check(model, sae, batch: TokenBatch) -> float:
    """Largest change of any sequence's mean CE when `x̂ + (x − x̂)` is put in place of `x` (nats; should be below 1e-5).

    It tests the plumbing: hook, positions and shapes, not the SAE's quality.
    """
    batch = ordinary(model, sae, batch)
    worst, hook_name, rebuild = 0.0, sae.cfg.metadata.hook_name, _reconstruct(sae)
    batch_size = logit_rows(model, batch, [hook_name])
    for part, mask in zip(_parts(batch, batch_size), counted(batch).split(batch_size), strict=True):
        seen = Predictions(model, part.tokens, [hook_name])
        same = seen.changed(hook_name, part.keep, lambda x: rebuild(x) + (x - rebuild(x)))
        nats, _ = seen.measure({"clean": seen.clean, "same": same}, mask)
        change = np.abs(nats["same"] - nats["clean"]) / np.maximum(mask.sum(1).numpy(), 1)
        worst = max(worst, float(change.max()))
    return worst


def _parts(batch: TokenBatch, batch_size: int) -> Iterator[TokenBatch]:
    return (batch[start : start + batch_size] for start in range(0, len(batch), batch_size))


@torch.no_grad()
def evaluate(
    model,
    sae,
    batch: TokenBatch,
    batch_size: int | None = None,
    with_ce: bool = True,
    ablations: bool = True,
    with_kl: bool = True,
    seed: int = 0,
) -> Evaluation:
    """Measure an SAE on tokens of its model, in bounded memory.

    Massive tokens (see `models.massive`) are not measured and not replaced by anything; `massive` says how many.

    Args:
        batch: tokens with BOS in front (see `data.tokenize` and `data.corpus_batch`).
        batch_size: sequences at a time; by default as many as `logit_rows` says.
        with_ce: also the cross-entropies, which need whole forward passes.
        ablations: also CE under zero- and mean-ablation (mean over the kept tokens of this batch).
        with_kl: also KL(clean ‖ spliced).
        seed: of the bootstrap.

    Raises:
        ValueError: no kept token, no prediction of one, activations that are not finite, or an SAE whose hook or width
            does not fit.
    """
    return evaluate_all(model, {"sae": sae}, batch, batch_size, with_ce, ablations, with_kl, seed)["sae"]


@torch.no_grad()
def evaluate_all(
    model,
    saes: dict,
    batch: TokenBatch,
    batch_size: int | None = None,
    with_ce: bool = True,
    ablations: bool = True,
    with_kl: bool = True,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """`evaluate` for several SAEs of one model: the same numbers, but the clean model runs once for all of them, and
    each hook is read and ablated once, so that every further SAE costs about a third.

    All are measured on the same tokens: what is massive for one of them is left out for all.

    Args:
        saes: name -> SAE; their hooks may differ.
        batch, batch_size, with_ce, ablations, with_kl, seed: see `evaluate`.

    Raises:
        ValueError: as `evaluate`.
    """
    if batch.n_tokens == 0:
        raise ValueError("the batch keeps no token; give at least one text")
    n_before = batch.n_tokens
    limits = {
        (residual_hook(sae.cfg.metadata.hook_name), massive_norm(sae))
        for sae in saes.values()
        if massive_norm(sae) is not None
    }
    for hook_name, limit in limits:
        check_hook(model, hook_name)
        batch = without_massive(model, batch, hook_name, limit)
    if batch.n_tokens == 0:
        raise ValueError("every token of the batch is massive, so there is nothing to measure; give other text")
    if with_ce:
        counted(batch)  # refuses texts without a prediction before any work
    hooks, found, changes = {sae.cfg.metadata.hook_name for sae in saes.values()}, {}, {}
    batch_size = batch_size or logit_rows(model, batch, hooks)
    streamed = {}
    for hook_name in hooks:
        of_hook = {name: sae for name, sae in saes.items() if sae.cfg.metadata.hook_name == hook_name}
        streamed |= _stream(model, of_hook, hook_name, batch, batch_size)
    for name, sae in saes.items():
        hook_name, (sums, sequences) = sae.cfg.metadata.hook_name, streamed[name]
        left_out = n_before - batch.n_tokens if limits else None
        found[name] = Evaluation(**sums.measures(), massive=left_out, per_sequence=sequences.frame(sums.mean))
        changes["sae", name] = (hook_name, _reconstruct(sae))
        if ablations:
            changes["zero", hook_name] = (hook_name, torch.zeros_like)
            changes["mean", hook_name] = (hook_name, partial(_constant, sums.mean.float()))
    if not (with_ce and saes):
        return found
    clean, nats, divergence, weight = _cross_entropies(model, changes, batch, batch_size, with_kl)
    for name, sae in saes.items():
        own = {("sae", name), *((kind, sae.cfg.metadata.hook_name) for kind in ("zero", "mean"))}
        mine = {"clean": clean} | {key[0]: values for key, values in nats.items() if key in own}
        found[name] = _with_ce(found[name], mine, weight, divergence.get(name), seed)
    return found


def _with_ce(
    found: Evaluation, nats: dict[str, np.ndarray], weight: np.ndarray, divergence: float | None, seed: int
) -> Evaluation:
    """Add to an evaluation what the sums of cross-entropy `[batch]` of the clean and the changed models say."""
    ce = {kind: float(values.sum() / weight.sum()) for kind, values in nats.items()}
    out = {"ce_clean": ce["clean"], "delta_ce": ce["sae"] - ce["clean"], "kl": divergence}
    out["delta_ce_interval"] = metrics.paired_bootstrap(nats["sae"] - nats["clean"], weight, seed=seed)
    if "mean" in ce:
        out["mean_ablation_cost"] = ce["mean"] - ce["clean"]
        out["mean_ablation_interval"] = metrics.paired_bootstrap(nats["mean"] - nats["clean"], weight, seed=seed)
        out |= {
            f"ce_recovered_{kind}": metrics.ce_recovered(ce["clean"], ce["sae"], ce[kind]) for kind in ("mean", "zero")
        }
    columns = {"predictions": weight} | {f"nats_{kind}": values for kind, values in nats.items()}
    return replace(found, **out, per_sequence=found.per_sequence.assign(**columns))


def _stream(
    model, saes: dict, hook_name: str, batch: TokenBatch, batch_size: int
) -> dict[str, tuple[Sums, SequenceSums]]:
    """First pass: everything that needs one hook's activations but no logits, for each SAE that reads it."""
    where = torch.device(model.cfg.device)
    found = {
        name: (Sums(sae.cfg.d_in, sae.cfg.d_sae), SequenceSums(len(batch), sae.cfg.d_in)) for name, sae in saes.items()
    }
    here = {name: beside(sae, where) for name, sae in saes.items()}
    sequence, start = batch.keep.nonzero()[:, 0], 0
    for x in harvest_kept(model, hook_name, batch, batch_size):
        rows, start = sequence[start : start + len(x)], start + len(x)
        for sae in saes.values():
            if x.shape[-1] != sae.cfg.d_in:
                raise ValueError(
                    f"the hook gives {x.shape[-1]} numbers a token, the SAE reads {sae.cfg.d_in}; wrong SAE?"
                )
        for part, of in zip(x.split(TOKENS_AT_ONCE), rows.split(TOKENS_AT_ONCE), strict=True):
            part = part.to(where)
            for name, (sums, sequences) in found.items():
                f = here[name].encode(part)
                x_hat = here[name].decode(f)
                sums.add(part, x_hat, f)
                sequences.add(of, part, x_hat, f)
    return found


def _cross_entropies(
    model, changes: dict[tuple[str, str], tuple[str, Callable]], batch: TokenBatch, batch_size: int, with_kl: bool
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray], dict[str, float], np.ndarray]:
    """Second pass: nats `[batch]` of the clean model and under each change, KL of each SAE, predictions `[batch]`."""
    hooks = {hook_name for hook_name, _ in changes.values()}
    nats: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in (CLEAN, *changes)}
    divergence = {key: 0.0 for key in changes if key[0] == "sae" and with_kl}
    every = counted(batch)
    for part, mask in zip(_parts(batch, batch_size), every.split(batch_size), strict=True):
        seen = Predictions(model, part.tokens, hooks)
        for some in [list(changes)] if seen.quick else [[key] for key in changes]:  # whole logits: one at a time
            states = {key: seen.changed(changes[key][0], part.keep, changes[key][1]) for key in some}
            if some[0] == next(iter(changes)):
                states[CLEAN] = seen.clean
            found, apart = seen.measure(states, mask, [key for key in some if key in divergence])
            for key, values in found.items():
                nats[key].append(values)
            for key, value in apart.items():
                divergence[key] += value
    weight, whole = every.sum(1).double().numpy(), {key: np.concatenate(parts) for key, parts in nats.items()}
    return whole.pop(CLEAN), whole, {name: x / weight.sum() for (_, name), x in divergence.items()}, weight
