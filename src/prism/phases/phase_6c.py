"""Phase 6c, across layers: SAEs of several depths, one pass that reads for all, correlations over texts, exercises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Shaped
from sae_lens import SAE
from scipy.sparse import csr_matrix
from torch import Tensor

from prism.data import TokenBatch, token_table, tokenize
from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.features import FeatureMatrix, encode_activations
from prism.models import (
    ModelSpec,
    SaeSpec,
    activations_at,
    load_family,
    load_model,
    load_sae,
    trained_family,
    trained_here,
)
from prism.sae import read_sae
from prism.visualization.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, finish, short_label
from prism.visualization.tokens import marked

ROWS = 8  # sequences that are read at once


def ladder(spec: ModelSpec, most: int = 3) -> dict[str, SAE]:
    """SAEs of the residual stream at several depths, the shallowest first: the default one and the first others.

    For a model that has them at one depth alone, small ones are trained at two other depths, once (minutes).

    Args:
        most: how many SAEs at most.
    """
    by_hook: dict[str, SaeSpec] = {}
    for one in (spec.sae(), *spec.saes.values()):
        if ".hook_resid_" in one.hook_name:
            by_hook.setdefault(one.hook_name, one)
    if len(by_hook) < 2:
        for hook in _depths(load_model(spec).cfg.n_layers):
            name = f"{hook.split('.')[1]}-{hook.rpartition('_')[2]}"
            by_hook.setdefault(hook, SaeSpec(name, hook, f"residual stream at {hook}, trained here"))
    chosen = sorted(list(by_hook.values())[:most], key=lambda one: one.layer)
    own = [spec.saes.get(one.name) is one for one in chosen]
    return {
        one.name: load_sae(spec, one.name) if known else read_sae(trained_here(spec, one))
        for one, known in zip(chosen, own, strict=True)
    }


def _depths(n_layers: int) -> list[str]:
    """Hooks before the block in the middle and before those halfway to both ends; at least two."""
    middle = n_layers // 2
    layers = dict.fromkeys((middle, middle // 2, (middle + n_layers) // 2))
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in layers if layer < n_layers]
    return hooks if len(hooks) > 1 else [*hooks, f"blocks.{n_layers - 1}.hook_resid_post"]


@torch.no_grad()
def read(model, hooks: Collection[str], batch: TokenBatch) -> dict[str, Float[Tensor, "tokens d_in"]]:
    """Activations of the kept tokens at several hooks, from one pass of the model."""
    parts: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    for start in range(0, len(batch), ROWS):
        some = batch[start : start + ROWS]
        for hook, x in activations_at(model, some.tokens, hooks).items():
            parts[hook].append(x[some.keep])
    return {hook: torch.cat(x) for hook, x in parts.items()}


def other_seeds(spec: ModelSpec, sae: SAE) -> dict[str, SAE]:
    """SAEs that differ from this one in where their training began (and in width), where they are on this disk."""
    if spec.sae().hook_name != sae.cfg.metadata.hook_name:
        return {}
    return {name: load_family(spec, name) for name in ("seed-1", "seed-2") if name in trained_family(spec)}


def comparable(
    matrices: Mapping[str, FeatureMatrix], early: Bool[np.ndarray, " tokens"]
) -> Bool[np.ndarray, " tokens"]:
    """Tokens that no SAE calls massive and that occur again in the same half of the texts, so that they can be swapped.

    Args:
        matrices: of the same tokens.
        early: True in the first half.
    """
    tables = [matrix.table for matrix in matrices.values()]
    massive = np.any([table["massive"] for table in tables if "massive" in table] or [np.zeros(len(early))], axis=0)
    ids = np.where(massive, -1, tables[0]["token_id"].to_numpy()) * 2 + early
    codes = np.unique(ids, return_inverse=True)[1]
    return (np.bincount(codes)[codes] > 1) & ~massive


def peaks(
    model, saes: Mapping[str, SAE], features: Mapping[str, int], texts: Sequence[str], context: int
) -> pd.DataFrame:
    """Where one feature of each SAE is strongest in texts of one's own: a row a text, a column an SAE.

    Args:
        features: SAE's name -> feature.
        context: the model's longest sequence, BOS included (tokens).

    Returns:
        For each SAE two columns, the activation, and the token that has it ("" where the feature is silent).
    """
    batch = tokenize(list(texts), model.tokenizer, context)
    table = token_table(batch, model.tokenizer)
    hooks = {name: saes[name].cfg.metadata.hook_name for name in features}
    x = read(model, set(hooks.values()), batch)
    frame = {}
    for name, feature in features.items():
        column = encode_activations(saes[name], [x[hooks[name]]], table).column(feature)
        best = [rows[column[rows].argmax()] for rows in table.groupby("text").indices.values()]
        frame[f"{name} {feature}"] = column[best].astype(float)
        frame[f"{name} on"] = np.where(column[best] > 0, table["token"].astype(str).to_numpy()[best], "")
    return pd.DataFrame(frame, index=list(texts)).round(1)


def text_sums(
    a: csr_matrix, b: csr_matrix, texts: Shaped[np.ndarray, " tokens"]
) -> Float[np.ndarray, "sums texts pairs"]:
    """What the correlation of each column of `a` with the same column of `b` is made of, text by text.

    Args:
        a, b: activations `[tokens, pairs]` (`FeatureMatrix.values`).
        texts: of each token, which text it is in: what an interval resamples.

    Returns:
        Six sums over each text's tokens: 1, a, b, a², b² and ab.

    Raises:
        ValueError: shapes that differ.
    """
    if a.shape != b.shape or a.shape[0] != len(texts):
        raise ValueError(f"activations of shape {a.shape} and {b.shape} on {len(texts)} tokens; give pairs of columns")
    codes = np.unique(texts, return_inverse=True)[1]
    member = csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    a, b = (csr_matrix(part, dtype=np.float64) for part in (a, b))
    sums = [(member @ part).toarray() for part in (a, b, a.multiply(a), b.multiply(b), a.multiply(b))]
    return np.stack([np.broadcast_to(member.sum(1), sums[0].shape), *sums])


def correlation(sums: Float[np.ndarray, "sums texts pairs"], some=slice(None)) -> Float[np.ndarray, " pairs"]:
    """Pearson correlation of each pair over the tokens of some texts; 0 where one of the two is constant there.

    Args:
        sums: from `text_sums`.
        some: which texts; one that is named twice counts twice.
    """
    n, a, b, aa, bb, ab = sums[:, some].sum(axis=1)
    spread = np.sqrt(np.maximum(n * aa - a**2, 0) * np.maximum(n * bb - b**2, 0))
    tiny = 1e-9 * n * np.sqrt(aa * bb)  # rounding
    return np.divide(n * ab - a * b, spread, out=np.zeros_like(ab), where=spread > tiny)


def depth_strip(
    matrices: Mapping[str, FeatureMatrix], features: Mapping[str, int], rows: slice, title: str = "One text"
) -> go.Figure:
    """The tokens of one passage, shaded by a feature of each SAE; the SAEs one under another.

    Args:
        matrices: of the same tokens.
        features: SAE's name -> feature.
        rows: the passage's rows in the matrices.
        title: the figure's title.
    """
    columns = {name: matrices[name].column(feature) for name, feature in features.items()}
    tokens = [short_label(marked(token), 12) for token in next(iter(matrices.values())).table["token"].iloc[rows]]
    fig = go.Figure()
    fig.add_heatmap(
        z=[column[rows] / max(column.max(), 1e-9) for column in columns.values()],
        y=[f"{name}, {feature} " for name, feature in features.items()],
        text=[tokens] * len(columns),
        texttemplate="%{text}",
        textfont=dict(size=11),
        colorscale=[[0.0, "#f4f6f8"], [1.0, ORANGE]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=6,
        showscale=False,
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return finish(fig, title, 300, "darker: more of the strongest activation that the feature has in our texts")


def match_figure(
    r: pd.Series,
    token: pd.Series,
    named: pd.Series,
    title: str = "A match, and what the token alone gives",
) -> go.Figure:
    """A point a feature: the correlation with its partner upwards, the control's across; above the line is context.

    Args:
        r, token: of each feature (the index), with its partner and by the token alone.
        named: features to name, drawn in colour; the index has the words.
        title: the figure's title.
    """
    fig = go.Figure()
    labels = {feature: f"{short_label(word)} {feature}" for word, feature in named.items()}
    words = [labels.get(feature, "") for feature in r.index]
    for shown, colour, size in ((False, GREY, 3), (True, VERMILLION, 9)):
        some = [n for n, word in enumerate(words) if bool(word) == shown]
        fig.add_scatter(
            x=np.asarray(token)[some],
            y=np.asarray(r)[some],
            mode="markers+text" if shown else "markers",
            text=[words[n] for n in some],
            textposition=["top left", "bottom center"] * len(words),
            marker=dict(size=size, color=colour, opacity=1 if shown else 0.5),
        )
    fig.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="correlation by the token alone", range=[-0.1, 1.02])
    fig.update_yaxes(title="correlation with the partner", range=[-0.1, 1.06])
    return finish(fig, title, 460, "above the line: more than the token gives", showlegend=False)


def share_curves(
    found: Mapping[str, Float[np.ndarray, " features"]],
    controls: Mapping[str, Float[np.ndarray, " features"]],
    bar: float,
    title: str = "How many features have a partner that correlates so much?",
) -> go.Figure:
    """The share of features whose correlation lies above each threshold: a line a place, a band for all controls.

    Args:
        found: place -> each feature's correlation with its partner there.
        controls: place -> the same for the control.
        bar: drawn as a vertical line.
        title: the figure's title.
    """
    at, fig = np.linspace(0, 1, 41), go.Figure()
    band = np.array([_above(controls[name], at) for name in found])
    for edge, fill in ((band.min(axis=0), None), (band.max(axis=0), "tonexty")):
        fig.add_scatter(x=at, y=edge, mode="lines", line=dict(color=GREY, width=0.5), fill=fill, showlegend=bool(fill))
    fig.data[1].name = "the token alone, all places"
    for i, name in enumerate(found):
        line = dict(color=(GREEN, BLUE, VERMILLION, ORANGE)[i % 4], width=2.5)
        fig.add_scatter(x=at, y=_above(found[name], at), mode="lines", name=short_label(name), line=line)
    fig.add_vline(bar, line=dict(color=GREY, width=1), layer="below")
    fig.update_xaxes(title="correlation with the partner, on fresh texts", range=[0, 1])
    fig.update_yaxes(title="features above it (%)", range=[0, 100])
    return finish(fig, title, 420, f"grey: partners by the token alone, contexts exchanged; vertical line: {bar:g}")


def _above(values: Float[np.ndarray, " features"], at: Float[np.ndarray, " bars"]) -> Float[np.ndarray, " bars"]:
    """Per cent of the values above each bar."""
    return 100 * (np.asarray(values)[:, None] > at).mean(axis=0)


def lost_twice(there: np.ndarray, at_home: np.ndarray, bar: float) -> float:
    """Of the features without a partner above the bar there, the share without one at home; 0 where none is lost."""
    lost = there <= bar
    return float(np.count_nonzero(at_home[lost] <= bar) / max(np.count_nonzero(lost), 1))


def check_lost_twice(answer: Callable) -> Callable:
    """Check exercise 2."""
    cases = [
        (np.array([0.1, 0.2, 0.9, 0.4, 0.8]), np.array([0.3, 0.9, 0.1, 0.2, 0.9]), 0.5),
        (np.array([0.7, 0.3, 0.6, 0.1]), np.array([0.2, 0.65, 0.4, 0.1]), 0.5),
        (np.array([0.1, 0.7, 0.2, 0.3, 0.9, 0.3]), np.array([0.1, 0.2, 0.8, 0.2, 0.1, 0.6]), 0.25),
    ]
    mistakes = {
        "You divided by all features; divide by those that are lost there.": (
            lambda t, h, bar: np.mean((t <= bar) & (h <= bar))
        ),
        "The other way round: of those lost *there*, how many are lost at home?": (
            lambda t, h, bar: np.mean(t[h <= bar] <= bar)
        ),
        "That is the share that *has* a partner at home; lost is what lies at the bar or below.": (
            lambda t, h, bar: np.mean(h[t <= bar] > bar)
        ),
        "That is the number of features; give their share.": lambda t, h, bar: np.sum((t <= bar) & (h <= bar)),
        "That is the share lost at home of *all* features; take those that are lost there.": (
            lambda t, h, bar: np.mean(h <= bar)
        ),
    }
    return check(answer, lost_twice, cases, mistakes)


def of_the_token(column: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Each token's mean activation on the *other* occurrences of the same token; every token occurs twice or more."""
    codes = np.unique(ids, return_inverse=True)[1]
    sums, counts = np.bincount(codes, column), np.bincount(codes)
    return (sums[codes] - column) / (counts[codes] - 1)


