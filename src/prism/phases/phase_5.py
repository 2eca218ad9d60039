"""Phase 5, a sentence of the reader's: its features token by token, pages side by side, halves of texts; exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix

from prism.data import token_table, tokenize
from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.features import FeatureMatrix, encode_features
from prism.visualization.style import SEQUENTIAL, as_array, colour_bar, finish, short_label
from prism.visualization.tokens import marked
from prism.visualization.tokens import side_by_side as side_by_side  # its notebook asks for it here

RULES = ("special", "as rare", "strongest, same filter", "strongest")  # by which a text's features are listed
LISTED = 10  # features in such a list
WITH_NUMBERS = 45  # tokens at most, for a heat map with its numbers written in


def sentence_heatmap(
    shares: Float[np.ndarray, "features tokens"],
    tokens: Sequence[str],
    labels: Sequence[object],
    title: str = "Your sentence, token by token",
) -> go.Figure:
    """Features × the tokens of a text.

    Args:
        shares: each feature's activation on each token, as a share of its largest one in a sample.
        tokens: the text, token by token.
        labels: one a feature.
        title: the figure's title.

    Raises:
        ValueError: tokens or labels that do not match the array's shape.
    """
    shares = as_array(shares)
    if shares.shape != (len(labels), len(tokens)):
        raise ValueError(
            f"shares are {shares.shape}, but there are {len(labels)} labels and {len(tokens)} tokens: "
            "they need the shape (features, tokens)"
        )
    few = len(tokens) <= WITH_NUMBERS
    fig = go.Figure(
        go.Heatmap(
            z=shares,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=max(1, shares.max(initial=0)),
            text=[[f"{share:.1f}" if share > 0.05 else "" for share in row] for row in shares],
            texttemplate="%{text}" if few else "",
            textfont=dict(size=11),
            xgap=1,
            ygap=1,
            colorbar=colour_bar("share of its maximum"),
            hovertemplate="%{y}, token %{x}: %{z:.2f}<extra></extra>",
        )
    )
    fig.update_xaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[short_label(marked(token)) for token in tokens],
        side="top",
        tickangle=-60,
        showgrid=False,
        ticks="",
        tickfont=dict(size=13 if few else 10),
    )
    fig.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[short_label(label, 40) for label in labels],
        autorange="reversed",
        ticks="",
        showgrid=False,
        tickfont=dict(size=12),
    )
    return finish(fig, title, 190 + 26 * len(labels), margin=dict(t=140, b=20))


def place_of(tokens: Sequence[str], text: str, word: str) -> slice:
    """The row of the token with which a word of a text begins; the last row where the text lacks the word."""
    ends = np.cumsum([len(token) for token in tokens])
    row = min(int(np.searchsorted(ends, text.find(word) % max(len(text), 1), side="right")), len(tokens) - 1)
    return slice(row, row + 1)


def halves(text: str) -> tuple[str, str]:
    """A text cut at the first space past its middle; in the middle where there is none."""
    middle = len(text) // 2
    cut = text.find(" ", middle)
    cut = middle if cut < 0 else cut
    return text[:cut], text[cut:]


def bounds(text: Sequence[int]) -> list[tuple[int, int]]:
    """First row and last row + 1 of each text, from each token's text, in order from 0."""
    starts = np.searchsorted(text, np.unique(text))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(text)], strict=True))


def firing_rates(
    values: csr_matrix, text: Sequence[int], lists: Sequence[Sequence[int]], counted: Bool[np.ndarray, "lists tokens"]
) -> Float[np.ndarray, "lists texts"]:
    """How often the features of each list fire in each text, among the tokens that count for the list.

    Args:
        values: activations, [tokens, d_sae].
        text: each token's text, in order from 0.
        lists: numbers of features.
        counted: whether a token counts for a list.

    Returns:
        Share of (token, feature of the list) pairs that fire; 0 for a list without features, or where no token counts.
    """
    starts, fires = [start for start, _ in bounds(text)], (values > 0).tocsc()
    shares = np.stack([np.asarray(fires[:, list(some)].sum(1)).ravel() / max(len(some), 1) for some in lists])
    tokens = np.add.reduceat(counted.astype(int), starts, axis=1)
    return np.add.reduceat(shares * counted, starts, axis=1) / np.maximum(tokens, 1)


def read(reading, texts: Sequence[str], context: int) -> FeatureMatrix:
    """Texts through the model and the SAE of an `explorer.Reading`; `context`: the model's longest, with BOS."""
    batch = tokenize(list(texts), reading.model.tokenizer, context)
    return encode_features(reading.model, reading.sae, batch, token_table(batch, reading.model.tokenizer))


def of_category(reading, name: str):
    """The same `explorer.Reading`, with maxima and rarity from texts of one category of its sample alone."""
    sample = reading.sample
    keep = (sample.matrix.table["category"] == name).to_numpy()
    part = replace(sample, matrix=sample.matrix.select(keep), labelled=sample.labelled[keep], held=sample.held[keep])
    return replace(reading, sample=part)


