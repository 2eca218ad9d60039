"""The page that lists the feature pages of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from prism.visualization.pages import document
from prism.visualization.tokens import link, visible

COLUMNS = {
    "feature": "Feature", "chosen": "Chosen as", "density": "Density", "tokens": "Strongest tokens",
    "category": "Fires most in", "explanation": "Automatic explanation", "score": "Detection",
}  # fmt: skip
INDEX_STYLE = """
.prism-page table.gallery td{text-align:left;white-space:normal;vertical-align:top;padding-right:14px}
.prism-page table.gallery td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.prism-page table.gallery thead th{font-weight:600;vertical-align:bottom;padding-right:14px}
.prism-page table.gallery td:nth-child(6){overflow-wrap:anywhere;white-space:pre-wrap;min-width:16em}
.prism-page table.gallery tbody th{vertical-align:top}
@media screen and (max-width:720px){.prism-page table.gallery thead{position:absolute;left:-9999px}
 .prism-page table.gallery :is(tbody,tr){display:block}.prism-page table.gallery tr{padding:8px 0}
 .prism-page table.gallery tbody :is(th,td,td.number){display:block;text-align:left;border:0;padding:1px 0;min-width:0}
 .prism-page table.gallery tr{border-bottom:1px solid var(--line)}
 .prism-page table.gallery td::before{content:attr(data-name)": ";color:var(--soft)}}
"""


def gallery_index(rows: pd.DataFrame, title: str, rules: Sequence[str]) -> str:
    """The index of a gallery: by which rules the features were chosen, and one row a feature.

    Args:
        rows: columns feature, page (address of its page), chosen (by which rule), density (share of tokens), tokens
            (a list of strings), category (in words), explanation, score (balanced accuracy of detection; NaN where
            there is none).
        title: where the features come from, plain text.
        rules: sentences, plain text.

    Returns:
        A complete HTML document.
    """
    head = f"<h1>Feature gallery</h1><p>{escape(title)}</p>"
    items = "".join(f"<li>{escape(rule)}</li>" for rule in rules)
    names = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS.values())
    lines = "".join(_line(row) for row in rows.itertuples())
    note = ("Density: share of the tokens on which the feature fires. Detection: how well the explanation tells, on "
            "held-out text, where the feature fires (balanced accuracy; 1 is perfect, 0.5 a guess).")  # fmt: skip
    table = f'<table class="gallery"><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>'
    body = (f"<section><h2>How they were chosen</h2><ul>{items}</ul></section>"
            f"<section><h2>Features</h2><p>{note}</p>{table}</section>")  # fmt: skip
    return document("Feature gallery", head, body, INDEX_STYLE)


def _line(row: tuple) -> str:
    cells = {
        "chosen": escape(row.chosen), "density": f"{row.density:.3%}",
        "tokens": " ".join(f"<code>{visible(token)}</code>" for token in row.tokens),
        "category": escape(row.category), "explanation": escape(row.explanation),
        "score": f"{row.score:.2f}" if np.isfinite(row.score) else "not scored",
    }  # fmt: skip
    parts = [f'<th scope="row">{link(row.page, str(row.feature))}</th>']
    for name, cell in cells.items():
        number = ' class="number"' if name in ("density", "score") else ""
        parts.append(f'<td{number} data-name="{COLUMNS[name]}">{cell}</td>')
    return f"<tr>{''.join(parts)}</tr>"
