"""Steering: text generated under a change with and without a KV cache, and dose–response curves of effect and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.evaluation.metrics import bootstrap_counts, middle
from prism.evaluation.predictions import Change, Predictions
from prism.interventions.changes import add, edited


@dataclass(frozen=True, eq=False)
class Generation:
    """Sequences that a model continued.

    Attributes:
        tokens: the prompts and, behind them, what was generated.
        log_probs: of each generated token under the model that generated it, changed if it was (nats).
    """

    tokens: Int[Tensor, "batch pos"]
    log_probs: Float[Tensor, "batch new"]

    @property
    def new(self) -> Int[Tensor, "batch new"]:
        """The generated tokens alone."""
        return self.tokens[:, -self.log_probs.shape[1] :]


@torch.no_grad()
def generate(
    model,
    prompts: Int[Tensor, "batch pos"],
    n_tokens: int,
    hook_name: str | None = None,
    change: Change | None = None,
    cache: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
) -> Generation:
    """Continue prompts with a change in force at every position but BOS: the prompt's and each generated token's.

    With a KV cache each step runs the newest token alone, so the hook must change *that* step's positions; a hook that
    knows the prompt's positions only leaves everything generated unsteered. With and without a cache the computation
    is the same up to rounding. The cached pass goes through the same (processed) weights as `model(tokens)`.

    Sampling is an exponential race (the Gumbel-max trick) with noise from `seed` alone: two runs with one seed differ
    only as far as the model's predictions do, and changes can be compared on the same noise.

    Args:
        prompts: ids of equal length, BOS in front, no padding.
        n_tokens: to generate for each prompt.
        hook_name: where `change` is made; None, with `change` None, leaves the model as it is.
        cache: keep keys and values of earlier positions instead of computing them again.
        temperature: of the sampling; 0 takes the likeliest token.

    Raises:
        ValueError: no such hook, one of hook and change without the other, a sequence that would outgrow the model's
            context, or a negative temperature.
    """
    if (hook_name is None) != (change is None):
        raise ValueError("give both hook_name and change, or neither for the unchanged model")
    if not 1 <= n_tokens <= model.cfg.n_ctx - prompts.shape[1]:
        room = model.cfg.n_ctx - prompts.shape[1]
        raise ValueError(f"{n_tokens} new tokens behind {prompts.shape[1]}: choose from 1 to {room}, the context's end")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; choose 0 for the likeliest token, or above, such as 1.0")
    noise, tokens, log_probs, past = torch.Generator().manual_seed(seed), prompts, [], None
    for _ in range(n_tokens):
        step = tokens if past is None else tokens[:, -1:]
        keep = torch.arange(tokens.shape[1] - step.shape[1], tokens.shape[1]).expand(step.shape) > 0  # all but BOS
        with edited(model, hook_name, change, keep) if change else nullcontext():
            if cache:
                logits, past = _cached_step(model, step, past)
            else:
                logits = model(step, return_type="logits", logits_to_keep=1)
        chosen, log_prob = _pick(logits[:, -1].float().cpu(), temperature, noise)
        tokens, log_probs = torch.cat([tokens, chosen[:, None]], dim=1), [*log_probs, log_prob]
    return Generation(tokens, torch.stack(log_probs, dim=1))


def _cached_step(model, step: Tensor, past) -> tuple[Tensor, object]:
    """Logits of the step's tokens, and the cache that now holds them too."""
    past = {} if past is None else {"past_key_values": past}
    return model(step, return_type="logits_and_cache", use_cache=True, logits_to_keep=1, **past)


