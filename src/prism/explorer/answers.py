"""What the explorers answer: a question's words and numbers in, HTML out; bad questions raise a sentence."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from prism.data import whole_characters
from prism.explorer import markup
from prism.explorer.rows import ordered, rows
from prism.explorer.search import by_category, categories, search
from prism.explorer.session import Explorer, Reading
from prism.explorer.steer import steer
from prism.features import FeatureMatrix
from prism.visualization.tokens import marked, shaded

SENTENCE = "The judge said that the children may keep the dog, and they laughed all the way home."
PROMPT = "Once upon a time, there was"
LISTED = 8  # features shown of a token or a text
EXAMPLES = {  # a question for each way of searching, right for every model
    "number": "12",
    "category": "Python code",
    "token": "because",
    "concept": "This court shall hear the appeal.\nA lawyer signed the contract.\nUnder this law, tenants shall pay.",
}
ONE_A_LINE = "Texts that share a concept, one a line"
HELP = {  # a tab of the web page -> what it is for
    "sentence": "Type a sentence and read it; then choose a token to see its features, or a feature to read its page.",
    "feature": "One feature's page, with your last sentence above it; its links lead to the features near to it.",
    "search": "Find features by number, by category, by a token, or by texts of your own that share a concept.",
    "steer": "The model goes on from a prompt three times on the same random draws: as it is, with a feature changed, "
    "and with a control of the same kind.",
    "compare": "What each SAE keeps of the same sentence, and which of its features are special to it.",
}


def read_text(explorer: Explorer, text: str, sae: str, order: str = "special", hide: bool = True) -> tuple[str, str]:
    """A text as shaded buttons, and its features in one of `rows.ORDERS`, those of one token hidden or not."""
    matrix = explorer.texts([text], sae)
    pieces = shaded(matrix.table["token"].tolist(), _shares(explorer.reading(sae), matrix), 1.0)
    buttons = markup.fragment("tokens", pieces, sae, digest(text))
    note = "Shade: how near a rare feature comes to its maximum in the sample."
    return buttons + markup.sentence(note), _firing(explorer, matrix, sae, "In this text", order, hide)


def digest(text: str) -> str:
    """A short name of a text, to tell a click on its tokens from one on the tokens of another."""
    return f"{zlib.crc32(text.encode()):08x}"


def _firing(
    explorer: Explorer,
    matrix: FeatureMatrix,
    sae: str,
    title: str,
    order: str = "special",
    hide: bool = True,
    where: slice | None = None,
    k: int = LISTED,
    buttons: bool = True,
) -> str:
    """A row for each feature that fires in a text or on tokens of it, under a title and the rule of their order."""
    reading = explorer.reading(sae)
    found, rule = ordered(reading, reading.firing(matrix, where), order, hide)
    return markup.fragment("rows", rows(reading, found.head(k)), sae, title, rule, buttons)


def _shares(reading: Reading, matrix: FeatureMatrix) -> Float[np.ndarray, " tokens"]:
    """For each token, the largest share of its maximum in the sample that a rare feature reaches."""
    active, shares = matrix.values.tocoo(), np.zeros(matrix.n_tokens, np.float32)
    row, column = active.coords
    peaks = reading.statistics.maxima[column]
    counts = (peaks > 0) & reading.rare[column]
    np.maximum.at(shares, row[counts], active.data[counts] / peaks[counts])
    return np.minimum(shares, 1)


def read_token(explorer: Explorer, text: str, row: int, sae: str, order: str = "special", hide: bool = True) -> str:
    """The features of one token, or of the character that it begins, as `read_text` has a text's.

    Raises:
        IndexError: no such token.
    """
    matrix = explorer.texts([text], sae)
    pieces = {part.start: (token, part) for token, part in whole_characters(matrix.table["token"].tolist())}
    if row not in pieces:
        raise IndexError(f"No token or character begins at {row}; choose from {', '.join(map(str, pieces))}.")
    token, part = pieces[row]
    place = f"token {row + 1}" if part.stop == row + 1 else f"tokens {row + 1} to {part.stop}"
    return _firing(explorer, matrix, sae, f"On {place}, {marked(token)}", order, hide, part)


def read_feature(explorer: Explorer, feature: int | None, sae: str, text: str = "") -> str:
    """A feature's page, under the reader's text shaded by it."""
    if feature is None:
        raise ValueError("There is no number yet: type a feature's.")
    feature, link = int(feature), f"/?sae={quote(sae)}&feature="
    page = explorer.page(feature, sae, link_to=lambda other: f"{link}{other}")
    own, peak = "", float(explorer.reading(sae).statistics.maxima[feature])
    if text.strip():
        matrix = explorer.texts([text], sae)
        column, tokens = matrix.column(feature), matrix.table["token"].astype(str).tolist()
        title = f"Your sentence: {f'largest activation {column.max():.2f}' if column.any() else 'silent'}"
        own = markup.fragment("own", shaded(tokens, column, peak), title)
    return own + markup.frame(page, f"Feature {feature} of {sae}")


def search_features(explorer: Explorer, way: str, query: str, sae: str) -> str:
    """The table of what a search found, under its note: what the measures mean, and what chance reaches."""
    found = search(explorer, way, query, sae)
    note = found.note[:1].upper() + found.note[1:] + "."
    return markup.fragment("rows", rows(explorer.reading(sae), found.table), sae, "", note)


def write(
    explorer: Explorer,
    prompt: str,
    feature: int | None,
    how: str,
    strength: float,
    n_tokens: int,
    temperature: float,
    seed: int | None,
    sae: str,
) -> str:
    """Three continuations side by side, shaded by the feature that was steered."""
    if feature is None or seed is None:
        raise ValueError(f"There is no {'feature' if feature is None else 'seed'} yet: type a number.")
    runs = steer(explorer, prompt, int(feature), how, strength, int(n_tokens), temperature, int(seed), sae)
    peak = float(explorer.reading(sae).statistics.maxima[int(feature)])
    three = [
        {
            "label": run.label,
            "shaded": shaded(run.tokens, run.activations, peak),
            "nats": f"{run.nats:.2f} nats a token under the unchanged model",
        }
        for run in runs
    ]
    note = (
        f"Shade: feature {int(feature)} when the unchanged model reads the text, full at its maximum in the "
        f"sample ({peak:.2f}). More nats: less like what the model would write. One draw each is an example, no "
        "measurement."
    )
    return markup.fragment("three", three) + markup.sentence(note)


def compare(explorer: Explorer, text: str, names: Sequence[str], buttons: bool = True) -> Iterator[str]:
    """What each SAE keeps of a text, then, one SAE after another, the features that are special to it.

    Args:
        buttons: features are buttons that open their pages; else plain numbers.
    """
    measures = explorer.compare(text, names)
    note = (
        "Nats lost: how much worse the model predicts the text from the SAE's reconstruction than from the "
        "activation itself; beside it, from the activation's mean. One text is few tokens: phase 3 compares on "
        "many."
    )
    html = markup.table(measures, note)
    for name in measures["sae"]:
        yield html + markup.sentence(f"Reading the sample with {name} …")
        title, matrix = f"Special to the text: {name}", explorer.texts([text], name)
        html += _firing(explorer, matrix, name, title, k=5, buttons=buttons)
    yield html


def about(explorer: Explorer, sae: str) -> str:
    """One line about an SAE; loads it."""
    reading = explorer.reading(sae)
    return markup.sentence(f"{reading.dictionary.title} · a sample of {reading.matrix.n_tokens:,} tokens")


def example_feature(explorer: Explorer, sae: str | None = None) -> int:
    """A feature to begin with: the best specialist of the last category, else the most frequent feature."""
    reading = explorer.reading(sae)
    try:
        return int(by_category(reading, list(categories(reading))[-1], 1).table["feature"].iloc[0])
    except (ValueError, IndexError):  # no such feature, or no labelled texts
        return int(reading.statistics.counts.argmax())
