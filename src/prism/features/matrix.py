"""The `FeatureMatrix`: sparse features of many tokens, beside a table of where each token came from."""

from __future__ import annotations

import io
import operator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix

from prism.data import load_activations, save_activations
from prism.fast.entries import Entries, at_least, entries_at

COLUMNS = ("text", "position", "token_id", "token")  # that every token table has
SORTED_AT_ONCE = 2**20  # stored activations that `statistics` ranks at once: bounds its working memory (about 40 MB)
TENSORS = {"data", "indices", "indptr", "d_sae", "table"}  # what a saved FeatureMatrix holds


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What every feature did over all tokens, and where it was strongest.

    Attributes:
        counts: on how many tokens it fires.
        sums: its activations, added up.
        top_values: its largest activations, best first; 0 where it fires on fewer than `k` tokens.
        top_rows: their rows in the matrix and its table, equal ones in the table's order; -1 where there are none.
    """

    counts: Int[np.ndarray, " d_sae"]
    sums: Float[np.ndarray, " d_sae"]
    top_values: Float[np.ndarray, "d_sae k"]
    top_rows: Int[np.ndarray, "d_sae k"]

    @property
    def maxima(self) -> Float[np.ndarray, " d_sae"]:
        """The largest activation of each feature; 0 where it never fires."""
        return self.top_values[:, 0]


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """Activations of `d_sae` features on many tokens, and where each token came from.

    Nearly all activations are zero, so only those above zero are stored: 8 bytes each, or about 400 MB for a
    million tokens with 50 active features each, where a dense array of 24,576 features would need 98 GB.

    Attributes:
        values: `[tokens, d_sae]` activations, float32, without explicit zeros.
        table: one row a token in the same order: text (the texts' numbers, never falling), position, token_id,
            token, and category if the texts are labelled. BOS and padding are not in it. Where the SAE leaves massive
            tokens out (see `models.massive`), `massive` is True on them, and no feature fires there.

    Raises:
        ValueError: values that are not above zero (NaN is not), rows of values and table that differ in number, a
            missing column, or texts out of order.
    """

    values: csr_matrix
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if not isinstance(self.values, csr_matrix) or not (self.values.data > 0).all():
            raise ValueError("values must be a scipy csr_matrix that stores only numbers above zero, and no NaN")
        if self.values.shape[0] != len(self.table):
            raise ValueError(f"{self.values.shape[0]} rows of values but {len(self.table)} of the table; need one each")
        if missing := [name for name in COLUMNS if name not in self.table]:
            raise ValueError(f"the token table lacks {', '.join(missing)}; make it with data.token_table")
        texts = self.table["text"].to_numpy()
        if (np.diff(texts) < 0).any() or (len(texts) and texts[0] < 0):
            raise ValueError("the table's texts are out of order; sort the rows of both table and values by 'text'")

    @property
    def n_tokens(self) -> int:
        """Number of tokens (rows)."""
        return self.values.shape[0]

    @property
    def massive(self) -> int:
        """How many of the tokens are massive: no measure counts them."""
        return int(self.table["massive"].sum()) if "massive" in self.table else 0

    @property
    def d_sae(self) -> int:
        """Number of features (columns)."""
        return self.values.shape[1]

    @property
    def n_texts(self) -> int:
        """Number of texts: the largest text number, plus one."""
        return int(self.table["text"].iloc[-1]) + 1 if len(self.table) else 0

    def firing_counts(self) -> Int[np.ndarray, " d_sae"]:
        """On how many tokens each feature fires."""
        return self._counts.copy()

    @cached_property
    def _counts(self) -> Int[np.ndarray, " d_sae"]:
        counts = np.zeros(self.d_sae, np.int64)
        np.add.at(counts, self.values.indices, 1)  # bincount would first copy all the indices to 64 bits
        return counts

    def density(self) -> Float[np.ndarray, " d_sae"]:
        """On what share of tokens (but the massive) each feature fires, 0 to 1."""
        return self.firing_counts() / max(self.n_tokens - self.massive, 1)

    def l0(self) -> float:
        """Features that fire on a token, on average."""
        return self.values.nnz / max(self.n_tokens - self.massive, 1)

    def max_activation(self) -> Float[np.ndarray, " d_sae"]:
        """The largest activation of each feature; 0 where it never fires."""
        peak = np.zeros(self.d_sae, np.float32)
        np.maximum.at(peak, self.values.indices, self.values.data)
        return peak

    def text_max(self) -> csr_matrix:
        """Activation of each feature on each text: its maximum over the text's tokens.

        Returns:
            `[n_texts, d_sae]`, float32. (An average would fade in long texts, and averaging before the SAE feeds
            it vectors unlike those it was trained on.)
        """
        bounds = np.searchsorted(self.table["text"].to_numpy(), np.arange(self.n_texts + 1))
        offsets, rows = self.values.indptr[bounds], SparseRows(self.d_sae)
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            peak = np.zeros((1, self.d_sae), np.float32)
            np.maximum.at(peak[0], self.values.indices[start:stop], self.values.data[start:stop])
            rows.add(peak)
        return rows.matrix()

    def text_categories(self) -> np.ndarray:
        """The category of each text, as an array of `n_texts` strings.

        Raises:
            ValueError: the table has no categories, or a text has no token (`select` renumbers texts without gaps).
        """
        if "category" not in self.table:
            raise ValueError("these texts have no categories; give them to data.token_table(..., categories=...)")
        texts, first = np.unique(self.table["text"].to_numpy(), return_index=True)
        if len(texts) != self.n_texts:
            gap = np.setdiff1d(np.arange(self.n_texts), texts)[0]
            raise ValueError(f"text {gap} has no tokens, so its category is unknown; take a subset with `select`")
        return np.asarray(self.table["category"].iloc[first].astype(str), dtype=str)

    def select(self, keep: Bool[np.ndarray, " tokens"]) -> FeatureMatrix:
        """The matrix of some tokens only, with their texts renumbered from 0 without gaps.

        Args:
            keep: True on the tokens to take, such as `matrix.table["category"] == "python"`.
        """
        keep = np.asarray(keep)
        if keep.dtype != bool or keep.shape != (self.n_tokens,):
            raise ValueError(f"select takes one True or False for each of {self.n_tokens} tokens, not {keep.shape}")
        table = self.table[keep].reset_index(drop=True)
        table["text"] = np.unique(table["text"].to_numpy(), return_inverse=True)[1].astype(np.int32)
        return FeatureMatrix(self.values[keep], table)

    def column(self, feature: int) -> Float[np.ndarray, " tokens"]:
        """One feature's activation on every token, dense.

        Raises:
            IndexError: no such feature; the message gives the valid range and the nearest choice.
        """
        values, column = self.values, np.zeros(self.n_tokens, self.values.dtype)
        hits = np.flatnonzero(values.indices == self.check_feature(feature))  # scipy's own way takes five times as long
        np.add.at(column, np.searchsorted(values.indptr, hits, "right") - 1, values.data[hits])
        return column

    def check_feature(self, feature: int) -> int:
        """`feature`, or an IndexError that gives the valid range and the nearest choice."""
        feature = operator.index(feature)
        if not 0 <= feature < self.d_sae:
            nearest = min(max(feature, 0), self.d_sae - 1)
            raise IndexError(f"no feature {feature}; choose from 0 to {self.d_sae - 1} (the nearest is {nearest})")
        return feature

    def top_tokens(self, feature: int, k: int = 20) -> pd.DataFrame:
        """The tokens on which a feature is strongest: the table's columns and activation, best first.

        Fewer than `k` rows where the feature fires on fewer tokens; none where it never fires.

        Raises:
            IndexError: no such feature.
        """
        column = self.column(feature)
        best = np.argsort(-column, kind="stable")[: min(k, np.count_nonzero(column))]
        return self.table.iloc[best].reset_index(drop=True).assign(activation=column[best])

    def statistics(self, k: int = 20) -> FeatureStatistics:
        """Count, sum, maximum and `k` strongest tokens of every feature, without a loop over the features.

        Raises:
            ValueError: `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k is the number of strongest tokens to keep, at least 1, not {k}")
        by_feature = self.values.tocsc()  # each feature's activations side by side, in the order of the tokens
        starts = by_feature.indptr.astype(np.int64)
        sums, counts = np.zeros(self.d_sae), np.diff(starts)
        values, rows = np.zeros((self.d_sae, k), np.float32), np.full((self.d_sae, k), -1, np.int64)
        first = 0
        while first < self.d_sae:  # as many features as have about SORTED_AT_ONCE activations
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + SORTED_AT_ONCE, "right")) - 1)
            part = slice(starts[first], starts[last])
            features, data = np.repeat(np.arange(first, last), counts[first:last]), by_feature.data[part]
            sums[first:last] = np.bincount(features - first, data, last - first)
            best = np.lexsort((-data, features))  # by feature, then strongest first; stable, so ties keep their order
            rank = np.arange(len(best)) - (starts[features] - starts[first])
            best, at = best[rank < k], (features[rank < k], rank[rank < k])
            values[at], rows[at] = data[best], by_feature.indices[part][best]
            first = last
        return FeatureStatistics(counts, sums, values, rows)

    def save(self, path: str | Path, key: str = "FeatureMatrix") -> Path:
        """Write to one safetensors file, whole or not at all; the table travels inside it as Parquet.

        Args:
            key: whatever decides the contents (see `data.cache_key`), checked by `load`.

        Raises:
            OSError: the file could not be written; whatever stood at `path` is untouched.
        """
        buffer = io.BytesIO()
        self.table.to_parquet(buffer, index=False)
        arrays = {name: getattr(self.values, name) for name in ("data", "indices", "indptr")}
        arrays |= {"d_sae": np.array([self.d_sae]), "table": np.frombuffer(bytearray(buffer.getbuffer()), np.uint8)}
        return save_activations(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, key)

    @classmethod
    def load(cls, path: str | Path, key: str | None = None) -> FeatureMatrix:
        """Read back what `save` wrote.

        Args:
            key: the expected key; None to take any.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is truncated, made by something else, damaged, or has another key.
        """
        arrays = {name: tensor.numpy() for name, tensor in load_activations(path, key).items()}
        if set(arrays) != TENSORS:
            raise ValueError(f"'{path}' holds {', '.join(sorted(arrays))}: no FeatureMatrix; choose another path")
        try:
            shape = (len(arrays["indptr"]) - 1, int(arrays["d_sae"][0]))
            values = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
            values.check_format(full_check=True)
            return cls(values, pd.read_parquet(io.BytesIO(arrays["table"].tobytes())))
        except (ValueError, IndexError, OSError) as error:
            raise ValueError(f"'{path}' is damaged ({error}); delete it and run again") from None


class SparseRows:
    """Sparse rows under construction: consecutive rows are added, then made into one matrix.

    The numbers go into two growing buffers. (A list of small arrays, joined at the end, would scatter them between
    the large blocks that come and go, and the memory of those could not be used again: gigabytes, when measured.)
    """

    def __init__(self, n_columns: int) -> None:
        self.n_columns, self.counts = n_columns, []
        self.data, self.indices = bytearray(), bytearray()

    def add(self, block: Float[np.ndarray, "rows columns"]) -> None:
        """Append the rows of a dense block, keeping only what is above zero."""
        dense = torch.from_numpy(block)
        self.add_entries(entries_at(dense, at_least(dense, 0.0)))

    def add_entries(self, entries: Entries) -> None:
        """Append rows by their entries above zero."""
        self.counts.append(torch.bincount(entries.row, minlength=len(entries.start)).cpu().numpy())
        self.data += entries.value.float().cpu().numpy().tobytes()
        self.indices += entries.feature.int().cpu().numpy().tobytes()

    def matrix(self) -> csr_matrix:
        """All rows so far, `[rows, n_columns]`; uses the buffers as they are, without a copy."""
        counts = np.concatenate([[0], *self.counts])
        data, indices = np.frombuffer(self.data, np.float32), np.frombuffer(self.indices, np.int32)
        dtype = np.int32 if len(data) < 2**31 else np.int64  # scipy keeps one index type for both arrays
        indptr = np.cumsum(counts, dtype=np.int64).astype(dtype)
        return csr_matrix((data, indices.astype(dtype, copy=False), indptr), (len(indptr) - 1, self.n_columns))
