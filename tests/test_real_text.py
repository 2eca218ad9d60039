"""What the SAEs of the real model are trained on, and the corpus that it writes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism.build import real_text, smollm2, writing
from prism.build.__main__ import PARTS
from prism.build.corpus import MIXTURE
from prism.build.openings import OPENINGS, beginnings
from prism.data import DATA, load_corpus
from prism.models import FAMILY, activations_at
from prism.models.registry import local_spec
from prism.training import TrainConfig
from prism.training.together import RollingBuffer


@pytest.fixture(scope="module")
def tiny(llama):
    """A Llama of random weights and its tokenizer, without hook points."""
    return AutoModelForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)


class TestText:
    def test_turns_become_messages(self):
        chat = real_text.as_chat("User: Hi\nthere\nAssistant: Hello!\nUser: Bye")
        assert chat == [
            {"role": "user", "content": "Hi\nthere"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Bye"},
        ]
        assert [turn["role"] for turn in real_text.as_chat("Question: 1+1?\nAnswer: 2")] == ["user", "assistant"]
        again = real_text.as_chat("Assistant: Welcome!\nUser: hi\nUser: there?\nAssistant: yes")
        assert [turn["role"] for turn in again] == ["assistant", "user", "user", "assistant"]
        assert real_text.as_chat("User:\nAssistant: Hello") is None
        assert real_text.as_chat("A story.\nUser: Hi\nAssistant: Hello") is None
        assert real_text.as_chat("User: alone") is None

    def test_a_tenth_of_the_rows_is_chat_and_kinds_are_balanced(self):
        tokens = {kind: np.full(5_000, i + 1, np.uint16) for i, kind in enumerate([*MIXTURE, "chat"])}
        rows = real_text.Rows(tokens, 4_000, 8, end=0)
        first = rows(0)
        assert (first[:, 0] == 0).all() and torch.equal(first, rows(0)) and not torch.equal(first, rows(1))
        shares = {kind: float((first[:, 1] == i + 1).float().mean()) for i, kind in enumerate([*MIXTURE, "chat"])}
        assert shares["chat"] == pytest.approx(0.1, abs=0.015)
        assert shares["python"] == pytest.approx(0.9 * MIXTURE["python"], abs=0.015)
        batch = rows.batch()
        assert not batch.keep[:, 0].any() and batch.keep[:, 1:].all()


class TestActivations:
    HOOKS = ("blocks.1.hook_resid_pre", "blocks.2.mlp.hook_post")

    def rows(self, mini):
        generator = np.random.default_rng(0)
        tokens = {kind: generator.integers(1, 2_000, 4_000).astype(np.uint16) for kind in [*MIXTURE, "chat"]}
        return real_text.Rows(tokens, 12, 32, end=0)

    def test_chunks_are_the_models_activations_in_order(self, mini):
        chunk = real_text.Activations(mini, rows := self.rows(mini), self.HOOKS, size=300, at_once=5)(2)
        wanted = activations_at(mini, rows(2), self.HOOKS)
        for hook in self.HOOKS:
            assert torch.equal(chunk[hook], wanted[hook][:, 1:].flatten(0, 1)[:300].half())

    def test_massive_tokens_are_left_out_at_every_hook(self, mini, monkeypatch):
        monkeypatch.setattr("prism.models.massive.FACTOR", 1.05)
        stream = real_text.Activations(mini, rows := self.rows(mini), self.HOOKS, size=100)
        x = activations_at(mini, rows(0), [*self.HOOKS, "blocks.2.hook_resid_pre"])
        norms = {name: x[name][:, 1:].norm(dim=-1) for name in stream.limits}
        assert set(norms) == {"blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"}
        for name, limit in stream.limits.items():
            assert limit == pytest.approx(1.05 * float(norms[name].flatten().median()))
        for hook, block in zip(self.HOOKS, (1, 2), strict=True):  # each hook leaves its own out
            keep = norms[f"blocks.{block}.hook_resid_pre"] <= stream.limits[f"blocks.{block}.hook_resid_pre"]
            assert torch.equal(stream(0)[hook], x[hook][:, 1:][keep][:100].half())

    def test_too_few_rows_are_said(self, mini):
        with pytest.raises(ValueError, match="keeps 372 tokens of 400; read more rows"):
            real_text.Activations(mini, self.rows(mini), self.HOOKS, size=400)(0)

    def test_a_buffer_takes_them(self, mini):
        buffer = RollingBuffer(real_text.Activations(mini, self.rows(mini), self.HOOKS, size=256), passes=2, batch=64)
        _, batches = next(buffer.rounds())
        assert {hook: x.shape[1] for hook, x in next(batches).items()} == {self.HOOKS[0]: 192, self.HOOKS[1]: 768}


class TestOpenings:
    def test_every_kind_has_many_and_no_placeholder_is_left(self):
        assert set(OPENINGS) == set(MIXTURE)
        for kind in OPENINGS:
            for made in (beginnings(kind, what) for what in ("words", "requests")):
                assert len(made) == len(set(made)) >= 30
                assert not any("{}" in text or text.endswith(" ") for text in made)


class TestWriter:
    def test_writes_what_transformers_writes(self, tiny, monkeypatch):
        model, tokenizer = tiny
        monkeypatch.setattr(writing, "sample", lambda logits, generator: logits.argmax(-1))
        prompts = [[0, 5, 6, 7, 8], [0, 9], [0, 30, 31]]
        found = writing.Writer(model, rows=4, context=24)(prompts, (0,), None)
        for prompt, document in zip(prompts, found, strict=True):
            wanted = model.generate(torch.tensor([prompt]), do_sample=False, max_length=24, pad_token_id=0)[0].tolist()
            assert document == wanted

    def test_stops_at_a_stop_token_which_stays(self, tiny, monkeypatch):
        monkeypatch.setattr(writing, "sample", lambda logits, generator: torch.tensor([7, 3])[: len(logits)])
        assert writing.Writer(tiny[0], 2, 6)([[0, 1], [0, 1]], (7,), None) == [[0, 1, 7], [0, 1, 3, 3, 3, 3]]

    def test_top_p_keeps_the_smallest_set_that_holds_the_mass(self, monkeypatch):
        monkeypatch.setattr(writing, "TEMPERATURE", 1.0)
        logits = torch.tensor([0.1, 0.5, 0.25, 0.15]).log().expand(4_000, 4)  # .5, .25, .15 hold .9
        found = torch.bincount(writing.sample(logits, torch.Generator().manual_seed(0)), minlength=4) / 4_000
        assert found[0] == 0
        torch.testing.assert_close(found[1:], torch.tensor([0.5, 0.25, 0.15]) / 0.9, atol=0.03, rtol=0)

    def test_short_circling_and_copied_documents_fall(self):
        rng, end = np.random.default_rng(0), 0
        text = rng.integers(1, 999, 60).tolist()
        rows = [
            ("web", "a", 2, [5, 6, *text, end]),
            ("web", "b", 2, [7, 8, *text[:55]]),
            ("math", "c", 2, [7, 8, *text]),
            ("web", "d", 2, [5, 6, 1, 2, 3]),
            ("web", "e", 2, [5, 6, *[1, 2, 3, 4] * 10]),
        ]
        kept, dropped = writing.weed(pd.DataFrame(rows, columns=["kind", "opening", "given", "tokens"]), end)
        assert kept["opening"].tolist() == ["a", "c"] and dropped == {"short": 1, "loop": 1, "near-duplicate": 1}
        assert kept["tokens"][0] == [5, 6, *text]

    def test_kinds_of_which_more_is_dropped_are_sampled_more(self):
        sampled, kept = pd.Series(10, index=list(OPENINGS)), pd.Series(1_000, index=list(OPENINGS))
        assert set(writing.shares(sampled, kept, 90).values()) == {10}
        kept["nonenglish"] = 500
        more = writing.shares(sampled, kept, 90)
        assert sum(more.values()) <= 90 + len(OPENINGS) and more["nonenglish"] > 2 * more["web"]
        assert set(writing.shares(sampled, kept[:0], 90).values()) == {10}
        assert min(writing.shares(sampled, kept.drop("web"), 90).values()) >= 1

    def test_an_interrupted_corpus_goes_on_to_the_same_file(self, tiny, tmp_path, monkeypatch):
        model, tokenizer = tiny
        monkeypatch.setattr(writing, "SHORTEST", 4)
        monkeypatch.setattr(writing, "LOOP", 0.0)
        tokenizer.eos_token = tokenizer.bos_token
        made = writing.write_corpus(model, tokenizer, tmp_path / "a.parquet", tmp_path / "work", 4_000, rows=18)
        max((tmp_path / "work").iterdir()).unlink()  # as if it had been killed there
        again = writing.write_corpus(model, tokenizer, tmp_path / "b.parquet", tmp_path / "work", 4_000, rows=18)
        assert made == again and (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
        frame = pd.read_parquet(tmp_path / "a.parquet")
        assert len(frame) == made["kept"] and set(frame["kind"]) == set(OPENINGS)
        assert made["kept"] + sum(made[why] for why in ("short", "loop", "near-duplicate")) == made["sampled"]
        assert tokenizer.decode(frame["tokens"][0]) == frame["text"][0]


TINY = smollm2.Plan(
    chunk=500,
    rows=20,
    study_blocks=(1, 2),
    study_l0=(8,),
    study_rounds=2,
    study_passes=1,
    block=2,
    others=(1,),
    width=2,
    l0=8,
    rounds=4,
    deep_rounds=2,
    passes=2,
    deep_passes=2,
    family_every=2,
    random_rounds=2,
    rates=(3e-3, 1e-2),
    rate_rounds=2,
    corpus_tokens=3_000,
    test_rows=12,
    ce_rows=4,
    corpus_rows=8,
    corpus_ce_rows=4,
    bits_bytes=400,
    config=TrainConfig(batch=128, dead_after=500),
)


def test_the_whole_build_on_a_small_model(tmp_path, monkeypatch):
    """Every part, on the embedded Llama and a few texts of our own."""
    model, text = tmp_path / "model", tmp_path / "text"
    shutil.copytree(DATA / "models" / "mini-llama", model, ignore=shutil.ignore_patterns("saes"))
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(model)
    text.mkdir()
    documents = load_corpus("mini").groupby("kind")["text"].apply(list)
    for kind in MIXTURE:
        chat = ["User: How much is it?\nAssistant: Three coins, I think."] * 30 if kind == "conversational" else []
        (text / f"{kind}.txt").write_text("\n<|endoftext|>\n".join([*documents[kind][:60], *chat]), encoding="utf-8")
    monkeypatch.setattr(writing, "SHORTEST", 4)
    build = smollm2.Build(text, tmp_path / "work", tmp_path / "out", local_spec(model), TINY)
    for part in PARTS:
        getattr(build, part)()
    made = {p.parent.relative_to(tmp_path / "out" / "saes").as_posix() for p in tmp_path.glob("out/saes/**/cfg.json")}
    assert made == {"2-res", "1-res", "2-mlp-out", "2-mlp-post", *(f"family/{name}" for name in FAMILY)}
    sae = SAE.load_from_disk(tmp_path / "out" / "saes" / "2-mlp-post")
    meta = sae.cfg.metadata
    assert meta.hook_name == "blocks.2.mlp.hook_post" and meta.massive_norm > 0 and meta.model_name == "model"
    assert meta.training_samples == (3 + 7) * 128 and sae.cfg.d_sae == sae.cfg.d_in // 2
    measured = json.loads((tmp_path / "out" / "measurements.json").read_text(encoding="utf-8"))
    assert {row["SAE"] for row in measured["real"]} == made - {"family/random-model"}
    assert all(row["massive"] >= 0 and row["tokens"] > 0 for row in measured["corpus"])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "2-mlp-out" in card and "matryoshka" in card and "| nonenglish |" in card and "nan" not in card
    kept = {path.name for path in (tmp_path / "work").iterdir()}
    assert kept >= {"corpus", "default", "further", "random", "rates", "study", "tokens"}
    assert kept >= {"measured-real.json", "measured-corpus.json"}, "a card that is interrupted goes on"
