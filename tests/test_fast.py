"""The quick twins against what they stand for: sparse gradients against autograd's, stripped and resumed passes against
the model's own. The buffered encoder's are in `test_features`."""

import tempfile

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_sae import random_sae
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from prism import evaluation as ev
from prism import fast, models
from prism.data import DATA, TokenBatch, tokenize
from prism.evaluation import metrics
from prism.fast import SparseGradients, passes
from prism.fast.entries import RULES, where_true
from prism.fast.passes import SITES
from prism.models import get_spec, harvest, load_model
from prism.sae import dense_gradients
from prism.sae.architectures import ARCHITECTURES

STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
GPT2 = {"vocab_size": 50, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
LLAMA = {
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
KINDS = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", LLAMA),
    "llama-biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-scaled-rotary": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "head_dim": 12},
    ),
    "mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA),
}


def tiny(kind="gpt2", processing=None, **settings):
    """Three blocks of random weights, biases and norms included, behind hook points."""
    name, base = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**(base | settings))
    torch.manual_seed(0)
    classes = {"GPT2": "GPT2LMHeadModel"}
    cls = getattr(transformers, classes.get(name, f"{name}ForCausalLM"))
    hf_model = cls._from_config(config, attn_implementation="eager")
    for name, parameter in hf_model.named_parameters():
        if "ln_" in name or "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    wanted = {step: step in processing for step in STEPS} if processing else {"no_processing": True}
    model.enable_compatibility_mode(disable_warnings=True, **wanted)
    return model.eval()


ALL_SITES = [f"blocks.{layer}.{site}" for layer in range(3) for site in SITES]
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
def taken(monkeypatch):
    """How often a quick pass was begun, as a list that grows."""
    seen, walk = [], passes.StrippedPass.walk
    monkeypatch.setattr(passes.StrippedPass, "walk", lambda *a, **k: seen.append(1) or walk(*a, **k))
    return seen


class TestSparseGradients:
    """`fast.SparseGradients` against `sae.dense_gradients`, which is autograd on the plain loss."""

    def test_every_architecture_has_its_rule(self):
        assert set(RULES) == set(ARCHITECTURES), "see RULES in fast/entries.py"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("n_dead", [0, 1, 15])
    @pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tied relu"])
    def test_equal_to_autograd(self, architecture, n_dead, dtype):
        near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-9}
        for seed, (k, batch, sparsity) in enumerate([(4, 12, 0.3), (1, 1, 1.0), (40, 7, 0.0), (9, 5, 0.7), (2, 30, 2)]):
            sae = random_sae(architecture.split()[-1], seed, k=k, tied=architecture.startswith("tied")).to(dtype)
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(batch, 12, generator=generator).to(dtype)
            dead = torch.randperm(40, generator=generator)[:n_dead].sort().values
            slow = dense_gradients(sae, x, dead, sparsity)
            expected = [p.grad.clone() for p in sae.parameters()]
            quick = SparseGradients(sae, len(x))(x, dead, sparsity)
            assert quick[:2] == pytest.approx(slow[:2], rel=near["rtol"] / 10)
            assert torch.equal(quick.fires, slow.fires) and (slow.fires.sum() > 0 or batch == 1)
            for (name, p), grad in zip(sae.named_parameters(), expected, strict=True):
                torch.testing.assert_close(p.grad, grad, **near, msg=lambda said, name=name: f"{name}: {said}")

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_batch_in_which_nothing_fires(self, architecture):
        sae = random_sae(architecture)
        sae.b_enc.data.fill_(-100.0)
        found = SparseGradients(sae, 5)(torch.randn(5, 12))
        assert found.fires.sum() == 0 and np.isfinite(found.error) and sae.W_enc.grad.abs().sum() == 0

    def test_blocks_change_nothing(self, monkeypatch):
        sae, x, dead = random_sae("batch_topk").double(), torch.randn(50, 12).double(), torch.tensor([1, 5])
        whole, expected = SparseGradients(sae, len(x))(x, dead), [p.grad.clone() for p in sae.parameters()]
        monkeypatch.setattr("prism.fast.gradients.BLOCK", 7 * 40)
        quick = SparseGradients(sae, 50)
        assert len(quick.pre) == 7 and torch.equal(quick(x, dead).fires, whole.fires)
        for p, grad in zip(sae.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad)

    @given(seed=st.integers(0, 10_000), low=st.floats(0, 3), k=st.integers(1, 20))
    def test_looking_only_above_a_guess_changes_nothing(self, seed, low, k):
        sae = random_sae("batch_topk", seed, d_in=3, d_sae=20, k=k)
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        quick = SparseGradients(sae, 6)
        quick(x)
        expected, quick.low = [p.grad.clone() for p in sae.parameters()], low
        assert torch.equal(quick(x).fires, (sae.encode(x) > 0).sum(0))
        for p, grad in zip(sae.parameters(), expected, strict=True):
            assert torch.equal(p.grad, grad)

    @pytest.mark.parametrize("share", [0.0, 0.03, 1.0])
    def test_true_entries(self, share):
        mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) < share
        assert where_true(mask).tolist() == mask.flatten().nonzero()[:, 0].tolist()


