"""What phase 6e compares: models read on the same texts, the places that they share, and partners of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.stats import t

from prism.analysis import match_activations
from prism.data import token_table, tokenize
from prism.features import FeatureMatrix, encode_activations
from prism.models import SMOLLM2, ModelSpec, get_spec, harvest_kept, load_family, load_model, load_sae, trained_family

PLAIN, OTHER_SEED = "batch_topk", "seed-1"  # of the family
ANOTHER = "another seed"  # what its column is called


@dataclass(frozen=True, eq=False)
class Reading:
    """One model on some texts.

    Attributes:
        spec: the model's entry in the registry.
        model: the model.
        sae: the family's BatchTopK SAE, or the default SAE of a model that has no family.
        matrix: its features on the texts.
        seed: the features of the family's SAE of another seed; None without one.
        ends: where each token of each text ends (characters).
    """

    spec: ModelSpec
    model: object
    sae: object
    matrix: FeatureMatrix
    seed: FeatureMatrix | None
    ends: Sequence[Int[np.ndarray, " tokens"]]


def read(spec: ModelSpec, texts: pd.DataFrame) -> Reading:
    """A model's features on labelled texts, from one pass of the model.

    Args:
        texts: columns text and category.
    """
    members = trained_family(spec)
    sae = load_family(spec, PLAIN) if PLAIN in members else load_sae(spec)
    model = load_model(spec, sae)
    batch = tokenize(texts["text"].tolist(), model.tokenizer, spec.context)
    table = token_table(batch, model.tokenizer, texts["category"])
    x = list(harvest_kept(model, sae.cfg.metadata.hook_name, batch))
    matrix = encode_activations(sae, x, table)
    seed = encode_activations(load_family(spec, OTHER_SEED), x, table) if {PLAIN, OTHER_SEED} <= members else None
    return Reading(spec, model, sae, matrix, seed, token_ends(texts["text"], model.tokenizer))


def read_all(first: ModelSpec, names: Sequence[str], texts: pd.DataFrame) -> dict[str, Reading]:
    """`read` for a model and for others by name, in this order; a line for each that is not on this disk.

    Raises:
        ValueError: no other model is left.
    """
    found = {first.name: read(first, texts)}
    for spec in map(get_spec, names):
        if spec.name in found:
            continue
        try:
            found[spec.name] = read(spec, texts)
        except FileNotFoundError as error:
            print(f"left out: {error}")
    if len(found) == 1:
        raise ValueError(
            f"no model to compare {first.name} with: none of {', '.join(names)} is another one on this disk"
        )
    return found


def token_ends(texts: Sequence[str], tokenizer) -> list[Int[np.ndarray, " tokens"]]:
    """Where each token of each text ends (in characters), in the order of `data.tokenize`, BOS left out.

    Raises:
        ValueError: a tokenizer that does not know (only fast ones do).
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("this tokenizer does not say where its tokens lie in the text; load the fast version of it")
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [np.array([end for _, end in offsets], dtype=np.int64) for offsets in found]


def common_places(ends: Mapping[str, Sequence[Int[np.ndarray, " tokens"]]]) -> pd.DataFrame:
    """Where a token of every model ends at the same character of the same text.

    A causal model has then read the same text in all of them, however it was cut up. Of several tokens with one end
    (the bytes of one character) the last counts.

    >>> common_places({"a": [np.array([2, 5, 9])], "b": [np.array([5, 7, 9])]}).to_numpy().tolist()
    [[0, 5, 1, 0], [0, 9, 2, 2]]

    Args:
        ends: model -> `token_ends` of the same texts.

    Returns:
        One row a place: text, end (characters read), and for each model the row of its token table.

    Raises:
        ValueError: different numbers of texts.
    """
    if len({len(of_texts) for of_texts in ends.values()}) != 1:
        sizes = ", ".join(f"{name} {len(of_texts)}" for name, of_texts in ends.items())
        raise ValueError(f"numbers of texts differ ({sizes}); give the token ends of the same texts")
    tables = []
    for name, of_texts in ends.items():
        text = np.repeat(np.arange(len(of_texts)), [len(part) for part in of_texts])
        table = pd.DataFrame({"text": text, "end": np.concatenate(of_texts), name: np.arange(len(text))})
        tables.append(table.groupby(["text", "end"], sort=True)[name].last())
    return pd.concat(tables, axis=1, join="inner").reset_index().sort_values(["text", "end"], ignore_index=True)


@dataclass(frozen=True, eq=False)
class Partners:
    """The best partner of each feature, chosen on one half of the texts and tried on the other.

    Attributes:
        table: one row a feature: feature, partner (its number in the other SAE), found (the correlation on the half
            where it was chosen), correlation (on the other half; 0 where the partner is silent there).
        without: the correlation on the other half without one of its texts, one row for each text.
    """

    table: pd.DataFrame
    without: Float[np.ndarray, "texts features"]


