"""Finding features: by number, by category, by token, by texts that share a concept."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prism.analysis import find_features_for_concept, specialists
from prism.data import readable, token_ids, token_text
from prism.explorer.session import COMMON, MAX_CHARACTERS, Explorer, Reading
from prism.visualization.style import category_title

WAYS = ("number", "category", "token", "concept")
LEAST = 3  # occurrences of a token in the sample, fewer say nothing
DRAWS = 20  # sets of random texts that a concept search is held against


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        table: one row a feature, best first: feature, the search's own measures, density, fires_on.
        note: what the measures mean and what chance reaches, in a sentence.
    """

    table: pd.DataFrame
    note: str


def search(explorer: Explorer, way: str, query: str, sae: str | None = None, k: int = 10) -> Found:
    """Features by one of `WAYS`.

    Args:
        query: a feature's number; a category's name or title; a token; or texts that share a concept, one a line.
        sae: name of the SAE; the explorer's default if None.
        k: features.

    Raises:
        ValueError, IndexError: nothing to be found by such a question; the message says what would do.
    """
    if way not in WAYS:
        raise ValueError(f"no search by '{way}'; choose from {', '.join(WAYS)}")
    if not readable(query, "the question").strip():
        raise ValueError("There is nothing to search for yet: type something.")
    if len(query) > MAX_CHARACTERS:
        raise ValueError(f"The question has {len(query):,} characters; at most {MAX_CHARACTERS:,} are read here.")
    reading = explorer.reading(sae)
    if way == "concept":
        return by_concept(explorer, query.splitlines(), sae, k)
    return {"number": by_number, "category": by_category, "token": by_token}[way](reading, query, k)


def by_number(reading: Reading, query: str, k: int = 1) -> Found:
    """The one feature of that number."""
    try:
        feature = int(query.strip())
    except ValueError:
        last = reading.matrix.d_sae - 1
        raise ValueError(f"'{_short(query)}' is no number; features go from 0 to {last}.") from None
    frame = pd.DataFrame({"feature": [reading.matrix.check_feature(feature)]})
    return Found(reading.describe(frame), "the feature of that number")


def categories(reading: Reading) -> dict[str, str]:
    """Title -> name of the sample's labelled categories."""
    table = reading.matrix.table[reading.sample.labelled]
    return {category_title(name): name for name in table["category"].unique().astype(str)}


def by_category(reading: Reading, query: str, k: int = 10) -> Found:
    """The best specialists of a category of the labelled texts."""
    titles = categories(reading)
    wanted = {key.casefold(): name for title, name in titles.items() for key in (title, name)}
    name = wanted.get(query.strip().casefold())
    if name is None:
        near = difflib.get_close_matches(query.strip().casefold(), wanted, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"No category '{_short(query)}'; {hint}choose from {', '.join(titles)}.")
    found = specialists(reading.matrix.select(reading.sample.labelled), k)
    found = found[found["category"] == name][["feature", "inside", "outside", "score"]]
    if found.empty:
        raise ValueError(f"No feature fires on more texts of {category_title(name)} than of the others.")
    note = (
        "texts of the category that fire (inside), texts of the others that do (outside), and the difference "
        "(score); winners of a search, which phase 2 holds against shuffled labels"
    )
    return Found(reading.describe(found), note)


def by_token(reading: Reading, query: str, k: int = 10) -> Found:
    """The features that fire on a token, upper or lower case, with or without a space, and on little else.

    Ranked by F1 of 'fires' against 'is the token' over the sample.
    """
    plain = reading.matrix.table["token"].astype(str).str.strip().str.casefold().to_numpy()
    word = query.strip().casefold()
    is_token = plain == word
    n = int(is_token.sum())
    if n < LEAST:
        raise ValueError(_rare(reading, query, n, plain))
    fires = reading.matrix.values.astype(bool)
    hits = np.asarray(fires[np.flatnonzero(is_token)].sum(0)).ravel()
    total = reading.statistics.counts
    f1 = 2 * hits / np.maximum(total + n, 1)
    best = np.argsort(-f1, kind="stable")[:k]
    best = best[hits[best] > 0]
    frame = pd.DataFrame(
        {"feature": best, "precision": hits[best] / total[best], "recall": hits[best] / n, "f1": f1[best]}
    )
    note = (
        f"precision: share of the feature's firings that fall on the token; recall: share of its {n:,} "
        f"occurrences that fire; f1 joins both; by chance, precision would be {n / len(plain):.4f}"
    )
    return Found(reading.describe(frame), note)


def _rare(reading: Reading, query: str, n: int, plain: np.ndarray) -> str:
    """Why a token cannot be searched for, and what could be."""
    tokenizer = reading.model.tokenizer
    pieces = min((token_ids(tokenizer, text) for text in (query.strip(), " " + query.strip())), key=len)
    shown = ", ".join(f"'{token_text(tokenizer, piece).strip()}'" for piece in pieces[:6])
    if len(pieces) > 1:
        return (
            f"'{_short(query)}' is {len(pieces)} tokens for this model ({shown}); search for one of them, or for "
            "texts that share the concept."
        )
    names, counts = np.unique(plain, return_counts=True)
    near = difflib.get_close_matches(query.strip().casefold(), names[counts >= LEAST].tolist(), n=3)
    hint = f" Near to it are {', '.join(map(repr, near))}." if near else ""
    return f"'{_short(query)}' occurs {n} times in the sample, too rarely to judge features by.{hint}"


def by_concept(explorer: Explorer, texts: Sequence[str], sae: str | None = None, k: int = 10) -> Found:
    """The features that cover texts which share a concept, by composite score (`analysis.concepts`).

    Features that fire on more than a quarter of the sample's texts are left out. The best score is held against those
    of random sets of beginnings of the sample's texts, as many and as long: a text is read from its beginning, where
    some features fire whatever it says.
    """
    reading, concept = explorer.reading(sae), explorer.texts(texts, sae)
    found = find_features_for_concept(concept, reading.matrix, k=k, max_background=COMMON)
    if found.empty:
        raise ValueError("No feature fires on these texts and on few others; give other texts, or longer ones.")
    chance = chance_scores(reading, np.bincount(concept.table["text"].to_numpy()))
    best = found["composite_score"].iloc[0]
    n = f"{concept.n_texts} text" + "s" * (concept.n_texts != 1)
    note = (
        f"share: of your {n} that fire; composite score: that share in % × mean activation; chance: the best, "
        f"{best:,.0f} here, is reached in {(chance >= best).sum()} of {DRAWS} random sets of beginnings of the "
        f"sample's texts, as many and as long as yours (their median: {np.median(chance):,.0f})"
    )
    return Found(reading.describe(found), note)


def chance_scores(reading: Reading, lengths: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Best composite score in each of some draws of random texts of the sample, each cut after its first tokens.

    Args:
        lengths: tokens of each text of a draw.
    """
    rng, text = np.random.default_rng(seed), reading.matrix.table["text"].to_numpy()
    bounds = np.searchsorted(text, np.arange(reading.matrix.n_texts + 1))
    common = reading.common
    best = []
    for _ in range(draws):
        peaks = np.zeros((len(lengths), reading.matrix.d_sae), np.float32)
        for i, whose in enumerate(rng.integers(reading.matrix.n_texts, size=len(lengths))):
            part = reading.matrix.values[bounds[whose] : min(bounds[whose] + lengths[i], bounds[whose + 1])]
            peaks[i] = part.max(axis=0).toarray()
        score = 100 * (peaks > 0).mean(0) * peaks.mean(0)
        best.append(score[~common].max())
    return np.array(best)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
