"""The quick twins against what they stand for: sparse gradients against autograd's, stripped and resumed passes against
the model's own. The buffered encoder's are in `test_features`."""

import tempfile
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sae import random_sae
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from prism import evaluation as ev
from prism import fast, models
from prism.data import DATA, TokenBatch, tokenize
from prism.evaluation import metrics
from prism.fast import SparseGradients, passes
from prism.fast.entries import RULES, at_least, kth_largest
from prism.fast.passes import SITES
from prism.fast.screening import Screen
from prism.models import get_spec, harvest, load_model
from prism.sae import SaeConfig, dense_gradients
from prism.sae.architectures import ARCHITECTURES
from prism.training import TrainConfig
from prism.training.loop import Trainer

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

    @pytest.mark.parametrize("way", ["screened", "float32", "float64"])
    @pytest.mark.parametrize("n_dead", [0, 1, 15])
    @pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tied relu"])
    def test_equal_to_autograd(self, architecture, n_dead, way, monkeypatch):
        monkeypatch.setattr("prism.fast.screening.SMALL", 0)
        dtype = torch.float64 if way == "float64" else torch.float32
        near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-9}
        for seed, (k, batch, sparsity) in enumerate([(4, 12, 0.3), (1, 1, 1.0), (40, 7, 0.0), (9, 5, 0.7), (2, 30, 2)]):
            sae = random_sae(architecture.split()[-1], seed, k=k, tied=architecture.startswith("tied")).to(dtype)
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(batch, 12, generator=generator).to(dtype)
            dead = torch.randperm(40, generator=generator)[:n_dead].sort().values
            slow = dense_gradients(sae, x, dead, sparsity)
            expected = [p.grad.clone() for p in sae.parameters()]
            gradients = SparseGradients(sae, len(x), way != "float32")
            quick = gradients(x, dead, sparsity)
            assert gradients.batches["screened" if way == "screened" else "float32"] == 1
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
        assert torch.equal(quick(x, dead).fires, whole.fires) and quick.block == 7 and len(quick.pre) == 14
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


