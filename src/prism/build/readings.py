"""Units read blind: windows for readers who do not know what they read, and what their readings are worth.

A *unit* is a feature of an SAE, a neuron, or a feature of the SAE of the model with random weights. Sheets of windows
are made here. A reader writes a reading for each unit, or 'no reading'. A scorer, who sees the readings and windows
from other documents, says where each unit fires. What comes of both is counted here again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from sae_lens import SAE
from scipy.sparse import csr_matrix
from scipy.stats import binomtest

from prism.build.cards import markdown_table, read_lines, write, write_lines
from prism.build.smollm2 import harvest_all, ordinary_rows
from prism.data import corpus_batch, load_corpus
from prism.features import FeatureMatrix, encode_activations
from prism.models import ModelSpec, load_model, random_model

KINDS = {  # kind -> SAE below `data/smollm2/saes`, what it is called
    "features": ("family/batch_topk", "features, family's batch_topk"),
    "neurons": ("15-mlp-post", "neurons of the same block"),
    "twin": ("family/random-model", "features, random twin"),
    "15-res": ("15-res", "features, 15-res"),
}
LEFT, RIGHT = 20, 6  # tokens of a window on either side
RIGHT_FROM = 8  # answers of ten that have to be right; who guesses which five fire reaches it in 26 of 252 cases


@dataclass(frozen=True)
class Sizes:
    """How much is read."""

    documents: int = 150  # for the reader, and as many others for the scorer
    units: int = 40  # of each kind
    top: int = 8  # windows that a reader sees from the top of the unit's range
    middle: int = 4  # and from its middle
    asked: int = 5  # windows of a quiz that fire, and as many that do not


def matrices(spec: ModelSpec, saes: Path, documents: int, seed: int = 0) -> tuple[dict[str, FeatureMatrix], object]:
    """Every kind's activations on the same documents of the model's own corpus, and the tokenizer.

    Neurons are kept as they are where they are above 0.
    """
    found, frame = {}, load_corpus(spec.corpus, 2 * documents, seed)
    for model, kinds in ((load_model(spec), set(KINDS) - {"twin"}), (random_model(spec), {"twin"})):
        loaded = {kind: SAE.load_from_disk(saes / KINDS[kind][0], dtype="float32").eval() for kind in sorted(kinds)}
        batch = corpus_batch(frame, model.tokenizer, spec.context)
        hooks = {sae.cfg.metadata.hook_name for sae in loaded.values()} | {"blocks.15.hook_resid_pre"}
        caught = harvest_all(model, batch, hooks)
        for kind, sae in loaded.items():
            x, table = ordinary_rows(caught, sae, batch, model.tokenizer)
            if kind == "neurons":
                found[kind] = FeatureMatrix(csr_matrix(x.float().clamp(min=0).numpy()), table)
            else:
                found[kind] = encode_activations(sae, x.float().split(8_192), table, np.ones(len(table), bool))
    return found, model.tokenizer


class Windows:
    """The windows of one kind's units."""

    def __init__(self, matrix: FeatureMatrix, tokenizer, documents: int) -> None:
        self.tokenizer, self.ids = tokenizer, matrix.table["token_id"].to_numpy()
        self.text, self.values = matrix.table["text"].to_numpy(), matrix.values.tocsc()
        self.held = self.text >= documents

    def _ranked(self, unit: int, held: bool) -> Int[np.ndarray, " tokens"]:
        """Where the unit fires in a half, strongest first."""
        part = slice(*self.values.indptr[unit : unit + 2])
        rows, value = self.values.indices[part], self.values.data[part]
        mine = self.held[rows] == held
        return rows[mine][np.argsort(-value[mine], kind="stable")]

    def _apart(self, rows: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " texts"]:
        """The first of them in each text."""
        return rows[np.sort(np.unique(self.text[rows], return_index=True)[1])]

    def firing(self, unit: int, held: bool) -> Int[np.ndarray, " texts"]:
        """Where the unit is strongest in each text of a half in which it fires, strongest first."""
        return self._apart(self._ranked(unit, held))

    def living(self, unit: int, n: int) -> bool:
        """Whether the unit fires in enough texts of either half, also in the middle of its range."""
        rng = np.random.default_rng(0)
        enough = (len(self.firing(unit, half)) >= 5 * n for half in (False, True))
        return all(enough) and all(len(self.middle(unit, half, rng, n)) == n for half in (False, True))

    def middle(self, unit: int, held: bool, rng: np.random.Generator, n: int) -> list[int]:
        """Firings from the middle fifth of the unit's range (by rank, in a half), of different texts."""
        rows = self._ranked(unit, held)
        return self._apart(rng.permutation(rows[int(0.4 * len(rows)) : int(0.6 * len(rows))]))[:n].tolist()

    def silent(self, unit: int, like: Sequence[int], rng: np.random.Generator, n: int) -> list[int]:
        """Held-out tokens on which the unit is silent; two of five are tokens that it fires on elsewhere."""
        quiet = self.held.copy()
        quiet[self.values.indices[slice(*self.values.indptr[unit : unit + 2])]] = False
        hard = np.flatnonzero(quiet & np.isin(self.ids, self.ids[list(like)]))
        hard = rng.permutation(hard)[: 2 * n // 5]
        others = np.setdiff1d(np.flatnonzero(quiet), hard)
        return [*hard.tolist(), *rng.choice(others, n - len(hard), replace=False).tolist()]

    def window(self, row: int) -> str:
        """The words around a token, which stands in «…», as whole characters."""
        first, end = np.searchsorted(self.text, self.text[row]), np.searchsorted(self.text, self.text[row], "right")
        low, high, a, b = max(first, row - LEFT), min(end, row + RIGHT + 1), row, row + 1
        read = lambda i, j: self.tokenizer.decode(self.ids[i:j].tolist())  # noqa: E731
        while a > low and read(a, b).startswith("�"):
            a -= 1
        while b < high and read(a, b).endswith("�"):
            b += 1
        whole = f"{read(low, a)}«{read(a, b)}»{read(b, high)}"
        return whole.replace("�", "…").replace("\n", "↵")


def sheets(
    found: Mapping[str, FeatureMatrix], tokenizer, sizes: Sizes, seed: int = 0
) -> tuple[list[dict], list[dict], dict[str, dict]]:
    """What a reader sees, what a scorer sees, and the key: all units mixed, under names that say nothing.

    Living units are drawn: those that fire in enough texts of either half for all their windows.
    """
    rng, units = np.random.default_rng(seed), []
    for kind, matrix in found.items():
        own = Windows(matrix, tokenizer, sizes.documents)
        order, chosen = rng.permutation(matrix.d_sae).tolist(), []
        while order and len(chosen) < sizes.units:
            unit = order.pop()
            if own.living(unit, sizes.asked):
                chosen.append((kind, unit, own))
        units += chosen
    read, quiz, key = [], [], {}
    for number, at in enumerate(rng.permutation(len(units)).tolist(), start=1):
        kind, unit, own = units[at]
        name, seen = f"unit {number}", own.firing(unit, False)[: sizes.top].tolist()
        middle = own.middle(unit, False, rng, sizes.middle)
        read.append({"id": name, "top": [*map(own.window, seen)], "middle": [*map(own.window, middle)]})
        key[name] = {"kind": kind, "unit": unit}
        for where, fires in (
            ("top", own.firing(unit, True)[: sizes.asked].tolist()),
            ("middle", own.middle(unit, True, rng, sizes.asked)),
        ):
            rows = [*fires, *own.silent(unit, fires, rng, sizes.asked)]
            order = rng.permutation(len(rows)).tolist()
            quiz.append({"id": name, "where": where, "windows": [own.window(rows[i]) for i in order]})
            key[name][where] = [i < len(fires) for i in order]
    return read, quiz, key


def scored(key: Mapping[str, dict], readings: Iterable[dict], answers: Iterable[dict]) -> pd.DataFrame:
    """One row a unit: kind, unit, reading, class ('context', 'token' or 'none'), and right answers at top and middle.

    Args:
        readings: id, reading, class; answers: id, where, and fires (a list of ten true or false).
    """
    said = {(one["id"], one["where"]): one["fires"] for one in answers}
    rows = []
    for one in readings:
        truth, row = key[one["id"]], {name: one[name] for name in ("id", "reading", "class")}
        for where in ("top", "middle"):
            given = said.get((one["id"], where))
            row[where] = np.nan if given is None else float(np.equal(given, truth[where]).sum())
        rows.append(row | {"kind": truth["kind"], "unit": truth["unit"]})
    return pd.DataFrame(rows)[["id", "kind", "unit", "reading", "class", "top", "middle"]]


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """By kind: shares of units named, named beyond one token, and named rightly at top and middle; 95 % intervals."""
    beyond, top, middle = table["class"] == "context", table["top"] >= RIGHT_FROM, table["middle"] >= RIGHT_FROM
    measures = {
        "named": table["class"] != "none",
        "beyond one token": beyond,
        "right at the top": top,
        "right in the middle": middle,
        "beyond one token, right at both": beyond & top & middle,
    }
    rows = []
    for kind in [kind for kind in KINDS if kind in set(table["kind"])]:
        mine, row = table["kind"] == kind, {"units": f"{KINDS[kind][1]} ({(table['kind'] == kind).sum()})"}
        for name, holds in measures.items():
            hits, n = int(holds[mine].sum()), int(mine.sum())
            low, high = binomtest(hits, n).proportion_ci(method="wilson")
            row[name] = f"{hits / n:.0%} [{low:.0%}, {high:.0%}]"
        for where in ("top", "middle"):
            row[f"answers right, {where}"] = f"{table.loc[mine, where].mean() / 10:.0%}"
        rows.append(row)
    return pd.DataFrame(rows)


def listing(table: pd.DataFrame) -> str:
    """Every unit with its reading and scores, kind by kind."""
    parts = []
    for kind in [kind for kind in KINDS if kind in set(table["kind"])]:
        mine = table[table["kind"] == kind].sort_values("unit")
        shown = mine[["unit"]].assign(reading=mine["reading"].str.replace("|", "\\|").replace("", "no reading"))
        shown["class"] = mine["class"]
        for where in ("top", "middle"):
            shown[where] = mine[where].map("{:.0f}/10".format).replace("nan/10", "–")
        parts.append(f"### {KINDS[kind][1].capitalize()}\n\n{markdown_table(shown)}")
    return "\n\n".join(parts)


def make(spec: ModelSpec, saes: Path, out: Path) -> None:
    """Write `read.jsonl` for the reader, `quiz.jsonl` for the scorer and `key.json`, which neither may see."""
    found, tokenizer = matrices(spec, saes, Sizes.documents)
    read, quiz, key = sheets(found, tokenizer, Sizes())
    for name, rows in (("read", read), ("quiz", quiz)):
        write_lines(out / f"{name}.jsonl", rows)
    write(out / "key.json", json.dumps(key, indent=1))


PAGE = """# What readers made of {n} units

What is a feature worth to somebody who reads it? These units of SmolLM2-135M-Instruct, block 15, were drawn by a fixed
seed among those that fire in enough texts, mixed, and read blind: the reader saw for each the eight windows in which it
is strongest and four from the middle of its range, from documents of the embedded corpus, and did not know what it was.
They wrote what the windows share, or 'no reading', and whether that is one token or spelling, or a context beyond it. A
second reader saw the readings and, for each, ten windows from other documents (five in which the unit fires, five in
which it is silent, two of those on a token that it fires on elsewhere) and said which five fire; once with firings from
the top of its range, once from its middle. *Right*: at least {right} of ten, which guessing reaches for 10 % of units.
Both readers were language models. Intervals: 95 % (Wilson). A neuron fires on about half of all tokens, so the
middle of its range is a weak activation; its negative half was not read.

{shares}

`python -m prism.build readings` makes the sheets and counts the answers; the readings stand in
[`data/smollm2/readings.csv`](../data/smollm2/readings.csv).

{listing}
"""


def report(work: Path, data: Path) -> None:
    """Count what readers and scorers wrote; into `smollm2/readings.csv` of the data, and `docs/features.md` beside it.

    Args:
        work: with `key.json`, and `readings.jsonl` and `answers.jsonl` as in `scored`.
    """
    key = json.loads((work / "key.json").read_text(encoding="utf-8"))
    table = scored(key, read_lines(work / "readings.jsonl"), read_lines(work / "answers.jsonl"))
    table = table.drop(columns="id").sort_values(["kind", "unit"])
    write(data / "smollm2" / "readings.csv", table.to_csv(index=False))
    words = {"n": len(table), "right": RIGHT_FROM, "shares": markdown_table(shares(table)), "listing": listing(table)}
    write(data.parent / "docs" / "features.md", PAGE.format(**words))
    print(shares(table).to_string(index=False))
