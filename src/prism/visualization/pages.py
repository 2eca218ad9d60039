"""One feature as HTML: a short view and a whole page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML
from jaxtyping import Float

from prism.analysis.feature import FeatureSummary, co_active, decoder_neighbours, summarise_feature, top_logits
from prism.features import FeatureMatrix
from prism.visualization.bars import activation_bars, density_bars
from prism.visualization.style import WINDOW, as_array, category_colours, category_title
from prism.visualization.tokens import example_html, visible
from prism.visualization.tokens import link as html_link

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

# On top of it, for a page in short: against what notebooks do to the tables, the headings and the code of an output.
SHORT_STYLE = """
.prism-page tr th{font-weight:400!important;text-align:left!important;padding:3px 6px 3px 0!important;
 border-bottom:1px solid var(--line)}
.prism-page tr{background:none!important}.prism-page code{background:none!important;padding:0!important}
.prism-page h1,.prism-page h2,.prism-page h3{font-weight:700!important}
"""

# On top of it, for pages of their own. Dark: on this background and with white letters, every shade of orange keeps a
# contrast of 4.5 to the letters on it (white up to 0.65 of the full colour, black beyond; see tokens.py).
DOCUMENT_STYLE = """
body{margin:0}.prism-page a{text-underline-offset:2px}.prism-page .sentence{font-size:16px;overflow-wrap:anywhere;
 white-space:pre-wrap}
