"""Figures and shaded tokens: data in, a plotly Figure or HTML out."""

from prism.visualization.attribution import effects_scatter, interval_bars, node_bars, set_curves
from prism.visualization.auditing import ablation_figure, edit_figure, promise_figure, roc_figure, swap_figure
from prism.visualization.autointerp import explanation_scores, found_figure, score_by_length
from prism.visualization.model_sizes import grouped_dots, match_curves
from prism.visualization.monosemanticity import before_after, unit_scores_figure
from prism.visualization.style import (
    BLUE,
    CATEGORY_COLOURS,
    WIDTH,
    category_order,
    category_title,
    short_label,
    use_style,
)
from prism.visualization.tokens import marked, visible
from prism.visualization.training import density_humps, diagnosis_figure, front_figure, training_curves
