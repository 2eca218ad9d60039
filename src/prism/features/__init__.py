"""The feature matrix: the sparse features of many tokens, and where each token came from."""

from prism.features.encoding import encode_activations, encode_features, peak_reader, word_features
from prism.features.matrix import FeatureMatrix
