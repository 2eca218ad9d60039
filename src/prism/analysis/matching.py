"""Do two sets of units find the same things? Correlation of their activations on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy.sparse import csr_matrix, issparse

BLOCK_BYTES = 2**26  # of one block of the units × units products: bounds the memory
CHUNK = 4096  # tokens turned dense at a time, where that is faster than a sparse product
DENSE = 0.04  # share of non-zeros from which it is


def match_activations(
    a: csr_matrix | Float[np.ndarray, "tokens units_a"],
    b: csr_matrix | Float[np.ndarray, "tokens units_b"],
) -> pd.DataFrame:
    """For each unit of `a`, the unit of `b` whose activation correlates with it most (Pearson, over tokens).

    Bricken et al. 2023 ('Towards Monosemanticity', on universality) match the features of two models in this way, and
    report them to be more alike than the models' neurons. The largest of many correlations is above zero even for
    noise, and more so for units that rarely fire: measure the pair on other tokens than it was chosen on, and hold it
    against the same search with the tokens of `b` swapped (`swap_within`).

    Args:
        a: activations of some units (`FeatureMatrix.values`, or dense and of any sign).
        b: activations of others on the same tokens: another seed's SAE, another model's neurons.

    Returns:
        One row a unit of `a`: unit, partner (unit of `b`), correlation. A unit that is constant here has partner −1
        and NaN. Two units of `a` may share a partner.

    Raises:
        ValueError: different numbers of tokens, fewer than two, or no units.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{a.shape[0]:,} tokens against {b.shape[0]:,}; both must be computed on the same tokens")
    if a.shape[0] < 2 or not a.shape[1] or not b.shape[1]:
        raise ValueError(f"activations of shape {a.shape} and {b.shape}; need at least two tokens and one unit each")
    partner, best = np.full(a.shape[1], -1), np.full(a.shape[1], np.nan)
    for part, correlation in correlation_blocks(a, b):
        found, top = correlation.argmax(1), correlation.max(1)
        live = np.isfinite(top)
        partner[part][live], best[part][live] = found[live], top[live].clip(-1, 1)
    return pd.DataFrame({"unit": np.arange(a.shape[1]), "partner": partner, "correlation": best})


def swap_within(groups: Shaped[np.ndarray, " tokens"], seed: int = 0) -> Int[np.ndarray, " tokens"]:
    """An order of the tokens in which each stands in the place of *another* one of its group: a control.

    What the group alone explains survives it: with groups of equal token ids, two units that both know one word, and
    no more, correlate as well as before. No token keeps its place but one that is alone in its group; leave such tokens
    out, or the control shows too much. (A plain shuffle leaves one token a group in place on average, which for a rare
    word is most of them.)

    >>> swap_within(np.array([7, 7, 5])).tolist()
    [1, 0, 2]
    """
    codes = np.unique(groups, return_inverse=True)[1]
    mixed = np.lexsort((np.random.default_rng(seed).random(len(codes)), codes))  # group by group, each one mixed
    counts = np.bincount(codes)
    last, following = np.cumsum(counts) - 1, np.roll(mixed, -1)
    following[last] = mixed[last - counts + 1]  # the last of each group takes its first
    order = np.empty(len(codes), dtype=np.int64)
    order[mixed] = following
    return order


def correlation_blocks(a, b) -> Iterator[tuple[slice, Float[np.ndarray, "block units_b"]]]:
    """Pearson correlations of the units of `a` with those of `b`, some units of `a` at a time: bounded memory.

    Args:
        a, b: activations `[tokens, units]`, sparse or dense, on the same tokens.

    Returns:
        Pairs of (which units of `a`, their correlations); −inf where a unit is constant.
    """
    (mean_a, spread_a), (mean_b, spread_b) = _moments(a), _moments(b)
    by_column = a.tocsc() if issparse(a) else a
    step = max(1, BLOCK_BYTES // (8 * b.shape[1]))
    for start in range(0, a.shape[1], step):
        part = slice(start, start + step)
        covariance = _product(by_column[:, part], b) / a.shape[0] - np.outer(mean_a[part], mean_b)
        scale = np.outer(spread_a[part], spread_b)
        yield part, np.divide(covariance, scale, out=np.full_like(covariance, -np.inf), where=scale > 0)


def _moments(x) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, in float64; a deviation of rounding error alone is 0."""
    if issparse(x):
        square = csr_matrix((x.data.astype(np.float64) ** 2, x.indices, x.indptr), shape=x.shape)
        mean, power = (np.asarray(y.mean(0, dtype=np.float64)).ravel() for y in (x, square))
    else:
        x = np.asarray(x)
        mean, power = x.mean(0, dtype=np.float64), np.einsum("ij,ij->j", x, x, dtype=np.float64) / len(x)
    variance = power - mean**2
    return mean, np.sqrt(np.where(variance > 1e-10 * power, variance, 0.0))


def _product(a, b) -> Float[np.ndarray, "units_a units_b"]:
    """`aᵀb` in float64: a sparse product, or chunk by chunk where there are too many numbers for that to be fast."""
    if issparse(a) and issparse(b) and max(_share(a), _share(b)) < DENSE:
        return (a.T @ b.astype(np.float64)).toarray()
    total = np.zeros((a.shape[1], b.shape[1]))
    a = a.tocsr() if issparse(a) else a
    for start in range(0, a.shape[0], CHUNK):
        x, y = (part[start : start + CHUNK] for part in (a, b))
        x, y = (part.toarray() if issparse(part) else part for part in (x, y))
        total += x.T @ y
    return total


def _share(x: csr_matrix) -> float:
    return x.nnz / max(x.shape[0] * x.shape[1], 1)