class TestStrippedPass:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_the_cache_at_every_site(self, kind, taken):
        settings = {"layer_norm_epsilon": 1e-3} if kind == "gpt2" else {"rms_norm_eps": 1e-3}
        assert_harvests_equal_the_cache(tiny(kind, **settings), SOME, ALL_SITES)
        assert len(taken) == 3 * len(ALL_SITES)

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize(
        "processing", [STEPS[:1], STEPS[1:2], STEPS[3:], STEPS[:3], STEPS], ids=lambda steps: "+".join(steps)
    )
    def test_equals_the_cache_under_every_processing(self, kind, processing, taken):
        assert_harvests_equal_the_cache(tiny(kind, processing), SOME, ALL_SITES)
        assert len(taken) == 3 * len(ALL_SITES)

    @pytest.mark.parametrize("kind", KINDS)
    def test_logits_equal_the_models_own(self, kind):
        model = tiny(kind)
        quick = fast.stripped(model)
        logits = quick.logits(quick.last_state(quick.embed(SOME)))
        torch.testing.assert_close(logits, model(SOME, return_type="logits"), atol=1e-4, rtol=1e-4)

    def test_equals_the_cache_on_the_embedded_models(self, mini, taken):
        tokens = tokenize(["one two three", "def f(): pass", "x"], mini.tokenizer, 256).tokens
        for model in (mini, load_model(get_spec("mini-llama"))):
            assert_harvests_equal_the_cache(model, tokens, [f"blocks.3.{site}" for site in SITES])
        assert len(taken) == 2 * 2 * len(SITES)

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_bfloat16_stays_near_float32_and_leaves_as_float32(self, kind, taken):
        model, hook = tiny(kind), "blocks.2.hook_resid_post"
        exact = next(harvest(model, SOME, hook))
        low = model.to(torch.bfloat16)
        near = next(harvest(low, SOME, hook))
        assert near.dtype == torch.float32 and len(taken) == 2
        error = (near - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert 1e-5 < error.median() < 0.02
        _, cache = low.run_with_cache(SOME)
        apart = (near - cache[hook].float()).norm(dim=-1) / exact.norm(dim=-1)
        assert apart.median() < 0.02

    def test_padding_changes_nothing_before_it(self, mini, taken):
        batch = tokenize(["a much longer text than the other", "x = 1"], mini.tokenizer, 256)
        hook = "blocks.3.hook_resid_post"
        both = next(harvest(mini, batch.tokens, hook))
        alone = next(harvest(mini, tokenize(["x = 1"], mini.tokenizer, 256).tokens, hook))[0]
        torch.testing.assert_close(both[1, : len(alone)], alone, rtol=1e-4, atol=1e-4)
        assert len(taken) == 2

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_stops_right_after_the_hook(self, kind, monkeypatch):
        model, attended = tiny(kind), []
        attention = passes.F.scaled_dot_product_attention
        monkeypatch.setattr(
            passes.F, "scaled_dot_product_attention", lambda *a, **k: attended.append(1) or attention(*a, **k)
        )
        for blocks, hook in enumerate(("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post")):
            attended.clear()
            next(harvest(model, SOME, hook))
            assert len(attended) == blocks

    def test_several_hooks_from_one_pass(self, mini, llama, taken):
        hooks = ["blocks.2.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.2.mlp.hook_post", "blocks.1.attn.hook_z"]
        for model in (mini, load_model(get_spec(str(llama)))):
            for some in (hooks[:1], hooks[:3], hooks):
                caught, cache = models.activations_at(model, SOME, some), model.run_with_cache(SOME)[1]
                assert set(caught) == set(some)
                for hook in some:
                    torch.testing.assert_close(caught[hook], cache[hook], atol=1e-4, rtol=1e-4)
        assert len(taken) == 4

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            ("gpt2", {"activation_function": "relu"}),
            ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
            ("llama", {"hidden_act": "gelu"}),
            ("mistral", {"sliding_window": 8}),
        ],
        ids=str,
    )
    def test_an_unusual_model_runs_itself(self, kind, settings, taken):
        assert_harvests_equal_the_cache(tiny(kind, **settings), SOME, ALL_SITES)
        assert not taken

    def test_gpt2_without_scaled_attention_has_no_quick_pass(self):
        assert fast.stripped(tiny(scale_attn_weights=False)) is None

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_hooks_that_the_reader_attached_are_honoured(self, kind, taken):
        model, hook = tiny(kind), "blocks.1.hook_resid_post"
        plain = next(harvest(model, SOME, hook))
        model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
        assert_harvests_equal_the_cache(model, SOME, [hook])
        assert not torch.allclose(next(harvest(model, SOME, hook)), plain, atol=1e-2)
        model.reset_hooks()
        assert len(taken) == 1
        assert torch.equal(next(harvest(model, SOME, hook)), plain)
        handle = model.blocks[0].ln2.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] + 1,))
        assert_harvests_equal_the_cache(model, SOME, [hook])
        handle.remove()
        assert len(taken) == 2

    def test_dropout_is_honoured(self, taken):
        model = tiny(resid_pdrop=0.5)
        model.train()
        first, second = (next(harvest(model, SOME, "blocks.2.hook_resid_pre")) for _ in range(2))
        assert not taken and not torch.allclose(first, second)

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_weights_changed_later_are_seen(self, kind):
        model, hook = tiny(kind), "blocks.2.hook_resid_pre"
        before = next(harvest(model, SOME, hook))
        with torch.no_grad():
            model.blocks[1].mlp.out.original_component.weight.mul_(2)
        assert_harvests_equal_the_cache(model, SOME, [hook])
        assert not torch.allclose(next(harvest(model, SOME, hook)), before, atol=1e-2)

    def test_no_graph_is_kept(self):
        x = next(harvest(tiny(), SOME, "blocks.2.hook_resid_pre"))  # its parameters do require gradients
        assert not x.requires_grad


