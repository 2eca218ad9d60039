"""Counterfactual pairs: what swapping one term does to a prediction, which features move, and what an edit costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import permutation_test

from prism.analysis import difference_interval
from prism.data import DATA, TokenBatch, read_table, token_table, tokenize
from prism.evaluation.predictions import Change, Predictions, counted, logit_rows
from prism.features import FeatureMatrix, encode_activations
from prism.interventions import project_out
from prism.models import kept_activations, unless_massive
from prism.phases.phase_6f.monitor import text_means


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
    return pd.DataFrame(rows, columns=["template", "kind", "text_a", "text_b", "target_a", "target_b"])


def first_tokens(pairs: pd.DataFrame, tokenizer) -> Int[np.ndarray, "pairs 2"]:
    """The first token of each pair's two targets: what the model is asked to choose between."""
    sides = [pairs["target_a"], pairs["target_b"]]
    ids = [[tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in side] for side in sides]
    return np.array(ids).T


@torch.no_grad()
def swap_gaps(
    model, pairs: pd.DataFrame, hook_name: str, changes: Mapping[str, Change] | None = None
) -> dict[str, Float[np.ndarray, "pairs 2"]]:
    """log P(target a) − log P(target b) behind text a and behind text b of each pair, in nats.

    Of the targets only the first token is asked for; pairs whose targets begin alike get 0.

    Args:
        pairs: rows of `load_counterfactuals`, or of the same columns.
        hook_name: where the changes are made, everywhere but at BOS and padding.
        changes: name -> change.

    Returns:
        'clean', and each change's name -> the two gaps of each pair. The effect of the swap is the first minus the
        second: how common the two targets are cancels.
    """
    texts = pd.unique(pairs[["text_a", "text_b"]].to_numpy().ravel()).tolist()
    batch, changes = tokenize(texts, model.tokenizer, model.cfg.n_ctx), changes or {}
    length, number = batch.keep.sum(1), {text: i for i, text in enumerate(texts)}
    asked, ids = np.unique(first_tokens(pairs, model.tokenizer), return_inverse=True)
    found = {name: np.empty((len(texts), len(asked))) for name in ("clean", *changes)}
    size = logit_rows(model, batch, [hook_name])
    for rows in torch.argsort(length, stable=True).split(size):  # texts of one length need no padding
        tokens, keep = (part[rows, : 1 + int(length[rows].max())] for part in (batch.tokens, batch.keep))
        seen = Predictions(model, tokens, [hook_name])
        states = {"clean": seen.clean} | {n: seen.changed(hook_name, keep, c) for n, c in changes.items()}
        for name, state in states.items():
            found[name][rows] = seen.logits(state[torch.arange(len(rows)), length[rows]]).cpu()[:, asked]
    ids, sides = ids.reshape(-1, 2), ("text_a", "text_b")
    where = np.array([[number[text] for text in pairs[side]] for side in sides]).T
    return {name: x[where, ids[:, :1]] - x[where, ids[:, 1:]] for name, x in found.items()}  # the softmax cancels


def by_template(values: Float[np.ndarray, "pairs ..."], pairs: pd.DataFrame) -> Float[np.ndarray, "templates ..."]:
    """Mean over the pairs of each template, in the order in which the templates come.

    Pairs of one template are no independent samples: intervals and tests go by templates.
    """
    return text_means(values, pd.factorize(pairs["template"])[0])


def template_effects(
    model, pairs: pd.DataFrame, hook_name: str, changes: Mapping[str, Change]
) -> dict[str, Float[np.ndarray, " templates"]]:
    """'clean' and each change's name -> the effect of the swap in each template (`swap_gaps`)."""
    gaps = swap_gaps(model, pairs, hook_name, changes)
    return {name: by_template(both[:, 0] - both[:, 1], pairs) for name, both in gaps.items()}


def read_sides(
    model, sae, pairs: pd.DataFrame, context: int
) -> tuple[FeatureMatrix, Float[torch.Tensor, "tokens d_in"], np.ndarray, np.ndarray]:
    """Features and activations on texts a, then texts b, token by token; and each feature's maxima on either side."""
    batch = tokenize([*pairs["text_a"], *pairs["text_b"]], model.tokenizer, context)
    x = kept_activations(model, sae.cfg.metadata.hook_name, batch, 64)
    matrix = encode_activations(sae, [x], token_table(batch, model.tokenizer))
    return matrix, x, *np.split(matrix.text_max().toarray(), 2)


def same_side(
    gaps: Float[np.ndarray, "pairs 2"], pairs: pd.DataFrame
) -> tuple[Float[np.ndarray, " templates"], Float[np.ndarray, " templates"]]:
    """How far two terms of one side move the gap of a template apart, and two of different sides: mean sizes.

    Args:
        gaps: from `swap_gaps`, of pairs whose templates have two swaps or more (names: two men, or a man and a woman).
    """
    found = []
    for rows in pd.Series(range(len(pairs))).groupby(pairs["template"].to_numpy(), sort=False):
        a, b = gaps[rows[1]].T
        i, j = np.triu_indices(len(a), 1)
        found.append((np.abs([a[i] - a[j], b[i] - b[j]]).mean(), np.abs(a[:, None] - b).mean()))
    return tuple(np.array(found).T)


