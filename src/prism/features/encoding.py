"""Making feature matrices: from an SAE, from raw channels, from neurons, and from words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from torch import Tensor

from prism.data import TokenBatch, token_table, tokenize
from prism.device import beside, device, screens_in_bfloat16
from prism.fast import SparseEncoder
from prism.features.matrix import FeatureMatrix, SparseRows
from prism.models import harvest_kept, is_massive, massive_norm, ordinary, residual_hook

ENCODE_TOKENS = 512  # tokens encoded at once: bounds the dense [tokens, d_sae] block (48 MiB at d_sae = 24,576)


def _harvest_for(
    table: pd.DataFrame, model, hook_name: str, batch: TokenBatch, batch_size: int, progress: bool | str | None = None
) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """The kept tokens' activations, for a table that has a row for each of them."""
    if batch.n_tokens != len(table):
        raise ValueError(f"the batch keeps {batch.n_tokens} tokens, the table has {len(table)}; make one of the other")
    return harvest_kept(model, hook_name, batch, batch_size, progress)


def encode_features(
    model, sae, batch: TokenBatch, table: pd.DataFrame, batch_size: int = 32, progress: bool | str | None = None
) -> FeatureMatrix:
    """Run texts through the model and its SAE: activations `[tokens, d_in]` to sparse features `[tokens, d_sae]`.

    Streams: at most `batch_size` sequences of activations and 512 tokens of dense features exist at a time.

    Args:
        model: from `models.load_model`.
        sae: an SAELens SAE of that model; it is fed at its own hook.
        batch: the tokens; features are computed on kept tokens only, never on BOS or padding. On massive tokens none
            fires, and the matrix's table says which these are (see `models.massive`).
        table: the batch's `data.token_table`.
        progress: as for `models.harvest`.

    Raises:
        ValueError: NaN or infinite activations, unknown hook, or batch and table that do not match.
    """
    hook_name, kept = sae.cfg.metadata.hook_name, None
    activations = _harvest_for(table, model, hook_name, batch, batch_size, progress)
    if massive_norm(sae) is not None and hook_name != residual_hook(hook_name):  # else the activations tell
        kept = ordinary(model, sae, batch).keep[batch.keep].numpy()
    return encode_activations(sae, activations, table, kept)


@torch.no_grad()
def encode_activations(
    sae,
    activations: Iterable[Float[Tensor, "tokens d_in"]],
    table: pd.DataFrame,
    kept: Bool[np.ndarray, " tokens"] | None = None,
) -> FeatureMatrix:
    """Sparse features of activations that are there already, such as a cache's; otherwise as `encode_features`.

    Args:
        activations: blocks of any length, together one row for each of the table's.
        kept: False on massive tokens; not needed for an SAE of the residual stream, where the activations tell.

    Raises:
        ValueError: features that are NaN; or an SAE that leaves massive tokens out, of another hook, without `kept`.
    """
    where, limit = device(), massive_norm(sae)
    if limit is not None and kept is None and sae.cfg.metadata.hook_name != residual_hook(sae.cfg.metadata.hook_name):
        raise ValueError(
            f"activations of '{sae.cfg.metadata.hook_name}' do not tell which tokens are massive; use encode_features, "
            "or give kept=ordinary(model, sae, batch).keep[batch.keep].numpy()"
        )
    rows, massive = SparseRows(sae.cfg.d_sae), []
    encode = SparseEncoder(beside(sae, where), ENCODE_TOKENS, screens_in_bfloat16(where))
    for x in activations:
        for chunk in x.split(ENCODE_TOKENS):
            rows.add_entries(encode(chunk.to(where)))
            if limit is not None and kept is None:
                massive.append(is_massive(chunk.float().norm(dim=-1), limit).cpu().numpy())
    if limit is None:
        return FeatureMatrix(rows.matrix(), table.drop(columns="massive") if "massive" in table else table)
    drop = np.concatenate([*massive, np.zeros(0, bool)]) if kept is None else ~kept
    return FeatureMatrix(_without(rows.matrix(), drop), table.assign(massive=drop))


