"""Changing a model's activations on purpose, and measuring what follows: steering, ablation, attribution.

A *change* is a function from kept activations `[tokens, d_in]` to those that take their place. `evaluation.splice` runs
a model with one; here are the changes that are made of SAE features, and what they cost. `attribution` takes a
prompt's activation apart into *nodes* and estimates what each does; `ablation` finds out by running the model again.
"""

from prism.interventions.ablation import (
    Prompts,
    ablation_effects,
    joint_effects,
    log_probability,
    logit_difference,
    make_prompts,
    matched_set,
    predictions,
    probability,
    prompt_nodes,
    random_sets,
    same_length,
    scorer,
    scores_with,
    top_set,
)
from prism.interventions.attribution import (
    ERROR,
    Nodes,
    agreement,
    at_baseline,
    gradient_times_activation,
    gradients,
    integrated_gradients,
    node_table,
    take_apart,
)
from prism.interventions.changes import Change, add, change_cost, clamp, edited, project_out, suppress
