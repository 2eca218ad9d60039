"""Steering: text generated under a change, with and without a KV cache."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism.evaluation.predictions import Change
from prism.interventions.changes import edited


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
