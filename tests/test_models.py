"""The registry, loading, and harvesting."""

import json
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from prism import models
from prism.data import DATA, tokenize
from prism.models import get_spec, harvest, harvesting, load_model, load_sae

EMBEDDED = list(models.MODELS["mini"].saes)


class TestRegistry:
    def test_environment_variable_chooses(self, monkeypatch):
        monkeypatch.setenv("PRISM_MODEL", "gpt2-small")
        assert get_spec().name == "gpt2-small"
        assert get_spec("mini").name == "mini"

    def test_unknown_model_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean 'gpt2-small'.*choose from mini, smollm2, gpt2-small"):
            get_spec("gpt2")

    def test_unknown_sae_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean '2-res'"):
            get_spec("mini").sae("2-re")
        with pytest.raises(ValueError, match="choose from 2-res"):
            get_spec("mini").sae("zzz")

    def test_every_default_exists(self):
        for spec in models.MODELS.values():
            assert spec.sae().name == spec.default_sae
            for sae in spec.saes.values():
                assert 0 <= sae.layer and sae.hook_name.startswith("blocks.")

    def test_hub_saes_are_as_the_saelens_registry_has_them(self):
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        releases = get_pretrained_saes_directory()
        saes = [(spec, sae) for spec in models.MODELS.values() for sae in spec.saes.values() if sae.source]
        assert len(saes) >= 14
        for spec, sae in saes:
            release, sae_id = sae.source
            entry = releases[release]
            assert entry.model == spec.name
            assert entry.neuronpedia_id[sae_id] == sae.neuronpedia
            published = entry.expected_l0.get(sae_id)
            assert sae.published_l0 == (None if published in (None, 0) else published)

    def test_feature_links(self):
        assert get_spec("gpt2-small").sae().feature_url(7) == "https://www.neuronpedia.org/gpt2-small/6-res-jb/7"
        assert get_spec("mini").sae().feature_url(7) is None


