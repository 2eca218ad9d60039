"""Windows of text around a token: those in which a unit fires, spread over its strengths, and those in which not.

A unit is a column of a `FeatureMatrix`: a feature, a neuron, a random direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from prism.features import FeatureMatrix

FIRING, SILENT, SAME_TOKEN = "firing", "silent", "same token"
RADIUS = 8  # tokens on either side
LEFT = 5  # two firings with the same token after the same five tokens are one example: a causal model sees no more
CANDIDATES = 4  # times as many windows as needed are drawn, for those that will be set aside
OUTSIDE = -1  # token id of a place before the start or after the end of the text


@dataclass(frozen=True)
class Sizes:
    """How many windows stand for a unit; delphi's are 40 to explain, 50 + 50 to score, in 10 quantiles."""

    firing: int = 50
    silent: int = 50
    quantiles: int = 10
    least: int = 10  # windows of a kind, fewer cannot be scored

    def __post_init__(self) -> None:
        if min(self.firing, self.silent, self.quantiles, self.least) < 1 or self.least > self.firing:
            raise ValueError(f"{self}; every number must be at least 1, and `least` at most `firing`")


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of tokens, the token that each is about in the middle.

    Attributes:
        ids: token ids; `OUTSIDE` where the text has ended.
        tokens: the same as strings; empty outside of the text.
        fires: where the unit that they were drawn for fires. A judge never looks at it.
    """

    ids: Int[np.ndarray, "windows width"]
    tokens: Shaped[np.ndarray, "windows width"]
    fires: Bool[np.ndarray, "windows width"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: object) -> Windows:
        """Some of the windows."""
        return Windows(self.ids[index], self.tokens[index], self.fires[index])

    @property
    def centre(self) -> int:
        """The place of the token that each window is about."""
        return self.ids.shape[1] // 2

    def texts(self) -> list[str]:
        """Each window as one string."""
        return ["".join(row) for row in self.tokens]


class Examples:
    """Draws windows for one unit after another from one matrix."""

    def __init__(self, matrix: FeatureMatrix, radius: int = RADIUS, sizes: Sizes | None = None, seed: int = 0) -> None:
        """Prepare what all units share.

        Args:
            matrix: the units' activations, and the tokens.
            radius: tokens on either side of a window's middle.
            sizes: how many windows of each kind.
            seed: of every draw; a unit's windows do not depend on which other units are looked at.

        Raises:
            ValueError: a radius below 1.
        """
        if radius < 1:
            raise ValueError(f"radius is {radius}; give at least 1 token on either side")
        self.matrix, self.radius, self.sizes, self.seed = matrix, radius, sizes or Sizes(), seed
        self._columns = matrix.values.tocsc()
        self._drawn: dict[tuple[int, int], pd.DataFrame] = {}
        self._ids = matrix.table["token_id"].to_numpy()
        self._tokens = matrix.table["token"].astype(str).to_numpy(dtype=object)
        texts = matrix.table["text"].to_numpy()
        rows = np.arange(matrix.n_tokens)
        self._start = np.maximum(rows - radius, np.searchsorted(texts, texts))
        self._stop = np.minimum(rows + radius + 1, np.searchsorted(texts, texts, side="right"))

    def draw(self, unit: int, firing: int | None = None) -> pd.DataFrame:
        """The windows of one unit, one a row, in the order of the kinds below.

        *firing*: the unit fires on the middle token; as many from each quantile of its activations.
        *silent*: any tokens around which the unit is silent through the whole window.
        *same token*: for each firing window, where there is one, a silent window around the same token: the hard
        negatives. A rule that knows tokens alone cannot tell these pairs apart.

        Args:
            unit: column of the matrix.
            firing: windows of the first kind, if not `sizes.firing`.

        Returns:
            Columns kind, row (of the matrix: the middle token), quantile (0 the weakest; −1 where silent), pair (which
            firing window a same-token window belongs to, counted from 0; otherwise −1).

        Raises:
            IndexError: no such unit.
        """
        key = (self.matrix.check_feature(unit), firing or self.sizes.firing)
        if key not in self._drawn:
            self._drawn[key] = self._draw(*key)
        return self._drawn[key]

    def _draw(self, unit: int, n: int) -> pd.DataFrame:
        rng = np.random.default_rng((self.seed, unit))
        rows, strengths = self._firings(unit)
        chosen, quantile = self._spread(rows, strengths, n, rng)
        silent = self._silent_rows(rows)
        others = rng.permutation(silent)[: self.sizes.silent]
        pairs = self._same_token(chosen, silent, rng)
        parts = [
            pd.DataFrame({"kind": FIRING, "row": chosen, "quantile": quantile, "pair": -1}),
            pd.DataFrame({"kind": SILENT, "row": others, "quantile": -1, "pair": -1}),
            pd.DataFrame({"kind": SAME_TOKEN, "row": pairs[:, 1], "quantile": -1, "pair": pairs[:, 0]}),
        ]
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    def windows(self, unit: int, rows: Int[np.ndarray, " windows"]) -> Windows:
        """The windows around some rows, with where a unit fires in them."""
        place = np.asarray(rows, dtype=np.int64)[:, None] + np.arange(-self.radius, self.radius + 1)
        inside = (place >= self._start[rows][:, None]) & (place < self._stop[rows][:, None])
        place = np.where(inside, place, 0)
        fires = self.fires(unit)[place] & inside
        return Windows(np.where(inside, self._ids[place], OUTSIDE), np.where(inside, self._tokens[place], ""), fires)

    def fires(self, unit: int) -> Bool[np.ndarray, " tokens"]:
        """On which tokens a unit fires."""
        fires = np.zeros(self.matrix.n_tokens, dtype=bool)
        fires[self._firings(unit)[0]] = True
        return fires

    def strongest(self, unit: int, k: int = 20) -> Int[np.ndarray, " at_most_k"]:
        """The rows on which a unit is strongest, best first, each with another left context."""
        rows, strengths = self._firings(self.matrix.check_feature(unit))
        rows = rows[np.argsort(-strengths, kind="stable")][: CANDIDATES * CANDIDATES * k]
        return rows[self._distinct(rows)][:k]

    def scorable(self, unit: int) -> bool:
        """Whether a unit has at least `sizes.least` firing and silent windows."""
        rows, strengths = self._firings(self.matrix.check_feature(unit))
        if len(rows) < self.sizes.least or len(self._silent_rows(rows)) < self.sizes.least:
            return False
        rng = np.random.default_rng((self.seed, unit))
        return len(self._spread(rows, strengths, self.sizes.firing, rng)[0]) >= self.sizes.least

    def _firings(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows on which a unit fires, and how strongly."""
        part = slice(*self._columns.indptr[unit : unit + 2])
        return self._columns.indices[part].astype(np.int64), self._columns.data[part]

    def _spread(
        self, rows: np.ndarray, strengths: np.ndarray, n: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
        """Up to `n` firings, as many from each quantile of the strengths; none twice with the same left context."""
        rank = np.argsort(np.argsort(strengths, kind="stable"), kind="stable")
        quantile = rank * self.sizes.quantiles // max(len(rows), 1)
        order = rng.permutation(len(rows))
        order = order[_position_in_group(quantile[order]) < max(1, CANDIDATES * n // self.sizes.quantiles)]
        order = order[self._distinct(rows[order])]
        turn = _position_in_group(quantile[order])  # the first of each quantile, then the second of each, …
        order = order[np.lexsort((quantile[order], turn))][:n]
        order = order[np.argsort(quantile[order], kind="stable")]
        return rows[order], quantile[order]

    def _distinct(self, rows: np.ndarray) -> Int[np.ndarray, " firsts"]:
        """Which of some rows have a left context that none before them has, in their order."""
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        back = np.maximum(rows[:, None] - np.arange(LEFT + 1), self._start[rows][:, None])
        return np.sort(np.unique(self._ids[back], axis=0, return_index=True)[1])

    def _silent_rows(self, rows: np.ndarray) -> Int[np.ndarray, " silent"]:
        """Rows around which a unit that fires on `rows` is silent through the whole window."""
        count = np.zeros(self.matrix.n_tokens + 1, dtype=np.int64)
        count[rows + 1] = 1
        count = count.cumsum()
        return np.flatnonzero(count[self._stop] == count[self._start])

    def _same_token(
        self, chosen: np.ndarray, silent: np.ndarray, rng: np.random.Generator
    ) -> Int[np.ndarray, "pairs 2"]:
        """(firing window, silent row around the same token), each silent row at most once."""
        silent = rng.permutation(silent[np.isin(self._ids[silent], self._ids[chosen])])
        by_token = {token: list(silent[self._ids[silent] == token]) for token in np.unique(self._ids[chosen])}
        pairs = [(i, by_token[t].pop()) for i, t in enumerate(self._ids[chosen]) if by_token[t]]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _position_in_group(groups: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """How many items of the same group come before each item.

    >>> _position_in_group(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    position = np.empty(len(groups), dtype=np.int64)
    position[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return position