def some_rows(kind, seed, n, d):
    """Awkward float32 vectors: what a screen must see through."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return {
        "normal": lambda: x,
        "whole numbers": lambda: x.round(),  # many ties, and products that float32 holds exactly
        "long": lambda: x * 1e12,
        "short": lambda: x * 1e-30,
        "subnormal": lambda: x * 1e-41,
        "of all sizes": lambda: x * 10.0 ** torch.randint(-30, 12, (n, d), generator=generator),
        "one huge channel": lambda: torch.cat([x[:, :1] * 1e4, x[:, 1:]], dim=1),
        "half way between two bfloat16": lambda: x.bfloat16().float() * (1 + 2.0**-8),
        "zero": lambda: torch.zeros(n, d),
    }[kind]()


ROWS = ["normal", "whole numbers", "long", "short", "subnormal", "of all sizes", "one huge channel", "zero"]
ROWS += ["half way between two bfloat16"]


class TestScreen:
    """`fast.screening` against the exact product in float64, and what finds entries in it."""

    @given(
        x=st.sampled_from(ROWS),
        w=st.sampled_from(ROWS),
        seed=st.integers(0, 10_000),
        d=st.integers(1, 70),
        bias=st.sampled_from([0.0, 1.0, -3.0, 1e10]),
        rank=st.floats(0, 1),
    )
    @settings(max_examples=300)
    def test_what_reaches_a_bar_in_truth_is_never_missed(self, x, w, seed, d, bias, rank):
        x, W = some_rows(x, seed, 6, d), some_rows(w, seed + 1, 40, d)
        b = bias * some_rows("normal", seed + 2, 1, 40)[0]
        screen = Screen(40, d, rows=6, block=6)
        screen.load(W, b)
        assert screen.covers(x)
        bounds, over = screen.bounds(slice(0, 6))
        exact, float32 = x.double() @ W.double().T + b.double(), torch.addmm(b, x, W.T).double()
        assert (bounds.double() <= exact + over.double() + 2.0**-7 * (exact.abs() + over.double())).all()
        for truth in (exact, float32):
            values = truth[truth > 1e-30].sort().values  # the bar is one of the values: no entry is nearer to it
            for bar in {0.0, *([float(values[int(rank * (len(values) - 1))])] if len(values) else [])}:
                wanted = ((truth >= np.float32(bar)) & (truth > 1e-30)).flatten().nonzero()[:, 0].tolist()
                assert set(wanted) <= set(at_least(bounds, bar).tolist())

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
    def test_where_no_bound_holds_it_says_so(self, bad):
        screen = Screen(40, 12, rows=6, block=6)
        screen.load(torch.full((40, 12), 1e12), torch.zeros(40))
        x = torch.ones(6, 12)
        assert screen.covers(x)
        x[3, 4] = bad
        assert not screen.covers(x)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_batch_without_a_bound_goes_by_float32(self, architecture, monkeypatch):
        monkeypatch.setattr("prism.fast.screening.SMALL", 0)
        sae, x = random_sae(architecture), torch.randn(7, 12)
        sae.b_dec.data[:] = 0
        x[2] *= 1e35
        expected = dense_gradients(sae, x)
        quick = SparseGradients(sae, 7, screened=True)
        assert torch.equal(quick(x).fires, expected.fires) and quick.batches == {"no bound": 1}

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_batch_larger_than_was_said_goes_by_float32(self, architecture, monkeypatch):
        monkeypatch.setattr("prism.fast.screening.SMALL", 0)
        sae, x = random_sae(architecture), torch.randn(9, 12)
        expected, quick = dense_gradients(sae, x), SparseGradients(sae, 8, screened=True)
        assert torch.equal(quick(x).fires, expected.fires) and quick.batches["no bound"] == 1

    def test_after_a_crowded_batch_the_screen_rests(self, monkeypatch):
        monkeypatch.setattr("prism.fast.screening.SMALL", 0)
        sae = random_sae("topk", d_in=12, d_sae=400, k=4)
        sae.b_enc.data[7] = -1e4  # one large bias makes every margin wide
        quick = SparseGradients(sae, 30, screened=True)
        for seed in range(20):
            quick(torch.randn(30, 12, generator=torch.Generator().manual_seed(seed)))
        assert quick.batches == {"screened": 3, "float32": 17}

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_resumed_run_screens_the_same_batches(self, architecture, monkeypatch, tmp_path):
        monkeypatch.setattr("prism.fast.screening.SMALL", 0)
        monkeypatch.setenv("PRISM_DTYPE", "bfloat16")
        x, config = torch.randn(512, 32, generator=torch.Generator().manual_seed(0)), TrainConfig(tokens=768, batch=64)
        straight, resumed = (Trainer(SaeConfig(32, 256, architecture, k=8), config, x[:256]) for _ in range(2))
        for step in range(12):
            if step == 6:
                straight.save(tmp_path / "run.safetensors", [{"step": 5}])
                resumed.load(tmp_path / "run.safetensors")
            for trainer in (straight, resumed)[: 1 + (step >= 6)]:
                trainer.take(x[64 * (step % 8) :][:64])
        for one, other in zip(straight.sae.parameters(), resumed.sae.parameters(), strict=True):
            assert torch.equal(one, other)

    @given(seed=st.integers(0, 10_000), k=st.integers(1, 40), kind=st.sampled_from(ROWS))
    @torch.no_grad()
    def test_equal_values_at_the_cut(self, seed, k, kind):
        """Each feature is there twice: which of two equal ones is taken is free, how many and how strong is not."""
        with mock.patch("prism.fast.screening.SMALL", 0):
            sae = random_sae("topk", seed, k=k)
            sae.W_enc.data[20:], sae.b_enc.data[20:], sae.b_dec.data[:] = sae.W_enc[:20].clone(), sae.b_enc[:20], 0
            x = some_rows(kind, seed, 5, 12)
            gradients = SparseGradients(sae, 5, screened=True)
            entries, _ = gradients._encode(x, None)
        expected = sae.encode(x)
        assert torch.equal(torch.bincount(entries.row, minlength=5), (expected > 0).sum(1))
        total = torch.zeros(5).index_add_(0, entries.row, entries.value)
        torch.testing.assert_close(total, expected.sum(1), rtol=1e-4, atol=1e-6)
        assert gradients.batches == {"screened": 1}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    @given(seed=st.integers(0, 10_000), d=st.sampled_from([1, 7, 16, 64, 96]), k=st.integers(1, 70))
    def test_as_many_as_asked_for_reach_the_kth_largest(self, dtype, seed, d, k):
        x = torch.randn(5, d, generator=torch.Generator().manual_seed(seed)).to(dtype)
        bar = kth_largest(x, k)
        if k <= d:
            best = x.sort(dim=1, descending=True).values[:, k - 1 : k].clamp_min(0)
            assert (bar <= best).all() and (bar >= 0).all()
        found = at_least(x, bar)
        assert found.tolist() == ((x >= bar) & (x > 0)).flatten().nonzero()[:, 0].tolist()

    def test_kth_largest_by_hand(self):
        x = torch.tensor([[5.0, 1, 4, 2, 3, 0, -1, 6]])
        assert kth_largest(x, 1).item() == 6 and kth_largest(x, 2).item() == 5
        assert kth_largest(x, 7).item() == 0 and kth_largest(x, 8).item() == 0
        assert at_least(x, 4.0).tolist() == [0, 2, 7] and at_least(-x, 0.0).tolist() == [6]

    @pytest.mark.parametrize(
        ("flags", "wanted", "screens"),
        [
            ("avx512f amx_bf16", "auto", True),
            ("avx512f avx512_bf16", "auto", True),
            ("avx512f avx512_vnni", "auto", False),
            ("avx512f amx_bf16", "float32", False),
            ("avx2", "bfloat16", True),
        ],
    )
    def test_flags_and_the_reader_decide(self, flags, wanted, screens, tmp_path, monkeypatch):
        (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n", encoding="utf-8")
        monkeypatch.setattr("prism.device.CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setenv("PRISM_DTYPE", wanted)
        trainer = Trainer(SaeConfig(512, 2_048), TrainConfig(batch=64), torch.randn(64, 512))
        assert (trainer.quick.screen is not None) == screens
        assert Trainer(SaeConfig(64, 512), TrainConfig(batch=64), torch.randn(64, 64)).quick.screen is None


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
