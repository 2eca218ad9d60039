"""The features that cover a concept, given by texts that share it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from prism.analysis.counting import best_indices, fires_above
from prism.features import FeatureMatrix


def composite_score(activations: Float[np.ndarray, " texts"], threshold: float = 0.0) -> float:
    """How well one feature covers a concept's texts: share of them that fire, in %, times the mean activation.

    >>> composite_score([9.0, 10.84])  # 100 % × 9.92
    992.0
    >>> composite_score([8.0, 0.0])  # 50 % × 4
    200.0

    Args:
        activations: the feature's activation on each of the concept's texts, silent ones included.
        threshold: a text fires if its activation is strictly above this.

    Raises:
        ValueError: no texts.
    """
    activations = np.asarray(activations, dtype=float)
    if activations.size == 0:
        raise ValueError("composite_score needs at least one text of the concept")
    return float(100 * (activations > threshold).mean() * activations.mean())


def find_features_for_concept(
    concept: FeatureMatrix,
    background: FeatureMatrix | None = None,
    threshold: float = 0.0,
    k: int = 20,
    max_background: float = 1.0,
) -> pd.DataFrame:
    """The features that cover a concept's texts best, by composite score.

    A feature that fires on everything scores high as well; its background share shows it up.

    Args:
        concept: texts that share the concept (`matrix.select` takes them out of a larger matrix).
        background: texts without the concept, through the same SAE.
        threshold: a text fires if its activation is strictly above this.
        k: features.
        max_background: leave out features that fire on a larger share of the background than this.

    Returns:
        Columns feature, share (of the concept's texts that fire, 0 to 1), mean_activation (over all its texts),
        composite_score; with a background also background_share. Features that never fire are left out.

    Raises:
        ValueError: no texts of the concept, or a background from another SAE.
    """
    if not concept.n_texts:
        raise ValueError("the concept has no texts; give at least one")
    peaks = concept.text_max()
    share = fires_above(peaks, threshold).getnnz(axis=0) / concept.n_texts
    mean = np.asarray(peaks.sum(0, dtype=np.float64)).ravel() / concept.n_texts
    score = 100 * share * mean
    columns = {"share": share, "mean_activation": mean, "composite_score": score}
    if background is not None:
        if background.d_sae != concept.d_sae:
            raise ValueError(f"{background.d_sae} background features, {concept.d_sae} concept features; use one SAE")
        fires = fires_above(background.text_max(), threshold).getnnz(axis=0)
        columns["background_share"] = fires / max(background.n_texts, 1)
        score = np.where(columns["background_share"] <= max_background, score, 0.0)
    features = best_indices(score, k)
    return pd.DataFrame({"feature": features} | {name: values[features] for name, values in columns.items()})
