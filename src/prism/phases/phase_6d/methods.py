"""Phase 6d: the recorded descriptions with their judges' answers, which features are described, and their scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool
from scipy.stats import binomtest
from transformers.utils import logging as bars

from prism import autointerp as ai
from prism.analysis import confidence_interval
from prism.autointerp.examples import FIRING, SAME_TOKEN, SILENT
from prism.files import reading
from prism.manifest import intact
from prism.models import ModelSpec, SaeSpec

RECORDS, READINGS = "descriptions.jsonl", "readings.csv"  # beside the folder that holds the SAEs' folders
DESCRIBERS = {  # in the records -> in figures and tables
    "counted": "by counting",
    "model": "SmolLM2 itself",
    "label": "the label",
    "shuffled": "another feature's label",
}
KINDS = [FIRING, SILENT, SAME_TOKEN]  # of a quiz's windows
PIECE = "‹"  # opens a byte of a character that a token has only a piece of
COLUMNS = ["feature", "of", "sentence", "window", "kind", "reader", "model"]


def records(sae: SaeSpec) -> dict[int, dict]:
    """Feature -> what is recorded of it (`prism.build.descriptions`); empty for an SAE without records."""
    if sae.folder is None or not (path := sae.folder.parent.with_name(RECORDS)).is_file():
        return {}
    with reading(intact(path)):
        lines = path.read_text(encoding="utf-8").splitlines()
    return {row["feature"]: row for row in map(json.loads, lines) if row["sae"] == sae.name}


def shown(recorded: Mapping[int, dict], feature: int) -> str:
    """The windows of a feature that SmolLM2 was shown to describe it, a line each, as its recorded prompt has them."""
    prompt = recorded.get(feature, {}).get("prompt", "")
    return "\n".join(line for line in prompt.split("\n") if line.startswith("- ")) or "(nothing is recorded)"


def answers(recorded: Mapping[int, dict]) -> pd.DataFrame:
    """One row a window of a quiz.

    Returns:
        Columns feature, of (whose sentence), sentence, window, kind (`firing`, `silent`, `same token`), reader (whether
        the reader, a large model, says that the feature fires), and model (nats by which SmolLM2 finds *Yes* likelier
        than *No*; NaN where it was not asked).
    """
    rows = []
    for feature, record in recorded.items():
        for of, quiz in record["quizzes"].items():
            said = quiz["reader"], quiz.get("model", [np.nan] * len(quiz["reader"]))
            columns = zip(quiz["windows"], quiz["kinds"], *said, strict=True)
            rows += [(feature, DESCRIBERS[of], quiz["sentence"], *row) for row in columns]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"reader": bool, "model": float})


def judged(table: pd.DataFrame, said: str = "says") -> pd.DataFrame:
    """Detection by feature and describer, against silent windows and against those with the same token.

    Args:
        table: from `answers`, with a column of yes and no.
        said: its name.

    Returns:
        Columns feature, of, detection, detection_hard: balanced accuracies.
    """
    parts = []
    for (feature, of), quiz in table.groupby(["feature", "of"]):
        shares = quiz[said].astype(bool).groupby(quiz["kind"]).mean()
        right = {name: (shares["firing"] + 1 - shares[kind]) / 2 for name, kind in AGAINST.items()}
        parts.append({"feature": feature, "of": of, **right})
    found = pd.DataFrame(parts, columns=["feature", "of", *AGAINST])
    return found.set_index("of").loc[[of for of in DESCRIBERS.values() if of in set(found["of"])]].reset_index()


AGAINST = {"detection": "silent", "detection_hard": "same token"}


def interval(values: pd.Series, seed: int = 0) -> str:
    """A mean with its 95 % interval over features; a dash without at least two of them."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return "–"
    low, high = confidence_interval(values, seed=seed)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def readings(sae: SaeSpec) -> pd.DataFrame:
    """What readers made of units of the model and of one with random weights (docs/features.md); else empty."""
    path = sae.folder and sae.folder.parent.with_name(READINGS)
    if path is None or not path.is_file():
        return pd.DataFrame(columns=["kind", "unit", "reading", "class", "top", "middle"])
    return pd.read_csv(intact(path), keep_default_na=False, na_values={"top": "", "middle": ""})


def share(hits: int, of: int) -> str:
    """A share with its 95 % interval (Wilson).

    >>> share(12, 40)
    '30% [18%, 45%]'
    """
    if not of:
        return "–"
    low, high = binomtest(int(hits), int(of)).proportion_ci(method="wilson")
    return f"{hits / of:.0%} [{low:.0%}, {high:.0%}]"


