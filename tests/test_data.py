"""Texts, token batches and the activation cache: behaviour, edge cases, bad input."""

import ast
import errno
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer

from prism import data, models
from prism.data import (
    CATEGORIES,
    load_activations,
    load_corpus,
    save_activations,
    token_table,
    token_text,
    tokenize,
    whole_characters,
)


def ngrams(text: str, n: int) -> set[str]:
    """Runs of n words, or of 3n characters where words are not separated by spaces."""
    words = text.lower().split()
    if len(words) < 2 * n:
        squeezed = "".join(words)
        return {squeezed[i : i + 3 * n] for i in range(len(squeezed) - 3 * n + 1)}
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


class TestTexts:
    def test_seven_categories_of_ten_in_each_half(self):
        for split in ("discover", "confirm"):
            frame = data.load_texts(split)
            assert len(frame) == 70 and frame["id"].is_unique
            assert frame["category"].value_counts().eq(10).all()
            assert list(frame["category"].drop_duplicates()) == list(CATEGORIES)
            assert frame["text"].str.strip().ne("").all()

    def test_non_english_covers_ten_languages_in_each_half(self):
        for split in ("discover", "confirm"):
            frame = data.load_texts(split)
            languages = frame.loc[frame["category"] == "nonenglish", "language"]
            assert sorted(languages) == sorted(["fr", "zh", "es", "de", "ru", "ja", "ar", "ko", "it", "pt"])

    def test_no_text_is_near_copied_between_the_halves(self):
        confirm = set().union(*(ngrams(text, 6) for text in data.load_texts("confirm")["text"]))
        for text in data.load_texts("discover")["text"]:
            assert not ngrams(text, 6) & confirm, text

    def test_the_overlap_measure_finds_a_copy(self):
        text = data.load_texts("discover")["text"].iloc[65]
        assert ngrams(text, 6) & ngrams("Well then: " + text[20:], 6)

    def test_categories_are_of_similar_length(self, mini):
        for split in ("discover", "confirm"):
            frame = data.load_texts(split)
            lengths = [len(mini.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in frame["text"]]
            means = pd.Series(lengths).groupby(frame["category"]).mean()
            assert means.max() / means.min() < 1.25, means

    def test_unknown_split_names_the_choices(self):
        with pytest.raises(ValueError, match="discover, confirm"):
            data.load_texts("train")


class TestCorpus:
    def test_embedded_corpus_has_every_kind_and_about_a_million_tokens(self):
        frame = data.load_corpus("mini")
        assert frame["kind"].nunique() == 9
        assert frame["tokens"].map(len).sum() >= 990_000

    def test_text_is_what_the_tokens_say(self, mini):
        frame = data.load_corpus("mini", n_documents=20)
        for _, row in frame.iterrows():
            assert mini.tokenizer.decode(row["tokens"]) == row["text"]

    def test_unknown_corpus_names_the_choices(self):
        with pytest.raises(ValueError, match="choose from mini, smollm2, tinystories"):
            data.load_corpus("wikipedia")

    def test_corpus_documents_are_those_of_the_batch(self, mini):
        frame = data.load_corpus("mini", 200)
        documents = data.corpus_documents(frame, mini.tokenizer, 64, n_tokens=4_000)
        batch = data.corpus_batch(frame, mini.tokenizer, 64, n_tokens=4_000)
        assert len(documents) == len(batch) and (frame["tokens"].map(len).head(len(documents)) < 16).any()
        for document, row, keep in zip(documents["tokens"], batch.tokens, batch.keep, strict=True):
            assert row[keep].tolist() == list(document[:63])
        assert torch.equal(data.corpus_batch(documents, mini.tokenizer, 64).tokens, batch.tokens)

    def test_corpus_batch_stops_at_the_size_asked_for(self, mini):
        batch = data.corpus_batch(data.load_corpus("mini", 200), mini.tokenizer, 64, n_tokens=1_000)
        assert 1_000 <= batch.n_tokens < 1_064
        assert batch.tokens.shape[1] <= 64

    def test_corpus_too_small_is_said(self, mini):
        with pytest.raises(ValueError, match="fewer than the 1,000,000"):
            data.corpus_batch(data.load_corpus("mini", 20), mini.tokenizer, 64, n_tokens=1_000_000)


class TestTokenize:
    def test_bos_in_front_padding_behind(self, mini):
        batch = tokenize(["one two three four five", "one"], mini.tokenizer, 256)
        bos = mini.tokenizer.bos_token_id
        assert (batch.tokens[:, 0] == bos).all() and not batch.keep[:, 0].any()
        n = int(batch.keep[1].sum())
        assert (batch.tokens[1, 1 + n :] == bos).all() and not batch.keep[1, 1 + n :].any()

    def test_padding_does_not_change_what_the_model_computes(self, mini):
        long, short = "def f(x):\n    return x + 1\n", "Hello there"
        together = mini(tokenize([long, short], mini.tokenizer, 256).tokens)[1]
        alone = mini(tokenize([short], mini.tokenizer, 256).tokens)[0]
        torch.testing.assert_close(together[: len(alone)], alone, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("text", ["", "   \n"])
    def test_empty_text(self, mini, text):
        with pytest.raises(ValueError, match="text 1 is empty"):
            tokenize(["fine", text], mini.tokenizer, 256)

    def test_text_beyond_the_context_by_one(self, mini):
        tokenize([" a" * 255], mini.tokenizer, 256)
        with pytest.raises(ValueError, match="has 256 tokens; the longest that fits is 255"):
            tokenize([" a" * 256], mini.tokenizer, 256)

    def test_one_string_instead_of_a_list(self, mini):
        with pytest.raises(ValueError, match="write \\[text\\]"):
            tokenize("text", mini.tokenizer, 256)

    def test_no_texts(self, mini):
        with pytest.raises(ValueError, match="at least one"):
            tokenize([], mini.tokenizer, 256)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=4))
    def test_table_has_one_row_a_token_and_rebuilds_the_texts(self, mini, texts):
        batch = tokenize(texts, mini.tokenizer, 256)
        table = token_table(batch, mini.tokenizer)
        assert len(table) == batch.n_tokens
        for i, text in enumerate(texts):
            assert mini.tokenizer.decode(table.loc[table["text"] == i, "token_id"].tolist()) == text

    @settings(max_examples=25, deadline=None)
    @given(st.text(min_size=1, max_size=20).filter(lambda text: text.strip() and "‹" not in text))
    def test_parts_of_characters_are_told_apart(self, mini, text):
        ids = tokenize([text], mini.tokenizer, 256).tokens[0, 1:].tolist()
        names = [token_text(mini.tokenizer, token) for token in ids]
        assert len(set(names)) == len(set(ids))
        parts = re.split("‹([0-9A-F]+)›", "".join(names))
        raw = b"".join(bytes.fromhex(part) if i % 2 else part.encode() for i, part in enumerate(parts))
        assert raw.decode() == text

    def test_a_part_of_a_character_by_hand(self, mini):
        ids = mini.tokenizer(" 🦄 ñ", add_special_tokens=False)["input_ids"]
        assert [token_text(mini.tokenizer, token) for token in ids] == [" ‹F09F›", "‹A6›", "‹84›", " ‹C3›", "‹B1›"]
        named = SimpleNamespace(decode=lambda _: "\ufffd", convert_ids_to_tokens=lambda _: "<0xE8>")
        assert token_text(named, 5) == "<0xE8>"
        literal = SimpleNamespace(decode=lambda _: "\ufffd", convert_ids_to_tokens=lambda _: "ï¿½")
        assert token_text(literal, 5) == "\ufffd", "a text may hold this character itself"

    @pytest.mark.parametrize(
        "text",
        [
            ["\ud83d"],
            ["fine", "half of \udca9"],
            ["\ud83d\ude00 in two halves"],
            ["a\udfffb"],
        ],
    )
    def test_half_of_a_character_is_one_sentence(self, mini, text):
        where = f"text {len(text) - 1} has half of a character, '.u[0-9a-f]{{4}}' at place [0-9]+; give the whole"
        with pytest.raises(ValueError, match=where) as error:
            tokenize(text, mini.tokenizer, 256)
        assert str(error.value).isascii(), "the sentence itself can be printed"

    @pytest.mark.parametrize("text", [None, float("nan"), 7, b"bytes", ["a", "list"], pd.NA])
    def test_what_is_no_text_is_one_sentence(self, mini, text):
        with pytest.raises(ValueError, match="text 1 is .*, of type .*; only strings can be read"):
            tokenize(["fine", text], mini.tokenizer, 256)

    def test_a_text_of_no_token_is_empty(self):
        with pytest.raises(ValueError, match="text 0 is empty"):
            tokenize(["\u200b"], lambda *_, **__: {"input_ids": []}, 256)

    def test_tokens_that_differ_by_a_nul_stay_apart(self, mini):
        table = token_table(tokenize(["a\0", "\0\0", "\0"], mini.tokenizer, 256), mini.tokenizer)
        assert table["token"].astype(str).tolist() == ["a", "\0", "\0", "\0", "\0"]

    def test_table_positions_and_categories(self, mini):
        batch = tokenize(["one two", "three"], mini.tokenizer, 256)
        table = token_table(batch, mini.tokenizer, ["formal", "python"])
        assert table["position"].min() == 1
        assert table.groupby("text")["category"].first().tolist() == ["formal", "python"]
        assert list(table["category"].cat.categories) == ["python", "formal"]
        with pytest.raises(ValueError, match="1 categories for 2 texts"):
            token_table(batch, mini.tokenizer, ["formal"])