class TestLoading:
    def test_bridge_computes_what_hugging_face_computes(self, mini):
        reference = AutoModelForCausalLM.from_pretrained(DATA / "model", dtype=torch.float32).eval()
        tokens = tokenize(["The quick brown fox", "x = 1"], mini.tokenizer, 256).tokens
        torch.testing.assert_close(mini(tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)

    def test_embedded_weights_are_float16_on_disk(self):
        config = json.loads((DATA / "model" / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "float16"

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_embedded_saes_load_in_saelens_unchanged(self, name, mini):
        spec = get_spec("mini").sae(name)
        ours = load_sae(get_spec("mini"), name)
        theirs = SAE.load_from_disk(DATA / "saes" / name, dtype="float32")
        assert ours.cfg.metadata.hook_name == spec.hook_name
        assert ours.cfg.metadata.prepend_bos is True
        x = next(harvest(mini, tokenize(["Once upon a time"], mini.tokenizer, 256).tokens, spec.hook_name))
        assert x.shape[-1] == ours.cfg.d_in
        torch.testing.assert_close(ours(x), theirs(x))

    def test_missing_embedded_files_are_one_clear_line(self, tmp_path):
        spec = get_spec("mini")
        lost = replace(spec, folder=tmp_path, saes={"2-res": replace(spec.sae(), folder=tmp_path)})
        with pytest.raises(FileNotFoundError, match="model 'mini' is missing: no safetensors file in"):
            load_model(lost)
        with pytest.raises(FileNotFoundError, match="SAE '2-res' is missing: no sae_weights.safetensors in"):
            load_sae(lost)

    def test_hub_model_without_cache_or_network_says_what_to_do(self, monkeypatch, tmp_path):
        models.loading._boot.cache_clear()  # another test may have loaded it
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="not in the local Hugging Face cache.*PRISM_MODEL=mini"):
            load_model(get_spec("gpt2-small"))

    def test_weight_processing_follows_the_sae(self):
        class Stub:
            class cfg:
                class metadata:
                    model_from_pretrained_kwargs = {"center_writing_weights": True}

        assert models.weight_processing(None) == {"no_processing": True}
        wanted = models.weight_processing(Stub)
        assert wanted["center_writing_weights"] and not wanted["fold_ln"] and "no_processing" not in wanted


class TestHarvest:
    @pytest.mark.parametrize("hook", ["blocks.2.hook_resid_pre", "blocks.2.hook_mlp_out", "blocks.2.mlp.hook_post"])
    def test_hooks_give_exactly_what_run_with_cache_gives(self, mini, hook, monkeypatch):
        monkeypatch.setattr(harvesting, "stripped", lambda model, hooks: None)  # the quick pass has tests of its own
        tokens = tokenize(["one two three", "def f(): pass", "x"], mini.tokenizer, 256).tokens
        _, cache = mini.run_with_cache(tokens)
        streamed = torch.cat(list(harvest(mini, tokens, hook, batch_size=2)))
        torch.testing.assert_close(streamed, cache[hook])

    def test_runs_no_layer_above_the_hook(self, mini):
        seen, tokens = [], torch.zeros(1, 4, dtype=torch.long)
        with mini.hooks(fwd_hooks=[("blocks.2.attn.hook_out", lambda x, hook: seen.append(1))]):
            list(harvest(mini, tokens, "blocks.1.hook_resid_pre"))
            assert not seen
            mini(tokens)
            assert seen

    def test_residual_before_a_block_is_the_hidden_state(self, mini):
        reference = AutoModelForCausalLM.from_pretrained(DATA / "model", dtype=torch.float32).eval()
        tokens = torch.arange(1, 40)[None]
        hidden = reference(tokens, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(next(harvest(mini, tokens, "blocks.2.hook_resid_pre")), hidden, atol=1e-4, rtol=1e-4)

    def test_unknown_hook_names_the_nearest(self, mini):
        with pytest.raises(ValueError, match="nearest is 'blocks.2.hook_resid_pre'"):
            next(harvest(mini, torch.zeros(1, 4, dtype=torch.long), "blocks.2.hook_resid_pr"))

    def test_hook_outside_the_blocks(self, mini):
        with pytest.raises(ValueError, match="not inside a block"):
            next(harvest(mini, torch.zeros(1, 4, dtype=torch.long), "embed.hook_out"))

    def test_too_long(self, mini):
        with pytest.raises(ValueError, match="sequences of 300 tokens; .* takes 256"):
            next(harvest(mini, torch.zeros(1, 300, dtype=torch.long), "blocks.2.hook_resid_pre"))

    def test_gradients_stay_enabled_afterwards(self, mini):
        list(harvest(mini, torch.zeros(1, 4, dtype=torch.long), "blocks.2.hook_resid_pre"))
        assert torch.is_grad_enabled()


@pytest.fixture
def quick_training(tmp_path, monkeypatch):
    """A cache of its own, and few tokens to train on."""
    monkeypatch.setattr(models.saes, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("prism.models.saes.HOME_TOKENS", 6_000)


class TestLocalModel:
    def test_its_spec(self, llama, monkeypatch):
        monkeypatch.setenv("PRISM_MODEL", str(llama))
        spec = get_spec()
        assert (spec.name, spec.context, spec.default_sae) == ("tiny-llama", 256, "1-res")
        assert spec.sae().hook_name == "blocks.1.hook_resid_pre"

    def test_computes_what_hugging_face_computes(self, llama):
        model = load_model(get_spec(str(llama)))
        reference = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
        tokens = tokenize(["The quick brown fox", "x = 1"], model.tokenizer, 256).tokens
        torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)

    def test_a_model_without_an_sae_gets_one_once(self, llama, quick_training, monkeypatch, capsys):
        from prism.data import corpus_batch, load_corpus
        from prism.evaluation.preflight import preflight

        spec = get_spec(str(llama))
        sae = load_sae(spec)
        assert "training a small one" in capsys.readouterr().out
        assert (sae.cfg.metadata.model_name, sae.cfg.d_in, sae.cfg.d_sae) == ("tiny-llama", 32, 256)
        model = load_model(spec, sae)
        batch = corpus_batch(load_corpus(spec.corpus, n_documents=20), model.tokenizer, spec.context)
        assert preflight(model, sae, batch[:8])["ok"].all()
        monkeypatch.setattr("prism.models.saes.train", None)  # would fail if called
        again = load_sae(get_spec(str(llama)))
        assert torch.equal(again.W_dec, sae.W_dec)

    def test_another_model_in_the_same_folder_gets_another_sae(self, llama, quick_training, tmp_path):
        import shutil

        folder = tmp_path / "tiny-llama"
        shutil.copytree(llama, folder)
        spec = get_spec(str(folder))
        first = models.saes.trained_here(spec, spec.sae())
        path = folder / "config.json"
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
        assert models.saes.trained_here(spec, spec.sae()) != first

    def test_its_own_saes_are_found(self, llama, tmp_path, monkeypatch):
        from sae_lens.saes.sae import SAEMetadata

        from prism.sae import SaeConfig, make_sae, save_saelens

        for name, hook in (("b", "blocks.2.hook_mlp_out"), ("a", "blocks.1.hook_resid_pre")):
            save_saelens(make_sae(SaeConfig(32, 64, k=4)), tmp_path / name, SAEMetadata(hook_name=hook))
        monkeypatch.setenv("PRISM_SAES", str(tmp_path))
        spec = get_spec(str(llama))
        assert list(spec.saes) == ["a", "b"] and spec.default_sae == "a"
        assert load_sae(spec, "b").cfg.metadata.hook_name == "blocks.2.hook_mlp_out"
        save_saelens(make_sae(SaeConfig(32, 64, k=4)), tmp_path / "c", SAEMetadata())
        with pytest.raises(ValueError, match="c/cfg.json' names the hook point None"):
            get_spec(str(llama))

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(ValueError, match="holds no model: there is no config.json.*mini"):
            get_spec(str(tmp_path))
        with pytest.raises(ValueError, match="holds no model"):
            get_spec(str(tmp_path / "nowhere"))

    def test_a_tokenizer_without_bos_uses_its_end_token(self, llama, tmp_path):
        import shutil

        folder = tmp_path / "no-bos"
        shutil.copytree(llama, folder)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        end = settings.get("eos_token") or "<|endoftext|>"
        settings = {k: v for k, v in settings.items() if k != "bos_token"} | {"eos_token": end}
        path.write_text(json.dumps(settings), encoding="utf-8")
        tokenizer = load_model(get_spec(str(folder))).tokenizer
        assert tokenizer.bos_token_id == tokenizer.eos_token_id is not None


class TestSharing:
    def test_same_processing_same_model(self):
        spec = get_spec("mini")
        assert load_model(spec, load_sae(spec)) is load_model(spec, load_sae(spec, "2-mlp-out"))

    def test_other_processing_is_another_variant(self, mini):
        spec, sae = get_spec("mini"), load_sae(get_spec("mini"))
        sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
        centred = load_model(spec, sae)
        assert centred is not mini and centred.weight_processing["center_writing_weights"]
        assert abs(centred.W_E.mean(-1)).max() < 1e-5 < abs(mini.W_E.mean(-1)).max()
        assert load_model(spec, sae) is centred
