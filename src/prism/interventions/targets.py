"""What steering aims at and what it is chosen by: typical tokens of a class, features' output scores, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from prism.data import TokenBatch
from prism.interventions.changes import edited

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STEERED = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post")


def count_tokens(
    texts: Sequence[str], kinds: Sequence[str], tokenizer, d_vocab: int
) -> dict[str, Int[np.ndarray, " d_vocab"]]:
    """How often each token occurs in the texts of each kind.

    Raises:
        ValueError: not one kind for each text.
    """
    if len(texts) != len(kinds):
        raise ValueError(f"{len(kinds)} kinds for {len(texts)} texts; give one for each")
    counts = {kind: np.zeros(d_vocab, np.int64) for kind in sorted(set(kinds))}
    for row, kind in zip(tokenizer(list(texts), add_special_tokens=False)["input_ids"], kinds, strict=True):
        np.add.at(counts[kind], np.asarray(row, np.int64), 1)
    return counts


def token_log_odds(
    inside: Int[np.ndarray, " d_vocab"], outside: Int[np.ndarray, " d_vocab"], prior: float = 0.5
) -> tuple[Float[np.ndarray, " d_vocab"], Float[np.ndarray, " d_vocab"]]:
    """How much likelier each token is inside a class than outside it, from counts.

    Source: Monroe et al. 2008 ("Fightin' Words"), equations 15, 20 and 22, with a flat prior.

    Args:
        inside: how often each token occurs in the class's texts; outside: in all others.
        prior: added to each count.

    Returns:
        The difference of log-odds (nats), and the same in units of its standard error.
    """
    a, b = np.asarray(inside, dtype=float) + prior, np.asarray(outside, dtype=float) + prior
    delta = np.log(a / (a.sum() - a)) - np.log(b / (b.sum() - b))
    return delta, delta / np.sqrt(1 / a + 1 / b)


def typical_tokens(
    counts: Int[np.ndarray, "classes d_vocab"], ratio: float = 4.0, z: float = 4.0
) -> Bool[np.ndarray, "d_vocab classes"]:
    """For each class, the tokens that are `ratio` times likelier in it than in the other classes, `z` errors from 1.

    Args:
        counts: how often each token occurs in each class's texts.

    Raises:
        ValueError: fewer than two classes: then there is nothing to be typical against.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or len(counts) < 2:
        raise ValueError(f"counts of shape {counts.shape}; give a row of token counts for each of two or more classes")
    columns = []
    for row in counts:
        delta, errors = token_log_odds(row, counts.sum(0) - row)
        columns.append((delta > np.log(ratio)) & (errors > z))
    return np.stack(columns, axis=1)


def class_auc(
    values: Float[np.ndarray, "texts features"], inside: Bool[np.ndarray, " texts"]
) -> Float[np.ndarray, " features"]:
    """How well each feature tells a class's texts from the others: the area under its ROC curve.

    The chance that a text of the class has the larger value, ties counted half (Mann & Whitney 1947).

    >>> class_auc(np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), np.array([True, False, False])).tolist()
    [1.0, 0.5]

    Raises:
        ValueError: no text of the class, or none outside it.
    """
    inside = np.asarray(inside, dtype=bool)
    n, m = int(inside.sum()), int((~inside).sum())
    if not n or not m:
        raise ValueError(f"{n} texts of the class and {m} others; give at least one of each")
    return (rankdata(values, axis=0)[inside].sum(0) - n * (n + 1) / 2) / (n * m)


def text_probe(texts: Sequence[str], kinds: Sequence[str], seed: int = 0) -> Pipeline:
    """A bag-of-words classifier of a text's kind (multinomial logistic regression), to judge generated samples with.

    It reads words, punctuation marks and runs of spaces, and knows nothing of the model or its features.

    Raises:
        ValueError: fewer than two kinds.
    """
    from sklearn.feature_extraction.text import CountVectorizer  # here, because it takes a second to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    if len(set(kinds)) < 2:
        raise ValueError(f"all texts are of the kind {set(kinds) or 'none'}; give texts of two kinds or more")
    words = CountVectorizer(token_pattern=r"\w+|[^\w\s]|[ \n\t]{2,}", lowercase=False, binary=True, min_df=3)
    fitted = make_pipeline(words, MaxAbsScaler(), LogisticRegression(max_iter=300, C=0.3, random_state=seed))
    return fitted.fit(list(texts), list(kinds))