EMOJI = ["😂", "🦊", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "🇫🇷", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f"]
MIXED = st.lists(
    st.one_of(
        st.sampled_from(
            [*EMOJI, " ", "\n", "하", "글", "한국어", "é", "e\u0301", "n\u0303", "ह", "हिन्दी", "中", "‹", "a"]
        ),
        st.characters(exclude_categories=["Cs", "Cn", "Co"], exclude_characters="\ufffd…"),
    ),
    min_size=1,
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=["mini", "smollm2"])
def tokenizer(request):
    """Those whose bytes a reader meets."""
    folder = {"mini": data.DATA / "model", "smollm2": models.SMOLLM2.folder}[request.param]
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{request.param} is not on this machine")
    return AutoTokenizer.from_pretrained(folder)


class TestWholeCharacters:
    """A reader meets characters, never the bytes that a tokenizer cut them into."""

    @staticmethod
    def names(tokenizer, text):
        return [token_text(tokenizer, token) for token in data.token_ids(tokenizer, text)]

    @settings(max_examples=150, deadline=None)
    @given(text=MIXED)
    def test_the_pieces_are_the_text(self, tokenizer, text):
        names = self.names(tokenizer, text)
        pieces = whole_characters(names)
        assert "".join(piece for piece, _ in pieces) == text
        assert [i for _, part in pieces for i in range(part.start, part.stop)] == list(range(len(names)))

    @settings(max_examples=150, deadline=None)
    @given(text=MIXED, start=st.integers(0, 20), stop=st.integers(1, 20))
    def test_a_window_may_begin_and_end_within_a_character(self, tokenizer, text, start, stop):
        names = self.names(tokenizer, text)[start : start + stop]
        joined = "".join(piece for piece, _ in whole_characters(names))
        assert re.sub("^…|…$", "", joined) in text and not data.BYTES.search(joined)
        raw = b"".join(data.BYTES.sub(data._raw, name).encode(errors="surrogateescape") for name in names)
        assert ("…" in joined) == ("\ufffd" in raw.decode(errors="replace"))

    @pytest.mark.parametrize("one", [*EMOJI, "e\u0301", "하"])
    def test_what_a_reader_takes_for_one_is_one(self, tokenizer, one):
        pieces = [piece for piece, _ in whole_characters(self.names(tokenizer, f"so {one}{one} lol"))]
        assert [piece.strip() for piece in pieces if one[0] in piece] in ([one, one], [one + one])

    def test_a_stray_part_stands_alone(self):
        names = ["‹98›", "a", " ‹F09F›", "b", "‹F0›", "‹9F98›", "‹82F09F›", "‹98›", "‹82›", "‹E2›"]
        assert [piece for piece, _ in whole_characters(names)] == ["…", "a", " …", "b", "😂😂", "…"]
        assert whole_characters(["‹98›", "‹82›", "a"]) == [("…", slice(0, 2)), ("a", slice(2, 3))]
        assert whole_characters([]) == [] and whole_characters([""]) == [("", slice(0, 1))]
        assert [piece for piece, _ in whole_characters(["<0xF0>", "<0x9F>", "<0x98>", "<0x82>", "<0x41>"])] == [
            "😂",
            "A",
        ]


class TestSentencePiece:
    """Public report llama2.c #41: such a tokenizer's decoder drops a text's first space, and so each token's own."""

    TEXT = "The other the, breathe  twice   and\n  there."

    def test_a_words_beginning_is_told_from_its_middle(self, sentencepiece):
        with_space, without = (sentencepiece.convert_tokens_to_ids(piece) for piece in ("▁the", "he"))
        assert token_text(sentencepiece, with_space) == " the" and token_text(sentencepiece, without) == "he"
        table = token_table(tokenize(["the bathe", "the"], sentencepiece, 64), sentencepiece)
        counts = table["token"].astype(str).value_counts()
        assert counts[" the"] == 2 and counts.sum() == len(table) > 3

    def test_the_tokens_joined_are_the_text(self, sentencepiece):
        ids = sentencepiece(self.TEXT, add_special_tokens=False)["input_ids"]
        assert "".join(token_text(sentencepiece, i) for i in ids) == " " + self.TEXT
        assert "".join(token_text(sentencepiece, i) for i in ids[3:]) in self.TEXT, "a continuation, too"

    def test_no_two_tokens_look_alike(self, sentencepiece):
        names = [token_text(sentencepiece, i) for i in range(len(sentencepiece))]
        assert len(set(names)) == len(names) and "" not in names
        assert token_text(sentencepiece, len(sentencepiece) + 7) == "", "a row of the embedding without a token"

    def test_a_byte_without_a_token_of_its_own_is_text(self):
        names = {5: "<0x0A>", 6: "<0x41>", 7: "A"}
        tokenizer = SimpleNamespace(
            unk_token_id=0,
            convert_ids_to_tokens=names.get,
            decode=lambda ids: {5: "\n"}.get(ids[0], "A"),
            convert_tokens_to_ids=lambda text: {"A": 7}.get(text, 0),
        )
        assert [token_text(tokenizer, i) for i in names] == ["\n", "<0x41>", "A"]


class TestBadCorpora:
    GOOD = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"

    @pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, 7, b"bytes", ["a"], {"text": "a"}])
    def test_a_row_that_is_no_text_is_named(self, mini, bad):
        frame = pd.DataFrame({"text": [self.GOOD, self.GOOD, bad]}, index=[7, 7, 7])
        for function in (data.corpus_batch, data.corpus_documents):
            with pytest.raises(ValueError, match="row 2 of the corpus is .*only strings can be read: leave the others"):
                function(frame, mini.tokenizer, 64)
        assert len(data.corpus_batch(frame.iloc[:2], mini.tokenizer, 64)) == 2

    def test_half_of_a_character_is_found_in_its_row(self, mini):
        frame = pd.DataFrame({"text": pd.Series([self.GOOD, self.GOOD + " \ud83d"], dtype=object)})
        with pytest.raises(ValueError, match="row 1 of the corpus has half of a character"):
            data.corpus_batch(frame, mini.tokenizer, 64)

    def test_a_corpus_without_text(self, mini):
        with pytest.raises(ValueError, match="the corpus has no column 'text'; its columns are kind, content"):
            data.corpus_batch(pd.DataFrame({"kind": ["a"], "content": [self.GOOD]}), mini.tokenizer, 64)

    @pytest.mark.parametrize("bad", [None, float("nan"), "1 2 3"])
    def test_missing_ids_are_named(self, mini, bad):
        frame = load_corpus("mini", 5).sort_values("text", key=lambda text: -text.str.len()).reset_index(drop=True)
        frame["tokens"] = [frame["tokens"].iloc[0], bad, *frame["tokens"].iloc[2:]]
        with pytest.raises(ValueError, match="row 1 of the corpus has no token ids but .*leave the row out"):
            data.corpus_batch(frame, mini.tokenizer, 64)
        frame["tokens"] = bad
        assert torch.equal(
            data.corpus_batch(frame, mini.tokenizer, 64).tokens,
            data.corpus_batch(frame[["text"]], mini.tokenizer, 64).tokens,
        )


