"""Changing a model's activations on purpose, and measuring what follows: steering, and swaps of one term.

A *change* is a function from kept activations `[tokens, d_in]` to those that take their place. `evaluation.splice` runs
a model with one; here are the changes that are made of SAE features, and what they cost.
"""

from prism.interventions.changes import Change, add, change_cost, clamp, edited, project_out, suppress
from prism.interventions.steering import (
    Curve,
    Response,
    at_cost,
    compare_at_cost,
    dose_response,
    gain_at_cost,
    generate,
    respond,
    steering_curve,
)
from prism.interventions.targets import (
    STEERED,
    class_auc,
    count_tokens,
    lens_tokens,
    output_scores,
    repetition,
    text_probe,
    text_windows,
    token_log_odds,
    typical_tokens,
    written,
)
