"""Changing a model's activations on purpose, and what follows: what it costs, and what the model then writes.

A *change* is a function from kept activations `[tokens, d_in]` to those that take their place. A model runs
with one in `evaluation.predictions.splice`; here are those that are made of SAE features, and what they cost.
"""

from prism.interventions.changes import Change, add, matched_sets, project_out, suppress
from prism.interventions.steering import generate