def test_no_file_is_opened_without_its_encoding():
    """ruff's PLW1514 holds where it knows the type; this, everywhere."""
    root = Path(__file__).parents[1]
    for path in (file for folder in ("src", "tests", "benchmarks") for file in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not any(word.arg in ("encoding", None) for word in node.keywords):
                name, n = getattr(node.func, "attr", getattr(node.func, "id", "")), len(node.args)
                mode = "".join(ast.unparse(arg) for arg in node.args[1:2])
                text = {"read_text": n == 0, "write_text": n == 1, "open": "b" not in mode}
                method = isinstance(node.func, ast.Attribute)
                assert not (text.get(name) and method == (name != "open")), f"{path}:{node.lineno}"


class TestActivationCache:
    tensors = {"x": torch.arange(6.0).reshape(2, 3)}

    def test_round_trip(self, tmp_path):
        path = save_activations(tmp_path / "deep" / "a.safetensors", self.tensors, key="k")
        assert torch.equal(load_activations(path, "k")["x"], self.tensors["x"])
        assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no activation cache"):
            load_activations(tmp_path / "none.safetensors")

    def test_another_key(self, tmp_path):
        path = save_activations(tmp_path / "a.safetensors", self.tensors, key="layer 1")
        with pytest.raises(ValueError, match="made with layer 1, but layer 2 is needed"):
            load_activations(path, "layer 2")

    @pytest.mark.parametrize("cut", [0, 5, 40, -4])
    def test_truncated(self, tmp_path, cut):
        path = save_activations(tmp_path / "a.safetensors", self.tensors, key="k")
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            load_activations(path, "k")

    def test_foreign_files(self, tmp_path):
        text = tmp_path / "notes.safetensors"
        text.write_text("not tensors at all, but long enough to look like a header", encoding="utf-8")
        with pytest.raises(ValueError, match="not a safetensors file"):
            load_activations(text)
        other = tmp_path / "other.safetensors"
        save_file(self.tensors, other)
        with pytest.raises(ValueError, match="not written by Prism"):
            load_activations(other)

    def test_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = save_activations(tmp_path / "a.safetensors", self.tensors, key="old")

        def full(tensors, filename, metadata=None):
            filename.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(data, "save_file", full)
        with pytest.raises(OSError, match="No space left on device.*nothing was changed"):
            save_activations(path, {"x": torch.zeros(4)}, key="new")
        assert torch.equal(load_activations(path, "old")["x"], self.tensors["x"])
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]

    def test_key_is_the_same_whatever_the_order(self):
        assert data.cache_key(a=1, b="x") == data.cache_key(b="x", a=1)
        assert data.cache_key(a=1) != data.cache_key(a=2)


