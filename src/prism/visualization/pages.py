"""One feature as HTML: a short view and a whole page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML
from jaxtyping import Float

from prism.features import FeatureMatrix
from prism.visualization.features import FeatureSummary, co_active, decoder_neighbours, summarise_feature, top_logits
from prism.visualization.style import WINDOW, as_array, category_colours, category_title
from prism.visualization.tokens import token_shading, visible

PAGE_STYLE = """
.prism-page{--bg:#fff;--ink:#1d2329;--soft:#5a6169;--line:#dfe3e8;--bar:#0072B2;font:15px/1.5 system-ui,sans-serif;
 background:var(--bg);color:var(--ink);max-width:1040px;margin:0 auto;padding:20px;box-sizing:border-box}
.prism-page h1{font-size:24px;margin:0 0 4px}
.prism-page h2{font-size:16px;margin:24px 0 8px}.prism-page h3{font-size:14px;margin:14px 0 2px}
.prism-page p,.prism-page small{color:var(--soft);margin:0 0 6px;font-size:13px}.prism-page a{color:inherit}
.prism-page .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:0 32px}
.prism-page .stats{display:flex;flex-wrap:wrap;gap:8px 28px;margin:12px 0}
.prism-page .stats b{display:block;font-size:18px}
.prism-page table{color:inherit;border-collapse:collapse;width:100%;font-size:13px}
.prism-page td{padding:3px 6px 3px 0;border-bottom:1px solid var(--line)}
.prism-page td:last-child{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.prism-page .track{width:38%}.prism-page .track div{height:10px;border-radius:2px;min-width:1px}
.prism-page code{font-family:ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.prism-page svg{display:block;width:100%;height:90px;border-bottom:1px solid var(--soft)}
.prism-page .ends{display:flex;justify-content:space-between;font-size:12px;color:var(--soft)}
.prism-page .example{border-bottom:1px solid var(--line);padding:4px 0}
@media(prefers-color-scheme:dark){.prism-page{--bg:#15191e;--ink:#e8ebee;--soft:#a5adb6;--line:#323941;--bar:#56B4E9}}
"""


def explore_feature(matrix: FeatureMatrix, feature: int, k: int = 10, name: str = "Feature") -> HTML:
    """One feature at a glance: density, maximum, category profile, and its strongest texts around their top token.

    Args:
        matrix: sparse features of many tokens.
        feature: column, 0 to d_sae − 1.
        k: texts shown.
        name: what a column of this matrix is called, such as 'Neuron'.

    Returns:
        An object that a notebook displays; `.data` holds the HTML.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    body = _stats(summary) + _profile_section(summary) + _example_section(matrix, summary)
    head = f"<h1>{escape(name)} {summary.feature}</h1>"
    return HTML(f'<style>{PAGE_STYLE}</style><div class="prism-page">{head}{body}</div>')


def feature_page(
    feature: int, matrix: FeatureMatrix, decoder: Float[np.ndarray, "d_sae d_in"] | None = None,
    unembed: Float[np.ndarray, "d_in d_vocab"] | None = None, vocabulary: Sequence[str] | None = None,
    title: str = "", link: str | None = None, k: int = 10,
) -> str:  # fmt: skip
    """A page about one feature that needs no network and no scripts.

    Args:
        feature: column of the matrix.
        matrix: sparse features of many tokens.
        decoder: the SAE's decoder, for the nearest directions (and, with the next two, for the logits).
        unembed: the model's unembedding.
        vocabulary: the tokens by id.
        title: where the feature comes from (model, SAE, sample).
        link: the same feature elsewhere (Neuronpedia); only http and https addresses are linked.
        k: examples, logits and neighbours shown.

    Returns:
        A complete HTML document.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    column = matrix.column(feature)
    panels = [_histogram_section(column), _profile_section(summary)]
    if decoder is not None and unembed is not None and vocabulary is not None:
        panels += _logit_sections(top_logits(as_array(decoder)[feature], unembed, vocabulary, k))
    panels.append(_table_section("Fires together with", "share of tokens with either feature that have both (Jaccard)",
                                 co_active(matrix, feature, k), "jaccard"))  # fmt: skip
    if decoder is not None:
        panels.append(_table_section("Nearest directions", "cosine of the decoder rows",
                                     decoder_neighbours(decoder, feature, k), "cosine"))  # fmt: skip
    body = (_header(feature, title, link) + _stats(summary) + f'<div class="grid">{"".join(panels)}</div>'
            + _example_section(matrix, summary) + _quantile_section(matrix, column))  # fmt: skip
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width,initial-scale=1"><title>Feature {feature}</title><style>body{{margin:0}}'
            "@media(prefers-color-scheme:dark){body{background:#15191e}}"
            f'{PAGE_STYLE}</style></head><body><main class="prism-page">{body}</main></body></html>')  # fmt: skip


def _header(feature: int, title: str, link: str | None) -> str:
    safe = link is not None and link.lower().startswith(("https://", "http://"))
    anchor = f' · <a href="{escape(link)}" rel="noopener">the same feature on Neuronpedia</a>' if safe else ""
    return f"<h1>Feature {feature}</h1><p>{escape(title)}{anchor}</p>"


def _stats(summary: FeatureSummary) -> str:
    if not summary.firings:
        return f"<p>This feature fires on none of the {summary.n_tokens:,} tokens: it is dead in this sample.</p>"
    cells = {"density": f"{summary.density:.3%}", "fires on": f"{summary.firings:,} of {summary.n_tokens:,} tokens",
             "maximum": f"{summary.maximum:.2f}", "top 20: same token": f"{summary.top_token_share:.0%}"}  # fmt: skip
    boxes = "".join(f"<div><small>{name}</small><b>{value}</b></div>" for name, value in cells.items())
    return f'<div class="stats">{boxes}</div>'


def _section(head: str, note: str, body: str) -> str:
    return f"<section><h2>{head}</h2><p>{note}</p>{body}</section>" if body else ""


def _histogram_section(column: np.ndarray, bins: int = 40) -> str:
    """An SVG of bars only; its labels are HTML, so that they keep their size on a narrow screen."""
    active = column[column > 0]
    if not active.size:
        return ""
    counts, edges = np.histogram(active, bins, range=(0, float(active.max())))
    bars = "".join(
        f'<rect x="{i}" y="{100 - 100 * c / counts.max():.1f}" width=".9" height="{100 * c / counts.max():.1f}" '
        f'style="fill:var(--bar)"><title>{edges[i]:.2f} to {edges[i + 1]:.2f}: {c:,} tokens</title></rect>'
        for i, c in enumerate(counts) if c
    )  # fmt: skip
    svg = f'<svg viewBox="0 0 {bins} 100" preserveAspectRatio="none" role="img">{bars}</svg>'
    ends = f'<div class="ends"><span>0</span><span>activation</span><span>{active.max():.2f}</span></div>'
    return _section("Activations", f"where it fires; the tallest bar is {counts.max():,} tokens", svg + ends)


def _profile_section(summary: FeatureSummary) -> str:
    if summary.categories.empty or not summary.firings:
        return ""
    colours = category_colours(summary.categories["category"])
    rows = "".join(
        f'<tr><td>{escape(category_title(row.category))}</td><td class="track">'
        f'<div style="width:{100 * row.share_firing:.0f}%;background:{colours[row.category]}"></div></td>'
        f"<td>{row.share_firing:.0%} · {row.mean_max:.2f}</td></tr>"
        for row in summary.categories.itertuples()
    )  # fmt: skip
    note = "share of texts on which it fires · mean of the texts' maxima"
    return _section("Categories", note, f"<table>{rows}</table>")


def _logit_sections(logits: pd.DataFrame) -> list[str]:
    note = "direct effect on the next token, relative to the mean"
    heads = {"top": "Writes towards", "bottom": "Writes away from"}
    return [_section(head, note, _rows((f"<code>{visible(r.token)}</code>", f"{r.logit:+.2f}")
                                       for r in logits[logits["side"] == side].itertuples()))
            for side, head in heads.items()]  # fmt: skip


def _table_section(head: str, note: str, frame: pd.DataFrame, value: str) -> str:
    pairs = zip(frame["feature"], frame[value], strict=True)
    return _section(head, note, _rows((f"feature {feature}", f"{number:.3f}") for feature, number in pairs))


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    """A two-column table of HTML that is already escaped; nothing if there are no rows."""
    rows = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in pairs)
    return f"<table>{rows}</table>" if rows else ""


def _example(matrix: FeatureMatrix, column: np.ndarray, row: int) -> str:
    """The window around one token of the table, never across the end of its text, with value and category."""
    texts = matrix.table["text"].to_numpy()
    window = np.arange(max(row - WINDOW, 0), min(row + WINDOW + 1, len(texts)))
    window = window[texts[window] == texts[row]]
    part = matrix.table.iloc[window]
    category = f" · {escape(category_title(part['category'].iloc[0]))}" if "category" in part else ""
    start, maximum = int(part["position"].iloc[0]), float(column.max())
    shading = token_shading(part["token"].tolist(), column[window], maximum=maximum, start=start)
    return f'<div class="example"><small>{column[row]:.2f} · text {texts[row]}{category}</small>{shading}</div>'


def _example_section(matrix: FeatureMatrix, summary: FeatureSummary) -> str:
    column = matrix.column(summary.feature)
    body = "".join(_example(matrix, column, row) for row in summary.examples["row"])
    return _section("Strongest texts", f"{WINDOW} tokens either side of the strongest one; one example a text", body)


def _quantile_section(matrix: FeatureMatrix, column: np.ndarray, groups: int = 5, each: int = 2) -> str:
    """Examples from top to bottom of the range: what a feature means at half strength is part of what it means."""
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    if len(order) < 2 * groups:
        return ""
    parts = []
    for part in np.array_split(order, groups):
        chosen = part[np.linspace(0, len(part) - 1, each + 2).astype(int)[1:-1]]
        parts.append(f"<h3>{column[part[0]]:.2f} to {column[part[-1]]:.2f}</h3>")
        parts += [_example(matrix, column, row) for row in dict.fromkeys(chosen)]
    note = f"the firings in {groups} groups of equal size, {each} from each"
    return _section("Across the range", note, "".join(parts))
