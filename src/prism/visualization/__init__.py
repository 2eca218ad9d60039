"""Figures and shaded tokens: data in, a plotly Figure or HTML out."""

from prism.visualization.dots import grouped_dots
from prism.visualization.style import BLUE, category_order, category_title, short_label, use_style
from prism.visualization.tokens import marked, side_by_side