def peak_reader(model, sae, context: int) -> Callable[..., pd.DataFrame]:
    """A function `(feature, *texts)` that tells where a feature is strongest in texts of one's own.

    It returns one row a text, which is its index: the feature's activation, the maximum over the text's tokens, to one
    decimal, and `on`, the token that has it; 0 and "" where the feature is silent. As `data.tokenize` does, it raises a
    ValueError on an empty text and on one that does not fit the context.

    Args:
        context: the model's longest sequence, BOS included (tokens).
    """

    def peaks(feature: int, *texts: str) -> pd.DataFrame:
        batch = tokenize(list(texts), model.tokenizer, context)
        table = token_table(batch, model.tokenizer)
        values = encode_features(model, sae, batch, table).column(feature).astype(float)
        best = [rows[values[rows].argmax()] for rows in table.groupby("text").indices.values()]
        tokens = table["token"].astype(str).to_numpy()
        on = np.where(values[best] > 0, tokens[best], "")
        return pd.DataFrame({"activation": values[best].round(1), "on": on}, pd.Index(texts, name=f"feature {feature}"))

    return peaks


def _massive(table: pd.DataFrame) -> Bool[np.ndarray, " tokens"]:
    """Which tokens are massive, where the table tells."""
    return table["massive"].to_numpy() if "massive" in table else np.zeros(len(table), bool)


def _without(values: csr_matrix, drop: Bool[np.ndarray, " tokens"]) -> csr_matrix:
    """The matrix with some rows emptied."""
    if not drop.any():
        return values
    counts = np.diff(values.indptr)
    stay = np.repeat(~drop, counts)
    starts = np.concatenate([[0], np.cumsum(counts * ~drop)])
    return csr_matrix((values.data[stay], values.indices[stay], starts), shape=values.shape)


@torch.no_grad()
def channel_features(
    model, hook_name: str, batch: TokenBatch, table: pd.DataFrame, batch_size: int = 32, l0: float | None = None
) -> FeatureMatrix:
    """Baseline without an SAE: each raw channel, upwards and downwards, as if it were a feature.

    With `z` the channel standardised over these tokens (mean 0, standard deviation 1), the `2 * d_in` columns are
    `[relu(z), relu(-z)]`. Half of them fire on each token. For a comparison at equal sparsity, give `l0`.

    Args:
        table: the batch's `data.token_table`; or that of a matrix of the same batch, which tells massive tokens: they
            do not count here either.
        l0: keep only the largest values, this many a token on average (one cut for all tokens); None keeps all.

    Raises:
        ValueError: as `encode_features`.
    """
    x = torch.cat([kept.flatten(1).float() for kept in _harvest_for(table, model, hook_name, batch, batch_size)])
    counted = torch.from_numpy(~_massive(table))
    spread, mean = x[counted].std(0, correction=0), x[counted].mean(0)
    z = torch.where((spread > 0) & counted[:, None], (x - mean) / spread.clamp_min(1e-30), 0.0)
    cut, wanted = 0.0, round((l0 or 0) * int(counted.sum()))
    if l0 is not None and wanted < z.numel():
        cut = z.abs().flatten().topk(wanted + 1).values[-1]  # strictly greater than it: l0 a token
    rows = SparseRows(2 * z.shape[1])
    for part in torch.where(z.abs() > cut, z, 0.0).split(ENCODE_TOKENS):
        rows.add(torch.cat([part, -part], dim=1).numpy())
    return FeatureMatrix(rows.matrix(), table)


def word_features(batch: TokenBatch, table: pd.DataFrame, vocabulary: int) -> FeatureMatrix:
    """Baseline without a model: feature `i` fires with activation 1 wherever the token's id is `i` (bag of words).

    Args:
        vocabulary: number of token ids that the tokenizer has, `len(tokenizer)`.

    Raises:
        ValueError: a token id outside the vocabulary, or batch and table that do not match.
    """
    ids = batch.tokens[batch.keep].numpy()
    if len(ids) != len(table):
        raise ValueError(f"the batch keeps {len(ids)} tokens, the table has {len(table)}; make one of the other")
    if len(ids) and ids.max() >= vocabulary:
        raise ValueError(f"token id {ids.max()} is outside a vocabulary of {vocabulary}; use len(tokenizer)")
    one_each = np.arange(len(ids) + 1, dtype=np.int32)
    values = csr_matrix((np.ones(len(ids), np.float32), ids.astype(np.int32), one_each), (len(ids), vocabulary))
    return FeatureMatrix(_without(values, _massive(table)), table)
