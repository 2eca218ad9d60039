"""Phase 6c, across layers: SAEs of several depths, one pass that reads for all, correlations over texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Shaped
from sae_lens import SAE
from scipy.sparse import csr_matrix
from torch import Tensor

from prism.data import TokenBatch, token_table, tokenize
from prism.features import FeatureMatrix, encode_activations
from prism.models import ModelSpec, SaeSpec, activations_at, load_family, load_model, load_sae, trained_family
from prism.models.saes import trained_here
from prism.sae import read_sae

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