def _pick(logits: Tensor, temperature: float, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability: the winner of the race `argmax(p^(1/T) / Exp(1))` is a sample."""
    log_p = logits.log_softmax(-1)
    scores = log_p
    if temperature > 0:
        race = torch.empty(logits.shape).exponential_(generator=noise).clamp_min(1e-30)
        scores = (log_p / temperature).softmax(-1) / race
    chosen = scores.argmax(-1)
    return chosen, log_p.gather(-1, chosen[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Response:
    """What a model predicts on some sequences.

    Attributes:
        share: next-token probability on each class's tokens, averaged over each sequence's predictions.
        nats: cross-entropy a prediction, averaged over the same predictions.
    """

    share: Float[np.ndarray, "batch classes"]
    nats: Float[np.ndarray, " batch"]


@torch.no_grad()
def respond(
    model,
    tokens: Int[Tensor, "batch pos"],
    targets: Bool[Tensor, "d_vocab classes"],
    hook_name: str | None = None,
    change: Change | None = None,
    prefix: Int[Tensor, "batch before"] | None = None,
) -> Response:
    """The share of target tokens and the cross-entropy, of one forward pass under a change or behind a prompt.

    Counted are the predictions made from every position between BOS and the last token, where there is a next token.

    Args:
        tokens: ids of equal length, BOS in front, no padding.
        targets: for each class, which tokens belong to it.
        hook_name: where `change` is made, at every position but BOS.
        prefix: tokens to put between BOS and the sequence; not counted themselves.

    Raises:
        ValueError: no such hook, or sequences of fewer than 3 tokens.
    """
    if tokens.shape[1] < 3:
        raise ValueError(f"sequences of {tokens.shape[1]} tokens have no prediction to count; give at least 3")
    before = 0 if prefix is None else prefix.shape[1]
    whole = tokens if prefix is None else torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], dim=1)
    keep = torch.arange(whole.shape[1]).expand(whole.shape) > 0
    seen = Predictions(model, whole, [hook_name] if change else [])
    states = (seen.changed(hook_name, keep, change) if change else seen.clean)[:, before + 1 : -1].flatten(0, 1)
    wanted, members = tokens[:, 2:].flatten(), targets.any(1).nonzero()[:, 0]  # the other tokens need no probability
    share, nats = [], []
    for rows in seen.parts(len(states)):
        logits = seen.logits(states[rows]).cpu()
        total = logits.logsumexp(-1)
        nats.append(total - logits.gather(-1, wanted[rows, None])[:, 0])
        share.append((logits[:, members] - total[:, None]).exp() @ targets[members].to(logits))
    means = (torch.cat(parts).unflatten(0, (len(tokens), -1)).mean(1).numpy() for parts in (share, nats))
    return Response(*means)


@dataclass(frozen=True, eq=False)
class Curve:
    """Dose and response of one way to steer, on the same sequences for each dose.

    Attributes:
        doses: strengths, rising, in the unit of whoever made the curve; 0 is not among them.
        gain: share of each class's tokens, above the unchanged model's.
        cost: cross-entropy above the unchanged model's (nats a token).
    """

    doses: Float[np.ndarray, " doses"]
    gain: Float[np.ndarray, "doses batch classes"]
    cost: Float[np.ndarray, "doses batch"]

    def frame(self, method: str, kind: int) -> pd.DataFrame:
        """One row a dose: method, dose, and the means over the sequences of a class's gain and of the cost."""
        gain, cost = self.gain[..., kind].mean(1), self.cost.mean(1)
        return pd.DataFrame({"method": method, "dose": self.doses, "gain": gain, "cost": cost})

    def dose_at_cost(self, level: float) -> float:
        """The dose at which the mean cost reaches a level (nats a token), or the largest dose if none does."""
        dose = float(at_cost(self.doses, self.cost.mean(1), level))
        return float(self.doses[-1]) if np.isnan(dose) else dose


def dose_response(respond_at: Callable[[float], Response], doses: Sequence[float], clean: Response) -> Curve:
    """Measure a response at each dose, and subtract the unchanged model's.

    Args:
        respond_at: the response at a dose, such as `lambda s: respond(model, tokens, targets, hook, add(d, s))`.
        doses: rising, above 0.
        clean: the response of the unchanged model on the same sequences.

    Raises:
        ValueError: no doses, or doses that do not rise from above 0.
    """
    if not len(doses) or not (np.diff([0.0, *doses]) > 0).all():
        raise ValueError(f"doses are {list(doses)}; give at least one, rising from above 0, such as [0.5, 1, 2]")
    found = [respond_at(dose) for dose in doses]
    gain, cost = np.stack([r.share - clean.share for r in found]), np.stack([r.nats - clean.nats for r in found])
    return Curve(np.asarray(doses, dtype=float), gain, cost)


def steering_curve(
    model,
    tokens: Int[Tensor, "batch pos"],
    targets: Bool[Tensor, "d_vocab classes"],
    hook_name: str,
    direction: Float[Tensor, " d_in"],
    doses: Sequence[float],
    clean: Response,
) -> Curve:
    """The `dose_response` of adding a direction: a dose of 1 adds it once, at its own length."""
    return dose_response(lambda s: respond(model, tokens, targets, hook_name, add(direction, s)), doses, clean)


def at_cost(
    gain: Float[np.ndarray, "... doses"], cost: Float[np.ndarray, "... doses"], level: float
) -> Float[np.ndarray, "..."]:
    """The gain where the cost first reaches a level, by straight lines between the doses, from (0, 0) onwards.

    So methods whose doses have different units, or none, are compared at what they cost the model. Give the doses in
    the place of `gain` for the dose that has this cost.

    >>> round(at_cost(np.array([0.1, 0.4]), np.array([0.2, 0.6]), 0.4).item(), 6)
    0.25

    Returns:
        NaN where no dose costs so much.

    Raises:
        ValueError: a level that is not above 0.
    """
    if level <= 0:
        raise ValueError(f"the level is {level} nats; give a cost above 0, such as 0.1")
    start = np.zeros((*np.broadcast_shapes(np.shape(gain), np.shape(cost))[:-1], 1))
    gain = np.concatenate([start, np.broadcast_to(gain, (*start.shape[:-1], np.shape(gain)[-1]))], axis=-1)
    cost = np.concatenate([start, cost], axis=-1)
    reached = cost >= level
    after = reached.argmax(-1)[..., None]  # at least 1: no cost at no dose
    before = np.maximum(after - 1, 0)
    (g0, g1), (c0, c1) = ([np.take_along_axis(x, i, -1)[..., 0] for i in (before, after)] for x in (gain, cost))
    found = g0 + (g1 - g0) * (level - c0) / np.where(c1 > c0, c1 - c0, 1.0)
    return np.where(reached.any(-1), found, np.nan)


def gain_at_cost(curve: Curve, level: float, kind: int) -> float:
    """A class's gain where the mean cost over the sequences reaches a level (nats a token); NaN where it never does."""
    return float(at_cost(curve.gain[..., kind].mean(1), curve.cost.mean(1), level))


def compare_at_cost(
    a: Curve, b: Curve | None, level: float, kind: int, n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much more a class gains by one way than by another at equal cost, and a 95 % paired bootstrap interval.

    Whole sequences are resampled, the same for both, and both are brought to the cost anew in each resample.

    Args:
        b: None for the gain of `a` alone.
        level: the cost (nats a token).
        kind: the class's column.

    Returns:
        Difference and interval; NaN if a way does not reach the cost, and no interval if it misses it in more than
        one resample in twenty.
    """
    counts = bootstrap_counts(a.cost.shape[1], n, seed) / a.cost.shape[1]

    def one(curve: Curve) -> tuple[float, np.ndarray]:
        draws = at_cost(counts @ curve.gain[..., kind].T, counts @ curve.cost.T, level)
        return gain_at_cost(curve, level, kind), draws

    (gain, draws), (other, others) = one(a), one(b) if b is not None else (0.0, np.zeros(n))
    difference = draws - others
    if np.isnan(gain - other) or np.isnan(difference).mean() > 0.05:
        return gain - other, float("nan"), float("nan")
    return gain - other, *middle(difference)
