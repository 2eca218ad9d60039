"""What phase 4 chooses from the model and from its units."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.sparse import csr_matrix
from torch import Tensor

from prism.features import FeatureMatrix
from prism.models import ModelSpec, metadata_of
from prism.sae import SparseAutoencoder, to_saelens
from prism.training import TrainConfig


def shallowest(spec: ModelSpec) -> str:
    """The hook of the model's SAE that needs the fewest blocks: of the residual stream, if one reads that."""
    saes = sorted(spec.saes.values(), key=lambda s: ("resid" not in s.hook_name, s.layer))
    return saes[0].hook_name


def neuron_sae(spec: ModelSpec) -> str:
    """Name of the model's SAE on the neurons of an MLP; of its default SAE where it has none."""
    return next((name for name, s in spec.saes.items() if s.hook_name.endswith("mlp.hook_post")), spec.default_sae)


def as_saelens(sae: SparseAutoencoder, spec: ModelSpec, hook_name: str, distinct: int, limit: float) -> SAE:
    """A trained SAE as SAELens has it, with what this curriculum wants to know of it.

    Args:
        distinct: activations that it was trained on; limit: the norm above which a token was left out.
    """
    config = TrainConfig(tokens=distinct)
    return to_saelens(sae, metadata_of(sae, config, spec, hook_name, distinct, massive_norm=float(limit)))


def same_tokens(
    x: Float[Tensor, "tokens d_in"], of_twin: Float[Tensor, "some d_in"], keep: Bool[Tensor, " tokens"]
) -> tuple[Float[Tensor, "kept d_in"], Float[Tensor, "kept d_in"]]:
    """A model's and its twin's activations on the same tokens: as many as the twin's, and of these the kept ones."""
    kept = keep[: len(of_twin)]
    return x[: len(of_twin)][kept], of_twin[kept]


def only(matrix: FeatureMatrix, units: Int[np.ndarray, " units"]) -> FeatureMatrix:
    """Some columns of a matrix, in the order given: column `i` of the result was `units[i]`."""
    return FeatureMatrix(csr_matrix(matrix.values[:, units]), matrix.table)


def at_percentiles(scores: pd.DataFrame, by: str, shares: tuple[float, ...]) -> pd.DataFrame:
    """The neuron and the feature at each percentile of a score: units in order of it, ties in order of the unit.

    Args:
        scores: from `units.compare_units`.
        by: the column that they are put in order of.
        shares: from 0, the lowest, to 1.

    Returns:
        One row a share, its index; columns `neuron` and `feature`, and each one's score as `neuron's purity` for a
        score of that name.
    """
    chosen, reached = {}, {}
    for kind in ("neuron", "feature"):
        units = scores[scores["kind"] == kind].sort_values([by, "unit"])
        at = [round(share * (len(units) - 1)) for share in shares]
        chosen[kind] = units["unit"].to_numpy(int)[at]
        reached[f"{kind}'s {by}"] = units[by].to_numpy(float)[at]
    return pd.DataFrame(chosen | reached, index=pd.Index(shares, name="percentile"))
