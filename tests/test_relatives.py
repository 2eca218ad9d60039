"""The further embedded models, bits per byte, and the figure that sets groups side by side."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from prism import visualization as viz
from prism.build.__main__ import main as command
from prism.build.corpus import END, tokenise
from prism.build.pretrain import RELATIVES, PretrainConfig
from prism.build.tokenizer import train_tokenizer
from prism.data import DATA, load_texts, tokenize
from prism.evaluation import bits_per_byte, text_bits
from prism.models import MODELS, get_spec, kept_activations, load_family, load_model, load_sae, trained_family
from prism.models.saes import member_configs

NAMES = list(RELATIVES)
TEXTS = ["Once upon a time", "x = 1", "déjà vu 日本 🙂"]
TINY = PretrainConfig(
    n_layer=2, d_model=32, d_head=16, context=16, batch=4, tokens=6 * 64, warmup=128, checkpoint_minutes=1e9
)


class TestEmbedded:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_bridge_computes_what_hugging_face_computes(self, name):
        spec = get_spec(name)
        model = load_model(spec)
        reference = AutoModelForCausalLM.from_pretrained(spec.folder, dtype=torch.float32).eval()
        tokens = tokenize(TEXTS, model.tokenizer, spec.context).tokens
        torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-3, rtol=1e-4)
        assert json.loads((spec.folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float16"

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_what_the_build_makes(self, name):
        config = json.loads((DATA / "models" / name / "config.json").read_text(encoding="utf-8"))
        settings = RELATIVES[name]
        assert config["model_type"] == settings.architecture
        assert {config.get("n_layer"), config.get("num_hidden_layers")} == {settings.n_layer, None}
        assert {config.get("n_embd"), config.get("hidden_size")} == {settings.d_model, None}

    @pytest.mark.parametrize("name", NAMES)
    def test_its_sae_is_the_familys_and_fits(self, name):
        spec = get_spec(name)
        sae, model = load_sae(spec), load_model(spec)
        wanted, _ = member_configs("batch_topk", model.cfg.d_model)
        assert (sae.cfg.d_in, sae.cfg.d_sae) == (wanted.d_in, wanted.d_sae)
        assert spec.sae().layer == model.cfg.n_layers // 2 and sae.cfg.metadata.hook_name == spec.sae().hook_name
        assert trained_family(spec) >= {"batch_topk"}
        torch.testing.assert_close(load_family(spec, "batch_topk").W_dec, sae.W_dec)
        x = kept_activations(model, spec.sae().hook_name, tokenize(TEXTS, model.tokenizer, spec.context))
        error = (sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        assert error < 0.5, "the SAE belongs to another model"

    def test_they_predict_better_than_a_unigram(self):
        measured = json.loads((DATA / "models" / "measurements.json").read_text(encoding="utf-8"))
        baselines = json.loads((DATA / "measurements.json").read_text(encoding="utf-8"))["bits_per_byte"]
        for name in NAMES:
            assert measured[name]["bits_per_byte"]["all"] < 0.8 * baselines["all"]["unigram"]
        assert measured["mini"]["bits_per_byte"]["all"] == baselines["all"]["model"]

    def test_the_tokenizer_is_minis_and_no_copy(self):
        for name in NAMES:
            assert get_spec(name).tokenizer_folder == DATA / "model"
            assert not (DATA / "models" / name / "tokenizer.json").exists()

    def test_files_stay_small(self):
        def size(folder):
            return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

        assert all(size(DATA / "models" / name) < 4e6 for name in NAMES)
        assert size(DATA) < 145e6

    def test_the_real_world_is_in_the_registry_too(self):
        assert {"gpt2-small", "pythia-70m-deduped", "gemma-2-2b"} <= {*MODELS}
        assert (
            get_spec("gemma-2-2b").sae().feature_url(3)
            == "https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/3"
        )


class TestBits:
    def test_one_text_by_hand(self, mini):
        tokens = tokenize([TEXTS[0]], mini.tokenizer, 256).tokens
        log_p = mini(tokens)[0, :-1].log_softmax(-1)
        nats = -sum(log_p[i, tokens[0, i + 1]].item() for i in range(tokens.shape[1] - 1))
        frame = text_bits(mini, TEXTS, 256)
        assert frame["bits"][0] == pytest.approx(nats / math.log(2), rel=1e-4)
        assert frame["bytes"].tolist() == [len(text.encode()) for text in TEXTS]
        assert frame["tokens"][0] == tokens.shape[1] - 1

    def test_batches_and_their_order_change_nothing(self, mini):
        texts = load_texts("discover")["text"].tolist()[::7]
        whole, single = text_bits(mini, texts, 256), text_bits(mini, texts, 256, batch_size=1)
        pd.testing.assert_frame_equal(whole, single, rtol=1e-4)
        backwards = text_bits(mini, texts[::-1], 256)[::-1].reset_index(drop=True)
        pd.testing.assert_frame_equal(whole, backwards, rtol=1e-4)
        assert bits_per_byte(whole) == pytest.approx(single["bits"].sum() / single["bytes"].sum())

    def test_a_text_that_does_not_fit_is_refused(self, mini):
        with pytest.raises(ValueError, match="the longest that fits"):
            text_bits(mini, ["word " * 50], 16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small corpus, its tokenizer of another vocabulary, and the token streams."""
    folder, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "x = 1", "return", "größe", "今日"]
    documents = [" ".join(rng.choice(words, 30)) for _ in range(150)]
    (folder / "python.txt").write_text(f"\n{END}\n".join(documents) + "\n", encoding="utf-8")
    path = train_tokenizer(folder, out, vocabulary=300)
    tokenizer = Tokenizer.from_file(str(path))
    return folder, tokenizer, tokenise(folder, tokenizer, path, out)


