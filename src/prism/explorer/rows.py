"""Lists of features, one a row, the same in the web app and in the notebook's widget."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from prism.explorer.session import RARE, Reading
from prism.features import FeatureMatrix
from prism.visualization.tokens import marked

NUMBERS = {  # column of a table -> what a row says of it
    "chosen": "{}",
    "detection": "detection {:.2f}",
    "activation": "activation {:.1f}",
    "of_maximum": "{:.0%} of its maximum",
    "token": "on {}",
    "inside": "inside {:.0%}",
    "outside": "outside {:.0%}",
    "score": "score {:.2f}",
    "precision": "precision {:.0%}",
    "recall": "recall {:.0%}",
    "f1": "F1 {:.2f}",
    "share": "{:.0%} of your texts",
    "mean_activation": "mean activation {:.1f}",
    "background_share": "{:.1%} of the sample's texts",
    "composite_score": "composite score {:,.0f}",
    "density": "fires on {:.2g}% of tokens",
}

LEAST = 0.15  # of the strongest rare feature; weaker ones are noise that happens to be rare
ORDERS = {"special to this text first": "special", "strongest first": "strongest"}  # in words -> by name
RULES = {
    "special": "Order: share of its own maximum (at most 1) × rarity (−log10 of the share of the sample's tokens on "
    f"which it fires). Left out: features weaker here than {LEAST:.0%} of the strongest one that fires on at most "
    f"{RARE:.0%} of tokens.",
    "strongest": "Order: activation.",
}


def special_order(
    activation: Float[np.ndarray, " features"],
    of_maximum: Float[np.ndarray, " features"],
    density: Float[np.ndarray, " features"],
) -> Int[np.ndarray, " some_features"]:
    """What is special about a text, first: share of the feature's maximum (at most 1) × −log10 of its density.

    Left out are features weaker than `LEAST` of the strongest one that is rare (`RARE`): some feature of every text is
    a noise that never came before. Shares that are NaN (no firing in the sample) count as 0.

    Args:
        activation: in the text, in units that all features share (decoder rows have norm 1).
        of_maximum: its share of the feature's largest activation in a sample.
        density: share of the sample's tokens on which the feature fires.

    Returns:
        Places in these arrays, the most special first.
    """
    score = np.nan_to_num(np.minimum(of_maximum, 1)) * -np.log10(np.maximum(density, 1e-9))
    order = np.argsort(-score, kind="stable")
    return order[activation[order] >= LEAST * activation[density <= RARE].max(initial=0)]


def ordered(reading: Reading, found: pd.DataFrame, order: str, hide: bool) -> tuple[pd.DataFrame, str]:
    """`Reading.firing` in one of `ORDERS`, without features of one token if these are to be hidden; the rule in words.

    Raises:
        ValueError: no such order.
    """
    if order not in RULES:
        raise ValueError(f"no order '{order}'; choose from {', '.join(RULES)}")
    if order == "special":
        found = found.iloc[special_order(*(found[name].to_numpy() for name in ("activation", "of_maximum", "density")))]
    single = reading.one_token[found["feature"]]
    said = f" Hidden: {single.sum()} features of one token (their 20 strongest firings fall on one and the same token)."
    return found[~(single & hide)], RULES[order] + said * bool(hide and single.any())


def listing(
    reading: Reading, matrix: FeatureMatrix, where: slice | None, order: str, hide: bool, k: int
) -> tuple[list[dict[str, object]], str]:
    """The first `k` rows of what fires in a text, or on some tokens of it, and the rule of their order in words."""
    found, rule = ordered(reading, reading.firing(matrix, where), order, hide)
    return rows(reading, found.head(k)), rule


def rows(reading: Reading, frame: pd.DataFrame) -> list[dict[str, object]]:
    """What the macro `row` shows of each feature of a table: its label, its window, and the table's measures."""
    return [
        {
            "feature": int(row["feature"]),
            "label": reading.label(int(row["feature"])),
            "numbers": [_number(name, row[name]) for name in NUMBERS if name in row],
            "window": reading.window(int(row["feature"])),
        }
        for row in frame.to_dict("records")
    ]


def _number(name: str, value: object) -> str:
    if value != value:  # the feature never fires in the sample, or in too few places to be scored
        return "not scored" if name == "detection" else "maximum unknown"
    if name == "density":
        value = 100 * float(value)
    return NUMBERS[name].format(marked(value) if name == "token" else value)