def halves(places: pd.DataFrame) -> tuple[Int[np.ndarray, " places"], Int[np.ndarray, " places"]]:
    """The places of the first half of the texts, and those of the second."""
    second = (places["text"] >= (places["text"].max() + 1) // 2).to_numpy()
    return np.flatnonzero(~second), np.flatnonzero(second)


def testable(values: csr_matrix, places: pd.DataFrame, least: int) -> Int[np.ndarray, " features"]:
    """Features that fire at `least` places or more in each half of the texts."""
    counts = np.stack([values[half].getnnz(axis=0) for half in halves(places)])
    return np.flatnonzero((counts >= least).all(axis=0))


def partners(
    a: csr_matrix,
    b: csr_matrix,
    places: pd.DataFrame,
    features: Int[np.ndarray, " features"],
) -> Partners:
    """For some features of `a` the feature of `b` that correlates best on the first half; its value on the second.

    Args:
        a, b: activations at the common places, `[places, units]`.
        places: from `common_places`.
        features: of `a`, see `testable`.
    """
    first, second = halves(places)
    best = match_activations(a[first][:, features], b[first])
    partner = best["partner"].to_numpy()
    x, y = a[second][:, features].toarray(), b[second][:, np.maximum(partner, 0)].toarray()
    y[:, partner < 0] = 0
    correlation, without = correlations(x, y, places["text"].to_numpy()[second])
    columns = {"feature": features, "partner": partner, "found": best["correlation"], "correlation": correlation}
    return Partners(pd.DataFrame(columns), without)


def others(readings: Mapping[str, Reading], places: pd.DataFrame) -> dict[str, csr_matrix]:
    """What the first model is held against: its SAE of another seed, where it has one, and the other models' SAEs.

    Returns:
        Name -> activations at the common places, `[places, units]`.
    """
    (main, first), *rest = readings.items()
    found = {ANOTHER: first.seed.values[places[main]]} if first.seed else {}
    return found | {name: r.matrix.values[places[name]] for name, r in rest}


def other_seeds(readings: Mapping[str, Reading], places: pd.DataFrame) -> dict[str, csr_matrix]:
    """Each model's SAE of another seed at the common places; its own one where it has no other."""
    return {name: (r.seed or r.matrix).values[places[name]] for name, r in readings.items()}


def compared(rivals: Mapping[str, Partners], features: Int[np.ndarray, " features"]) -> pd.DataFrame:
    """The correlation of each feature (rows) with each rival (columns); NaN for another seed where there is none."""
    found = {name: one.table["correlation"].to_numpy() for name, one in rivals.items()}
    return pd.DataFrame({ANOTHER: np.nan} | found, index=features)


def share_above(found: pd.DataFrame, bar: float) -> pd.Series:
    """For each column the share of rows above a bar; NaN for a column without numbers."""
    return found.gt(bar).astype(float).where(found.notna()).mean()


def second_half_first(places: pd.DataFrame) -> tuple[Int[np.ndarray, " places"], pd.DataFrame]:
    """The other way round: an order of the places that begins with the second half, and the places so numbered.

    Returns:
        The order, for rows of activations, and `places` in it, its texts numbered anew.
    """
    first, second = halves(places)
    order = np.concatenate([second, first])
    n = places["text"].max() + 1
    text = (places["text"] - n // 2) % n
    return order, places.assign(text=text).iloc[order].reset_index(drop=True)


def correlations(
    x: Float[np.ndarray, "places units"], y: Float[np.ndarray, "places units"], text: Int[np.ndarray, " places"]
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, "texts units"]]:
    """Pearson's correlation of each column of `x` with the same column of `y`, and that without each of the texts.

    A column that is constant has 0.

    Args:
        text: of each place, rising.
    """
    starts = np.flatnonzero(np.diff(text, prepend=-1))
    x, y = (part.astype(np.float64) for part in (x, y))
    parts = np.ones_like(x), x, y, x * x, y * y, x * y
    sums = [np.add.reduceat(part, starts, axis=0) for part in parts]
    return _pearson(*(of.sum(0) for of in sums)), _pearson(*(of.sum(0) - of for of in sums))


def jackknife(whole: float, without: Float[np.ndarray, " texts"]) -> tuple[float, float]:
    """The 95 % interval of a statistic, from its values without one text each (Tukey 1958).

    (A bootstrap drops a third of the texts in each resample, and with them many of a rare feature's firings, so that
    its correlations, and shares above a bar, come out too low.)
    """
    n = len(without)
    half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) * np.var(without))
    return float(whole - half), float(whole + half)


def lead(a: Partners, b: Partners) -> tuple[float, float, float]:
    """How much further the mean correlation of `a` is up than that of `b`, and the difference's 95 % interval.

    The interval is over the texts on which both were judged; features, partners and tables are held fixed.
    """
    gap = a.table["correlation"].mean() - b.table["correlation"].mean()
    return gap, *jackknife(gap, a.without.mean(axis=1) - b.without.mean(axis=1))


def _pearson(n, x, y, xx, yy, xy) -> Float[np.ndarray, "... units"]:
    """From sums of products; 0 where one of the two is constant."""
    below = np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0)
    above = xy - x * y / n
    return np.divide(above, np.sqrt(below), out=np.zeros_like(above), where=below > 1e-9 * xx * yy)


def pieces(tokenizer, text: str) -> list[str]:
    """A text as its tokens cut it."""
    ends = np.unique(token_ends([text], tokenizer)[0]).tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def to_open(
    spec: ModelSpec, listed: Sequence[int], features: Sequence[int], chosen: Mapping[int, str]
) -> dict[int, str]:
    """Features to open, with a name: those that the text tells of, or else the first ones of a list, as many.

    Args:
        spec: the model; the text tells of SmolLM2.
        listed: features in the order in which they are of interest; features: all, for a list that is too short.
        chosen: feature of SmolLM2 -> its name in the text.
    """
    if spec is SMOLLM2 and set(chosen) <= set(features):
        return dict(chosen)
    return {int(i): f"feature {i}" for i in list(dict.fromkeys([*listed, *features]))[: len(chosen)]}