class TestBuild:
    def test_the_step_trains_both_architectures_and_writes_the_card(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setenv("PRISM_DATA", "")  # so that what the command sets is taken back
        small = {"mini-small": TINY, "mini-llama": replace(TINY, architecture="llama")}
        monkeypatch.setattr("prism.build.steps.RELATIVES", small)
        monkeypatch.setattr("prism.build.steps.MINI", TINY)
        monkeypatch.setattr("prism.build.steps.train_tokenizer", partial(train_tokenizer, vocabulary=300))
        monkeypatch.setattr("prism.build.steps.train_family", lambda spec, out, members: write_front(out))
        data = tmp_path / "data"
        common = ["--corpus", str(corpus[0]), "--data", str(data), "--work", str(tmp_path / "work")]
        with pytest.raises(SystemExit, match="run the step 'tokenizer' first"):
            command(["relatives", *common])
        command(["tokenizer", *common])
        with pytest.raises(SystemExit, match="run the step 'cards' first"):
            command(["relatives", *common])
        command(["pretrain", *common])
        write_front(data / "saes" / "family")
        bits = {kind: {"model": 2.0, "5-gram": 1.5, "unigram": 3.0} for kind in ("python", "all")}
        measured = json.dumps({"bits_per_byte": bits, "trained_tokens": 384.0})
        (data / "measurements.json").write_text(measured, encoding="utf-8")
        command(["relatives", *common])
        card = (data / "models" / "README.md").read_text(encoding="utf-8")
        assert "confounded" in card and "| mini-llama | llama |" in card and "| python | 2.000 |" in card
        measured = json.loads((data / "models" / "measurements.json").read_text(encoding="utf-8"))
        assert measured["mini-small"]["trained_tokens"] == measured["mini-llama"]["trained_tokens"] == TINY.tokens
        for name in small:
            model = AutoModelForCausalLM.from_pretrained(data / "models" / name)
            assert model.dtype == torch.float16 and not list((data / "models" / name).glob(".*"))
        with pytest.raises(SystemExit, match="--resume"):
            command(["relatives", *common])
        command(["relatives", *common, "--resume"])


def write_front(out):
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "member": ["batch_topk", "topk"],
            "target_l0": 32,
            "l0": 31.5,
            "d_sae": 256,
            "explained_variance": 0.9,
            "delta_ce": 0.1,
            "delta_ce_low": 0.09,
            "delta_ce_high": 0.11,
            "ce_recovered_mean": 0.97,
        }
    ).to_csv(out / "front.csv", index=False)


class TestFigures:
    frame = pd.DataFrame(
        {
            "model": ["a", "a", "b"],
            "kind": ["SAE", "PCA", "SAE"],
            "value": [1.0, 2.0, 3.0],
            "low": [0.5, 1.5, 2.0],
            "high": [1.5, 2.5, 5.0],
        }
    )

    def test_dots_stand_in_their_group_with_their_interval(self):
        fig = viz.grouped_dots(self.frame, "model", "kind", "loss (nats)", "What it costs", line=1.0)
        assert fig.layout.title.text == "What it costs" and fig.layout.yaxis.title.text == "loss (nats)"
        assert fig.layout.xaxis.ticktext == ("a", "b")
        sae, pca = fig.data
        assert (sae.name, pca.name) == ("SAE", "PCA") and list(np.round(sae.x)) == [0, 1] and sae.x[0] < pca.x[0] < 0.5
        assert list(sae.error_y.array) == [0.5, 2.0] and list(sae.error_y.arrayminus) == [0.5, 1.0]
        with pytest.raises(ValueError, match="no column 'low'"):
            viz.grouped_dots(self.frame.drop(columns="low"), "model", "kind", "y", "t")

    def test_there_is_a_symbol_for_every_colour(self):
        many = pd.DataFrame({"model": "a", "kind": list("abcdefgh"), "value": 1.0, "low": 0.5, "high": 1.5})
        assert len(viz.grouped_dots(many, "model", "kind", "loss (nats)", "What it costs").data) == 8
