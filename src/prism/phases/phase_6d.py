"""Phase 6d, descriptions that are tested: the recorded ones with their judges' answers, scores, a figure, exercises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool
from plotly.subplots import make_subplots

from prism import autointerp as ai
from prism.analysis import confidence_interval
from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.files import reading
from prism.manifest import intact
from prism.models import SaeSpec
from prism.visualization.style import BLUE, GREY, INK, ORANGE, PURPLE, finish

RECORDS, READINGS = "descriptions.jsonl", "readings.csv"  # beside the folder that holds the SAEs' folders
DESCRIBERS = {  # in the records -> in figures and tables
    "counted": "by counting",
    "model": "SmolLM2 itself",
    "label": "a reader's label",
    "shuffled": "another feature's label",
}
COLOURS = dict(zip(DESCRIBERS.values(), (ORANGE, BLUE, PURPLE, GREY), strict=True))
COLUMNS = ["feature", "of", "sentence", "window", "kind", "reader", "model"]


def records(sae: SaeSpec) -> dict[int, dict]:
    """Feature -> what is recorded of it (`prism.build.descriptions`); empty for an SAE without records."""
    if sae.folder is None or not (path := sae.folder.parent.with_name(RECORDS)).is_file():
        return {}
    with reading(intact(path)):
        lines = path.read_text(encoding="utf-8").splitlines()
    return {row["feature"]: row for row in map(json.loads, lines) if row["sae"] == sae.name}


def answers(recorded: Mapping[int, dict]) -> pd.DataFrame:
    """One row a window of a quiz.

    Returns:
        Columns feature, of (whose sentence), sentence, window, kind (`firing`, `silent`, `same token`), reader (whether
        the reader says that the feature fires), and model (nats by which SmolLM2 finds *Yes* likelier than *No*; NaN
        where it was not asked).
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
    """What readers made of units of the model and of its random twin (docs/features.md); empty without such a file."""
    path = sae.folder and sae.folder.parent.with_name(READINGS)
    if path is None or not path.is_file():
        return pd.DataFrame(columns=["kind", "unit", "reading", "class", "top", "middle"])
    return pd.read_csv(intact(path))


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


def middle_marked(windows, says: Bool[np.ndarray, " windows"], kind: str, n: int = 3) -> list[tuple[str, str, str]]:
    """Some windows of a kind as rows of a table: kind, text with its middle token in ⟦ ⟧, what is said of it."""
    middle, some = windows.centre, np.unique(np.linspace(0, len(windows) - 1, n).astype(int)) if len(windows) else []
    rows = []
    for place in some:
        t = windows.tokens[place]
        text = "".join(t[:middle]) + f"⟦{t[middle]}⟧" + "".join(t[middle + 1 :])
        rows.append((kind, " ".join(text.split()), "fires" if says[place] else "silent"))
    return rows


def describers_figure(table: pd.DataFrame, title: str, seed: int = 0) -> go.Figure:
    """Detection of every feature as a dot, describer by describer, with the mean and its 95 % interval.

    Args:
        table: from `judged`.
        title: the figure's title.
        seed: of the dots' places across, and of the intervals.
    """
    names = list(dict.fromkeys(table["of"]))
    panels = {"detection": "beside random silent windows", "detection_hard": "beside the same token, silent"}
    fig = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(panels.values()), horizontal_spacing=0.04)
    fig.update_annotations(font=dict(size=14, color=INK))
    rng = np.random.default_rng(seed)
    for column, score in enumerate(panels, start=1):
        for place, name in enumerate(names):
            values = table.loc[table["of"] == name, score].to_numpy(float)
            across = place + rng.uniform(-0.22, 0.22, len(values))
            dots = dict(size=7, color=COLOURS[name], opacity=0.45)
            text = table.loc[table["of"] == name, "feature"].astype(str)
            fig.add_scatter(
                x=across, y=values, mode="markers", marker=dots, text=text, hovertemplate="feature %{text}: %{y:.2f}"
            )
            low, high = confidence_interval(values, seed=seed) if len(values) > 1 else (values.mean(),) * 2
            bar = dict(
                type="data", array=[high - values.mean()], arrayminus=[values.mean() - low], width=8, thickness=2.5
            )
            mean = dict(size=12, color=INK, symbol="line-ew-open", line=dict(width=3))
            fig.add_scatter(x=[place], y=[values.mean()], error_y=bar, mode="markers", marker=mean)
            for trace in fig.data[-2:]:
                trace.update(xaxis=f"x{column}" if column > 1 else "x", yaxis=f"y{column}" if column > 1 else "y")
        fig.add_hline(0.5, line=dict(color=INK, dash="dot", width=1.5), row=1, col=column)
    ticks = [name.replace(" ", "<br>", 1) for name in names]
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False, ticks="")
    fig.update_yaxes(range=[-0.03, 1.03], dtick=0.25)
    fig.update_yaxes(title="detection (balanced accuracy)", col=1)
    return finish(fig, title, 470, "a dot: a feature; bars: mean, 95 %; dotted: 'always no'", showlegend=False)


# --- exercises -------------------------------------------------------------------------------------------------------


