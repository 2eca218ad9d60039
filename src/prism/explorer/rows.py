"""Lists of features, one a row, the same in the web app and in the notebook's widget."""

from __future__ import annotations

import pandas as pd

from prism.explorer.session import Reading
from prism.visualization.tokens import marked

NUMBERS = {  # column of a table -> what a row says of it
    "activation": "activation {:.1f}",
    "of_maximum": "{:.0%} of its maximum",
    "token": "on {}",
    "inside": "inside {:.0%}",
    "outside": "outside {:.0%}",
    "score": "score {:.2f}",
    "precision": "precision {:.0%}",
    "recall": "recall {:.0%}",
    "f1": "F1 {:.2f}",
    "share": "{:.0%} of your texts",
    "mean_activation": "mean activation {:.1f}",
    "background_share": "{:.1%} of the sample's texts",
    "composite_score": "composite score {:,.0f}",
    "density": "fires on {:.2%} of tokens",
}


def rows(reading: Reading, frame: pd.DataFrame) -> list[dict[str, object]]:
    """What the macro `row` shows of each feature of a table: its label, its window, and the table's measures."""
    return [
        {
            "feature": int(row["feature"]),
            "label": reading.label(int(row["feature"])),
            "numbers": [_number(name, row[name]) for name in NUMBERS if name in row],
            "window": reading.window(int(row["feature"])),
        }
        for row in frame.to_dict("records")
    ]


def _number(name: str, value: object) -> str:
    if value != value:  # the feature never fires in the sample
        return "maximum unknown"
    return NUMBERS[name].format(marked(value) if name == "token" else value)
