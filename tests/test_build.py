"""How data/ is made: the corpus reader, exact resume, the baselines, sampling, an SAE's way to disk."""

import json
import lzma
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE
from tokenizers import Tokenizer

from prism.build import corpus as corpus_module
from prism.build.__main__ import main as command
from prism.build.baselines import NGram, bits_per_byte
from prism.build.corpus import END, find_kinds, read_documents, split_documents, tokenise
from prism.build.pretrain import (
    Batches,
    Muon,
    PretrainConfig,
    chunked_loss,
    load_checkpoint,
    make_model,
    make_optimizers,
    orthogonalise,
    pretrain,
)
from prism.build.tokenizer import train_tokenizer

TINY = PretrainConfig(
    n_layer=2, d_model=32, d_head=16, context=16, batch=4, tokens=12 * 64, warmup=128, checkpoint_minutes=1e9
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small corpus of two kinds, one plain and one compressed, written here."""
    path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "x = 1", "return", "größe", "今日"]
    documents = [" ".join(rng.choice(words, 30)) for _ in range(250)]
    (path / "python.txt").write_text(f"\n{END}\n".join(documents[:150]) + "\n", encoding="utf-8")
    with lzma.open(path / "social.txt.xz", "wt", encoding="utf-8") as file:
        file.write(f"\n{END}\n".join(documents[150:]))
    return path


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """Tokenizer and token streams of the small corpus."""
    out = tmp_path_factory.mktemp("built")
    path = train_tokenizer(folder, out, vocabulary=300)
    tokenizer = Tokenizer.from_file(str(path))
    return tokenizer, tokenise(folder, tokenizer, path, out), out


class TestCorpus:
    def test_mixture_adds_up(self):
        assert sum(corpus_module.MIXTURE.values()) == pytest.approx(1.0)

    def test_documents_are_split_at_the_separator_line(self, tmp_path):
        path = tmp_path / "web.txt"
        path.write_text(f"one\ntwo\n{END}\n\nthree {END} inline\n{END}\n{END}\nfour", encoding="utf-8")
        assert list(read_documents(path)) == ["one\ntwo", f"three {END} inline", "four"]

    def test_every_hundredth_document_is_held_out(self, folder):
        train, held_out = split_documents(folder / "python.txt")
        assert (len(train), len(held_out)) == (149, 1)
        assert not set(held_out) & set(train)

    def test_a_small_corpus_never_trains_on_what_it_holds_out(self, tmp_path):
        (tmp_path / "web.txt").write_text(f"one\r\n{END}\r\ntwo\r\n{END}\r\nthree", encoding="utf-8", newline="")
        train, held_out = split_documents(tmp_path / "web.txt")
        assert ([d.strip() for d in train], held_out) == (["one", "two"], ["three"])

    def test_missing_text_is_said(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected files named python.txt"):
            find_kinds(tmp_path)

    def test_tokens_decode_to_the_documents(self, folder, built):
        tokenizer, tokens, _ = built
        train, _ = split_documents(folder / "social.txt.xz")
        assert tokenizer.decode(tokens["social"].tolist(), skip_special_tokens=False).split(END)[:-1] == train


def stopped_before(step: int, monkeypatch, *run) -> None:
    """A run that is stopped before a step; every step before it has written its checkpoint."""
    *what, config = run
    once = Batches.__call__

    def batch(batches, number):
        if number == step:
            raise KeyboardInterrupt
        return once(batches, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Batches, "__call__", batch)
        pretrain(*what, replace(config, checkpoint_minutes=0.0))


class TestPretrain:
    def test_batches_are_a_function_of_the_step(self, built):
        tokenizer, tokens, _ = built
        one, two = Batches(tokens, TINY, 0), Batches(tokens, replace(TINY, tokens=TINY.tokens * 4), 0)
        for step in (5, 0, 11):
            assert torch.equal(one(step), two(step))
        assert (one(0)[:, 0] == 0).all()

    def test_an_epoch_visits_every_window_once(self):
        stream = np.arange(1, 1 + 15 * 20, dtype=np.uint16)
        config = replace(TINY, batch=1, tokens=19 * 16)
        batches = Batches({"python": stream}, config, 0)
        starts = [int(batches(step)[0, 1]) for step in range(19)]
        assert len(set(starts)) == 19

    def test_chunked_loss_equals_autograd(self):
        model = make_model(TINY, 50, 0)
        tokens = torch.randint(0, 50, (4, 16))
        value = chunked_loss(model, tokens, chunk=7)
        ours = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        assert value == pytest.approx(loss.item(), abs=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-3)

    def test_orthogonalise_makes_singular_values_near_one(self):
        torch.manual_seed(0)
        for shape in ((24, 64), (64, 24), (32, 32)):
            values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
            assert values.min() > 0.3 and values.max() < 1.3

    def test_blocks_go_to_muon_and_all_parameters_go_somewhere(self):
        model = make_model(TINY, 50, 0)
        muon, adam = make_optimizers(model, TINY)
        assert isinstance(muon, Muon)
        counts = [sum(p.numel() for g in o.param_groups for p in g["params"]) for o in (muon, adam)]
        assert sum(counts) == model.num_parameters()
        assert counts[0] == 2 * 12 * 32 * 32

    def test_schedule(self):
        config = PretrainConfig(batch=1, context=1, tokens=100, warmup=10, decay_share=0.2)
        scales = [config.lr_scale(step) for step in range(100)]
        assert scales[0] == 0.1 and scales[10] == scales[80] == 1.0
        assert scales[90] == pytest.approx(0.5) and scales[99] == pytest.approx(0.05)

    def test_resume_gives_the_same_losses(self, built, tmp_path, monkeypatch):
        tokenizer, tokens, _ = built
        whole = pretrain(tokens, tokenizer, tmp_path / "whole", TINY)
        stopped_before(5, monkeypatch, tokens, tokenizer, tmp_path / "cut", TINY)
        rest = pretrain(tokens, tokenizer, tmp_path / "cut", TINY, resume=True)
        assert [step for step, _ in rest] == list(range(5, 12))
        assert rest == whole[5:]
        assert whole[-1][1] < whole[0][1]

    def test_a_longer_run_goes_on_from_before_the_decay(self, built, tmp_path):
        tokenizer, tokens, _ = built
        pretrain(tokens, tokenizer, tmp_path, TINY)
        longer = replace(TINY, tokens=TINY.tokens * 2)
        rest = pretrain(tokens, tokenizer, tmp_path, longer, resume=True)
        whole = pretrain(tokens, tokenizer, tmp_path / "whole", longer)
        assert rest[0][0] == TINY.decay_start
        assert rest == whole[TINY.decay_start :]

    def test_checkpoint_holds_no_code(self, built, tmp_path, monkeypatch):
        tokenizer, tokens, _ = built
        stopped_before(2, monkeypatch, tokens, tokenizer, tmp_path, TINY)
        model = make_model(TINY, tokenizer.get_vocab_size(), 0)
        assert load_checkpoint(tmp_path / "last.safetensors", model, make_optimizers(model, TINY)) == 2
        assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".jsonl"}

    def test_another_configuration_is_refused(self, built, tmp_path, monkeypatch):
        tokenizer, tokens, _ = built
        stopped_before(2, monkeypatch, tokens, tokenizer, tmp_path, TINY)
        with pytest.raises(ValueError, match="'batch' was 4, is 8"):
            pretrain(tokens, tokenizer, tmp_path, replace(TINY, batch=8), resume=True)
        with pytest.raises(ValueError, match="--resume"):
            pretrain(tokens, tokenizer, tmp_path, TINY)

    def test_nan_stops_with_the_step(self, built, tmp_path):
        tokenizer, tokens, _ = built
        with pytest.raises(FloatingPointError, match="at step"):
            pretrain(tokens, tokenizer, tmp_path, replace(TINY, lr_other=math.inf))


class TestBaselines:
    def test_probabilities_sum_to_one(self):
        rng = np.random.default_rng(0)
        stream = rng.integers(0, 6, 400).astype(np.uint16)
        model = NGram(stream, vocabulary=6, order=3)
        for history in ([0, 1], [5, 5], [2, 3]):
            total = sum(model.probabilities(np.array([*history, w], dtype=np.uint16))[-1] for w in range(6))
            assert total == pytest.approx(1.0)

    def test_hand_computed_bigram(self):
        # stream a b a b a c: bigrams ab 2, ba 2, ac 1; discount: once 1 (ac), twice 2 -> 1 / (1 + 4) = 0.2
        stream = np.array([0, 1, 0, 1, 0, 2], dtype=np.uint16)
        model = NGram(stream, vocabulary=3, order=2)
        # continuation counts: a after {b} 1, b after {a} 1, c after {a} 1; total 3; no twice -> discount 0.5
        unigram = (1 - 0.5) / 3 + 0.5 * 3 / 3 / 3
        expected = (2 - 0.2) / 3 + 0.2 * 2 / 3 * unigram
        assert model.probabilities(np.array([0, 1], dtype=np.uint16))[0] == pytest.approx(expected)

    def test_a_learnt_rule_beats_the_unigram(self):
        stream = np.tile(np.arange(5, dtype=np.uint16), 100)
        model = NGram(stream, vocabulary=5, order=5)
        assert model.probabilities(stream[:50])[5:].min() > 0.8

    def test_too_large_an_order_is_refused(self):
        with pytest.raises(ValueError, match="64 bits"):
            NGram(np.zeros(10, dtype=np.uint16), vocabulary=8192, order=5)

    def test_bits_per_byte_of_a_uniform_model(self, folder, built):
        tokenizer, tokens, _ = built
        model = make_model(replace(TINY, context=64), tokenizer.get_vocab_size(), 0)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        rows = bits_per_byte(model, tokenizer, folder, tokens)
        _, held_out = split_documents(folder / "python.txt")
        n_tokens = len(tokenizer.encode(held_out[0], add_special_tokens=False).ids)
        expected = n_tokens * math.log2(tokenizer.get_vocab_size()) / len(held_out[0].encode())
        assert rows["python"]["model"] == pytest.approx(expected, rel=1e-4)
        assert rows["all"]["5-gram"] < rows["all"]["unigram"] < rows["all"]["model"]


def test_an_embedded_sae_survives_the_way_to_disk(tmp_path):
    from prism.build.saes import train_embedded
    from prism.models import SaeSpec, get_spec
    from prism.sae import SaeConfig

    rng = np.random.default_rng(0)
    activations = (rng.normal(size=(65_536, 16)) * 3 + 1).astype(np.float16)
    sae = SaeSpec("tiny", "blocks.0.hook_resid_pre", "a tiny one")
    trained = train_embedded(activations, sae, SaeConfig(16, 64, k=4), get_spec("mini"), tmp_path)
    loaded = SAE.load_from_disk(tmp_path / "tiny", dtype="float32")
    x = torch.from_numpy(activations[:4_096].astype(np.float32))
    assert loaded.cfg.architecture() == "jumprelu"
    assert loaded.cfg.metadata.training_samples == 65_536
    f = trained.encode(x)
    fires = loaded.encode(x) > 0
    assert fires.float().sum(1).mean().item() == pytest.approx(4, rel=0.05)
    same = (fires == (f > 0)).all(1)  # float16 moves a few activations across the threshold
    assert same.float().mean() > 0.95
    torch.testing.assert_close(loaded(x)[same], trained.decode(f)[same], atol=0.05, rtol=0.02)
    assert json.loads((tmp_path / "tiny" / "cfg.json").read_text(encoding="utf-8"))["dtype"] == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_the_harvest_keeps_every_hook_of_the_same_tokens(mini, tmp_path):
    from prism.build.pretrain import Batches, PretrainConfig
    from prism.build.saes import harvest_all

    stream = np.random.default_rng(0).integers(1, 4_000, 3_000).astype(np.uint16)
    hooks = {"blocks.1.hook_resid_pre": 192, "blocks.2.hook_mlp_out": 192, "blocks.2.mlp.hook_post": 768}
    n, context = 1_100, 16
    kept = harvest_all(mini, {"python": stream}, hooks, tmp_path, n, 0, context, {"python": 1.0})
    config = PretrainConfig(batch=32, context=context, tokens=2 * n, seed=1)
    batches = Batches({"python": stream}, config, 0, {"python": 1.0})
    caches = [mini.run_with_cache(batches(step))[1] for step in range(3)]
    for hook, d_in in hooks.items():
        assert kept[hook].shape == (n, d_in)
        expected = torch.cat([cache[hook][:, 1:].reshape(-1, d_in) for cache in caches])[:n]
        torch.testing.assert_close(torch.from_numpy(kept[hook].astype(np.float32)), expected, atol=1e-2, rtol=1e-2)
    written = (tmp_path / "blocks.1.hook_resid_pre.npy").stat().st_mtime_ns
    harvest_all(mini, {"python": stream}, hooks, tmp_path, n, 0, context, {"python": 1.0})
    assert (tmp_path / "blocks.1.hook_resid_pre.npy").stat().st_mtime_ns == written  # reused


def test_the_harvests_files_refuse_what_their_format_cannot_hold(mini, tmp_path, monkeypatch):
    from prism.build import saes
    from prism.models import activations_at

    hook, stream = "blocks.1.hook_resid_pre", np.arange(1, 3_001, dtype=np.uint16)
    monkeypatch.setattr(saes, "activations_at", lambda *what: {hook: 1e6 * activations_at(*what)[hook]})
    with pytest.raises(ValueError, match=f"activations at '{hook}' do not fit float16.*largest: .*e[+]0"):
        saes.harvest_all(mini, {"python": stream}, {hook: 192}, tmp_path, 200, 0, 16, {"python": 1.0})
    assert not (tmp_path / "key.json").exists(), "a later call begins anew"


def test_broken_runs_differ_from_the_healthy_one_by_their_fault_alone(monkeypatch):
    from prism.build import broken_runs
    from prism.data import DATA
    from prism.phases.phase_4.exercises import BOS, FAULTS, HEALTHY, NORMS, ORDER

    rng = np.random.default_rng(0)
    activations = (rng.normal(size=(4_200, 192)) + np.arange(4_200)[:, None] / 2_000).astype(np.float32)
    bos = np.arange(4_200) % 100 == 0
    assert list(broken_runs.RUNS) == [HEALTHY, *FAULTS]
    prepared = {name: broken_runs.prepared(run, activations, bos) for name, run in broken_runs.RUNS.items()}
    assert {len(x) for name, x in prepared.items() if name != BOS} == {(~bos).sum()}
    np.testing.assert_allclose(prepared[BOS][bos], 30 * activations[bos])
    np.testing.assert_array_equal(prepared[BOS][~bos], activations[~bos])
    ordered = broken_runs.in_order(activations, 1_000)
    for first in (0, 1_000, 2_000, 3_000, 0):
        np.testing.assert_array_equal(next(ordered), activations[first : first + 1_000])
    small = replace(broken_runs.TRAINING, tokens=12 * 256, batch=256)
    monkeypatch.setattr(broken_runs, "TRAINING", small)
    logs = {name: broken_runs.run_log(broken_runs.RUNS[name], prepared[name], name) for name in (HEALTHY, NORMS, ORDER)}
    for log in logs.values():
        assert [row["step"] for row in log] == [0, 2, 4, 6, 8, 10]
        assert ["run", *log[0]] == list(pd.read_parquet(DATA / "broken_runs.parquet"))
    assert logs[HEALTHY][-1]["decoder_norm"] == pytest.approx(1, abs=1e-5)
    assert abs(logs[NORMS][-1]["decoder_norm"] - 1) > 1e-3
    assert logs[ORDER][0]["loss"] != logs[HEALTHY][0]["loss"] == pytest.approx(logs[NORMS][0]["loss"], rel=1e-5)


def test_sampling_is_repeatable_and_starts_with_the_opening():
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from prism.build.openings import OPENINGS
    from prism.build.sample import _sample
    from prism.data import DATA

    model = GPT2LMHeadModel.from_pretrained(DATA / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    model.config.n_positions = 24
    first = _sample(model, tokenizer, "Once upon a time", 3, seed=5)
    assert first == _sample(model, tokenizer, "Once upon a time", 3, seed=5)
    assert first != _sample(model, tokenizer, "Once upon a time", 3, seed=6)
    assert all(tokenizer.decode(ids).startswith("Once upon a time") for ids in first)
    assert set(OPENINGS) == set(corpus_module.MIXTURE)
    assert not any(opening != opening.rstrip(" ") for kind in OPENINGS.values() for opening in kind["mini"])


def test_the_sampled_corpus_holds_every_kind_whichever_process_made_it(tmp_path):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from prism.build.corpus import MIXTURE
    from prism.build.openings import OPENINGS
    from prism.build.sample import sample_corpus, sample_kind
    from prism.data import DATA

    model = GPT2LMHeadModel.from_pretrained(DATA / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    model.config.n_positions = 16
    frame = sample_corpus(model, tokenizer, tmp_path / "sampled.parquet", n_tokens=600)
    assert list(frame["kind"].unique()) == list(OPENINGS)
    assert 600 <= frame["tokens"].map(len).sum() < 900
    for row in frame.itertuples():
        assert row.text == tokenizer.decode(row.tokens) and row.text.startswith(row.opening)
    here = sample_kind(model, tokenizer, "math", 600 * MIXTURE["math"], seed=20_000)
    assert [tuple(row) for row in frame[frame["kind"] == "math"].itertuples(index=False)] == here
    assert [p.name for p in tmp_path.iterdir()] == ["sampled.parquet"]


class TestCommand:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch):
        monkeypatch.setenv("PRISM_DATA", "")  # so that what the command sets is taken back

    def test_missing_corpus_is_one_line(self, tmp_path):
        with pytest.raises(SystemExit, match="prism.build tokenizer: no training text in"):
            command(["tokenizer", "--corpus", str(tmp_path), "--data", str(tmp_path / "data")])

    def test_unknown_step_and_missing_option_are_refused(self, capsys):
        for arguments in (["pretrian", "--corpus", "x"], ["pretrain"]):
            with pytest.raises(SystemExit) as stopped:
                command(arguments)
            assert stopped.value.code == 2
        assert "--corpus DIR is needed" in capsys.readouterr().err

    def test_tokenizer_and_pretrain_write_a_model(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("prism.build.steps.MINI", TINY)
        monkeypatch.setattr("prism.build.steps.train_tokenizer", partial(train_tokenizer, vocabulary=300))
        common = ["--corpus", str(folder), "--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
        command(["tokenizer", *common])
        command(["pretrain", *common])
        config = json.loads((tmp_path / "data" / "model" / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "float16" and config["activation_function"] == "gelu_new"
        assert 257 < config["vocab_size"] <= 300
        assert not list((tmp_path / "data" / "model").glob(".*"))
        with pytest.raises(SystemExit, match="--resume"):
            command(["pretrain", *common])
        command(["pretrain", *common, "--resume"])

    def test_a_step_without_the_one_before_says_which(self, folder, tmp_path):
        common = ["--corpus", str(folder), "--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
        for step, needed in (("pretrain", "tokenizer"), ("sample", "pretrain"), ("saes", "tokenizer")):
            with pytest.raises(SystemExit, match=f"run the step '{needed}' first"):
                command([step, *common])


def test_the_card_measures_what_evaluate_measures(mini):
    from prism.build.cards import measure_saes
    from prism.data import corpus_batch, load_corpus
    from prism.evaluation import evaluate
    from prism.models import get_spec, load_sae

    batch = corpus_batch(load_corpus("mini", 20), mini.tokenizer, 64)
    saes = {name: load_sae(get_spec("mini"), name) for name in ("2-res", "2-mlp-out")}
    rows = measure_saes(mini, saes, batch, batch)
    for name, sae in saes.items():
        expected = evaluate(mini, sae, batch, with_kl=False)
        for measure in ("l0", "explained_variance", "dead", "delta_ce", "ce_recovered_mean"):
            assert rows[name][measure] == pytest.approx(getattr(expected, measure), rel=1e-5), (name, measure)
        assert sum(rows[name]["density_histogram"]) == sae.cfg.d_sae - rows[name]["dead"]
