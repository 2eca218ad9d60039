"""Prompts to ask about: cut from documents, predicted, opened into nodes, and paired so that one token differs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.data import TokenBatch
from prism.evaluation.predictions import changing
from prism.interventions.ablation import POSITIONS, Metric, scorer
from prism.interventions.attribution import Nodes, Score, at_baseline, take_apart
from prism.interventions.changes import Change
from prism.models import activations_at


@dataclass(frozen=True, eq=False)
class Prompts:
    """Short prompts of equal length, and what the model predicts after each.

    Attributes:
        tokens: BOS in front, no padding.
        table: one row a prompt: document, truth (the token that follows in the text), top and rival (the model's
            first and second choice), p_top and p_truth (probabilities).
    """

    tokens: Int[Tensor, "prompts pos"]
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def batch(self) -> TokenBatch:
        """The tokens as a batch that keeps all of them but BOS."""
        keep = torch.ones_like(self.tokens, dtype=torch.bool)
        keep[:, 0] = False
        return TokenBatch(self.tokens, keep)

    def select(self, rows: Bool[np.ndarray, " prompts"] | Int[np.ndarray, " n"]) -> Prompts:
        """Some of the prompts, by a mask or by row numbers."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        return Prompts(self.tokens[torch.as_tensor(rows.copy())], self.table.iloc[rows].reset_index(drop=True))


def make_prompts(model, batch: TokenBatch, length: int, most: int) -> Prompts:
    """Cut documents into prompts of `length` positions, BOS included, each followed by a token of the text.

    Args:
        batch: one document a row, BOS in front.
        most: prompts at most, taken evenly from all that there are.

    Raises:
        ValueError: a length below 2, or no document that is long enough.
    """
    if length < 2:
        raise ValueError(f"a prompt of {length} positions is at most BOS; give at least 2")
    windows = []
    for document, (row, keep) in enumerate(zip(batch.tokens, batch.keep, strict=True)):
        ids = row[keep]
        for start in range(0, len(ids) - length + 1, length):
            windows.append((document, row[:1], ids[start : start + length]))
    if not windows:
        raise ValueError(f"no document holds a prompt of {length} positions and a next token; give a smaller length")
    picked = [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, most).round().astype(int))]
    tokens = torch.stack([torch.cat([bos, ids[:-1]]) for _, bos, ids in picked])
    truth = torch.stack([ids[-1] for *_, ids in picked])
    return Prompts(tokens, predictions(model, tokens, truth).assign(document=[document for document, *_ in picked]))


@torch.no_grad()
def predictions(
    model,
    tokens: Int[Tensor, "prompts pos"],
    truth: Int[Tensor, " prompts"],
    hook_name: str | None = None,
    change: Change | None = None,
) -> pd.DataFrame:
    """The model's first two choices after each prompt, and what it gives the true token.

    Args:
        truth: the token that follows each prompt.
        hook_name: where to change the activations of all positions but BOS; None to run the model as it is.
        change: see `changes`.

    Returns:
        Columns truth, top, rival, p_top, p_truth, nats (loss on the true token).
    """
    parts = []

    def changed(activation: Tensor) -> Tensor:
        moved = change(activation[:, 1:].flatten(0, 1)).unflatten(0, activation[:, 1:].shape[:2])
        return torch.cat([activation[:, :1], moved.to(activation.dtype)], dim=1)

    rows = max(1, POSITIONS // tokens.shape[1])
    for ids, wanted in zip(tokens.split(rows), truth.split(rows), strict=True):
        ids = ids.to(model.cfg.device)
        with changing(model, hook_name, changed) if hook_name is not None else nullcontext():
            logits = model(ids, return_type="logits", logits_to_keep=1)[:, -1].float().cpu()
        log_p = logits.log_softmax(-1)
        best, nats = log_p.topk(2), -log_p.gather(1, wanted[:, None])[:, 0]
        parts.append(torch.column_stack([wanted, best.indices, best.values[:, 0].exp(), (-nats).exp(), nats]).double())
    table = pd.DataFrame(torch.cat(parts).numpy(), columns=["truth", "top", "rival", "p_top", "p_truth", "nats"])
    return table.astype({"truth": int, "top": int, "rival": int})


def prompt_nodes(model, sae, tokens: Int[Tensor, " pos"], other: Int[Tensor, " pos"] | None = None) -> Nodes:
    """`take_apart` for a prompt's tokens: its activation at the SAE's hook as nodes, BOS left as it is.

    Args:
        other: the other prompt of a pair, of the same length; a node is then off at its value there.
    """
    hook = sae.cfg.metadata.hook_name
    keep = torch.ones(len(tokens), dtype=torch.bool)
    keep[0] = False
    pair = torch.stack([tokens] if other is None else [tokens, other])
    x = activations_at(model, pair, [hook])[hook]
    return take_apart(sae, x[0], keep, None if other is None else x[1])


def open_prompt(
    model,
    sae,
    tokens: Int[Tensor, " pos"],
    metric: Metric,
    baseline: tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_in"]] | None = None,
) -> tuple[Nodes, Score]:
    """A prompt's nodes and its score: what to attribute, and to what.

    Args:
        metric: of the prediction after the prompt.
        baseline: from `baseline_of`: what features and error are when off; None for zero.
    """
    nodes = prompt_nodes(model, sae, tokens)
    if baseline is not None:
        nodes = at_baseline(nodes, baseline[0][nodes.feature], baseline[1])
    return nodes, scorer(model, sae.cfg.metadata.hook_name, tokens, metric)


def minimal_pair(
    model, prompts: Prompts, row: int, tries: int = 4, seed: int = 0
) -> tuple[Int[Tensor, " pos"], int, int] | None:
    """A prompt with one token swapped so that the model's first choice is another.

    Every position but BOS and the last is tried with tokens that other prompts have there. Of the swaps that change
    the first choice, the one that leaves the old one least likely beside the new one is taken.

    Args:
        row: the prompt's place in `prompts`.
        tries: tokens tried at each position.
        seed: of their draw.

    Returns:
        The swapped prompt, the position of the swap, the new first choice; None if no swap changes the first choice.
    """
    tokens, answer = prompts.tokens[row], int(prompts.table["top"].iloc[row])
    places = torch.arange(1, len(tokens) - 1).repeat_interleave(tries)
    drawn = torch.randint(len(prompts), places.shape, generator=torch.Generator().manual_seed(seed))
    swapped = tokens.repeat(len(places), 1)
    swapped[torch.arange(len(places)), places] = prompts.tokens[drawn, places]
    seen = predictions(model, swapped, torch.full((len(places),), answer))
    seen = seen[seen["top"] != answer]
    if seen.empty:
        return None
    best = (seen["p_truth"] / seen["p_top"]).idxmin()
    return swapped[best], int(places[best]), int(seen["top"][best])
