"""One feature as HTML: a short view and a whole page."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from IPython.display import HTML
from jaxtyping import Float

from prism.analysis.feature import FeatureSummary, co_active, decoder_neighbours, summarise_feature, top_logits
from prism.explorer.labels import Label
from prism.explorer.markup import render
from prism.features import FeatureMatrix
from prism.visualization.style import WINDOW, category_colours, category_title
from prism.visualization.tokens import example

BINS = 40  # of a histogram
LinkTo = Callable[[int], str | None]


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, a line below it, and data for the macro `kind` of `templates/sections.html`."""

    kind: str
    head: str
    note: str
    data: Collection

    @property
    def name(self) -> str:
        """What links to the section call it."""
        return re.sub(r"\W+", "-", self.head.lower())


def compose(
    template: str,
    head: str,
    above: Iterable[Section],
    panels: Iterable[Section],
    below: Iterable[Section],
    **values: object,
) -> str:
    """Sections under a heading, the panels side by side where there is room; those without data are left out.

    Args:
        template: `document.html`, a whole page, or `short.html`, a part of one.
        values: what else the template shows.
    """
    groups = {"above": above, "panels": panels, "below": below}
    groups = {name: [one for one in some if len(one.data)] for name, some in groups.items()}
    return render(template, head=head, **groups, **values)


def explore_feature(
    matrix: FeatureMatrix, feature: int, k: int = 10, name: str = "Feature", profile: bool = True, across: bool = False
) -> HTML:
    """One feature at a glance: density, maximum, category profile, and its strongest texts around their top token.

    Args:
        matrix: sparse features of many tokens.
        feature: column, 0 to d_sae − 1.
        k: texts shown.
        name: what a column of this matrix is called, such as 'Neuron'.
        profile: whether with the categories of texts on which it fires.
        across: instead of the strongest texts, one firing from each of `k` equally large groups, the strongest group
            first, where there are at least two for a group.

    Returns:
        An object that a notebook displays; `.data` holds the HTML.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary = summarise_feature(matrix, feature, k)
    strongest, whole_range = _strongest(matrix, summary), _across(matrix, matrix.column(summary.feature), k, 1, False)
    return HTML(
        compose(
            "short.html",
            f"{name} {summary.feature}",
            [_profile(summary)] if profile else [],
            [],
            [whole_range if across and whole_range.data else strongest],
            stats=_stats(summary),
            styles=["page.css"],
        )
    )


def feature_page(
    feature: int,
    matrix: FeatureMatrix,
    decoder: Float[np.ndarray, "d_sae d_in"] | None = None,
    unembed: Float[np.ndarray, "d_in d_vocab"] | None = None,
    vocabulary: Sequence[str] | None = None,
    title: str = "",
    link: str | None = None,
    k: int = 10,
    link_to: LinkTo | None = None,
    explanation: str = "",
    scores: Mapping[str, float] | None = None,
    index: str | None = None,
    hypothesis: Label | None = None,
) -> str:
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
        hypothesis: what somebody takes the feature to mean.

    Returns:
        A complete HTML document.

    Raises:
        IndexError: no such feature; the message names the range.
    """
    summary, column = summarise_feature(matrix, feature, k), matrix.column(feature)
    panels = [
        _activations(column),
        _density(matrix.density(), feature),
        _profile(summary),
        *_logits(decoder, unembed, vocabulary, feature, k),
        _together(matrix, feature, k, link_to),
    ]
    if decoder is not None:
        panels.append(
            _others(
                "Nearest directions",
                "cosine of the decoder rows",
                decoder_neighbours(decoder, feature, k),
                "cosine",
                link_to,
            )
        )
    elsewhere = link if link and link.lower().startswith(("https://", "http://")) else None
    return compose(
        "document.html",
        f"Feature {feature}",
        [_hypothesis(hypothesis), _explanation(explanation, scores), _strongest(matrix, summary, listed=True)],
        panels,
        [_across(matrix, column)],
        about=title,
        elsewhere=elsewhere,
        index=index,
        stats=_stats(summary),
        styles=["page.css", "document.css"],
    )


def _stats(summary: FeatureSummary) -> dict[str, str] | str:
    if not summary.firings:
        return f"This feature fires on none of the {summary.n_tokens:,} tokens: it is dead in this sample."
    return {
        "density": f"{summary.density:.3%}",
        "fires on": f"{summary.firings:,} of {summary.n_tokens:,} tokens",
        "maximum": f"{summary.maximum:.2f}",
        f"top {min(summary.firings, 20)}: same token": f"{summary.top_token_share:.0%}",
    }


def _hypothesis(label: Label | None) -> Section:
    data = {"label": label.label, "refuted_by": label.refuted_by} if label else {}
    return Section("hypothesis", "Hypothesis", f"by {label.author}, {label.date}" if label else "", data)


def _explanation(sentence: str, scores: Mapping[str, float] | None) -> Section:
    shown = {name: f"{score:.2f}" for name, score in (scores or {}).items() if np.isfinite(score)}
    scored = "; scores: balanced accuracy on text that it was not made from, 1 is perfect and 0.5 a guess"
    unscored = ", not scored: it fires in too few places of these texts, or in too many"
    parts = re.split('(".*?")', sentence)  # every second one is a quoted token
    data = {"parts": parts, "scores": shown} if sentence else {}
    return Section("explanation", "Explanation", f"automatic{scored if shown else unscored}", data)


