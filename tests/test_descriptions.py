"""Recorded descriptions: quizzes without a window twice, a judge's margin by hand, records once a reader answered."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from prism import autointerp as ai
from prism.build import descriptions
from prism.features import FeatureMatrix

SIZES = descriptions.Sizes(features=2, firing=2, silent=2, same=1)


def world(texts=80, length=40) -> FeatureMatrix:
    """Random words; feature f fires on half of the words f + 1, in texts that have an even number."""
    ids = np.random.default_rng(0).integers(0, 30, texts * length)
    text = np.repeat(np.arange(texts), length)
    values = np.stack([(ids == word) & (text % 2 == 0) for word in (1, 2, 3)], axis=1).astype(np.float32)
    table = pd.DataFrame({"text": text, "position": np.tile(np.arange(length), texts) + 1, "token_id": ids})
    return FeatureMatrix(csr_matrix(values), table.assign(token=[f" w{i}" for i in ids]))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Everything but the model, which writes that it saw so many windows, and says yes to what holds w1."""
    matrix = world()
    held = (matrix.table["text"] >= 40).to_numpy()
    monkeypatch.setattr(descriptions.Build, "_matrix", lambda self: (matrix, held))
    words = {f: type("Label", (), {"label": f"label {f}"})() for f in range(3)}
    monkeypatch.setattr(descriptions, "read_labels", lambda sae, d_sae: words)
    asked = []

    class Model:
        def __init__(self, *args, **kwargs):
            pass

        def __call__(self, prompt):
            asked.append(prompt)
            return f"{prompt.count('- ')} windows"

    monkeypatch.setattr(ai, "LocalModel", Model)
    yes = lambda model, question, texts: [1.0 if " w1" in text else -1.0 for text in texts]  # noqa: E731
    monkeypatch.setattr(descriptions, "yes_over_no", yes)
    spec = type("Spec", (), {"sae": lambda self, name: type("Sae", (), {"name": name})(), "folder": tmp_path})()
    made = descriptions.Build(spec, tmp_path / "work", SIZES)
    made.asked = asked
    return made


def test_a_quiz_is_balanced_and_no_window_stands_in_two(build):
    quizzes = build.quizzes()
    assert len(quizzes) == 8 and sorted(quiz["id"] for quiz in quizzes) == list(range(1, 9))
    for feature in build.features():
        mine = [quiz for quiz in quizzes if quiz["feature"] == feature]
        assert sorted(quiz["of"] for quiz in mine) == sorted(descriptions.KINDS)
        seen = [window for quiz in mine for window in quiz["windows"]]
        assert len(set(seen)) == len(seen) == 20
        for quiz in mine:
            assert sorted(quiz["kinds"]) == ["firing"] * 2 + ["same token"] + ["silent"] * 2
            word = f" w{feature + 1} "
            pairs = zip(quiz["windows"], quiz["kinds"], strict=True)
            assert all(word in f"{window} " for window, kind in pairs if kind != "silent")
    other = next(quiz for quiz in quizzes if quiz["of"] == "shuffled")
    assert other["sentence"].startswith("label") and other["sentence"] != f"label {other['feature']}"


def test_it_goes_on_and_records_once_a_reader_has_answered(build, tmp_path):
    out = tmp_path / "records.jsonl"
    assert build.write(out) is False and not out.exists() and len(build.asked) == 2
    sheet = [json.loads(line) for line in (build.work / "quizzes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(sheet) == 8 and set(sheet[0]) == {"id", "sentence", "windows"}
    answers = "\n".join(json.dumps({"id": quiz["id"], "fires": [1, 5]}) for quiz in sheet)
    (build.work / "answers.jsonl").write_text(answers, encoding="utf-8")
    assert build.write(out) is True and len(build.asked) == 2, "nothing is asked twice"
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["feature"] for record in records] == build.features() and records[0]["prompt"] == build.asked[0]
    for record in records:
        assert all(quiz["reader"] == [True, False, False, False, True] for quiz in record["quizzes"].values())
        assert {name for name, quiz in record["quizzes"].items() if "model" in quiz} == {"model", "label"}
        assert record["quizzes"]["model"]["sentence"] == "8 windows"


def test_the_margin_is_that_of_a_whole_pass():
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prism.data import DATA

    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    model = type("Model", (), {"tokenizer": tokenizer, "model": net})()
    texts = ["one text", "and another, longer one", "one text"]
    found = descriptions.yes_over_no(model, "Is it so? ", texts)
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    for text, margin in zip(texts, found, strict=True):
        parts = ("[user] Is it so? ", f'"{text}"\n[assistant]')
        ids = [i for part in parts for i in tokenizer(part, add_special_tokens=False).input_ids]
        logits = net(torch.tensor([ids])).logits[0, -1]
        assert margin == pytest.approx(float(logits[yes] - logits[no]), abs=2e-3)
    assert found[0] == found[2]
