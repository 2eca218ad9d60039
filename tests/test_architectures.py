"""Models of many architectures, and folders that are not what they seem: read right, or refused in one sentence."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism import evaluation as ev
from prism import models
from prism.data import DATA, TokenBatch
from prism.fast import stripped
from prism.fast.passes import SITES
from prism.interventions import add
from prism.interventions.changes import edited
from prism.models import check_hook, get_spec, harvest, kept_activations, load_model
from prism.models.registry import ARCHITECTURES

TOKENIZER = AutoTokenizer.from_pretrained(DATA / "model")
D_VOCAB, END = len(TOKENIZER), TOKENIZER.bos_token_id
COMMON = {"vocab_size": D_VOCAB, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
MLP, SHARED = {"intermediate_size": 64}, {"intermediate_size": 64, "num_key_value_heads": 2}
PARALLEL, EXPERTS = {"hook_resid_mid"}, {"mlp.hook_post"}  # sites that a block does not have
KINDS = {  # architecture -> its configuration, settings beside the common ones, sites that it does not have
    "GPT-2": ("GPT2Config", OLD, set()),
    "GPT-NeoX": ("GPTNeoXConfig", NEW | MLP, PARALLEL),
    "GPT-J": ("GPTJConfig", OLD | {"rotary_dim": 4}, PARALLEL),
    "Phi": ("PhiConfig", NEW | MLP, PARALLEL),
    "Falcon": ("FalconConfig", NEW, PARALLEL),
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, set()),
    "OPT": ("OPTConfig", NEW | {"ffn_dim": 64, "word_embed_proj_dim": 32}, set()),
    "Llama": ("LlamaConfig", NEW | SHARED, set()),
    "Mistral": ("MistralConfig", NEW | SHARED | {"sliding_window": 8}, set()),
    "Mixtral": ("MixtralConfig", NEW | SHARED | {"num_local_experts": 4}, EXPERTS),
    "Qwen2": ("Qwen2Config", NEW | SHARED, set()),
    "Gemma 2": ("Gemma2Config", NEW | SHARED | {"head_dim": 8, "sliding_window": 8}, set()),
}
IDS = torch.randint(0, D_VOCAB, (3, 24), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = END
KEEP = torch.arange(IDS.shape[1]).expand(IDS.shape) > 0


def folder(home, config, settings, kind="AutoModelForCausalLM"):
    """A folder with two blocks of random weights, three times as large as usual, and mini's tokenizer."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    settings = getattr(transformers, config)(**(COMMON | settings))
    model = model.from_config(settings) if kind.startswith("Auto") else model(settings)
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.dim() > 1 else 1
    model.save_pretrained(home)
    TOKENIZER.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders by architecture, written when first asked for."""
    base = tmp_path_factory.mktemp("architectures")
    return functools.cache(lambda name: folder(base / name, *KINDS[name][:2]))


@pytest.fixture(scope="module")
def model_of(home):
    """Models by architecture, loaded when first asked for."""
    return functools.cache(lambda name: load_model(get_spec(str(home(name)))))


@pytest.fixture
def copy(home, tmp_path):
    """A copy of a folder, with some settings or files of its own."""

    def of(name, settings=None, file="config.json"):
        shutil.copytree(home(name), tmp_path / name)
        path = tmp_path / name / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | (settings or {})), encoding="utf-8")
        return tmp_path / name

    return of


@pytest.fixture
def rewritten(copy):
    """A copy of a folder whose weights were changed."""

    def of(name, change, settings=None):
        there = copy(name, settings)
        weights = load_file(there / "model.safetensors")
        change(weights)
        save_file(weights, there / "model.safetensors", {"format": "pt"})
        return there

    return of


def refusal(there):
    """The one sentence with which a folder is refused."""
    with pytest.raises(ValueError) as error:
        load_model(get_spec(str(there)))
    assert "\n" not in str(error.value)
    return str(error.value)


def nats(model, hook: str | None = None, change=None) -> np.ndarray:
    """Of each sequence of `IDS`, as it is or with a hook changed."""
    seen = ev.Predictions(model, IDS, [hook] if hook else [])
    states = seen.changed(hook, None, change) if hook else seen.clean
    return seen.nats(states, torch.ones(IDS.shape[0], IDS.shape[1] - 1, dtype=torch.bool))


def test_the_architectures_that_errors_name_are_those_tested_here():
    assert set(ARCHITECTURES) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
class TestArchitecture:
    def test_logits_are_those_of_transformers(self, name, home, model_of):
        reference = AutoModelForCausalLM.from_pretrained(home(name), dtype=torch.float32, attn_implementation="eager")
        model = model_of(name)
        ours, theirs = (each(IDS).detach() for each in (model, lambda ids: reference.eval()(ids).logits))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        if (quick := stripped(model)) is not None:
            torch.testing.assert_close(quick.logits(quick.last_state(quick.embed(IDS))), theirs, atol=1e-4, rtol=1e-4)

    def test_what_fires_can_be_steered_and_the_rest_is_refused(self, name, model_of):
        model = model_of(name)
        clean = nats(model)
        for layer in range(2):
            for site in SITES:
                hook = f"blocks.{layer}.{site}"
                if site in KINDS[name][2]:
                    nearest = rf"'{hook}' fires in this model; the nearest is 'blocks\.{layer}"
                    for attempt in (
                        lambda hook=hook: nats(model, hook, torch.relu),
                        lambda hook=hook: list(harvest(model, IDS, hook)),
                    ):
                        with pytest.raises(ValueError, match=nearest):
                            attempt()
                    continue
                width = next(harvest(model, IDS, hook)).shape[-1]
                direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
                steered = nats(model, hook, add(direction, 50.0))
                assert np.abs(steered - clean).min() > 1e-3, hook

    def test_an_sae_is_evaluated(self, name, home, model_of):
        model, batch = model_of(name), TokenBatch(IDS, KEEP)
        hook = get_spec(str(home(name))).sae().hook_name
        pca = ev.pca(kept_activations(model, hook, batch), 8, SAEMetadata(hook_name=hook))
        found = ev.evaluate(model, pca, batch)
        assert 0.1 < found.explained_variance < 1 and np.isfinite(found.delta_ce) and found.n_tokens == KEEP.sum()


class TestHooksThatAreNotWhatTheyAreCalled:
    def test_a_pattern_that_only_a_copy_of_is_handed_out(self, model_of):
        assert "blocks.0.attn.hook_pattern" in model_of("Llama").firing
        for name in ("GPT-J", "OPT"):
            with pytest.raises(ValueError, match="no hook point 'blocks.0.attn.hook_pattern' fires"):
                check_hook(model_of(name), "blocks.0.attn.hook_pattern")

    def test_outputs_that_are_scaled_behind_the_hooks_back(self, tmp_path):
        settings = NEW | SHARED | {"residual_multiplier": 0.3}
        model = load_model(get_spec(str(folder(tmp_path / "granite", "GraniteConfig", settings))))
        for site in ("hook_attn_out", "hook_mlp_out"):
            with pytest.raises(ValueError, match=f"'blocks.1.{site}' fires in this model; the nearest is 'blocks.1"):
                ev.predictions.splice(model, IDS, f"blocks.1.{site}", KEEP, torch.relu)

    def test_a_middle_of_the_block_that_is_normed_before_the_mlp_is_added(self, tmp_path):
        there = folder(tmp_path / "post-norm", "BertConfig", NEW | MLP | {"is_decoder": True}, "BertLMHeadModel")
        model = load_model(get_spec(str(there)))
        assert {"blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"} < model.firing
        assert "blocks.0.hook_resid_mid" in set(model.hook_dict) - model.firing

    @pytest.mark.parametrize("site", ["hook_mlp_in", "hook_attn_in", "attn.hook_result"])
    def test_a_hook_that_is_switched_off(self, site, mini):
        hook = f"blocks.2.{site}"
        assert hook in mini.hook_dict
        with pytest.raises(ValueError, match=f"'{hook}' fires in this model; the nearest is 'blocks.2"):
            list(harvest(mini, IDS, hook))

    def test_a_hook_that_is_never_called_is_an_error_everywhere(self, model_of):
        model, hook = model_of("Phi"), "blocks.0.hook_resid_mid"
        known, said = model.firing, pytest.raises(ValueError, match=f"hook '{hook}' was never called")
        model.firing = known | {hook}  # as if the check had let it through
        try:
            for attempt in (
                lambda: ev.predictions.splice(model, IDS, hook, KEEP, torch.relu),
                lambda: nats(model, hook, torch.relu),
                lambda: list(harvest(model, IDS, hook)),
            ):
                with said:
                    attempt()
            with said, edited(model, hook, torch.relu):
                model(IDS)
        finally:
            model.firing = known

    def test_nor_does_the_quick_pass_leave_one_out(self, mini):
        with pytest.raises(ValueError, match="hook 'blocks.9.hook_resid_pre' was never called"):
            models.activations_at(mini, IDS, ["blocks.1.hook_resid_pre", "blocks.9.hook_resid_pre"])

    def test_a_model_of_another_loader_is_tried_when_first_asked(self, model_of):
        model = model_of("Falcon")
        known = model.firing
        del model.firing
        with torch.inference_mode(), pytest.raises(ValueError, match="'blocks.0.hook_resid_mid' fires"):
            check_hook(model, "blocks.0.hook_resid_mid")
        assert model.firing == known


class TestModelsThatAreRefused:
    @pytest.mark.parametrize(
        ("config", "settings"),
        [
            ("GPT2Config", OLD | {"scale_attn_weights": False}),
            ("CohereConfig", NEW | SHARED),
        ],
        ids=["gpt2-unscaled", "cohere"],
    )
    def test_logits_that_would_be_wrong(self, config, settings, tmp_path):
        said = refusal(folder(tmp_path / "x", config, settings))
        assert "% off its own; needed is" in said and "Qwen2, Gemma 2" in said

    def test_a_model_that_looks_ahead(self, tmp_path):
        said = refusal(folder(tmp_path / "bert", "BertConfig", NEW | MLP, "BertLMHeadModel"))
        assert "of the kind 'bert' and not a causal language model" in said and "tested: GPT-2" in said

    @pytest.mark.parametrize(
        ("config", "settings", "said"),
        [
            ("T5Config", {"d_model": 32}, "kind 't5', which is no causal language model"),
            ("BartConfig", {"is_encoder_decoder": True}, "kind 'bart', an encoder with a decoder"),
            ("CLIPConfig", {}, "kind 'clip', which is no causal language model"),
            ("ViTConfig", {}, "kind 'vit', which is no causal language model"),
            ("MambaConfig", {"num_hidden_layers": 2}, "kind 'mamba', which has no attention"),
            ("RwkvConfig", {"num_hidden_layers": 2}, "kind 'rwkv', which has no attention"),
        ],
    )
    def test_another_kind_of_model(self, config, settings, said, tmp_path):
        getattr(transformers, config)(**settings).save_pretrained(tmp_path)
        assert said in refusal(tmp_path) and "needed is a causal language model with attention" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("hidden_size", None, "config.json' is no configuration of the kind 'llama'.*'hidden_size'"),
            ("num_hidden_layers", None, "config.json'.*'num_hidden_layers'"),
            ("num_hidden_layers", 0, "config.json' has 0 as num_hidden_layers; needed is 1 or more"),
            ("num_attention_heads", "four", "config.json'.*'num_attention_heads'"),
            ("model_type", None, "config.json' names no model_type"),
            ("model_type", "lama", "kind 'lama', which is no causal language model known here; needed is"),
            ("rope_parameters", {"rope_type": "sideways"}, "cannot be loaded|is no configuration"),
        ],
    )
    def test_a_wrong_field_is_named_with_its_file(self, field, value, said, copy):
        there = copy("Llama", {field: value})
        with pytest.raises(ValueError, match=said):
            load_model(get_spec(str(there)))

    @pytest.mark.parametrize("text", ["null", "[]", "{}", '{"model_type": "gpt2", "n_lay', ""])
    def test_a_configuration_that_is_none(self, text, copy):
        there = copy("Llama")
        (there / "config.json").write_text(text, encoding="utf-8")
        assert "config.json'" in refusal(there)

    def test_the_text_part_of_a_larger_model_counts(self, tmp_path):
        text = COMMON | NEW | SHARED | {"head_dim": 8, "max_position_embeddings": 40}
        transformers.Gemma3Config(text_config=text).save_pretrained(tmp_path)
        assert get_spec(str(tmp_path)).context == 40
        assert get_spec(str(tmp_path)).sae().hook_name == "blocks.1.hook_resid_pre"

    def test_a_tokenizer_with_more_ids_than_the_model_embeds(self, tmp_path):
        said = refusal(folder(tmp_path / "small", "LlamaConfig", NEW | SHARED | {"vocab_size": 5_000}))
        assert f"the tokenizer has {D_VOCAB:,} ids" in said and "embeds 5,000" in said


class TestWeightsThatAreOfAnotherModel:
    def test_a_model_without_a_head_does_not_get_a_random_one(self, home, tmp_path):
        folder(tmp_path / "base", KINDS["Llama"][0], KINDS["Llama"][1], "LlamaModel")
        assert "lacks the weight 'lm_head.weight', which LlamaForCausalLM needs" in refusal(tmp_path / "base")

    def test_weights_that_the_configuration_would_leave_out(self, rewritten):
        key = "model.layers.0.self_attn.q_proj.bias"
        there = rewritten("Llama", lambda weights: weights.update({key: torch.ones(32)}))
        assert f"has the weight '{key}', which LlamaForCausalLM leaves out" in refusal(there)

    def test_blocks_that_the_configuration_cuts_off(self, copy):
        assert "leaves out under its config.json" in refusal(copy("Llama", {"num_hidden_layers": 1}))

    def test_buffers_that_older_versions_stored_are_no_weights(self, rewritten):
        there = rewritten("GPT-J", lambda w: w.update({"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}))
        assert load_model(get_spec(str(there))).firing

    def test_weights_that_are_no_numbers(self, rewritten):
        there = rewritten("Llama", lambda weights: weights["model.norm.weight"].fill_(float("nan")))
        assert "gives logits that are NaN or infinite" in refusal(there)


class TestCodeInAFolder:
    """Nothing in a model's folder is ever run, and nobody is asked whether it may."""

    EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"

    @pytest.fixture
    def evil(self, copy, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))

        def of(settings, file="config.json"):
            there = copy("Llama", settings, file)
            (there / "evil.py").write_text(self.EVIL, encoding="utf-8")
            (there / "custom_generate").mkdir()
            (there / "custom_generate" / "generate.py").write_text(self.EVIL, encoding="utf-8")
            return there

        yield of

    @staticmethod
    def nothing_ran(there):
        return not list(there.rglob("ran"))

    def test_a_kind_of_its_own_is_refused(self, evil):
        code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        there = evil({"model_type": "evil", "auto_map": code})
        assert "code of its own (auto_map) is never run; needed is" in refusal(there) and self.nothing_ran(there)

    def test_a_known_kind_is_read_by_the_librarys_code(self, evil):
        there = evil({"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}})
        model = load_model(get_spec(str(there)))
        assert type(model.original_model) is transformers.LlamaForCausalLM and self.nothing_ran(there)

    def test_a_tokenizer_of_its_own_is_refused(self, evil):
        there = evil(
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}, "tokenizer_config.json"
        )
        assert f"the tokenizer in '{there}' cannot be read" in refusal(there) and self.nothing_ran(there)

    def test_a_pickle_beside_is_not_opened(self, copy):
        there = copy("Llama")
        (there / "model.safetensors").rename(there / "other.safetensors")
        (there / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert "cannot be loaded" in refusal(there)


class TestIdentity:
    """A model is its folder, whatever the folder is called."""

    @pytest.mark.parametrize("name", ["mini", "gpt2-small", "smollm2"])
    def test_a_folder_with_a_name_of_the_registry(self, name, home, tmp_path, capsys):
        from prism import cli
        from prism.models.saes import _homes, trained_family
        from prism.press import running

        shutil.copytree(home("Llama"), tmp_path / name)
        spec = get_spec(str(tmp_path / name))
        assert running.model_name(str(tmp_path / name)) == str(tmp_path / name)
        assert cli.main(["fetch", str(tmp_path / name)]) == 0
        assert f"lies in '{tmp_path / name}'; nothing to fetch" in capsys.readouterr().out
        assert _homes(spec)[0] == tmp_path / name / "saes" / "family" and trained_family(spec) == set()

    def test_the_registrys_own(self):
        from prism.models.saes import _homes
        from prism.press import running

        assert running.model_name("mini") == "mini"
        assert _homes(models.MODELS["mini"])[0] == _homes(get_spec(str(DATA / "model")))[0] == DATA / "saes" / "family"
        assert _homes(models.SMOLLM2)[0] == DATA / "smollm2" / "saes" / "family"