def halve_and_turn(x):
    """A change that is neither small nor the same for every channel."""
    return 0.5 * x + x.flip(-1)


class TestPredictions:
    """`evaluation.Predictions`, which begins at the hook's block, against a whole pass through the bridge."""

    keep = torch.rand(SOME.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    mask = keep[:, :-1] & keep[:, 1:]

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
    @torch.no_grad()
    def test_every_site_equals_the_whole_spliced_pass(self, kind):
        model = tiny(kind)
        seen = ev.Predictions(model, SOME, ALL_SITES)
        assert seen.quick is not None
        clean = model(SOME, return_type="logits")
        np.testing.assert_allclose(
            seen.nats(seen.clean, self.mask), ev.predictions.sequence_nats(clean, SOME, self.mask), rtol=1e-5
        )
        for hook in ALL_SITES:
            whole = ev.predictions.splice(model, SOME, hook, self.keep, halve_and_turn)
            states = seen.changed(hook, self.keep, halve_and_turn)
            nats, apart = seen.measure({"x": states}, self.mask, ["x"])
            np.testing.assert_allclose(
                nats["x"], ev.predictions.sequence_nats(whole, SOME, self.mask), rtol=1e-5, err_msg=hook
            )
            divergence = metrics.kl(clean[:, :-1][self.mask], whole[:, :-1][self.mask]) * int(self.mask.sum())
            np.testing.assert_allclose(apart["x"], divergence, rtol=1e-4, atol=1e-5, err_msg=hook)  # float32 logits

    @torch.no_grad()
    def test_a_model_without_a_quick_pass_gives_the_same(self, monkeypatch):
        model, hook = tiny("llama"), "blocks.1.hook_mlp_out"
        numbers = []
        for quick in (passes.stripped, lambda model, hook_names=(): None):
            monkeypatch.setattr("prism.evaluation.predictions.stripped", quick)
            seen = ev.Predictions(model, SOME, [hook])
            states = {"clean": seen.clean, "x": seen.changed(hook, None, halve_and_turn)}
            numbers.append(seen.measure(states, self.mask)[0])
        for name in ("clean", "x"):
            np.testing.assert_allclose(numbers[0][name], numbers[1][name], rtol=1e-5)

    @torch.no_grad()
    def test_what_lies_below_the_hook_runs_once(self, monkeypatch):
        model, attended = tiny("llama"), []
        attention = passes.F.scaled_dot_product_attention
        monkeypatch.setattr(
            passes.F, "scaled_dot_product_attention", lambda *a, **k: attended.append(1) or attention(*a, **k)
        )
        seen = ev.Predictions(model, SOME, ["blocks.2.hook_resid_pre"])
        assert len(attended) == 2
        for _ in range(3):
            seen.changed("blocks.2.hook_resid_pre", None, halve_and_turn)
        assert len(attended) == 5
        assert seen.clean is seen.clean and len(attended) == 6

    @torch.no_grad()
    def test_logits_are_made_in_parts(self, monkeypatch):
        monkeypatch.setattr("prism.evaluation.predictions.LOGITS", 50 * 7)
        model = tiny("llama")
        seen = ev.Predictions(model, SOME)
        sizes, logits = [], fast.passes.StrippedPass.logits
        monkeypatch.setattr(fast.passes.StrippedPass, "logits", lambda self, x: sizes.append(len(x)) or logits(self, x))
        nats = seen.nats(seen.clean, self.mask)
        assert max(sizes) == 7 and sum(sizes) == int(self.mask.sum())
        whole = ev.predictions.sequence_nats(model(SOME, return_type="logits"), SOME, self.mask)
        np.testing.assert_allclose(nats, whole, rtol=1e-5)

    @torch.no_grad()
    def test_no_prediction_is_no_nats(self):
        seen = ev.Predictions(tiny(), SOME)
        assert seen.nats(seen.clean, torch.zeros_like(self.mask)).tolist() == [0.0] * len(SOME)

    def test_a_hook_that_was_not_named_is_refused(self):
        with pytest.raises(ValueError, match="'blocks.2.hook_mlp_out' was not named"):
            ev.Predictions(tiny(), SOME, ["blocks.1.hook_resid_pre"]).changed("blocks.2.hook_mlp_out", None, torch.relu)

    def test_unknown_hook_names_the_nearest(self):
        with pytest.raises(ValueError, match="nearest is 'blocks.1.hook_resid_pre'"):
            ev.Predictions(tiny(), SOME, ["blocks.1.hook_resid_pr"])

    def test_an_evaluation_is_the_same_with_and_without(self, monkeypatch):
        model = tiny("llama")
        batch = TokenBatch(SOME, torch.arange(40).expand(SOME.shape) > 0)
        x = models.kept_activations(model, "blocks.1.hook_resid_pre", batch)
        from sae_lens.saes.sae import SAEMetadata

        pca = ev.pca(x, 8, SAEMetadata(hook_name="blocks.1.hook_resid_pre"))
        quick = ev.evaluate(model, pca, batch)
        monkeypatch.setattr("prism.evaluation.predictions.stripped", lambda model, hook_names=(): None)
        whole = ev.evaluate(model, pca, batch)
        for name in ("ce_clean", "delta_ce", "mean_ablation_cost", "ce_recovered_mean", "ce_recovered_zero", "kl"):
            assert getattr(quick, name) == pytest.approx(getattr(whole, name), rel=1e-4), name


@torch.no_grad()
def test_a_change_of_the_middle_of_a_block_reaches_the_residual_stream():
    """The bridge's own hook there is on the MLP's input alone; what counts is `x' + MLP(norm(x'))`."""
    model, hook = tiny("llama"), "blocks.1.hook_resid_mid"
    x = models.activations_at(model, SOME, [hook])[hook]
    block = model.blocks[1]
    normed = block.ln2.original_component(halve_and_turn(x))
    wanted = halve_and_turn(x) + block.mlp.original_component(normed)
    hooks = ev.predictions.hooks_for(hook, halve_and_turn)
    with model.hooks(fwd_hooks=hooks):
        cache = model.run_with_cache(SOME)[1]
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], wanted, atol=1e-5, rtol=1e-5)
    mlp_out = wanted - halve_and_turn(x)  # the MLP's own share is not mixed with the change
    torch.testing.assert_close(cache["blocks.1.hook_mlp_out"], mlp_out, atol=1e-5, rtol=1e-5)


def test_whole_logits_take_few_sequences_and_parts_take_sixteen():
    model, batch = tiny("llama", vocab_size=60_000), TokenBatch(SOME.repeat(4, 1), SOME.repeat(4, 1) > 0)
    assert ev.logit_rows(model, batch) == ev.logit_rows(model, batch, ["blocks.1.hook_attn_out"]) == 16
    few = 2**25 // (40 * 60_000)
    assert ev.logit_rows(model, batch, ["blocks.1.attn.hook_z"]) == ev.logit_rows(model, batch, whole=True) == few
