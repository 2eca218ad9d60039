"""Discovery on a `FeatureMatrix`: rankings, specialists, concepts; and the controls.

A feature *fires* on a text where its activation there, the maximum over the text's tokens, is strictly above a
threshold. All counting is sparse: a feature's texts per category are one product with an indicator matrix.
"""

from prism.analysis.claims import ClaimCard, confidence_interval, difference_interval
from prism.analysis.concepts import find_features_for_concept
from prism.analysis.feature import co_active
from prism.analysis.matching import match_activations
from prism.analysis.rankings import most_frequent, strongest
from prism.analysis.specialist_search import confirm, permutation_null, specialists, survivors
