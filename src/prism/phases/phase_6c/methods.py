"""Features through depth: pairs of successive layers by decoder cosine and by co-activation, and chains of them.

Two features of successive layers are *alike* when their decoder rows point the same way, or when they fire together.
Either gives a sparse matrix of pairs, `[features of the layer, features of the next]`, that keeps what is above a
floor; the best partner, the one-to-one assignment and every threshold are read off it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix, vstack
from scipy.sparse.csgraph import connected_components

from prism.analysis.matching import correlation_blocks

FLOOR = 0.2  # pairs less alike than this are not kept: no threshold of interest is lower, and most pairs are
BLOCK = 2**23  # cosines computed at once: bounds the memory (32 MB)


def decoder_pairs(
    a: Float[np.ndarray, "units_a d_in"], b: Float[np.ndarray, "units_b d_in"], floor: float = FLOOR
) -> csr_matrix:
    """Cosines of the decoder rows of two SAEs of one residual stream, where they are above a floor.

    Laptev et al. 2025 (arXiv 2502.03032) follow features through depth in this way, which needs no text.

    Args:
        a, b: decoder rows of a layer's features and of the next layer's, of any length.
        floor: smaller cosines are left out (0 or more).

    Returns:
        `[units_a, units_b]`, float32.

    Raises:
        ValueError: rows of different width, no rows, or a floor below 0.

    >>> decoder_pairs(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])).toarray().tolist()
    [[1.0, 0.0, 0.0]]
    """
    a, b = (np.asarray(rows, dtype=np.float32) for rows in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"decoders of shape {a.shape} and {b.shape}; need rows of one width: the same residual stream")
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (a, b))
    step = max(1, BLOCK // max(len(b), 1))
    return _gather((a[i : i + step] @ b.T for i in range(0, len(a), step)), floor)


def activation_pairs(a: csr_matrix, b: csr_matrix, floor: float = FLOOR) -> csr_matrix:
    """Pearson correlations of two layers' features over the same tokens, where they are above a floor.

    Balcells et al. 2024 (arXiv 2410.08869) relate the features of adjacent layers by such statistics.

    Args:
        a, b: activations `[tokens, units]` (`FeatureMatrix.values`) of a layer's features and of the next layer's.
        floor: smaller correlations are left out (0 or more).

    Returns:
        `[units_a, units_b]`, float32. A feature that is constant here has no pair.

    Raises:
        ValueError: different numbers of tokens, no features, or a floor below 0.
    """
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{a.shape[0]:,} tokens against {b.shape[0]:,}; both must be computed on the same tokens")
    if not a.shape[1] or not b.shape[1]:
        raise ValueError(f"activations of shape {a.shape} and {b.shape}; need at least one feature each")
    return _gather((block.clip(max=1) for _, block in correlation_blocks(a, b)), floor)


def _gather(blocks: Iterable[Float[np.ndarray, "block units_b"]], floor: float) -> csr_matrix:
    """Blocks of rows as one sparse matrix of the values above the floor."""
    if floor < 0:
        raise ValueError(f"floor is {floor}; give 0 or more, since pairs that are not kept count as 0")
    parts = [csr_matrix(np.where(block > floor, block, 0).astype(np.float32)) for block in blocks]
    if not parts:
        raise ValueError("no features to match; choose some that fire on these tokens")
    return vstack(parts, format="csr")


def pairs_by_measure(
    rows_a: Float[np.ndarray, "units_a d_in"],
    values_a: csr_matrix,
    rows_b: Float[np.ndarray, "units_b d_in"],
    values_b: csr_matrix,
) -> dict[str, csr_matrix]:
    """The pairs of two layers' features by 'decoder cosine', by 'correlation', and by 'both', the smaller of the two.

    Args:
        rows_a, rows_b: decoder rows, see `decoder_pairs`; values_a, values_b: activations, see `activation_pairs`.
    """
    cosines, correlations = decoder_pairs(rows_a, rows_b), activation_pairs(values_a, values_b)
    return {"decoder cosine": cosines, "correlation": correlations, "both": cosines.minimum(correlations)}


def bar_same_index(
    pairs: csr_matrix, index_a: Int[np.ndarray, " units_a"], index_b: Int[np.ndarray, " units_b"]
) -> csr_matrix:
    """The pairs without those of features with one and the same number, which SAEs of one seed start alike.

    Args:
        pairs: as `decoder_pairs` gives them; index_a, index_b: the features' numbers in their SAEs.
    """
    kept = pairs.tocoo()
    other = np.asarray(index_a)[kept.row] != np.asarray(index_b)[kept.col]
    return csr_matrix((kept.data[other], (kept.row[other], kept.col[other])), kept.shape)


def best_partners(pairs: csr_matrix, least: float = 0.0) -> Int[np.ndarray, " units_a"]:
    """For each feature the one of the next layer that is most alike, if above `least`; −1 if none is. Many may share.

    >>> best_partners(csr_matrix([[0.9, 0.4], [0.8, 0.7], [0.0, 0.3]]), least=0.5).tolist()
    [0, 0, -1]
    """
    top = pairs.max(axis=1).toarray().ravel() if pairs.nnz else np.zeros(pairs.shape[0])
    found = np.asarray(pairs.argmax(axis=1)).ravel() if pairs.nnz else np.zeros(pairs.shape[0], int)
    return np.where(top > least, found, -1)


def one_to_one(pairs: csr_matrix, least: float = 0.0) -> Int[np.ndarray, " units_a"]:
    """The assignment of largest total likeness in which no feature is used twice, of pairs above `least`; −1 for none.

    The Hungarian method (Kuhn 1955) on each connected part of the graph of pairs by itself: parts that share no pair
    cannot compete, so the result is that of the whole matrix, at a fraction of its cost. Balagansky et al. 2024 (arXiv
    2410.07656) match the features of two layers by an assignment of this kind, over distances of folded weights.

    Args:
        pairs: from `decoder_pairs` or `activation_pairs`, or the `minimum` of two.
        least: a pair must be above this.

    >>> one_to_one(csr_matrix([[0.9, 0.4], [0.8, 0.7], [0.0, 0.3]]), least=0.5).tolist()
    [0, 1, -1]
    """
    kept = pairs.tocoo()
    above = kept.data > least
    row, col, value = kept.row[above], kept.col[above], kept.data[above]
    partner, n = np.full(pairs.shape[0], -1), pairs.shape[0]
    if not len(row):
        return partner
    size = n + pairs.shape[1]
    part = connected_components(coo_matrix((value, (row, n + col)), (size, size)), directed=False)[1][row]
    order = np.argsort(part, kind="stable")
    for edges in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        if len(edges) == 1:
            partner[row[edges]] = col[edges]
            continue
        rows, i = np.unique(row[edges], return_inverse=True)
        cols, j = np.unique(col[edges], return_inverse=True)
        block = np.zeros((len(rows), len(cols)))
        block[i, j] = value[edges]
        i, j = linear_sum_assignment(block, maximize=True)
        real = block[i, j] > 0  # the others are pairs that do not exist
        partner[rows[i[real]]] = cols[j[real]]
    return partner


def persistence(pairs: csr_matrix, thresholds: Sequence[float]) -> pd.DataFrame:
    """How many features have a partner in the next layer, threshold by threshold.

    Returns:
        One row a threshold: threshold, best (share of features with a best partner above it), one_to_one (share with
        a partner of their own), shared (share of best partners' claimants that claim one with another).
    """
    rows = []
    for least in thresholds:
        best, own = best_partners(pairs, least), one_to_one(pairs, least)
        claims = np.bincount(best[best >= 0], minlength=pairs.shape[1])
        several = claims[claims > 1].sum() / max(claims.sum(), 1)
        rows.append((least, (best >= 0).mean(), (own >= 0).mean(), several))
    return pd.DataFrame(rows, columns=["threshold", "best", "one_to_one", "shared"])


def chains(partners: Sequence[Int[np.ndarray, " units"]], n_last: int) -> Int[np.ndarray, "chains layers"]:
    """Features followed through depth: a row a chain, a column a layer, −1 where the chain is not (yet, or any more).

    Args:
        partners: for each layer but the last, each feature's one-to-one partner in the next layer, or −1.
        n_last: features of the last layer.

    Returns:
        Each feature of each layer stands in one row. The first column that is not −1 is a chain's birth, the last one
        its last layer; a birth is a feature without ancestor, which need not be a new idea.

    Raises:
        ValueError: a partner that does not exist, or that two features share.

    >>> chains([np.array([1, -1]), np.array([-1, 0])], n_last=1).tolist()
    [[0, 1, 0], [1, -1, -1], [-1, 0, -1]]
    """
    sizes = [len(step) for step in partners] + [n_last]
    table = np.full((sizes[0], len(sizes)), -1)
    table[:, 0] = np.arange(sizes[0])
    for layer, (step, size) in enumerate(zip(partners, sizes[1:], strict=True)):
        claimed = step[step >= 0]
        if len(claimed) and (claimed.max() >= size or len(np.unique(claimed)) < len(claimed)):
            raise ValueError(f"step {layer} names a feature beyond {size - 1} or one twice; use `one_to_one` partners")
        here = table[:, layer] >= 0
        table[here, layer + 1] = step[table[here, layer]]
        born = np.full((size - len(claimed), len(sizes)), -1)
        born[:, layer + 1] = np.setdiff1d(np.arange(size), claimed)
        table = np.concatenate([table, born])
    return table


def fates(table: Int[np.ndarray, "chains layers"]) -> pd.DataFrame:
    """How many chains are born at one layer and last to another: columns born, last (layers from 0), features."""
    present = table >= 0
    spans = pd.DataFrame({"born": present.argmax(1), "last": table.shape[1] - 1 - present[:, ::-1].argmax(1)})
    return spans.value_counts(sort=False).rename("features").reset_index().sort_values(["born", "last"])


def random_like(rows: Float[np.ndarray, "units d_in"], seed: int = 0) -> Float[np.ndarray, "units d_in"]:
    """As many random directions, with the rows' own mean and covariance: alike as a crowd, not one by one.

    Plain random directions would be too easy a control: decoder rows lean towards the same few dimensions.
    """
    rows = np.asarray(rows, dtype=np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    size, axes = np.linalg.eigh(centred.T @ centred / len(unit))
    root = (axes * np.sqrt(size.clip(min=0))) @ axes.T  # its square is the covariance
    return (np.random.default_rng(seed).normal(size=unit.shape) @ root + unit.mean(0)).astype(np.float32)


def following_tokens(table: pd.DataFrame) -> Int[np.ndarray, " tokens"]:
    """Each token's next token id in its text; −1 for the last token of a text."""
    ids, texts = table["token_id"].to_numpy(), table["text"].to_numpy()
    out = np.full(len(ids), -1)
    same = texts[1:] == texts[:-1]
    out[:-1][same] = ids[1:][same]
    return out


def direct_ranks(
    logits: Float[np.ndarray, "units d_vocab"], values: csr_matrix, token_ids: Int[np.ndarray, " tokens"]
) -> pd.DataFrame:
    """How high a feature's direct logits rank the tokens at its firings, beside other features' logits at the same.

    The rank is the share of the vocabulary with a smaller logit: 0.5 is chance. Frequent tokens rank high for many
    features; the mean over all *other* features, at this one's firings, shows how much of it that is.

    Args:
        logits: decoder rows through the unembedding (logit lens, nostalgebraist 2020).
        values: the same features' activations on some tokens.
        token_ids: of each of these tokens, the id to be ranked: its own, or the one that follows it; −1 to leave out.

    Returns:
        One row a feature: firings, own, others (mean ranks, 0 to 1; NaN where it never fires).

    Raises:
        ValueError: numbers of features or tokens that differ, or fewer than two features.
    """
    units, vocabulary = logits.shape
    if values.shape != (len(token_ids), units) or units < 2:
        raise ValueError(
            f"logits of {units} features, activations {values.shape}, {len(token_ids)} tokens: "
            "give the same features and tokens, and two features or more"
        )
    ranks = np.empty(logits.shape, np.float32)
    places = np.linspace(0, 1, vocabulary, dtype=np.float32)
    for rank, row in zip(ranks, logits, strict=True):
        rank[np.argsort(row, kind="stable")] = places
    entries = values.tocoo()
    used = token_ids[entries.row] >= 0
    where = (entries.col[used], token_ids[entries.row[used]])
    counts = csr_matrix((np.ones(used.sum()), where), (units, vocabulary))
    firings = np.asarray(counts.sum(1)).ravel()
    cross = np.asarray(counts @ ranks.T) / np.where(firings > 0, firings, np.nan)[:, None]
    own = cross.diagonal()
    return pd.DataFrame({"firings": firings.astype(int), "own": own, "others": (cross.sum(1) - own) / (units - 1)})


def tilted(
    rows: Float[np.ndarray, "units d_in"], cosines: Float[np.ndarray, " draws"], seed: int = 0
) -> Float[np.ndarray, "units d_in"]:
    """Each row turned in a random direction, to a cosine drawn from those given: partners without a meaning.

    Read off the same stream, two dictionaries so related show what parallel directions alone make of co-activation.

    Args:
        rows: directions of the first dictionary, of any length but 0.
        cosines: drawn from with replacement, such as those of real features with their best partners.
        seed: of the draws and the turns.

    Returns:
        Unit rows, `cosine(rows[i], returned[i])` being one of the cosines.
    """
    rng = np.random.default_rng(seed)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    turn = rng.normal(size=unit.shape)
    turn -= (turn * unit).sum(1, keepdims=True) * unit
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    cosine = rng.choice(np.asarray(cosines, dtype=np.float64).clip(-1, 1), size=(len(unit), 1))
    return (cosine * unit + np.sqrt(1 - cosine**2) * turn).astype(np.float32)