def balanced(said: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the share of true cases found and the share of false cases left alone."""
    said, truth = np.asarray(said, dtype=bool), np.asarray(truth, dtype=bool)
    return (said[truth].mean() + (~said[~truth]).mean()) / 2


def check_balanced(answer: Callable) -> Callable:
    """Check exercise 1."""
    rng = np.random.default_rng(0)
    truth = np.arange(14) < 4
    cases = [(rng.random(14) < 0.4, truth), (np.zeros(14, bool), truth), (rng.random(30) < 0.5, rng.random(30) < 0.2)]
    mistakes = {
        "That is plain accuracy; take each kind's share by itself, then their mean.": lambda s, t: (s == t).mean(),
        "You took the share of true cases found; the false ones that are left alone count as much.": (
            lambda s, t: s[t].mean()
        ),
        "The second share is of false cases that are *left alone*, not of those that are called true.": (
            lambda s, t: (s[t].mean() + s[~t].mean()) / 2
        ),
        "Divide the sum of both shares by 2.": lambda s, t: s[t].mean() + (~s[~t]).mean(),
        "You averaged over the answers (precision); average over the true cases and over the false ones.": (
            lambda s, t: (t[s].mean() + (~t[~s]).mean()) / 2 if s.any() and not s.all() else (~t).mean() / 2
        ),
    }
    return check(answer, balanced, cases, mistakes)


def hard_negatives(fires: np.ndarray, ids: np.ndarray, row: int, radius: int) -> np.ndarray:
    """Rows with the same token as `row` around which the unit is silent."""
    fires, ids = np.asarray(fires, dtype=bool), np.asarray(ids)
    quiet = [not fires[max(0, i - radius) : i + radius + 1].any() for i in range(len(ids))]
    return np.flatnonzero((ids == ids[row]) & np.array(quiet))


def check_hard_negatives(answer: Callable) -> Callable:
    """Check exercise 2."""
    places = np.arange(24)
    ids = np.where(places % 5 == 1, 7, places % 3)  # the token 7 stands at 1, 6, 11, 16 and 21
    fires, other = np.isin(places, [1, 5, 13, 17]), np.isin(places, [6, 12])

    def quiet(f: np.ndarray, r: int) -> np.ndarray:
        return np.array([not f[max(0, i - r) : i + r + 1].any() for i in range(len(f))])

    mistakes = {
        "The unit must be silent in the whole window, not on the middle token alone.": (
            lambda f, i, row, r: np.flatnonzero((i == i[row]) & ~f)
        ),
        "You forgot that the token must be the same.": lambda f, i, row, r: np.flatnonzero(quiet(f, r)),
        "You returned True and False; return the rows.": lambda f, i, row, r: (i == i[row]) & quiet(f, r),
        "The window reaches `radius` tokens to the right as well.": (
            lambda f, i, row, r: np.flatnonzero(
                (i == i[row]) & np.array([not f[max(0, j - r) : j + 1].any() for j in range(len(f))])
            )
        ),
        "Python's slice leaves out its end: the window goes to i + radius + 1.": (
            lambda f, i, row, r: np.flatnonzero(
                (i == i[row]) & np.array([not f[max(0, j - r) : j + r].any() for j in range(len(f))])
            )
        ),
    }
    return check(answer, hard_negatives, [(fires, ids, 1, 2), (fires, ids, 1, 1), (other, ids, 6, 3)], mistakes)


def read_list(answer: str, n: int) -> np.ndarray:
    """Exactly `n` zeros and ones in one pair of brackets; −1 everywhere for any other answer."""
    lists = re.findall(r"\[([^\[\]]*)\]", answer)
    items = [item.strip() for item in lists[0].split(",")] if len(lists) == 1 else []
    readable = len(items) == n and set(items) <= {"0", "1"}
    return np.array([int(item) for item in items]) if readable else np.full(n, -1)


def check_read_list(answer: Callable) -> Callable:
    """Check exercise 4."""

    def digits(text: str, n: int) -> np.ndarray:
        return np.array([int(c) for c in text if c in "01"][:n])

    def lenient(text: str, n: int, keep: Callable, fill: bool = False) -> np.ndarray:
        lists = re.findall(r"\[([^\[\]]*)\]", text)
        items = [item.strip() for item in (lists[-1].split(",") if lists else [])]
        numbers = [int(item) for item in items if item.lstrip("-").isdigit()]
        numbers = [*numbers, *[0] * (n - len(numbers))][:n] if fill else numbers
        return np.array(numbers) if keep(lists, items, numbers) else np.full(n, -1)

    cases = [
        ("I give 1 to the first text and 0 to the rest", 3),
        ("The answer is [1, 0, 1].", 3),
        ("[1, 0]", 3),
        ("[1, 2, 0]", 3),
        ("[1, 0, 1] or [0, 0, 1]", 3),
        ("[yes, no, 1]", 3),
        ("[]", 3),
    ]
    mistakes = {
        "A list of another length is not an answer: give −1 everywhere, do not fill it up.": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and set(x) <= {0, 1}, fill=True)
        ),
        "A list of another length is not an answer: give −1 `n` times.": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and set(x) <= {0, 1})
        ),
        "Only 0 and 1 are answers; what would 2 mean?": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(lists) == 1 and len(x) == n)
        ),
        "Two lists contradict each other: which one did you believe?": (
            lambda t, n: lenient(t, n, lambda lists, items, x: len(items) == n and set(items) <= {"0", "1"})
        ),
        "You took digits from anywhere in the answer; only a list in brackets counts.": digits,
    }
    return check(answer, read_list, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("6d", fire, silent, activation)