def _activations(column: Float[np.ndarray, " tokens"]) -> Section:
    """How strongly a unit fires where it does: a histogram from 0 to its maximum."""
    active, data = column[column > 0], {}
    if active.size:
        label = (
            f"Histogram of {len(active):,} activations from 0 to {active.max():.2f}; half of them are below "
            f"{np.median(active):.2f}"
        )
        counts, edges = np.histogram(active, BINS, range=(0, float(active.max())))
        data = _bars(counts, [f"{edge:.2f}" for edge in edges], "tokens", label)
        data["ends"] = "0", "activation", f"{active.max():.2f}"
    return Section("bars", "Activations", "how strongly it fires, where it does", data)


def _density(density: Float[np.ndarray, " d_sae"], feature: int) -> Section:
    """One feature's density, as a line, among those of all features that fire (logarithmic)."""
    fires, data = density[density > 0], {}
    note = (
        f"the line: this feature, among the {len(fires):,} of {len(density):,} that fire in this sample; "
        f"{np.mean(fires < density[feature]) if len(fires) else 0:.0%} of them fire more rarely"
    )
    if density[feature] > 0:
        logs = np.log10(fires)
        low, high = float(logs.min()), max(float(logs.max()), float(logs.min()) + 1e-6)
        counts, edges = np.histogram(logs, BINS, range=(low, high))
        shares = [f"{10**edge:.3%}" for edge in edges]
        label = (
            f"Histogram of the densities of {len(logs):,} features from {shares[0]} to {shares[-1]}; this one: "
            f"{density[feature]:.3%}"
        )
        data = _bars(counts, shares, "features", label)
        data["mark"] = f"{(float(np.log10(density[feature])) - low) / (high - low) * (BINS - 0.3):.2f}"
        data["ends"] = shares[0], "share of tokens, logarithmic", shares[-1]
    return Section("bars", "Density", note, data)


def _bars(counts: np.ndarray, edges: list[str], what: str, label: str) -> dict[str, object]:
    """A histogram; of each bar that is there the place, the top and the height in %, and what hovering shows."""
    bars = [
        (i, f"{100 - height:.1f}", f"{height:.1f}", f"{edges[i]} to {edges[i + 1]}: {counts[i]:,} {what}")
        for i, height in enumerate(100 * counts / counts.max())
        if height
    ]
    return {"bars": bars, "bins": len(counts), "label": label, "mark": ""}


def _profile(summary: FeatureSummary) -> Section:
    colours = category_colours(summary.categories["category"])
    data = [
        (
            category_title(row.category),
            f"{100 * row.share_firing:.0f}%",
            colours[row.category],
            f"{row.share_firing:.0%} · {row.mean_max:.2f}",
        )
        for row in summary.categories.itertuples()
        if summary.firings
    ]
    return Section("categories", "Categories", "share of texts on which it fires · mean of the texts' maxima", data)


def _logits(decoder, unembed, vocabulary, feature: int, k: int) -> list[Section]:
    if decoder is None or unembed is None or vocabulary is None:
        return []
    logits = top_logits(decoder[feature], unembed, vocabulary, k)
    heads, note = {"top": "towards", "bottom": "away from"}, "direct effect on the next token, relative to the mean"
    return [
        Section(
            "rows",
            f"Writes {head}",
            note,
            [
                {"token": row.token, "number": f"{row.logit:+.2f}"}
                for row in logits[logits["side"] == side].itertuples()
            ],
        )
        for side, head in heads.items()
    ]


def _together(matrix: FeatureMatrix, feature: int, k: int, link_to: LinkTo | None = None) -> Section:
    note = "share of tokens with either feature that have both (Jaccard)"
    return _others("Fires together with", note, co_active(matrix, feature, k), "jaccard", link_to)


def _others(head: str, note: str, frame: pd.DataFrame, value: str, link_to: LinkTo | None) -> Section:
    """Other features with a number each, linked to their pages where they have one."""
    link_to = link_to or (lambda feature: None)
    data = [
        {"name": f"feature {feature}", "number": f"{number:.3f}", "page": link_to(int(feature))}
        for feature, number in zip(frame["feature"], frame[value], strict=True)
    ]
    return Section("rows", head, note, data)


def _strongest(matrix: FeatureMatrix, summary: FeatureSummary, listed: bool = False) -> Section:
    column = matrix.column(summary.feature)
    examples = [example(matrix, column, row, listed) for row in summary.examples["row"]]
    note = f"{WINDOW} tokens either side of the strongest one; one example a text"
    return Section("examples", "Strongest texts", note, [("", examples)] if examples else [])


def _across(
    matrix: FeatureMatrix, column: Float[np.ndarray, " tokens"], groups: int = 5, each: int = 2, listed: bool = True
) -> Section:
    """Examples from top to bottom of the range: what a feature means at half strength is part of what it means."""
    order, data = np.argsort(-column, kind="stable")[: int((column > 0).sum())], []
    for part in np.array_split(order, groups) if len(order) >= 2 * groups else ():
        chosen = dict.fromkeys(part[np.linspace(0, len(part) - 1, each + 2).astype(int)[1:-1]])
        data.append(
            (
                f"{column[part[0]]:.2f} to {column[part[-1]]:.2f}",
                [example(matrix, column, row, listed) for row in chosen],
            )
        )
    note = f"the firings in {groups} groups of equal size, {each} from each"
    return Section("examples", "Across the range", note, data)
