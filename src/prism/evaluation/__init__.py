"""How well an SAE stands in for the activation that it reads: one definition for each measure.

Pure functions (`metrics`); `evaluate`, which streams them over tokens in bounded memory (`streaming`, `results`);
`preflight`, which tests the plumbing; and baseline `dictionaries` for the same tables. BOS and padding are left out
everywhere: activations there are passed on unchanged, and predictions made from there are not counted.
"""

from prism.evaluation.bits import bits_per_byte, text_bits
from prism.evaluation.dictionaries import pca, random_directions
from prism.evaluation.documents import held_out, measure
from prism.evaluation.metrics import explained_variance
from prism.evaluation.predictions import Predictions, logit_rows
from prism.evaluation.results import Evaluation, evaluation_table, paired_difference
from prism.evaluation.streaming import evaluate, evaluate_all