def sign_flip_p(effects: Float[np.ndarray, " templates"], n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of a mean effect: how often random signs for the templates give as much, either way (Fisher 1935).

    Were the swap without consequence, a and b could change places in any template. Exact up to `n` flips.
    """
    rng = np.random.default_rng(seed)
    return float(permutation_test((effects,), np.mean, permutation_type="samples", n_resamples=n, rng=rng).pvalue)


def larger_p(
    a: Float[np.ndarray, " templates"], b: Float[np.ndarray, " templates"], n: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of the difference in mean size between one kind and another, by shuffling the labels over |effect|.

    Args:
        a: effects, or their sizes; the sign does not matter.
        b: of the placebo.
    """
    sizes, rng = (np.abs(a), np.abs(b)), np.random.default_rng(seed)
    return float(permutation_test(sizes, lambda x, y: x.mean() - y.mean(), n_resamples=n, rng=rng).pvalue)


def halves(pairs: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """For each pair, whether its template is in the searching half; each kind is split by itself, at random."""
    rng, chosen = np.random.default_rng(seed), set()
    for _, part in pairs.drop_duplicates("template").groupby("kind"):
        chosen.update(rng.permutation(part["template"].to_numpy())[: len(part) // 2])
    return pairs["template"].isin(chosen).to_numpy()


def pair_features(
    difference: Float[np.ndarray, "templates d_sae"], k: int = 5, min_share: float = 0.5
) -> Int[np.ndarray, " features"]:
    """The features that a swap moves most: the largest mean difference within pairs, either way.

    Args:
        difference: of each template, the feature's maximum over text a minus that over text b.
        k: features.
        min_share: of the templates that a feature must move in, 0 to 1.

    Returns:
        At most `k` features, the most moved first; fewer, or none, where too few qualify.
    """
    score = np.abs(difference.mean(0)) * ((difference != 0).mean(0) >= min_share)
    best = np.argsort(-score, kind="stable")[:k]
    return best[score[best] > 0]


def mean_difference(x: Float[torch.Tensor, "tokens d_in"], inside: np.ndarray) -> Float[torch.Tensor, " d_in"]:
    """Mean activation inside minus outside: the direction that a plain difference of means finds (DiffMean).

    Args:
        inside: True on the tokens of the concept (or of side a), False on the others.

    Raises:
        ValueError: one of the two sides is empty.
    """
    mask = torch.as_tensor(np.array(inside, dtype=bool))
    if mask.all() or not mask.any():
        raise ValueError("a difference of means needs tokens on both sides")
    return x[mask].mean(0) - x[~mask].mean(0)


def diffmean(sae, matrix: FeatureMatrix, x: Float[torch.Tensor, "tokens d_in"], a: np.ndarray, b: np.ndarray) -> Change:
    """Project out the mean difference of some tokens `a` and others `b`; massive tokens have no say, and stay.

    Args:
        matrix: the tokens' features, whose table tells which are massive.
        x: their activations; the mean of all that are ordinary is what every activation gets along the direction.
    """
    ordinary = ~matrix.table.get("massive", pd.Series(False, matrix.table.index)).to_numpy()
    some = (a | b) & ordinary
    change = project_out(mean_difference(x[some], a[some]), mean=x[ordinary].mean(0))
    return lambda y: unless_massive(sae, y, change(y))


@torch.no_grad()
def edit_costs(
    model,
    batch: TokenBatch,
    hook_name: str,
    changes: Mapping[str, Change],
    only: Bool[torch.Tensor, "batch pos"] | None = None,
) -> pd.DataFrame:
    """What each change costs each text.

    Args:
        changes: name -> change, made at the kept positions.
        only: the tokens whose prediction counts; None counts all kept ones.

    Returns:
        Cost in nats per counted token, a row a text and a column a change; NaN for a text without such a token.
    """
    size, mask, nats = logit_rows(model, batch, [hook_name]), counted(batch), []
    mask = mask if only is None else mask & only[:, 1:]
    for start in range(0, len(batch), size):
        part, here = batch[start : start + size], mask[start : start + size]
        seen = Predictions(model, part.tokens, [hook_name])
        states = {"clean": seen.clean} | {n: seen.changed(hook_name, part.keep, c) for n, c in changes.items()}
        nats.append(pd.DataFrame(seen.measure(states, here)[0]).div(here.sum(1).numpy(), axis=0))
    table = pd.concat(nats, ignore_index=True)
    return table.sub(table["clean"], axis=0).drop(columns="clean")


def beyond_ascii(batch: TokenBatch, tokenizer) -> Bool[torch.Tensor, "batch pos"]:
    """Which tokens hold a character, or a byte of one, that is not ASCII: in English text emoji, for the most part."""
    ids, places = batch.tokens.unique(return_inverse=True)
    return torch.tensor([not tokenizer.decode([i]).isascii() for i in ids.tolist()])[places]


def apart(nats: pd.DataFrame, own: np.ndarray, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Mean cost of each change on some texts and on the others, and the difference with its interval over texts."""
    rows = {
        name: (of[own].mean(), of[~own].mean(), of[own].mean() - of[~own].mean())
        + difference_interval(of[own].to_numpy(), of[~own].to_numpy(), "mean", level=level, seed=seed)
        for name, of in nats.items()
    }
    return pd.DataFrame(rows, ["its texts", "other texts", "difference", "from", "to"]).T
