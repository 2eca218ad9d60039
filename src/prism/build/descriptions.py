"""Recorded descriptions of features, and what two judges made of them: `data/smollm2/descriptions.jsonl`.

For labelled features of `15-res`, drawn by a seed: what SmolLM2-Instruct writes when it sees windows of its own
(greedily; the prompt is kept), the sentence that counting gives, and quizzes. A quiz is a sentence and twelve windows
of other documents: six in which the feature fires, three in which it is silent, and three in which it is silent around
a token that it fires on elsewhere. One judge is SmolLM2-Instruct: is *Yes* or *No* the likelier next token? The other
is a reader, a large language model that has seen no labels, gets `quizzes.jsonl`, sentences and windows and nothing
else, and writes `answers.jsonl`: id, and fires, the numbers (from 1) of the windows in which a feature so described
would fire.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import load_npz, save_npz

from prism import autointerp as ai
from prism.build.cards import read_lines, write_lines
from prism.data import corpus_batch, corpus_documents, held_out_documents, token_table, training_documents
from prism.explorer.labels import read_labels
from prism.features import FeatureMatrix, encode_features
from prism.models import ModelSpec, load_model, load_sae

KINDS = ("counted", "model", "label", "shuffled")  # whose sentence a quiz shows; the last, another feature's label
OWN_JUDGE = ("model", "label")  # what SmolLM2-Instruct is asked to judge
ASK = (
    "Here is a description of some words: {sentence}\n"
    "Answer yes if the text holds such a word, and no if it does not.\n"
    "Text: "
)


@dataclass(frozen=True)
class Sizes:
    """How much is described and judged."""

    explain: int = 90  # documents that sentences are made from
    score: int = 80  # documents that quizzes are made from
    features: int = 20
    firing: int = 6  # windows of a quiz in which the feature fires
    silent: int = 3  # and in which it does not
    same: int = 3  # around a token that it fires on in that quiz or elsewhere


class Build:
    """The steps; each goes on from what lies in `work`."""

    def __init__(self, spec: ModelSpec, work: Path, sizes: Sizes | None = None, seed: int = 0) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.spec, self.work, self.sizes, self.seed = spec, work, sizes or Sizes(), seed
        self.sae = spec.sae("15-res")
        matrix, held = self._matrix()
        self.explain = ai.Examples(matrix.select(~held), sizes=ai.Sizes(firing=40, silent=40), seed=seed)
        self.held = ai.Examples(matrix.select(held), seed=seed)
        self.labels = read_labels(self.sae, matrix.d_sae)

    def _matrix(self) -> tuple[FeatureMatrix, np.ndarray]:
        """Features of the documents, and which tokens are those of the quizzes; harvested once."""
        values, table = self.work / "values.npz", self.work / "table.parquet"
        if not (values.is_file() and table.is_file()):
            sae = load_sae(self.spec, self.sae.name)
            model = load_model(self.spec, sae)
            parts = (training_documents, "explain", self.sizes.explain), (held_out_documents, "score", self.sizes.score)
            frame = pd.concat([draw(self.spec.corpus).head(n).assign(part=part) for draw, part, n in parts])
            frame = corpus_documents(frame, model.tokenizer, self.spec.context)
            batch = corpus_batch(frame, model.tokenizer, self.spec.context)
            matrix = encode_features(model, sae, batch, token_table(batch, model.tokenizer, frame["part"]))
            matrix.table.to_parquet(table)
            save_npz(values, matrix.values)
        matrix = FeatureMatrix(load_npz(values).tocsr(), pd.read_parquet(table))
        return matrix, (matrix.table["category"] == "score").to_numpy()

    def features(self) -> list[int]:
        """Labelled features with windows enough for all their quizzes, drawn by the seed."""
        n, size = len(KINDS), self.sizes
        enough = {"firing": n * size.firing, "silent": n * size.silent, "same token": n * size.same}
        fit = [
            feature
            for feature in self.labels
            if self.explain.scorable(feature)
            and all((self.held.draw(feature)["kind"] == kind).sum() >= least for kind, least in enough.items())
        ]
        return sorted(np.random.default_rng(self.seed).permutation(fit)[: size.features].tolist())

    def sentences(self) -> dict[int, dict[str, str]]:
        """Feature -> the prompt, and the sentence of each kind; the model is asked what it was not asked yet."""
        path, features = self.work / "described.jsonl", self.features()
        told = {row["feature"]: row for row in read_lines(path)}
        model = None if set(features) <= set(told) else ai.LocalModel(self.spec.folder, tokens=32)
        for feature in [feature for feature in features if feature not in told]:
            prompt = ai.explain_prompt(ai.windows_to_explain(self.explain, feature))
            told[feature] = {"feature": feature, "prompt": prompt, "answer": model(prompt)}
            _append(path, told[feature])
        counter = ai.TokenStatistics(self.explain)
        partner = np.array(features)[ai.density_partners(self.held.matrix.density()[features])]
        return {
            feature: {
                "prompt": told[feature]["prompt"],
                "counted": counter.explain(feature).brief(),
                "model": ai.parse_sentence(told[feature]["answer"]),
                "label": self.labels[feature].label,
                "shuffled": self.labels[int(other)].label,
            }
            for feature, other in zip(features, partner, strict=True)
        }

    def quizzes(self) -> list[dict]:
        """All quizzes, in an order that says nothing; no window stands in two quizzes of a feature."""
        found, size = [], self.sizes
        for feature, sentence in self.sentences().items():
            rng = np.random.default_rng((self.seed, feature))
            drawn = self.held.draw(feature)
            rows = {kind: rng.permutation(part["row"].to_numpy()) for kind, part in drawn.groupby("kind")}
            for place, kind in enumerate(KINDS):
                take = (("firing", size.firing), ("silent", size.silent), ("same token", size.same))
                part = pd.DataFrame(
                    [(what, row) for what, n in take for row in rows[what][place * n : place * n + n]],
                    columns=["kind", "row"],
                ).sample(frac=1, random_state=rng.integers(2**31))
                texts = self.held.windows(feature, part["row"].to_numpy()).texts()
                quiz = {"feature": feature, "of": kind, "sentence": sentence[kind], "windows": texts}
                found.append(quiz | {"kinds": part["kind"].tolist()})
        order = np.random.default_rng(self.seed).permutation(len(found)).tolist()
        return [{"id": number, **found[place]} for number, place in enumerate(order, start=1)]

    def judge(self, quizzes: list[dict]) -> dict[int, list[bool]]:
        """Quiz -> for each window whether SmolLM2-Instruct says yes."""
        path = self.work / "judged.jsonl"
        said = {row["id"]: row["fires"] for row in read_lines(path)}
        asked = [quiz for quiz in quizzes if quiz["of"] in OWN_JUDGE and quiz["id"] not in said]
        model = ai.LocalModel(self.spec.folder) if asked else None
        for quiz in asked:
            margins = yes_over_no(model, ASK.format(sentence=quiz["sentence"]), quiz["windows"])
            said[quiz["id"]] = margins
            _append(path, {"id": quiz["id"], "fires": margins})
        return said

    def write(self, out: Path) -> bool:
        """The records, once the reader's answers are there; the reader's sheet before that."""
        quizzes = self.quizzes()
        own, path = self.judge(quizzes), self.work / "answers.jsonl"
        if not path.is_file():
            seen = [{name: quiz[name] for name in ("id", "sentence", "windows")} for quiz in quizzes]
            write_lines(self.work / "quizzes.jsonl", seen)
            return False
        read = {row["id"]: row["fires"] for row in read_lines(path)}
        records = []
        for feature, sentence in self.sentences().items():
            told = {}
            for quiz in (quiz for quiz in quizzes if quiz["feature"] == feature):
                reader = [number in read[quiz["id"]] for number in range(1, len(quiz["windows"]) + 1)]
                told[quiz["of"]] = {name: quiz[name] for name in ("sentence", "windows", "kinds")} | {"reader": reader}
                if quiz["id"] in own:
                    told[quiz["of"]]["model"] = own[quiz["id"]]
            records.append({"sae": self.sae.name, "feature": feature, "prompt": sentence["prompt"], "quizzes": told})
        write_lines(out, records)
        return True


def _append(path: Path, row: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


@torch.no_grad()
def yes_over_no(model: ai.LocalModel, question: str, texts: list[str]) -> list[float]:
    """For each text, how much likelier *Yes* is than *No* as the next token after question and text (nats)."""
    tokenizer, net = model.tokenizer, model.model
    message = [{"role": "user", "content": question + "\0"}]
    whole = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, after = whole.split("\0")
    head = tokenizer(before, return_tensors="pt", add_special_tokens=False).input_ids
    answers = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No")]
    cache, found = net(head, use_cache=True).past_key_values, []
    for text in texts:
        tail = tokenizer(json.dumps(text, ensure_ascii=False) + after, return_tensors="pt", add_special_tokens=False)
        logits = net(tail.input_ids, past_key_values=cache, use_cache=True).logits[0, -1]
        cache.crop(-tail.input_ids.shape[1])  # the next text follows the question alone
        found.append(round(float(logits[answers[0]] - logits[answers[1]]), 3))
    return found