def describer(spec: ModelSpec, tokenizer) -> Callable[[str], str] | None:
    """Who writes sentences: the model that the environment names, else this one if it follows instructions."""
    ask = ai.remote.model_from_environment()
    if ask is None and spec.folder and getattr(tokenizer, "chat_template", None):
        was_on = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()  # there is nothing to wait for
        ask = ai.LocalModel(spec.folder, tokens=32)
        if was_on:
            bars.enable_progress_bar()
    return ask


def opened(wanted: Sequence[int], units: Sequence[int]) -> list[int]:
    """As many features as are wanted: those themselves where they are among the units, else units in their order."""
    others = iter([unit for unit in units if unit not in wanted] + list(units) * len(wanted))
    return [unit if unit in units else next(others) for unit in wanted]


def above(*differences: pd.Series, seed: int = 0) -> bool | None:
    """Whether the 95 % interval of every mean lies above 0; None, undecided, where one has fewer than two values."""
    kept = [values.dropna().to_numpy(float) for values in differences]
    if any(len(values) < 2 for values in kept):
        return None
    return all(bool(confidence_interval(values, seed=seed)[0] > 0) for values in kept)


def units(recorded: Mapping[int, dict], n: int, explain: ai.Examples, held: ai.Examples, seed: int = 0) -> list[int]:
    """The first `n` recorded features, or, without records, `n` drawn at random; with windows enough in both parts.

    Raises:
        ValueError: fewer than two such features.
    """
    pool = list(recorded) or np.random.default_rng(seed).permutation(explain.matrix.d_sae).tolist()
    found: list[int] = []
    for unit in pool:
        if len(found) < n and explain.scorable(unit) and held.scorable(unit):
            found.append(unit)
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} features fire often and rarely enough to be scored; take more documents, or a smaller RADIUS"
        )
    return sorted(found)


def score_units(explanations: Mapping[int, ai.Explanation], examples: ai.Examples) -> pd.DataFrame:
    """Every unit under its own explanation, and under that of another which fires about as often; the rules judge.

    Args:
        explanations: unit -> its explanation, from other texts.
        examples: of held-out texts.

    Returns:
        One row a unit: unit, the columns of `autointerp.score`, and each of its scores as `shuffled_…`.

    Raises:
        ValueError: fewer than two units, or a unit without windows of a kind.
    """
    names = np.array(sorted(explanations), dtype=np.int64)
    partners = names[ai.density_partners(np.array([examples.fires(unit).mean() for unit in names]))]
    rows = []
    for unit, partner in zip(names.tolist(), partners.tolist(), strict=True):
        own, other = (ai.score(explanations[which], examples, unit) for which in (unit, partner))
        rows.append({"unit": unit, **own, **{f"shuffled_{name}": other[name] for name in ai.SCORES}})
    return pd.DataFrame(rows)


def yes_shares(table: pd.DataFrame, said: str = "reader") -> pd.DataFrame:
    """Describer by describer, how often a judge said that the feature fires, for windows of each kind.

    All quizzes are of one size, so that the share of windows is the mean over features.

    Args:
        table: from `answers`.
        said: the column of yes and no.

    Returns:
        One row a describer; columns firing (the share that is found), silent and same token (false alarms).
    """
    order = [of for of in DESCRIBERS.values() if of in set(table["of"])]
    shares = table.groupby(["of", "kind"])[said].mean().unstack("kind")
    return shares.reindex(index=order, columns=KINDS)


def fires_on(examples: ai.Examples, feature: int) -> dict[str, str]:
    """Window -> its middle token, of every window in whose middle a feature fires: what a quiz does not tell."""
    windows = examples.windows(feature, np.flatnonzero(examples.fires(feature)))
    return dict(zip(windows.texts(), map(ai.explainers.quoted, windows.tokens[:, windows.centre]), strict=True))


def middle_marked(windows, says: Bool[np.ndarray, " windows"], kind: str, n: int = 3) -> list[tuple[str, str, str]]:
    """Some windows of a kind as rows of a table: kind, text with its middle token in ⟦ ⟧, what is said of it.

    Windows with pieces of characters, which nobody can read, are left out where there are others.
    """
    middle, whole = windows.centre, [place for place, row in enumerate(windows.tokens) if PIECE not in "".join(row)]
    whole = np.array(whole or range(len(windows)))
    some = whole[np.unique(np.linspace(0, len(whole) - 1, n).astype(int))] if len(windows) else []
    rows = []
    for place in some:
        t = windows.tokens[place]
        text = "".join(t[:middle]) + f"⟦{t[middle]}⟧" + "".join(t[middle + 1 :])
        rows.append((kind, " ".join(text.split()), "fires" if says[place] else "silent"))
    return rows
