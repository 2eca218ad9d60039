"""Phase 6a: what it aims at, its meter, its requests, its figures, and whose exercise its hypothesis is."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled

from prism.data import corpus_batch, load_corpus, token_table, token_text, tokenize
from prism.evaluation.predictions import splice
from prism.exercises import progress
from prism.interventions import add
from prism.models import get_spec, load_sae
from prism.phases.phase_6a import exercises, figures, methods

HOOK = "blocks.2.hook_resid_pre"


@pytest.fixture(scope="module")
def batch(mini):
    return corpus_batch(load_corpus("mini"), mini.tokenizer, 24, 600)


@pytest.mark.parametrize("target", methods.TARGETS)
def test_a_target_knows_its_tokens_and_its_texts(mini, target):
    aim = methods.TARGETS[target]
    says = {"emoji": "so 😂!", "digits": "in 1985", "question marks": "why?", "quotation marks": 'he said "no"'}[target]
    wanted = aim.among(mini.tokenizer, mini.cfg.d_vocab + 2)
    ids = mini.tokenizer(says, add_special_tokens=False)["input_ids"]
    assert wanted[ids].any() and wanted.shape == (mini.cfg.d_vocab + 2,) and wanted.float().mean() < 0.3
    assert not wanted[mini.tokenizer("some plain words", add_special_tokens=False)["input_ids"]].any()
    assert aim.share([says, "some plain words"]) == 0.5


def test_an_emoji_is_counted_where_it_begins(mini):
    wanted = methods.TARGETS["emoji"].among(mini.tokenizer, mini.cfg.d_vocab)
    ids = mini.tokenizer("yes 😂🔥 no", add_special_tokens=False)["input_ids"]
    assert wanted[ids].sum() == 2, [token_text(mini.tokenizer, i) for i in ids]


def test_the_meter_by_hand(mini, batch):
    wanted = torch.arange(mini.cfg.d_vocab) < 700
    change, counted = add(torch.ones(192), 0.5), batch.keep[:, :-1] & batch.keep[:, 1:]
    meter = methods.Meter(mini, HOOK, batch, wanted)
    clean, changed = (splice(mini, batch.tokens, HOOK, batch.keep, c) for c in (lambda x: x, change))
    expected = {}
    for name, logits in (("clean", clean), ("changed", changed)):
        log_p = logits[:, :-1].log_softmax(-1)
        nats = -log_p.gather(-1, batch.tokens[:, 1:, None])[..., 0]
        share = log_p[..., :700].exp().sum(-1)
        expected[name] = [[(row[c]).mean().item() for row, c in zip(x, counted, strict=True)] for x in (share, nats)]
    found = meter(change)
    assert np.allclose(found["share"], expected["changed"][0], atol=1e-4)
    assert np.allclose(found["cost"], np.subtract(expected["changed"][1], expected["clean"][1]), atol=1e-3)
    assert np.allclose(meter.clean["share"], expected["clean"][0], atol=1e-4)


def test_a_meter_counts_where_it_is_told(mini, batch):
    counted = torch.zeros_like(batch.keep[:, 1:])
    counted[0, 3] = counted[2, 1] = True
    meter = methods.Meter(mini, HOOK, batch, torch.ones(mini.cfg.d_vocab, dtype=torch.bool), counted)
    found = meter(lambda x: x)
    assert list(found.index) == [0, 2], "texts without a place are left out"
    assert np.allclose(found["share"], 1, atol=1e-4) and np.allclose(found["cost"], 0, atol=1e-4)


def test_openings_have_one_length(batch):
    some = methods.openings(batch, 5, 9)
    assert some.tokens.shape == (5, 10) and some.keep[:, 1:].all() and not some.keep[:, 0].any()
    with pytest.raises(ValueError, match="no text has 500 tokens"):
        methods.openings(batch, 5, 500)


def test_requests_are_of_equal_length_with_and_without_the_addition(mini):
    plain, told = methods.requests(mini.tokenizer, ["cats", "dogs", "an extraordinarily long topic"], "Use emoji.")
    assert len(plain) == len(told) >= 1 and told.shape[1] > plain.shape[1]
    assert (plain[:, 0] == mini.tokenizer.bos_token_id).all()
    assert mini.tokenizer.decode(told[0, 1:]).endswith("Use emoji.\n")


def test_requests_use_a_chat_template_where_there_is_one():
    def apply(messages, add_generation_prompt, tokenize):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    class Letters(SimpleNamespace):
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(letter) for letter in text]}

    (plain,) = methods.requests(Letters(chat_template="x", apply_chat_template=apply), ["ab", "cd", "long"])
    assert ["".join(map(chr, row)) for row in plain] == [
        f"<user>Write a few sentences about {topic}.<assistant>" for topic in ("ab", "cd")
    ]


def test_words_and_texts_end_where_the_turn_ends(mini):
    assert methods.words("I'm 23 😂 école, ok") == ["école", "ok"]
    ids = mini.tokenizer("so 😂", add_special_tokens=False)["input_ids"]
    after = mini.tokenizer(" more", add_special_tokens=False)["input_ids"]
    row = torch.tensor([[*ids, mini.tokenizer.eos_token_id, *after]])
    assert methods.texts_of(mini.tokenizer, row) == ["so 😂"]


def test_a_reading_marks_what_is_ordinary(mini):
    spec = get_spec("mini")
    sae, batch = load_sae(spec), tokenize(["The law of the land", "x = 1"], mini.tokenizer, 256)
    x, matrix, regular = methods.read(mini, sae, batch, token_table(batch, mini.tokenizer))
    assert x.shape == (batch.n_tokens, 192) and matrix.n_tokens == len(regular) == batch.n_tokens and regular.all()


def test_the_last_predictions_are_those_of_the_last_tokens():
    assert methods.last_of(torch.zeros(2, 6), 2).tolist() == [[False, False, False, True, True]] * 2


def test_luck_in_a_search_is_what_shuffling_gives():
    ranks = np.argsort(np.random.default_rng(0).random((20_000, 30)), axis=1)  # the first 6 places are the features'
    for ahead in (0, 2):
        seen = (ranks[:, : ahead + 1] < 6).any(axis=1).mean()
        assert methods.by_luck(6, 24, ahead) == pytest.approx(seen, abs=0.015)
    assert methods.by_luck(6, 24, ahead=24) == 1.0


def test_a_sign_test_counts_pairs_and_leaves_ties_out():
    assert methods.sign_test(np.array([-0.5] * 4 + [0.0] * 4)) == (0, 4, 0.125)
    assert methods.sign_test(np.array([1.0] * 6)) == (6, 0, 2 / 2**6)
    assert methods.sign_test(np.zeros(3)) == (0, 0, 1.0)


def test_pieces_are_tokens_with_a_part_of_a_character(mini):
    pieces = methods.in_pieces(mini.tokenizer, mini.cfg.d_vocab)
    ids = mini.tokenizer("a word 🦤", add_special_tokens=False)["input_ids"]
    assert [("‹" in token_text(mini.tokenizer, i)) for i in ids] == pieces[ids].tolist()
    assert pieces[ids[-1]] and not pieces[ids[:2]].any()


def test_the_likeliest_tokens_are_the_same_with_and_without_a_cache(mini):
    requests = torch.randint(300, 900, (2, 7), generator=torch.Generator().manual_seed(0))
    with_cache, without = (methods.likeliest(mini, requests, 4, cache) for cache in (True, False))
    assert with_cache.shape == (2, 4) and torch.equal(with_cache, without)


def test_figures():
    points = pd.DataFrame({"share": [0.2, 0.1, 0.001], "cost": [0.4, 0.41, 0.1]}, index=["37", "<b>", "5"])
    cloud = pd.DataFrame({"share": [1e-4, 2e-4], "cost": [0.3, 0.5]})
    clouds = {"random directions": cloud, "random features": 2 * cloud}
    fig = titled(figures.search_figure(points, clouds, 1e-4, "a search"), "cost", "probability")
    labels = {label.text: label for label in fig.layout.annotations if label.text in ("37", "&lt;b&gt;", "5")}
    assert [label.yshift for label in labels.values()] == [17, -17, 17] and list(fig.data[0].x) == [0.3, 0.5]
    assert labels["5"].x == 0.1 and labels["5"].y == pytest.approx(-3), "a logarithmic axis takes a label's logarithm"
    curve = points.assign(dose=[0.5, 1.0, 2.0])
    curves = {"feature 37": curve, "DiffMean": curve, "random 1": curve, "random 2": curve}
    told = pd.DataFrame({"share": [0.5, 0.1], "cost": [0.2, 0.1]}, index=["Use emoji.", "Please."])
    fig = titled(figures.dose_figure(curves, told, 1e-4, 0.3, "doses"), "dose", "cost", "probability")
    assert [trace.name for trace in fig.data if trace.showlegend is not False] == [
        "feature 37",
        "DiffMean",
        "random directions",
        "instructions",
    ]
    assert list(fig.data[-1].y) == [0.5, 0.1] and list(fig.data[-1].text) == ["the best", ""]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"6a/hypothesis"}
