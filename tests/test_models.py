"""The registry, loading, and harvesting."""

import json
import tempfile
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from prism import models
from prism.data import DATA, tokenize
from prism.models import get_spec, harvest, harvesting, load_model, load_sae

EMBEDDED = list(models.MINI.saes)


class TestRegistry:
    def test_default_is_mini(self, monkeypatch):
        monkeypatch.delenv("PRISM_MODEL", raising=False)
        assert get_spec().name == "mini"

    def test_environment_variable_chooses(self, monkeypatch):
        monkeypatch.setenv("PRISM_MODEL", "gpt2-small")
        assert get_spec().name == "gpt2-small"
        assert get_spec("mini").name == "mini"

    def test_unknown_model_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean 'gpt2-small'.*choose from mini, gpt2-small"):
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
        config = json.loads((DATA / "model" / "config.json").read_text())
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
        monkeypatch.setattr(harvesting, "_is_plain_gpt2", lambda model: False)  # the quick pass has tests of its own
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
    monkeypatch.setattr(models.loading, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("prism.training.family.HOME_TOKENS", 6_000)


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
        from prism.evaluation import preflight

        spec = get_spec(str(llama))
        sae = load_sae(spec)
        assert "training a small one" in capsys.readouterr().out
        assert (sae.cfg.metadata.model_name, sae.cfg.d_in, sae.cfg.d_sae) == ("tiny-llama", 32, 256)
        model = load_model(spec, sae)
        batch = corpus_batch(load_corpus(spec.corpus, n_documents=20), model.tokenizer, spec.context)
        assert preflight(model, sae, batch[:8])["ok"].all()
        monkeypatch.setattr("prism.training.train", None)  # would fail if called
        again = load_sae(get_spec(str(llama)))
        assert torch.equal(again.W_dec, sae.W_dec)

    def test_another_model_in_the_same_folder_gets_another_sae(self, llama, quick_training, tmp_path):
        import shutil

        folder = tmp_path / "tiny-llama"
        shutil.copytree(llama, folder)
        spec = get_spec(str(folder))
        first = models.trained_here(spec, spec.sae())
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        assert models.trained_here(spec, spec.sae()) != first

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
        settings = json.loads(path.read_text())
        end = settings.get("eos_token") or "<|endoftext|>"
        path.write_text(json.dumps({k: v for k, v in settings.items() if k != "bos_token"} | {"eos_token": end}))
        tokenizer = load_model(get_spec(str(folder))).tokenizer
        assert tokenizer.bos_token_id == tokenizer.eos_token_id is not None


def tiny_gpt2(processing=None, **settings):
    """Three blocks of random weights, biases and layer norms included, behind hook points."""
    config = GPT2Config(vocab_size=50, n_positions=64, n_embd=48, n_layer=3, n_head=4, **settings)
    torch.manual_seed(0)
    hf_model = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    for name, parameter in hf_model.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    wanted = {step: step in processing for step in steps} if processing else {"no_processing": True}
    model.enable_compatibility_mode(disable_warnings=True, **wanted)
    return model.eval()


ALL_SITES = [f"blocks.{layer}.{site}" for layer in range(3) for site in harvesting.SITES]
SOME = torch.randint(0, 50, (5, 40), generator=torch.Generator().manual_seed(0))


def assert_harvests_equal_the_cache(model, tokens, hooks):
    """Each hook streams what `run_with_cache` keeps, within 1e-5 of its norm and of its largest entry."""
    _, cache = model.run_with_cache(tokens)
    for hook in hooks:
        streamed = torch.cat(list(harvest(model, tokens, hook, batch_size=2)))
        assert streamed.shape == cache[hook].shape and streamed.dtype == cache[hook].dtype
        difference = streamed - cache[hook]
        assert difference.norm() <= 1e-5 * cache[hook].norm(), hook
        assert difference.abs().max() <= 1e-5 * cache[hook].abs().max(), hook


@pytest.fixture
def passes(monkeypatch):
    """How often the quick pass was taken, as a list that grows."""
    taken, quick = [], harvesting._gpt2_pass
    monkeypatch.setattr(harvesting, "_gpt2_pass", lambda *arguments: taken.append(1) or quick(*arguments))
    return taken


class TestQuickPass:
    @pytest.mark.parametrize(
        "processing",
        [
            (),
            ("fold_ln",),
            ("center_writing_weights",),
            ("fold_value_biases",),
            ("fold_ln", "center_writing_weights", "center_unembed"),
            ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"),
        ],
        ids=lambda steps: "+".join(steps) or "none",
    )
    def test_equals_the_cache_at_every_site_under_every_processing(self, processing, passes):
        model = tiny_gpt2(processing, layer_norm_epsilon=1e-3)
        assert_harvests_equal_the_cache(model, SOME, ALL_SITES)
        assert len(passes) == 3 * len(ALL_SITES)

    def test_equals_the_cache_on_mini(self, mini, passes):
        tokens = tokenize(["one two three", "def f(): pass", "x"], mini.tokenizer, 256).tokens
        assert_harvests_equal_the_cache(mini, tokens, [f"blocks.3.{site}" for site in harvesting.SITES])
        assert passes

    def test_padding_changes_nothing_before_it(self, mini, passes):
        batch = tokenize(["a much longer text than the other", "x = 1"], mini.tokenizer, 256)
        hook = "blocks.3.hook_resid_post"
        both = next(harvest(mini, batch.tokens, hook))
        alone = next(harvest(mini, tokenize(["x = 1"], mini.tokenizer, 256).tokens, hook))[0]
        torch.testing.assert_close(both[1, : len(alone)], alone, rtol=1e-4, atol=1e-4)
        assert len(passes) == 2

    def test_stops_right_after_the_hook(self, monkeypatch):
        model, attended = tiny_gpt2(), []
        attention = harvesting.F.scaled_dot_product_attention
        monkeypatch.setattr(
            harvesting.F, "scaled_dot_product_attention", lambda *a, **k: attended.append(1) or attention(*a, **k)
        )
        for blocks, hook in enumerate(("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post")):
            attended.clear()
            next(harvest(model, SOME, hook))
            assert len(attended) == blocks

    def test_several_hooks_from_one_pass(self, mini, llama, passes):
        hooks = ["blocks.2.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.2.mlp.hook_post", "blocks.1.attn.hook_z"]
        for model in (mini, load_model(get_spec(str(llama)))):
            for some in (hooks[:1], hooks[:3], hooks):
                caught, cache = models.activations_at(model, SOME, some), model.run_with_cache(SOME)[1]
                assert set(caught) == set(some)
                for hook in some:
                    torch.testing.assert_close(caught[hook], cache[hook], atol=1e-4, rtol=1e-4)
        assert len(passes) == 2

    def test_another_architecture_runs_itself(self, llama, passes):
        hooks = [f"blocks.1.{site}" for site in harvesting.SITES]
        assert_harvests_equal_the_cache(load_model(get_spec(str(llama))), SOME, hooks)
        assert not passes

    @pytest.mark.parametrize(
        "settings", [{"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}], ids=str
    )
    def test_an_unusual_gpt2_runs_itself(self, settings, passes):
        assert_harvests_equal_the_cache(tiny_gpt2(**settings), SOME, ALL_SITES)
        assert not passes

    def test_hooks_that_the_reader_attached_are_honoured(self, passes):
        model, hook = tiny_gpt2(), "blocks.1.hook_resid_post"
        plain = next(harvest(model, SOME, hook))
        model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
        assert_harvests_equal_the_cache(model, SOME, [hook])
        assert not torch.allclose(next(harvest(model, SOME, hook)), plain, atol=1e-2)
        model.reset_hooks()
        assert len(passes) == 1
        assert torch.equal(next(harvest(model, SOME, hook)), plain)
        handle = model.blocks[0].ln2.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] + 1,))
        assert_harvests_equal_the_cache(model, SOME, [hook])
        handle.remove()
        assert len(passes) == 2

    def test_dropout_is_honoured(self, passes):
        model = tiny_gpt2(resid_pdrop=0.5)
        model.train()
        first, second = (next(harvest(model, SOME, "blocks.2.hook_resid_pre")) for _ in range(2))
        assert not passes and not torch.allclose(first, second)

    def test_weights_changed_later_are_seen(self):
        model, hook = tiny_gpt2(), "blocks.2.hook_resid_pre"
        before = next(harvest(model, SOME, hook))
        with torch.no_grad():
            model.blocks[1].mlp.out.original_component.weight.mul_(2)
        assert_harvests_equal_the_cache(model, SOME, [hook])
        assert not torch.allclose(next(harvest(model, SOME, hook)), before, atol=1e-2)

    def test_no_graph_is_kept(self):
        x = next(harvest(tiny_gpt2(), SOME, "blocks.2.hook_resid_pre"))  # its parameters do require gradients
        assert not x.requires_grad


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