def _means(column: np.ndarray, ids: np.ndarray, own: bool) -> np.ndarray:
    """Means over each token's occurrences, with or without (`own`) the token itself."""
    kept = [(ids == i) & (own | (np.arange(len(ids)) != row)) for row, i in enumerate(ids)]
    return np.array([column[mask].mean() for mask in kept])


def check_of_the_token(answer: Callable) -> Callable:
    """Check exercise 1."""
    cases = [
        (np.array([4.0, 0.0, 2.0, 6.0, 0.0]), np.array([7, 7, 3, 3, 3])),
        (np.array([1.0, 5.0, 0.0, 0.0, 3.0, 0.5]), np.array([2, 9, 2, 9, 9, 2])),
    ]
    mistakes = {
        "Leave the token itself out: its own activation must not help to predict it.": lambda c, i: _means(c, i, True),
        "Leave the token itself out of the count, too: divide by one less.": (
            lambda c, i: np.array([(c[i == x].sum() - y) / (i == x).sum() for y, x in zip(c, i, strict=True)])
        ),
        "That is the sum over the other occurrences; give their mean.": (
            lambda c, i: np.array([c[i == x].sum() - y for y, x in zip(c, i, strict=True)])
        ),
        "You took the mean over all other tokens; take those with the same id.": (
            lambda c, i: (c.sum() - c) / (len(c) - 1)
        ),
        "One number a token, in the tokens' order, not one an id.": (
            lambda c, i: np.array([c[i == x].mean() for x in np.unique(i)])
        ),
    }
    return check(answer, of_the_token, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6c", fire, silent, activation)
