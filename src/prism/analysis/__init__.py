"""Discovery on a `FeatureMatrix`: rankings, specialists, concepts, co-activation; and the controls that test them.

A feature *fires* on a text where its activation there, the maximum over the text's tokens, is strictly above a
threshold. All counting is sparse: a feature's texts per category are one product with an indicator matrix.
"""

from prism.analysis.claims import ClaimCard, bootstrap_interval
from prism.analysis.cofiring import coactivation, coactivation_edges
from prism.analysis.concepts import composite_score, find_features_for_concept
from prism.analysis.rankings import most_frequent, most_selective, strongest
from prism.analysis.specialist_search import (
    Null,
    confirm,
    holm,
    permutation_null,
    specialist_scores,
    specialists,
    survivors,
)
