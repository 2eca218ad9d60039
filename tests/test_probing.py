"""Probes, absorption and splitting: planted answers are found, and nothing is found where nothing was planted."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from prism import evaluation as ev
from prism.data import corpus_batch, load_corpus, token_table
from prism.evaluation.probing import top_columns
from prism.features import FeatureMatrix


def _halves(n: int) -> np.ndarray:
    return np.arange(n) % 2 == 0


class TestAuc:
    def test_by_hand(self):
        labels = np.array([True, True, False, False])
        assert ev.auc_interval(np.array([3.0, 2.0, 1.0, 0.0]), labels)[0] == 1.0
        assert ev.auc_interval(np.array([1.0, 1.0, 1.0, 1.0]), labels)[0] == 0.5
        assert ev.auc_interval(np.array([2.0, 0.0, 1.0, 0.0]), labels)[0] == pytest.approx((2 + 0 + 0.5) / 4)

    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
    def test_equals_scikit_learn(self, rows):
        scores, labels = np.array([r[0] for r in rows], dtype=float), np.array([r[1] for r in rows])
        auc, low, high = ev.auc_interval(scores, labels, n=50)
        if labels.all() or not labels.any():
            assert np.isnan([auc, low, high]).all()
        else:
            assert auc == pytest.approx(roc_auc_score(labels, scores))
            assert 0 <= low <= high <= 1

    def test_groups_widen_the_interval(self):
        rng = np.random.default_rng(0)
        labels = np.repeat(rng.random(40) < 0.5, 25)  # 40 texts of 25 tokens, all tokens of a text alike
        scores = np.repeat(rng.normal(size=40), 25) + labels
        texts = np.repeat(np.arange(40), 25)
        narrow, wide = (ev.auc_interval(scores, labels, groups)[1:] for groups in (None, texts))
        assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


class TestSparseProbe:
    def test_a_separable_case_gives_1(self):
        labels = np.arange(40) % 4 < 2
        noise = np.random.default_rng(0).random((40, 6)) * 0.1
        noise[:, 3] += labels
        for values in (noise, csr_matrix(noise)):
            found = ev.sparse_probe_auc(values, labels, _halves(40), k=1)
            assert found.auc == found.low == found.high == 1.0 and found.columns.tolist() == [3]

    def test_noise_gives_a_half(self):
        rng = np.random.default_rng(0)
        values, labels = rng.normal(size=(600, 50)), rng.random(600) < 0.5
        found = ev.sparse_probe_auc(values, labels, _halves(600), k=5)
        assert found.low < 0.5 < found.high

    def test_the_choice_sees_only_the_train_half(self):
        """Column 0 tells the classes on the held-out half alone; a choice on all units would take it."""
        rng = np.random.default_rng(0)
        labels, train, values = rng.random(400) < 0.5, _halves(400), rng.normal(size=(400, 8)) * 0.1
        values[~train, 0] += 3 * labels[~train]
        values[:, 5] += 0.3 * labels
        assert ev.sparse_probe_auc(values, labels, train, k=1).columns.tolist() == [5]

    def test_five_see_what_one_cannot(self):
        rng = np.random.default_rng(0)
        part, labels = rng.integers(0, 5, 500), rng.random(500) < 0.5
        values = csr_matrix((np.eye(5)[part] * labels[:, None]).astype(np.float32))  # each column knows a fifth
        one, five = (ev.sparse_probe_auc(values, labels, _halves(500), k).auc for k in (1, 5))
        assert 0.55 < one < 0.65 and five == 1.0

    def test_dense_probe_reads_a_direction_that_no_column_shows(self):
        rng = np.random.default_rng(0)
        labels, direction = rng.random(600) < 0.5, np.ones(50) / 50**0.5
        values = rng.normal(size=(600, 50)) + 2 * labels[:, None] * direction
        one, dense = (ev.sparse_probe_auc(values, labels, _halves(600), k).auc for k in (1, None))
        assert dense > 0.85 > 0.7 > one

    def test_standardised_choice_does_not_take_the_loudest_column(self):
        rng = np.random.default_rng(0)
        labels, values = rng.random(300) < 0.5, rng.normal(size=(300, 2)) * [100, 0.1]
        values[:, 1] += labels
        assert top_columns(values, labels, 1).tolist() == [0]
        assert top_columns(values, labels, 1, standardise=True).tolist() == [1]

    def test_bad_input_is_named(self):
        values, labels = np.zeros((4, 2)), np.array([True, False, True, False])
        with pytest.raises(ValueError, match="4 units, 3 labels"):
            ev.sparse_probe_auc(values, labels[:3], np.ones(4, bool))
        with pytest.raises(ValueError, match="units without it"):
            ev.sparse_probe_auc(values, labels, labels)

    def test_table_has_every_source_and_concept(self):
        rng = np.random.default_rng(0)
        labels = rng.random(80) < 0.5
        sources = {"features": csr_matrix(rng.random((80, 9))), "raw": rng.normal(size=(80, 4))}
        concepts = {"a": labels, "never": np.zeros(80, bool)}
        table = ev.probe_table(sources, concepts, _halves(80), ks=(1, 5), dense=["raw"], n=20)
        assert table[["source", "concept", "k"]].values.tolist() == [
            ["features", "a", 1],
            ["features", "a", 5],
            ["raw", "a", -1],
        ]
        assert (table["low"] <= table["auc"]).all() and (table["auc"] <= table["high"]).all()


class TestTokenConcepts:
    def test_by_hand(self):
        tokens = ["7", " 12", " The", "The", " the", "X9", ")", " }", ".", " (", "a.b", "\n"]
        found = ev.token_concepts(pd.DataFrame({"token": tokens}))
        members = {name: [t for t, m in zip(tokens, mask, strict=True) if m] for name, mask in found.items()}
        assert members == {
            "digit": ["7", " 12", "X9"],
            "capitalised word start": [" The", "The", "X9"],
            "closing punctuation or bracket": [")", " }", "."],
        }

    def test_the_hexadecimal_of_a_part_of_a_character_is_no_digit(self):
        tokens = ["‹F09F›", " ‹90›", "<0xE2>", "x‹9F›7", "‹7"]
        assert ev.token_concepts(pd.DataFrame({"token": tokens}))["digit"].tolist() == [False, False, False, True, True]

    def test_text_means(self):
        means = ev.text_means(np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]]), np.array([0, 0, 1]))
        assert means.tolist() == [[2.0, 3.0], [10.0, 0.0]]


def _letters(absorbed_words: int, letter_feature: bool = True) -> tuple:
    """Words of three letters in 48 dimensions: a direction a letter, another a word, and what an ideal SAE finds.

    Feature 0–2 stand for the letters, feature 3 + w for word w. For the first `absorbed_words` words of letter 'a',
    the word's feature carries the letter's direction and the letter's own feature is silent.
    """
    rng = np.random.default_rng(0)
    n_words, d = 90, 48
    letter_of, basis = np.arange(n_words) % 3, np.linalg.qr(rng.normal(size=(d, d)))[0]
    letters, own = basis[:3], rng.normal(size=(n_words, d)) @ (np.eye(d) - basis[:3].T @ basis[:3]) / d**0.5
    absorbed = (letter_of == 0) & (np.arange(n_words) < 3 * absorbed_words)
    decoder = np.concatenate([letters, own + absorbed[:, None] * letters[letter_of]])
    words = np.repeat(np.arange(n_words), 4)
    fires = np.zeros((len(words), 3 + n_words), np.float32)
    fires[np.arange(len(words)), 3 + words] = 1
    fires[np.arange(len(words)), letter_of[words]] = ~absorbed[words] * letter_feature
    x = letters[letter_of[words]] + own[words] + 0.02 * rng.normal(size=(len(words), d))
    names = [f" {'abc'[letter_of[w]]}{chr(97 + w // 26)}{chr(97 + w % 26)}" for w in words]
    table = pd.DataFrame({"text": 0, "position": np.arange(len(words)), "token_id": words, "token": names})
    sae = SimpleNamespace(W_dec=torch.from_numpy(decoder))
    return sae, torch.from_numpy(x).float(), FeatureMatrix(csr_matrix(fires), table), absorbed


class TestAbsorption:
    def test_planted_absorption_is_counted_exactly(self):
        sae, x, matrix, absorbed = _letters(absorbed_words=12)
        found = ev.first_letter_absorption(sae, x, matrix).set_index("letter")
        assert (found["probe_auc"] > 0.95).all() and found["measurable"].all()
        assert found.loc["a", "features"] == [0] and found.loc["a", "absorbed"] == found.loc["a", "silent"] > 0
        held = absorbed[np.random.default_rng(0).permutation(90) >= 45]  # the held-out words, in the words' order
        assert found.loc["a", "absorbed"] == 4 * held.sum()
        assert found.loc[["b", "c"], "absorbed"].sum() == 0
        assert found.loc["a", "low"] < found.loc["a", "rate"] < found.loc["a", "high"]
        total = ev.absorption_total(found.reset_index())
        assert total["absorbed"] == found["absorbed"].sum() and total["measurable"] == 3

    def test_words_begin_in_a_sentencepiece_vocabulary_too(self, sentencepiece):
        batch = corpus_batch(load_corpus("mini", 40), sentencepiece, 128)
        table = token_table(batch, sentencepiece)
        starts = ev.tokens_matching(table, r"^ [A-Za-z]{2,}$")
        pieces = np.array(sentencepiece.convert_ids_to_tokens(table["token_id"].tolist()))
        assert starts.sum() > 300 and all(piece.startswith("▁") for piece in pieces[starts])
        rng = np.random.default_rng(0)
        fires = csr_matrix((rng.random((len(table), 20)) < 0.1).astype(np.float32))
        sae = SimpleNamespace(W_dec=torch.from_numpy(rng.normal(size=(20, 8))))
        x, config = torch.from_numpy(rng.normal(size=(len(table), 8))).float(), ev.AbsorptionConfig(min_words=5)
        found = ev.first_letter_absorption(sae, x, FeatureMatrix(fires, table), config)
        assert len(found) > 3 and set(found["letter"]) <= set("abcdefghijklmnopqrstuvwxyz")

    def test_without_absorption_there_is_none(self):
        sae, x, matrix, _ = _letters(absorbed_words=0)
        assert ev.first_letter_absorption(sae, x, matrix)["rate"].tolist() == [0.0, 0.0, 0.0]

    def test_without_letter_features_it_is_not_measurable(self):
        """Silence of a feature that never stood for the letter is no absorption."""
        sae, x, matrix, _ = _letters(0, letter_feature=False)
        found = ev.first_letter_absorption(sae, x, matrix)
        assert not found["measurable"].any() and found["rate"].isna().all()
        assert np.isnan(ev.absorption_total(found)["rate"])

    def test_control_with_shuffled_letters_finds_no_letter(self):
        sae, x, matrix, _ = _letters(12)
        found = ev.first_letter_absorption(sae, x, matrix, ev.AbsorptionConfig(shuffle=True))
        assert (found["probe_auc"] < 0.75).all() and found["absorbed"].sum() == 0

    def test_bad_input_is_named(self):
        sae, x, matrix, _ = _letters(0)
        with pytest.raises(ValueError, match="give both the same"):
            ev.first_letter_absorption(sae, x[1:], matrix)
        with pytest.raises(ValueError, match="lower min_words"):
            ev.first_letter_absorption(sae, x, matrix, ev.AbsorptionConfig(min_words=31))


def _pair(decoder_a, fires_a, decoder_b, fires_b) -> tuple:
    saes, matrices = [], []
    for decoder, fires in ((decoder_a, fires_a), (decoder_b, fires_b)):
        decoder, fires = torch.tensor(decoder, dtype=torch.float32), csr_matrix(np.array(fires, np.float32))
        cfg = SimpleNamespace(d_in=decoder.shape[1], metadata=SimpleNamespace(hook_name="blocks.0.hook_resid_pre"))
        saes.append(SimpleNamespace(W_dec=decoder, cfg=cfg))
        rows = np.arange(fires.shape[0])
        table = pd.DataFrame({"text": 0, "position": rows, "token_id": rows, "token": "a"})
        matrices.append(FeatureMatrix(fires, table))
    return *saes, *matrices


class TestSplitting:
    def test_by_hand(self):
        """Narrow feature 0 splits into wide 0 and 1, of three firings and one; wide 2 points alike but never fires
        with it; narrow feature 1 stays whole."""
        pair = _pair(
            [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            [[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 0]],
            [[3.0, 1.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.0, 0.1], [0.0, 1.0, 0.0]],
            [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],
        )
        edges = ev.splitting(*pair, cosine=0.5, share=0.1)
        seen = edges[edges["kind"] == "observed"]
        assert seen[["narrow", "wide"]].values.tolist() == [[0, 0], [0, 1], [1, 3]]
        assert seen["coactivation"].tolist() == [0.75, 0.25, 1.0] and seen["child_share"].tolist() == [1.0, 1.0, 1.0]
        assert seen["cosine"].iloc[0] == pytest.approx(3 / 10**0.5)
        assert seen["narrow_count"].tolist() == [4, 4, 1]
        assert ev.children(edges, 2)["observed"].tolist()[:3] == [0, 1, 1]

    def test_controls_find_nothing_in_high_dimensions(self):
        rng = np.random.default_rng(1)  # not the controls' own seed
        narrow = rng.normal(size=(40, 200))
        wide = np.repeat(narrow, 2, axis=0) + 0.3 * rng.normal(size=(80, 200))
        fires = rng.random((400, 80)) < 0.05
        edges = ev.splitting(*_pair(narrow, fires[:, ::2] | fires[:, 1::2], wide, fires), cosine=0.5, share=0.2)
        counts = ev.children(edges, 40)
        assert counts.loc[2, "observed"] == 40
        assert counts.loc[0, "random directions"] == 40 and counts.loc[0, "shuffled rows"] >= 34
        assert (counts.sum() == 40).all()

    def test_what_cannot_be_compared_is_said(self):
        a, b, x, y = _pair(np.eye(2), np.eye(2), np.eye(2), np.eye(2))
        with pytest.raises(ValueError, match="different tokens"):
            ev.splitting(a, b, x, x.select(np.array([True, False])))
        b.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
        with pytest.raises(ValueError, match="two of one hook"):
            ev.splitting(a, b, x, y)