def text_windows(
    batch: TokenBatch, width: int, most: int = 3
) -> tuple[Int[Tensor, "windows pos"], Int[np.ndarray, " windows"]]:
    """Windows of one length from each text, BOS in front, so that texts of any length can be run without padding.

    Args:
        width: tokens of a window, BOS not counted.
        most: windows to take of each text, from its start and without overlap.

    Returns:
        The windows, and which text each is of: resample those, not the windows.

    Raises:
        ValueError: no text is so long.
    """
    rows, source = [], []
    for i, (tokens, keep) in enumerate(zip(batch.tokens, batch.keep, strict=True)):
        parts = tokens[keep].unfold(0, width, width)[:most] if int(keep.sum()) >= width else []
        rows += [torch.cat([tokens[:1], part]) for part in parts]
        source += [i] * len(parts)
    if not rows:
        raise ValueError(f"no text has {width} tokens; the longest has {int(batch.keep.sum(1).max())}")
    return torch.stack(rows), np.array(source)


def repetition(tokens: Int[Tensor, "batch pos"], n: int = 3) -> Float[np.ndarray, " batch"]:
    """Share of each sequence's n-grams that stood in it before: 0 says nothing twice, 1 − 1/(n-grams) is a loop.

    >>> repetition(torch.tensor([[1, 2, 1, 2, 1, 2]]), n=2).tolist()
    [0.6]

    Raises:
        ValueError: sequences shorter than `n`.
    """
    if tokens.shape[1] < n:
        raise ValueError(f"sequences of {tokens.shape[1]} tokens have no {n}-gram; give longer ones or a smaller n")
    grams = tokens.unfold(1, n, 1)
    return np.array([1 - len(set(map(tuple, row.tolist()))) / len(row) for row in grams])


def written(model, hook_name: str, direction: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_model"]:
    """What a direction at one of the sites `STEERED` adds to the residual stream: itself, or, of neurons, their output.

    >>> from types import SimpleNamespace as Some
    >>> block = Some(mlp=Some(W_out=torch.tensor([[2.0], [3.0]])))
    >>> written(Some(blocks=[block]), "blocks.0.mlp.hook_post", torch.tensor([1.0, 1.0])).tolist()
    [5.0]
    """
    if not hook_name.endswith(".mlp.hook_post"):
        return direction
    weights = model.blocks[int(hook_name.split(".")[1])].mlp.W_out
    return direction.to(weights) @ weights


def lens_tokens(model, direction: Float[Tensor, "... d_in"], k: int = 20) -> Int[Tensor, "... k"]:
    """The `k` tokens that a direction of the residual stream promotes most, read straight off the unembedding.

    The logit lens (nostalgebraist 2020) on a direction: products with the columns of `W_U`, no LayerNorm in between.

    Raises:
        ValueError: a direction that is not of the residual stream's width.
    """
    if direction.shape[-1] != model.W_U.shape[0]:
        raise ValueError(f"a direction of {direction.shape[-1]} numbers; the residual stream has {model.W_U.shape[0]}")
    return (direction.to(model.W_U) @ model.W_U).topk(k, dim=-1).indices.cpu()


@torch.no_grad()
def output_scores(
    model, hook_name: str, directions: Float[Tensor, "features d_in"], prompts: Int[Tensor, "prompts pos"], k: int = 20
) -> Float[np.ndarray, " features"]:
    """How reliably each direction makes the model say what its own logit lens promises (Arad et al. 2025, section 3.2).

    The direction is added at a neutral prompt's last token (at neurons, its lens is that of what they write), and the
    score is
    `(1 − r / d_vocab) · p`, with `p` the largest probability of the `k` lens tokens after that and `r` the smallest
    rank, from 0, of any of them; averaged over the prompts. (The paper has one prompt and adds ten times the strongest
    activation of any feature; here the caller chooses, for a feature some multiple of its own maximum.)

    Args:
        directions: what is added, at full length.
        prompts: ids of equal length, BOS in front.

    Returns:
        One score a direction, 0 to 1.
    """
    lens = lens_tokens(model, written(model, hook_name, directions), k)
    last = torch.zeros(len(directions), prompts.shape[1], dtype=torch.bool)
    last[:, -1] = True
    total = torch.zeros(len(directions))
    for prompt in prompts:
        with edited(model, hook_name, lambda x: x + directions.to(x), last):  # a row a direction
            logits = model(prompt.expand(len(directions), -1), return_type="logits", logits_to_keep=1)[:, -1]
        p = logits.float().cpu().softmax(-1)
        best = p.gather(1, lens).max(1).values
        rank = (p > best[:, None]).sum(1)
        total += (1 - rank / p.shape[1]) * best
    return (total / len(prompts)).numpy()
