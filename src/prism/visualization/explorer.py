"""The feature browser, a small widget on one matrix; `prism.explorer` is the large one, on a model."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from prism.analysis import specialists, strongest
from prism.features import FeatureMatrix
from prism.visualization.pages import explore_feature
from prism.visualization.style import category_title


def browse_features(
    matrix: FeatureMatrix, page: Callable[[int], str] | None = None, per_category: int = 5
) -> widgets.VBox:
    """A widget to walk through features: type a number or pick a category's strongest.

    Args:
        matrix: sparse features of many tokens.
        page: feature -> HTML; by default what `explore_feature` shows.
        per_category: features offered for each category.

    Returns:
        A box whose children are the number, the choice and the view. A bad number shows a sentence in the view.
    """
    render = page or (lambda feature: explore_feature(matrix, feature).data)
    options = _featured(matrix, per_category)
    first = options[0][1] if options else 0
    number = widgets.IntText(value=first, description="feature")
    choice = widgets.Dropdown(options=options, value=first if options else None, description="or pick")
    view = widgets.HTML()

    def show(feature: int) -> None:
        try:
            view.value = render(matrix.check_feature(feature))
        except (IndexError, ValueError) as error:
            view.value = f"<p>{escape(str(error))}</p>"

    number.observe(lambda change: show(change["new"]), "value")
    choice.observe(lambda change: change["new"] is not None and setattr(number, "value", change["new"]), "value")
    show(number.value)
    return widgets.VBox([number, choice, view])


def _featured(matrix: FeatureMatrix, per_category: int) -> list[tuple[str, int]]:
    """Features worth a look: each category's specialists; without categories or specialists, the strongest."""
    if "category" in matrix.table and len(found := specialists(matrix, k=per_category)):
        pairs = zip(found["category"], found["feature"], strict=True)
        return [(f"{category_title(name)} · {feature}", int(feature)) for name, feature in pairs]
    return [(f"strongest · {feature}", int(feature)) for feature in strongest(matrix, 4 * per_category)["feature"]]
