"""Feature splitting: which features of a narrow SAE became several of a wide one of the same activation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

from prism.features import FeatureMatrix

BLOCK = 2**24  # cosines computed at once: bounds the memory (128 MB)
KINDS = ("observed", "shuffled rows", "random directions")


def splitting(
    narrow,
    wide,
    matrix_narrow: FeatureMatrix,
    matrix_wide: FeatureMatrix,
    cosine: float = 0.4,
    share: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """The wide SAE's children of each narrow feature: decoder rows that point alike, and that fire where it fires.

    Bricken et al. 2023 ('Towards Monosemanticity', on feature splitting). Two controls go through the same search.
    *Random directions*: the wide rows become random ones, so that no cosine means anything; how many children does
    the width alone give? *Shuffled rows*: each wide row keeps its direction but takes the firings of another feature;
    how much co-activation is there between features that have nothing to do with each other?

    Args:
        narrow, wide: SAEs of the same hook.
        matrix_narrow, matrix_wide: their `FeatureMatrix` on the same tokens.
        cosine: a child's decoder row has a cosine above this with the parent's.
        share: and fires on more than this share of the parent's firings.
        seed: of the controls.

    Returns:
        One row an edge: kind (observed, shuffled rows, random directions), narrow, wide, cosine, coactivation (share
        of the narrow feature's firings on which the wide one fires), child_share (the same of the wide one's), and
        narrow_count (tokens on which the narrow feature fires).

    Raises:
        ValueError: SAEs of different hooks or widths of activation, or matrices of different tokens.
    """
    if narrow.cfg.metadata.hook_name != wide.cfg.metadata.hook_name or narrow.cfg.d_in != wide.cfg.d_in:
        raise ValueError(
            f"SAEs at '{narrow.cfg.metadata.hook_name}' and '{wide.cfg.metadata.hook_name}'; splitting "
            "compares two of one hook"
        )
    same = matrix_narrow.n_tokens == matrix_wide.n_tokens
    if not same or not np.array_equal(matrix_narrow.table["token_id"], matrix_wide.table["token_id"]):
        raise ValueError("the two matrices are of different tokens; encode the same batch with both SAEs")
    a, b = (sae.W_dec.detach().float().numpy() for sae in (narrow, wide))
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (a, b))
    rng = np.random.default_rng(seed)
    random = rng.normal(size=b.shape).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    fires_a, fires_b = _binary(matrix_narrow.values), _binary(matrix_wide.values)
    order = rng.permutation(len(b))
    tries = ((b, fires_b), (b, fires_b[:, order]), (random, fires_b))
    frames = [_edges(a, rows, fires_a, fires, cosine, share) for rows, fires in tries]
    return pd.concat([f.assign(kind=k) for f, k in zip(frames, KINDS, strict=True)], ignore_index=True)[
        ["kind", "narrow", "wide", "cosine", "coactivation", "child_share", "narrow_count"]
    ]


def children(edges: pd.DataFrame, d_narrow: int) -> pd.DataFrame:
    """How many narrow features have 0, 1, 2, … children, one column for each kind of edge."""
    counts = {}
    for kind in KINDS:
        per = edges.loc[edges["kind"] == kind, "narrow"].value_counts()
        counts[kind] = np.bincount(per.to_numpy(), minlength=1).astype(np.int64)
        counts[kind][0] = d_narrow - len(per)
    table = pd.DataFrame({kind: pd.Series(n) for kind, n in counts.items()})
    return table.fillna(0).astype(int).rename_axis("children")


def _binary(values: csr_matrix) -> csr_matrix:
    return csr_matrix((np.ones(values.nnz, np.float32), values.indices, values.indptr), shape=values.shape)


def _edges(
    a: Float[np.ndarray, "d_narrow d_in"],
    b: Float[np.ndarray, "d_wide d_in"],
    fires_a: csr_matrix,
    fires_b: csr_matrix,
    cosine: float,
    share: float,
) -> pd.DataFrame:
    """All pairs above both bars, block by block."""
    by_a, counts_b = fires_a.tocsc(), np.maximum(_counts(fires_b), 1)
    counts_a, parts = _counts(fires_a), []
    step = max(1, BLOCK // len(b))
    for start in range(0, len(a), step):
        cosines = a[start : start + step] @ b.T
        i, j = np.nonzero(cosines > cosine)
        both = np.asarray((by_a[:, start : start + step].T @ fires_b)[i, j]).ravel() if len(i) else np.empty(0)
        part = pd.DataFrame(
            {
                "narrow": i + start,
                "wide": j,
                "cosine": cosines[i, j],
                "coactivation": both / np.maximum(counts_a[i + start], 1),
                "child_share": both / counts_b[j],
                "narrow_count": counts_a[i + start],
            }
        )
        parts.append(part[part["coactivation"] > share])
    return pd.concat(parts, ignore_index=True).sort_values(["narrow", "cosine"], ascending=[True, False])


def _counts(fires: csr_matrix) -> Int[np.ndarray, " d_sae"]:
    return np.bincount(fires.indices, minlength=fires.shape[1])