def lists_of(reading, half: FeatureMatrix, ordered: Callable) -> dict[str, list[list[int]]]:
    """For each text, ten features by each of four rules.

    Args:
        reading: the `explorer.Reading` from which maxima and rarity come.
        half: features of the texts' halves.
        ordered: `explorer.rows.ordered`.

    Returns:
        Name of a rule (`RULES`) -> for each text the features: those that the explorer lists as special; as many others
        that fire there, that pass the same filter, and that are nearest in rarity; the strongest that pass this filter;
        and the strongest.
    """
    lists: dict[str, list[list[int]]] = {rule: [] for rule in RULES}
    for start, end in bounds(half.table["text"]):
        firing = reading.firing(half, slice(start, end))
        pool, _ = ordered(reading, firing, "special", hide=True)
        special, rest = pool.head(LISTED), pool.iloc[LISTED:]
        found = special, as_rare(special, rest), pool.nlargest(LISTED, "activation"), firing.head(LISTED)
        for rule, some in zip(RULES, found, strict=True):
            lists[rule].append(some["feature"].tolist())
    return lists


def as_rare(wanted: pd.DataFrame, rest: pd.DataFrame) -> pd.DataFrame:
    """For each wanted density in turn, the row of the rest that is nearest to it in its logarithm, each taken once."""
    rarity, picked = np.log(np.maximum(rest["density"].to_numpy(float), 1e-9)), []
    for density in wanted["density"].head(len(rest)):
        away = np.abs(rarity - np.log(max(density, 1e-9)))
        away[picked] = np.inf
        picked.append(int(away.argmin()))
    return rest.iloc[picked]


def unseen(half_1: FeatureMatrix, half_2: FeatureMatrix) -> Bool[np.ndarray, "texts tokens"]:
    """For each first half, which tokens of all the second halves it does not contain, in whatever case."""
    old, later = (half.table["token"].astype(str).str.strip().str.casefold() for half in (half_1, half_2))
    return np.array([~later.isin(old[start:end]) for start, end in bounds(half_1.table["text"])])


# --- exercises -------------------------------------------------------------------------------------------------------


def token_f1(fires: np.ndarray, is_token: np.ndarray) -> float:
    """Harmonic mean of precision and recall of 'fires' for 'is the token'; 0 where they never meet."""
    return float(2 * (fires & is_token).sum() / max(fires.sum() + is_token.sum(), 1))


def check_token_f1(answer: Callable) -> Callable:
    """Check exercise 1."""
    fires = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    is_token = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0], dtype=bool)
    nothing = np.zeros(12, dtype=bool)
    mistakes = {
        "It never fires on the token here: F1 is 0 by definition, not nan.": lambda f, t: np.nan,
        "That is precision alone; a feature that fires once, and right, would win.": (
            lambda f, t: (f & t).sum() / f.sum()
        ),
        "That is recall alone; a feature that fires always would win.": lambda f, t: (f & t).sum() / t.sum(),
        "That is the plain mean of precision and recall; take the harmonic one, 2·p·r / (p + r).": (
            lambda f, t: ((f & t).sum() / f.sum() + (f & t).sum() / t.sum()) / 2
        ),
        "That is accuracy; with a rare token, a feature that never fires would score nearly 1.": (
            lambda f, t: (f == t).mean()
        ),
        "That is the Jaccard overlap, both over either; F1 is twice both over the sum of the counts.": (
            lambda f, t: (f & t).sum() / max((f | t).sum(), 1)
        ),
        "Half of it is missing: F1 is *twice* what they share over the sum of the counts.": (
            lambda f, t: (f & t).sum() / max(f.sum() + t.sum(), 1)
        ),
    }
    with np.errstate(all="ignore"):
        return check(answer, token_f1, [(fires, is_token), (~fires, is_token), (nothing, is_token)], mistakes)


def quantile_rows(column: np.ndarray, groups: int) -> np.ndarray:
    """Row of the strongest token of each of some equally large groups of firings, strongest group first."""
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    return np.array([part[0] for part in np.array_split(order, groups)])


def _equal_ranges(column: np.ndarray, groups: int) -> list[int]:
    edges = np.linspace(column.max(), 0, groups + 1)
    rows = []
    for high, low in zip(edges[:-1], edges[1:], strict=True):
        inside = np.flatnonzero((column > low) & (column <= high))
        rows.append(int(inside[column[inside].argmax()]))
    return rows


def check_quantile_rows(answer: Callable) -> Callable:
    """Check exercise 3."""
    column = np.array([0, 4.0, 0, 9.0, 0.4, 0, 7.5, 0.2, 1.6, 0, 0.9, 0])
    cases = [(column, 3), (column, 2), (np.concatenate([column[::-1], [20.0, 0.1]]), 4)]
    mistakes = {
        "Your groups hold silent tokens, too: take those with an activation above 0.": (
            lambda c, n: [part[0] for part in np.array_split(np.argsort(-c, kind="stable"), n)]
        ),
        "Yours run from the weakest to the strongest: turn the order round.": lambda c, n: quantile_rows(c, n)[::-1],
        "That is the weakest token of each group; take the strongest.": (
            lambda c, n: [part[-1] for part in np.array_split(np.argsort(-c)[: (c > 0).sum()], n)]
        ),
        "Your groups cover equal ranges of activation; make them equal in how many tokens they hold.": _equal_ranges,
        "Those are activations; return the rows where they stand.": lambda c, n: c[quantile_rows(c, n)],
        "Those are places among the tokens that fire; return rows of the whole column.": (
            lambda c, n: np.searchsorted(np.flatnonzero(c > 0), quantile_rows(c, n))
        ),
        "Those are the strongest tokens of all, from the top group only.": lambda c, n: np.argsort(-c)[:n],
    }
    return check(answer, quantile_rows, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 2, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("5", fire, silent, activation)
