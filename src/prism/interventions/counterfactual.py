"""Counterfactual pairs: two texts that differ in one term, what the swap does to a prediction, and which features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.stats import permutation_test
from torch import Tensor

from prism.data import DATA, TokenBatch, read_table
from prism.evaluation.predictions import Change, Predictions, logit_rows
from prism.evaluation.probing import text_means

COLUMNS = ["template", "kind", "text_a", "text_b", "target_a", "target_b"]


def load_counterfactuals() -> pd.DataFrame:
    """The counterfactual pairs written for this project: 6 kinds × 16 templates, each with one to three swaps.

    Side a favours `target_a`, side b favours `target_b`, if the model repeats the stereotype (or, for the kind
    'agreement', the grammar) that the pair was written to test.

    Returns:
        One row a pair: template, kind, text_a, text_b, target_a, target_b (continuations, with a leading space).
    """
    lines = read_table(DATA / "texts" / "counterfactuals.jsonl")
    rows = [
        (line.id, line.kind, *(line.template.replace("{}", term) for term in swap), *line.targets)
        for line in lines.itertuples()
        for swap in line.swaps
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def target_logprobs(
    model, prompts: Sequence[str], targets: Sequence[str], hook_name: str | None = None, change: Change | None = None
) -> Float[np.ndarray, " prompts"]:
    """log P(target | prompt) in nats, summed over the target's tokens.

    Args:
        prompts: one or more tokens each; BOS is put in front.
        targets: the continuation of each, usually with a leading space. Prompt and target are tokenised apart.
        hook_name, change: with both, the hook's activations are changed everywhere but at BOS and padding.

    Raises:
        ValueError: lists of different lengths, an empty prompt or target, or a sequence longer than the context.
    """
    if len(prompts) != len(targets):
        raise ValueError(f"{len(prompts)} prompts for {len(targets)} targets; need one for each")
    pairs = [(_ids(model.tokenizer, p), _ids(model.tokenizer, t)) for p, t in zip(prompts, targets, strict=True)]
    if not all(p and t for p, t in pairs):
        raise ValueError("a prompt or a target is empty; give at least one token of each")
    if (longest := max(len(p) + len(t) for p, t in pairs)) >= model.cfg.n_ctx:
        raise ValueError(f"a prompt with its target has {longest} tokens; the model takes {model.cfg.n_ctx - 1}")
    out = np.empty(len(pairs))
    order = np.argsort([len(p) + len(t) for p, t in pairs], kind="stable")  # texts of one length need no padding
    shape = TokenBatch(torch.zeros(1, longest + 1), torch.zeros(1, longest + 1))
    size = logit_rows(model, shape, [hook_name] if change else [])
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        out[rows] = _logprobs(model, [pairs[i] for i in rows], hook_name, change)
    return out


def _logprobs(model, pairs: list[tuple[list[int], list[int]]], hook_name, change) -> Float[np.ndarray, " pairs"]:
    """`target_logprobs` of one batch of token ids."""
    width = 1 + max(len(p) + len(t) for p, t in pairs)
    tokens = torch.full((len(pairs), width), model.tokenizer.bos_token_id)
    keep, counted = (torch.zeros(len(pairs), width, dtype=torch.bool) for _ in range(2))
    for row, (prompt, target) in enumerate(pairs):
        stop = 1 + len(prompt) + len(target)
        tokens[row, 1:stop] = torch.tensor(prompt + target)
        keep[row, 1:stop] = True
        counted[row, 1 + len(prompt) : stop] = True
    seen = Predictions(model, tokens, [] if change is None else [hook_name])
    states = seen.clean if change is None else seen.changed(hook_name, keep, change)
    return -seen.nats(states, counted[:, 1:])  # of the targets' tokens alone


def swap_effects(
    model, pairs: pd.DataFrame, hook_name: str | None = None, change: Change | None = None
) -> Float[np.ndarray, " pairs"]:
    """What each swap does to the gap between its two targets, in nats: above 0 is the stereotype's direction.

    `[log P(target_a | a) − log P(target_b | a)] − [log P(target_a | b) − log P(target_b | b)]`. How common the two
    targets are, and how long, cancels.

    Args:
        pairs: rows of `load_counterfactuals`, or of the same columns.
        hook_name, change: see `target_logprobs`.

    Raises:
        ValueError: no pairs, a missing column, or as `target_logprobs`.
    """
    if missing := [name for name in COLUMNS[2:] if name not in pairs]:
        raise ValueError(f"the pairs lack {', '.join(missing)}; need {', '.join(COLUMNS)}")
    if pairs.empty:
        raise ValueError("no pairs; choose a kind that load_counterfactuals has")
    sides = [(f"text_{text}", f"target_{target}") for text in "ab" for target in "ab"]
    prompts, targets = (sum((pairs[side[i]].tolist() for side in sides), []) for i in (0, 1))
    aa, ab, ba, bb = target_logprobs(model, prompts, targets, hook_name, change).reshape(4, -1)
    return (aa - ab) - (ba - bb)


def by_template(values: Float[np.ndarray, "pairs ..."], pairs: pd.DataFrame) -> Float[np.ndarray, "templates ..."]:
    """Mean over the pairs of each template, in the order in which the templates come.

    Pairs of one template are no independent samples: intervals and tests go by templates.
    """
    return text_means(values, pd.factorize(pairs["template"])[0])


def sign_flip_p(effects: Float[np.ndarray, " templates"], n: int = 10_000, seed: int = 0) -> float:
    """One-sided p of a mean effect above 0: how often random signs for the templates give as much (Fisher 1935).

    Were the swap without consequence, a and b could change places in any template. Exact up to `n` flips.

    Args:
        effects: one a template (`by_template`); expected above 0.
        n: random flips, where not all `2^templates` of them fit.
        seed: of the flips.

    Raises:
        ValueError: fewer than two templates.
    """
    if len(effects) < 2:
        raise ValueError(f"{len(effects)} templates; signs can be flipped from two on")
    found = permutation_test(
        (np.asarray(effects),),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=n,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def halves(pairs: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """For each pair, whether its template is in the searching half; each kind is split by itself, at random."""
    rng = np.random.default_rng(seed)
    names = pairs.drop_duplicates("template")
    chosen = set()
    for _, part in names.groupby("kind"):
        shuffled = rng.permutation(part["template"].to_numpy())
        chosen.update(shuffled[: len(shuffled) // 2])
    return pairs["template"].isin(chosen).to_numpy()


def pair_features(
    difference: Float[np.ndarray, "templates d_sae"] | csr_matrix, k: int = 5, min_share: float = 0.5
) -> Int[np.ndarray, " features"]:
    """The features that a swap moves most: the largest mean difference within pairs, either way.

    Args:
        difference: of each template, the feature's maximum over text a minus that over text b.
        k: features.
        min_share: of the templates that a feature must move in, 0 to 1.

    Returns:
        At most `k` features, the most moved first; fewer, or none, where too few qualify.
    """
    dense = difference.toarray() if hasattr(difference, "toarray") else np.asarray(difference)
    score = np.abs(dense.mean(0)) * ((dense != 0).mean(0) >= min_share)
    best = np.argsort(-score, kind="stable")[:k]
    return best[score[best] > 0]


def matched_sets(
    mass: Float[np.ndarray, " d_sae"], chosen: Sequence[int], n: int = 5, nearest: int = 20, seed: int = 0
) -> Int[np.ndarray, "n features"]:
    """Random features to stand beside chosen ones: for each, another of about the same activation mass.

    Args:
        mass: of each feature, what makes two of them alike: the sum of its activations over the texts at hand.
        chosen: features that no set may contain.
        n: sets.
        nearest: each partner is drawn from so many living features that are nearest in log mass.
        seed: of the draws.

    Raises:
        ValueError: too few other living features.
    """
    rng, logs = np.random.default_rng(seed), np.log(np.maximum(np.asarray(mass, dtype=float), 1e-12))
    free = np.setdiff1d(np.flatnonzero(np.asarray(mass) > 0), chosen)
    if len(free) < len(chosen):
        raise ValueError(f"{len(free)} other features fire; {len(chosen)} are needed for a matched set")
    sets = np.empty((n, len(chosen)), dtype=int)
    for row in sets:
        left = free.copy()
        for place, feature in enumerate(chosen):
            near = left[np.argsort(np.abs(logs[left] - logs[feature]), kind="stable")[:nearest]]
            row[place] = rng.choice(near)
            left = left[left != row[place]]
    return sets


def mean_difference(x: Float[Tensor, "tokens d_in"], inside: np.ndarray) -> Float[Tensor, " d_in"]:
    """Mean activation inside minus outside: the direction that a plain difference of means finds (DiffMean).

    Args:
        inside: True on the tokens of side a (or of the concept), False on the others.

    Raises:
        ValueError: one of the two sides is empty.
    """
    mask = torch.as_tensor(np.array(inside, dtype=bool))
    if mask.all() or not mask.any():
        raise ValueError("a difference of means needs tokens on both sides")
    return x[mask].mean(0) - x[~mask].mean(0)
