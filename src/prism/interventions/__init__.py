"""Changing a model's activations on purpose, and measuring what follows: steering, ablation, attribution.

A *change* is a function from kept activations `[tokens, d_in]` to those that take their place. `evaluation.splice` runs
a model with one; here are the changes that are made of SAE features, and what they cost. `attribution` takes a
prompt's activation apart into *nodes* and estimates what each does; `ablation` finds out by running the model again;
`prompts` are what to ask it about.
"""

from prism.interventions.ablation import (
    ablate,
    ablation_effects,
    best_sets,
    effect_table,
    joint_effects,
    log_probability,
    logit_difference,
    matched_set,
    noise_for_errors,
    probability,
    random_sets,
    same_length,
    scorer,
    scores_with,
    sums_against_sets,
    top_set,
)
from prism.interventions.attribution import (
    METHODS,
    Nodes,
    agreement,
    agreement_table,
    at_baseline,
    baseline_of,
    feature_totals,
    gradient_times_activation,
    gradients,
    integrated_gradients,
    mean_interval,
    mean_intervals,
    node_table,
    take_apart,
)
from prism.interventions.changes import Change, add, change_cost, clamp, edited, project_out, suppress
from prism.interventions.counterfactual import (
    by_template,
    halves,
    load_counterfactuals,
    matched_sets,
    mean_difference,
    pair_features,
    sign_flip_p,
    swap_effects,
    target_logprobs,
)
from prism.interventions.prompts import make_prompts, minimal_pair, open_prompt, predictions, prompt_nodes
from prism.interventions.steering import generate
