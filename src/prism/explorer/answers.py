"""What the explorers answer: a question's words and numbers in, HTML out; bad questions raise a sentence."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import numpy as np

from prism.data import whole_characters
from prism.explorer import markup
from prism.explorer.rows import listing, rows
from prism.explorer.search import by_category, categories, search
from prism.explorer.session import Explorer
from prism.explorer.steer import steer
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
ASK = {  # a way of searching -> what is asked for
    "number": "A feature's number",
    "category": "A kind of labelled texts, on most of which a feature fires, and on fewest of the others",
    "token": "A token, on which a feature fires and on little else",
    "concept": "Texts that share a concept, one a line",
}
SHADE = "Shade: how near a rare feature comes to its maximum in the sample."
PREPARED = "Examples, chosen by hand because they work; most others that we tried never fired in what was written:"
HELP = {  # a tab of the web page -> what it is for
    "sentence": "Type a sentence and read it; then choose a token to see its features, or a feature to read its page.",
    "feature": "One feature's page, with your last sentence above it; its links lead to the features near to it.",
    "search": "Find features by number, by category, by a token, or by texts of your own that share a concept.",
    "steer": "The model goes on from a prompt three times, on the same random draws: as it is, with a feature changed, "
    "and with a control of the same kind. At strength 1, as much is added as the feature's largest activation in the "
    "sample.",
    "compare": "What each SAE keeps of the same sentence, and which of its features are special to it.",
}


def read_text(explorer: Explorer, text: str, sae: str, order: str = "special", hide: bool = True) -> tuple[str, str]:
    """A text as shaded buttons, and its features in one of `rows.ORDERS`, those of one token hidden or not."""
    matrix = explorer.texts([text], sae)
    pieces = shaded(matrix.table["token"].tolist(), explorer.reading(sae).shares(matrix), 1.0)
    buttons = markup.fragment("tokens", pieces, sae, digest(text))
    some, rule = listing(explorer.reading(sae), matrix, None, order, hide, LISTED)
    return buttons + markup.sentence(SHADE), markup.fragment("rows", some, sae, "In this text", rule)


def digest(text: str) -> str:
    """A short name of a text, to tell a click on its tokens from one on the tokens of another."""
    return f"{zlib.crc32(text.encode()):08x}"


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
    some, rule = listing(explorer.reading(sae), matrix, part, order, hide, LISTED)
    return markup.fragment("rows", some, sae, f"On {place}, {marked(token)}", rule)


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
    """Three continuations side by side, shaded by the feature that was steered, each with what it costs."""
    if feature is None or seed is None:
        raise ValueError(f"There is no {'feature' if feature is None else 'seed'} yet: type a number.")
    runs = steer(explorer, prompt, int(feature), how, strength, int(n_tokens), temperature, int(seed), sae)
    reading = explorer.reading(sae)
    peak = float(reading.statistics.maxima[int(feature)])
    by = {"add": f": {strength:+g} × its maximum", "clamp": f": held at {strength:g} × its maximum"}.get(
        how, f": {how}"
    )
    three = [
        {
            "head": run.label + by * (place == 1),
            "label": reading.label(int(feature)) if place == 1 else {},
            "pieces": shaded(run.tokens, run.activations, peak),
            "cost": _cost(run.nats, runs[0].nats) if place else f"{run.nats:.2f} nats a token: the model's own text.",
        }
        for place, run in enumerate(runs)
    ]
    note = (
        f"Shade: feature {int(feature)} when the unchanged model reads the text, full at its maximum in the sample "
        f"({peak:.1f}). One draw of each is an example; phase 6a measures."
    )
    return markup.fragment("three", prompt, three) + markup.sentence(note)


def _cost(nats: float, own: float) -> str:
    """What a text costs the unchanged model, beside its own text, in words."""
    times = float(np.exp(abs(nats - own)))
    said = (
        "about as likely as in"
        if times < 1.1
        else f"{times:.1f} times {'less' if nats > own else 'more'} likely than in"
    )
    return f"Cost: {nats - own:+.2f} nats a token. To the unchanged model its tokens are {said} the model's own text."


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
        some, _ = listing(explorer.reading(name), explorer.texts([text], name), None, "special", True, 5)
        html += markup.fragment("rows", some, name, f"Special to the text: {name}", "", buttons)
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