.prism-page th{font-weight:400;text-align:left;padding:3px 6px 3px 0;border-bottom:1px solid var(--line)}
.prism-page section:target h2{text-decoration:underline}
.prism-page .contents{font-size:13px;display:flex;flex-wrap:wrap;gap:2px 14px;margin:8px 0}
.prism-page summary{color:var(--soft);font-size:12px;cursor:pointer;width:fit-content}
.prism-page details table{max-width:340px;margin:2px 0 8px}
.prism-page details :is(th,td):nth-child(n+2){text-align:right}
a:focus-visible,summary:focus-visible{outline:3px solid #0072B2;outline-offset:2px}
.skip{position:absolute;left:-999px;background:#fff;color:#000;padding:8px;z-index:1}.skip:focus{left:8px;top:8px}
@media screen and (prefers-color-scheme:dark){.prism-page{--bg:#0d1014}body{background:#0d1014}
 .prism-page .prism-tokens span[style]{color:#fff}
 a:focus-visible,summary:focus-visible{outline-color:#56B4E9}}
@media(max-width:480px){.prism-page{padding:14px}.prism-page .stats{gap:8px 20px}.prism-page .stats b{font-size:16px}}
@media print{.prism-page{--bg:#fff;--ink:#000;--soft:#444;--line:#bbb;--bar:#0072B2;max-width:none;padding:0}
 body{background:#fff}.skip,.prism-page .contents,.prism-page details{display:none}
 .prism-page{print-color-adjust:exact;-webkit-print-color-adjust:exact}
 .prism-page h2,.prism-page h3{break-after:avoid}.prism-page .example,.prism-page .grid section{break-inside:avoid}}
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
    title: str = "", link: str | None = None, k: int = 10, link_to: Callable[[int], str | None] | None = None,
    explanation: str = "", scores: Mapping[str, float] | None = None, index: str | None = None,
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
        link_to: address of another feature's page, relative or http(s); None for a feature without one.
        explanation: a sentence about when the feature fires.
        scores: how well the sentence tells where it fires: name -> balanced accuracy, 0.5 a guess; NaN is left out.
        index: address of the page that lists all pages.

    Returns:
        A complete HTML document.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    column = matrix.column(feature)
    panels = [_section("Activations", "how strongly it fires, where it does", activation_bars(column)),
              _density_section(matrix.density(), feature), _profile_section(summary)]  # fmt: skip
    if decoder is not None and unembed is not None and vocabulary is not None:
        panels += _logit_sections(top_logits(as_array(decoder)[feature], unembed, vocabulary, k))
    panels.append(_table_section("Fires together with", "share of tokens with either feature that have both (Jaccard)",
                                 co_active(matrix, feature, k), "jaccard", link_to))  # fmt: skip
    if decoder is not None:
        panels.append(_table_section("Nearest directions", "cosine of the decoder rows",
                                     decoder_neighbours(decoder, feature, k), "cosine", link_to))  # fmt: skip
    body = (_explanation_section(explanation, scores or {}) + f'<div class="grid">{"".join(panels)}</div>'
            + _example_section(matrix, summary, values=True) + _quantile_section(matrix, column))  # fmt: skip
    return document(f"Feature {feature}", _header(feature, title, link, index) + _stats(summary), body)


def feature_in_short(
    feature: int, matrix: FeatureMatrix, decoder: Float[np.ndarray, "d_sae d_in"] | None = None,
    unembed: Float[np.ndarray, "d_in d_vocab"] | None = None, vocabulary: Sequence[str] | None = None,
    k: int = 5, explanation: str = "", scores: Mapping[str, float] | None = None,
) -> HTML:  # fmt: skip
    """The page's most telling parts, for a notebook's cell: explanation, histogram, logits, co-active, quantiles.

    Args, errors: as for `feature_page`.
    """
    summary, column = summarise_feature(matrix, feature, k), matrix.column(feature)
    panels = [_section("Activations", "how strongly it fires, where it does", activation_bars(column))]
    if decoder is not None and unembed is not None and vocabulary is not None:
        panels += _logit_sections(top_logits(as_array(decoder)[feature], unembed, vocabulary, k))
    panels.append(_table_section("Fires together with", "share of tokens with either feature that have both (Jaccard)",
                                 co_active(matrix, feature, k), "jaccard", None))  # fmt: skip
    body = (f"<h1>Feature {feature}</h1>" + _stats(summary) + _explanation_section(explanation, scores or {})
            + f'<div class="grid">{"".join(panels)}</div>'
            + _quantile_section(matrix, column, each=1, values=False))  # fmt: skip
    return HTML(f'<style>{PAGE_STYLE}{SHORT_STYLE}</style><div class="prism-page">{body}</div>')


def document(title: str, head: str, body: str, style: str = "") -> str:
    """A whole page of HTML: dark or light as the reader's system is, printable, its sections linked at the top.

    Args:
        title: for the browser's tab, plain text.
        head: HTML above the list of sections.
        body: HTML of the sections.
        style: CSS beyond that of feature pages.
    """
    names: dict[str, str] = {}

    def anchored(match: re.Match[str]) -> str:
        name = re.sub(r"\W+", "-", match[1].lower())
        names[name] = match[1]
        return f'<section id="{name}" aria-labelledby="{name}-head"><h2 id="{name}-head">{match[1]}</h2>'

    body = re.sub(r"<section><h2>(.+?)</h2>", anchored, body)
    links = "".join(f'<a href="#{name}">{words}</a> ' for name, words in names.items())
    contents = f'<nav class="contents" aria-label="On this page">{links}</nav>' if links else ""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
            f"<title>{escape(title)}</title><style>{PAGE_STYLE}{DOCUMENT_STYLE}{style}</style></head><body>"
            '<a class="skip" href="#content">Skip to the content</a><main class="prism-page">'
            f'<header>{head}</header>{contents}<div id="content">{body}</div></main></body></html>')  # fmt: skip


def _header(feature: int, title: str, link: str | None, index: str | None) -> str:
    safe = link is not None and link.lower().startswith(("https://", "http://"))
    anchor = f" · {html_link(link, 'the same feature on Neuronpedia')}" if safe else ""
    home = f"<p>{html_link(index, 'all pages')}</p>" if index else ""
    return f"{home}<h1>Feature {feature}</h1><p>{escape(title)}{anchor}</p>"


def _explanation_section(sentence: str, scores: Mapping[str, float]) -> str:
    if not sentence:
        return ""
    cells = {name: f"{score:.2f}" for name, score in scores.items() if np.isfinite(score)}
    scored = "; scores: balanced accuracy on text that it was not made from, 1 is perfect and 0.5 a guess"
    note = f"automatic{scored if cells else ', not scored'}"
    # Quoted tokens on their own: one letter of a script from right to left would turn its neighbourhood round.
    shown = re.sub(r"(&quot;.*?&quot;)", r"<bdi>\1</bdi>", escape(sentence))
    return _section("Explanation", note, f'<div class="sentence">{shown}</div>{_boxes(cells)}')


def _density_section(density: np.ndarray, feature: int) -> str:
    fires = density[density > 0]
    note = (f"the line: this feature, among the {len(fires):,} of {len(density):,} that fire in this sample; "
            f"{np.mean(fires < density[feature]) if len(fires) else 0:.0%} of them fire more rarely")  # fmt: skip
    return _section("Density", note, density_bars(density, feature))


def _stats(summary: FeatureSummary) -> str:
    if not summary.firings:
        return f"<p>This feature fires on none of the {summary.n_tokens:,} tokens: it is dead in this sample.</p>"
    cells = {"density": f"{summary.density:.3%}", "fires on": f"{summary.firings:,} of {summary.n_tokens:,} tokens",
             "maximum": f"{summary.maximum:.2f}", "top 20: same token": f"{summary.top_token_share:.0%}"}  # fmt: skip
    return _boxes(cells)


def _boxes(cells: Mapping[str, str]) -> str:
    boxes = "".join(f"<div><small>{escape(name)}</small><b>{value}</b></div>" for name, value in cells.items())
    return f'<div class="stats">{boxes}</div>' if boxes else ""


def _section(head: str, note: str, body: str) -> str:
    return f"<section><h2>{head}</h2><p>{note}</p>{body}</section>" if body else ""


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


def _table_section(
    head: str, note: str, frame: pd.DataFrame, value: str, link_to: Callable[[int], str | None] | None
) -> str:
    """Other features with a number each, linked to their pages where they have one."""
    names = [f"feature {feature}" for feature in frame["feature"]]
    pages = [link_to(int(feature)) if link_to else None for feature in frame["feature"]]
    cells = [html_link(page, name) if page else name for name, page in zip(names, pages, strict=True)]
    return _section(head, note, _rows(zip(cells, (f"{number:.3f}" for number in frame[value]), strict=True)))


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    """A two-column table of HTML that is already escaped; nothing if there are no rows."""
    rows = "".join(f'<tr><th scope="row">{left}</th><td>{right}</td></tr>' for left, right in pairs)
    return f"<table>{rows}</table>" if rows else ""


def _example_section(matrix: FeatureMatrix, summary: FeatureSummary, values: bool = False) -> str:
    column = matrix.column(summary.feature)
    body = "".join(example_html(matrix, column, row, values) for row in summary.examples["row"])
    return _section("Strongest texts", f"{WINDOW} tokens either side of the strongest one; one example a text", body)


def _quantile_section(
    matrix: FeatureMatrix, column: np.ndarray, groups: int = 5, each: int = 2, values: bool = True
) -> str:
    """Examples from top to bottom of the range: what a feature means at half strength is part of what it means."""
    order = np.argsort(-column, kind="stable")[: int((column > 0).sum())]
    if len(order) < 2 * groups:
        return ""
    parts = []
    for part in np.array_split(order, groups):
        chosen = part[np.linspace(0, len(part) - 1, each + 2).astype(int)[1:-1]]
        parts.append(f"<h3>{column[part[0]]:.2f} to {column[part[-1]]:.2f}</h3>")
        parts += [example_html(matrix, column, row, values) for row in dict.fromkeys(chosen)]
    note = f"the firings in {groups} groups of equal size, {each} from each"
    return _section("Across the range", note, "".join(parts))