def test_token_ids_survive_the_table(mini):
    batch = tokenize(["Ünïcode 今日は 🎉"], mini.tokenizer, 256)
    table = token_table(batch, mini.tokenizer)
    assert np.array_equal(table["token_id"].to_numpy(), batch.tokens[batch.keep].numpy())


class TestHubCorpora:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("prism.data.CACHE", tmp_path)
        monkeypatch.setattr("prism.hub.knock", lambda file, patience: None)
        return tmp_path

    def test_streamed_once_then_cached(self, own_cache, monkeypatch):
        calls = []

        class Stream(list):
            def take(self, n):
                return self[:n]

        def load_dataset(name, split, streaming):
            calls.append((name, split, streaming))
            return Stream({"text": f"story {i}"} for i in range(7_000))

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        first = load_corpus("tinystories", n_documents=50, seed=1)
        assert len(first) == 50 and set(first["kind"]) == {"tinystories"}
        assert load_corpus("tinystories", n_documents=50, seed=1).equals(first)
        assert len(load_corpus("tinystories")) == 5_000
        assert calls == [("roneneldan/TinyStories", "train", True)]
        assert [p.name for p in (own_cache / "corpora").iterdir()] == ["tinystories.parquet"]

    def test_neither_cached_nor_reachable(self, own_cache, monkeypatch):
        def load_dataset(*_, **__):
            raise ConnectionError("no route to the hub\nand more lines")

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        with pytest.raises(FileNotFoundError, match="corpus 'openwebtext'.*prism fetch.*PRISM_MODEL=mini") as error:
            load_corpus("openwebtext")
        assert "\n" not in str(error.value)
        assert not (own_cache / "corpora").exists()

    def test_no_network_is_known_before_anything_is_tried(self, monkeypatch):
        from prism import hub

        def knock(file, patience):
            raise hub.HubError(f"{file}: nobody answers")

        monkeypatch.setattr("prism.hub.knock", knock)
        monkeypatch.setattr("datasets.load_dataset", None)  # would fail if called
        with pytest.raises(FileNotFoundError, match="nobody answers"):
            load_corpus("tinystories")

    def test_a_broken_stream_leaves_nothing(self, own_cache, monkeypatch):
        class Stream:
            def take(self, n):
                yield {"text": "one"}
                raise ConnectionError("cut")

        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Stream())
        with pytest.raises(FileNotFoundError, match="cut"):
            load_corpus("tinystories")
        assert not list(own_cache.rglob("*.parquet"))


def test_sampled_ids_are_not_given_to_another_tokenizer(mini):
    from prism.data import corpus_batch

    frame = load_corpus("mini", n_documents=5)

    class Bytes:
        """A tokenizer of another kind: one token a byte."""

        bos_token_id = 256

        def __call__(self, text, add_special_tokens):
            return {"input_ids": list(text.encode())}

        def decode(self, ids):
            return bytes(i % 256 for i in ids).decode(errors="replace")

    own, foreign = corpus_batch(frame, mini.tokenizer, 64), corpus_batch(frame, Bytes(), 64)
    assert own.tokens.max() > 256
    assert foreign.tokens.max() == 256
    text = bytes(foreign.tokens[0][foreign.keep[0]].tolist()).decode(errors="ignore")
    assert frame["text"].str.startswith(text).any()
