"""Real effects: nodes ablated or patched, one at a time or in sets, and the model run again; prompts to do it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.data import TokenBatch
from prism.interventions.attribution import Nodes, Score, take_apart
from prism.interventions.changes import Change
from prism.models import activations_at, check_hook

RUNS = 2**11  # activations `[pos d_in]` x positions that are run at once: bounds the logits and attention patterns
Metric = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]]  # of the last position's logits


def logit_difference(answer: int, rival: int) -> Metric:
    """Logit of one token minus that of another: above 0 where the model prefers the first."""
    return lambda logits: logits[:, answer] - logits[:, rival]


def log_probability(answer: int) -> Metric:
    """Log-probability of a token (nats)."""
    return lambda logits: logits.log_softmax(-1)[:, answer]


def probability(answer: int) -> Metric:
    """Probability of a token: it saturates, so its gradient fades where the model is sure."""
    return lambda logits: logits.softmax(-1)[:, answer]


def scorer(model, hook_name: str, tokens: Int[Tensor, " pos"], metric: Metric) -> Score:
    """The metric of the prediction after a prompt, as a function of a hook's activation in it.

    Args:
        tokens: the prompt, BOS in front, no padding.
        metric: of the logits of its last position.

    Raises:
        ValueError: no such hook.
    """
    check_hook(model, hook_name)

    def score(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, " batch"]:
        logits = model.run_with_hooks(
            tokens.expand(len(x), -1), fwd_hooks=[(hook_name, lambda activation, hook: x.to(activation.dtype))],
            return_type="logits", logits_to_keep=1,
        )  # fmt: skip
        return metric(logits[:, -1].float())

    return score


@torch.no_grad()
def scores_with(score: Score, nodes: Nodes, values: Float[Tensor, "batch nodes"]) -> Float[Tensor, " batch"]:
    """The score with the nodes at given values, one run a row, in parts that bound the memory."""
    at_once = max(1, RUNS // len(nodes.x))
    return torch.cat([score(nodes.with_values(part)) for part in values.split(at_once)])


def ablation_effects(score: Score, nodes: Nodes) -> Float[Tensor, " nodes"]:
    """What each node does: score as it is − score with that node alone switched off. One run of the model a node."""
    return joint_effects(score, nodes, torch.eye(len(nodes), dtype=torch.bool))


def joint_effects(score: Score, nodes: Nodes, sets: Bool[Tensor, "batch nodes"]) -> Float[Tensor, " batch"]:
    """What sets of nodes do together: score as it is − score with all nodes of a set switched off.

    Raises:
        ValueError: sets of another number of nodes.
    """
    if sets.shape[1:] != nodes.value.shape:
        raise ValueError(f"sets of {tuple(sets.shape)} for {len(nodes)} nodes; give one column for each node")
    clean = scores_with(score, nodes, nodes.value[None])
    return clean - scores_with(score, nodes, torch.where(sets, nodes.off, nodes.value))


def top_set(values: Float[Tensor, " nodes"], k: int) -> Bool[Tensor, " nodes"]:
    """The `k` nodes of largest value; all of them if there are no more."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:k]] = True
    return chosen


def random_sets(n_nodes: int, k: int, n: int, seed: int = 0) -> Bool[Tensor, "n n_nodes"]:
    """`n` sets of `k` nodes, each drawn without replacement."""
    order = torch.rand(n, n_nodes, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order.argsort(1) < k


def matched_set(
    chosen: Bool[Tensor, " nodes"], size: Float[Tensor, " nodes"], seed: int = 0, nearest: int = 5
) -> Bool[Tensor, " nodes"]:
    """As many other nodes, each of about the size of one that was chosen: a control for the strength of a change.

    For each chosen node in turn, one of the `nearest` free nodes by size is drawn. Where too few nodes are free, the
    set is smaller.
    """
    rng, free = np.random.default_rng(seed), (~chosen).nonzero()[:, 0].tolist()
    drawn = []
    for node in chosen.nonzero()[:, 0].tolist():
        if not free:
            break
        free.sort(key=lambda other: abs(float(size[other] - size[node])))  # noqa: B023 (used at once)
        drawn.append(free.pop(int(rng.integers(min(nearest, len(free))))))
    out = torch.zeros_like(chosen)
    out[drawn] = True
    return out


def same_length(change: Change, direction: Float[Tensor, " d_in"]) -> Change:
    """A control for a change: every activation is moved as far as `change` moves it, but along another direction."""
    unit = direction / direction.norm()
    return lambda x: x + (change(x) - x).norm(dim=1, keepdim=True) * unit.to(x)


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

    def select(self, rows: Bool[np.ndarray, " prompts"] | Int[np.ndarray, " n"]) -> Prompts:
        """Some of the prompts, by a mask or by row numbers."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        return Prompts(self.tokens[torch.as_tensor(rows)], self.table.iloc[rows].reset_index(drop=True))


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
    model, tokens: Int[Tensor, "prompts pos"], truth: Int[Tensor, " prompts"], hook_name: str | None = None,
    change: Change | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The model's first two choices after each prompt, and what it gives the true token.

    Args:
        truth: the token that follows each prompt.
        hook_name: where to change the activations of all positions but BOS; None to run the model as it is.
        change: see `changes`.

    Returns:
        Columns truth, top, rival, p_top, p_truth, nats (loss on the true token).
    """
    parts, hooks = [], []

    def hook(activation: Tensor, hook) -> Tensor:
        moved = change(activation[:, 1:].flatten(0, 1)).unflatten(0, activation[:, 1:].shape[:2])
        return torch.cat([activation[:, :1], moved.to(activation.dtype)], dim=1)

    if hook_name is not None:
        check_hook(model, hook_name)
        hooks = [(hook_name, hook)]
    rows = max(1, RUNS // tokens.shape[1])
    for ids, wanted in zip(tokens.split(rows), truth.split(rows), strict=True):
        logits = model.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits", logits_to_keep=1)[:, -1].float()
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
