"""Device and number format: what the environment variables choose, and that everything runs on another device."""

import numpy as np
import pytest
import torch
from other_device import CUDA, There, pretended

from prism import data, features, models, training
from prism import device as devices
from prism import evaluation as ev
from prism import interventions as iv
from prism.evaluation import preflight as before
from prism.models import get_spec, kept_activations, load_model, load_sae
from prism.phases.phase_6a.methods import Meter
from prism.phases.phase_6b import methods
from prism.phases.phase_6f import audit
from prism.sae import SaeConfig

HOOK = "blocks.2.hook_resid_pre"
TEXTS = ["The quick brown fox jumps over the dog.", "x = 1 + 2", "Once upon a time there was a law."]


def test_half_precision_is_taken_where_the_numbers_fit():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for scale in (1e-2, 1.0, 1e3):
        assert torch.equal(devices.as_float16(x * scale), (x * scale).half())
    for kept in (torch.zeros(3), torch.zeros(0, 4), x.half(), x.bfloat16(), torch.tensor([0.0, 65_504.0])):
        assert torch.equal(devices.as_float16(kept), kept.half())
    few = [[1.0, 65_520.0], [1.0, torch.inf], [torch.nan], [3e-8]]
    for kept in (x * 1e6, x * 1e-7, x.double() * 1e300, *map(torch.tensor, few)):
        assert devices.as_float16(kept) is kept


class TestChoice:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch):
        monkeypatch.delenv("PRISM_DEVICE", raising=False)
        monkeypatch.delenv("PRISM_DTYPE", raising=False)
        devices._processor_flags.cache_clear()
        yield
        devices._processor_flags.cache_clear()

    def test_without_a_gpu_it_is_the_cpu(self):
        assert devices.device() == torch.device("cpu")

    @pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "mps"])
    def test_a_device_that_is_not_there(self, wanted, monkeypatch):
        monkeypatch.setenv("PRISM_DEVICE", wanted)
        with pytest.raises(ValueError, match=f"PRISM_DEVICE is '{wanted}', and this machine .* choose from auto, cpu"):
            devices.device()

    def test_unknown_names_say_the_nearest(self, monkeypatch):
        monkeypatch.setenv("PRISM_DEVICE", "gpu")
        with pytest.raises(ValueError, match="did you mean '.*'. Choose from auto, cpu, cuda, mps"):
            devices.device()
        monkeypatch.setenv("PRISM_DEVICE", "cpu")
        monkeypatch.setenv("PRISM_DTYPE", "bf16")
        with pytest.raises(ValueError, match="did you mean 'bfloat16'. Choose from auto, float32, bfloat16, float16"):
            devices.bulk_dtype()

    @pytest.mark.parametrize(
        ("flags", "dtype"),
        [
            ("flags\t\t: fpu sse avx2 avx512_bf16", torch.float32),
            ("flags\t\t: fpu sse avx2 amx_bf16 amx_tile", torch.bfloat16),
            (None, torch.float32),
        ],
    )
    def test_the_processors_flags_decide(self, flags, dtype, tmp_path, monkeypatch):
        if flags:
            (tmp_path / "cpuinfo").write_text(flags, encoding="utf-8")
        monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
        assert devices.bulk_dtype() == dtype

    def test_a_name_decides_against_them(self, monkeypatch):
        monkeypatch.setattr(devices, "_made_for_bfloat16", lambda where: True)
        monkeypatch.setenv("PRISM_DTYPE", "float32")
        assert devices.bulk_dtype() == torch.float32

    def test_every_cache_key_names_them(self, monkeypatch):
        before = data.cache_key(model="mini")
        assert '"device": "cpu"' in before and '"dtype": "float32"' in before
        monkeypatch.setattr(devices, "_made_for_bfloat16", lambda where: True)
        assert data.cache_key(model="mini") == before  # float32 whatever bulk work is done in
        assert data.cache_key(model="mini", dtype="bfloat16") != before
        with pretended():
            assert data.cache_key(model="mini") != before

    def test_saes_trained_here_are_kept_apart(self, llama, monkeypatch):
        spec = get_spec(str(llama))
        monkeypatch.setenv("PRISM_DTYPE", "float32")
        plain = models.saes.home_folder(spec)
        monkeypatch.setenv("PRISM_DTYPE", "bfloat16")
        assert models.saes.home_folder(spec).name == f"{plain.name}-cpu-bfloat16"


class TestBulk:
    def test_only_bulk_work_of_a_large_model_is_lowered(self, llama, monkeypatch, capsys):
        monkeypatch.setenv("PRISM_DTYPE", "bfloat16")
        spec = get_spec(str(llama))
        assert load_model(spec, bulk=True) is load_model(spec)  # too small to gain anything
        monkeypatch.setattr(models.loading, "SMALL", 0)
        low, exact = load_model(spec, bulk=True), load_model(spec)
        assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in exact.parameters()} == {torch.float32}
        assert low.rotary_emb.original_component.inv_freq.dtype == torch.float32  # angles stay exact
        assert load_model(spec, bulk=True) is low
        assert capsys.readouterr().out.count("bulk work runs in bfloat16 on this CPU") == 1
        batch = data.tokenize(TEXTS, exact.tokenizer, 64)
        x, near = (kept_activations(model, "blocks.1.hook_resid_pre", batch) for model in (exact, low))
        assert near.dtype == torch.float32 and 0 < (near - x).norm() / x.norm() < 0.02


def on_both(task):
    """What a task gives on the CPU, and on the pretended device."""
    here = task()
    with pretended():
        model = load_model(get_spec("mini"))
        assert next(model.parameters()).device == CUDA and isinstance(next(model.parameters()), There)
        return here, task()


def setting():
    spec = get_spec("mini")
    sae = load_sae(spec)
    model = load_model(spec, sae)
    return model, sae, data.tokenize(TEXTS, model.tokenizer, 256)


class TestAnotherDevice:
    """Each gives what it gives on the CPU, and never mixes tensors of two devices."""

    def test_tensors_refuse_to_mix(self):
        with pretended():
            x = torch.ones(2, 3, device="cuda")
            assert x.device == CUDA and (x + 1).device == CUDA and x.cpu().device == torch.device("cpu")
            with pytest.raises(RuntimeError, match="same device"):
                x + torch.ones(2, 3)
            with pytest.raises(TypeError, match="numpy"):
                x.numpy()

    def test_harvest_and_features(self):
        def task():
            model, sae, batch = setting()
            x = kept_activations(model, HOOK, batch)
            matrix = features.encode_features(model, sae, batch, data.token_table(batch, model.tokenizer))
            assert type(x) is torch.Tensor
            other = kept_activations(model, "blocks.1.attn.hook_z", batch)  # not by the quick pass
            return x, other.flatten(1), matrix.values.toarray()

        for here, there in zip(*on_both(task), strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)

    def test_evaluate_and_preflight(self):
        def task():
            model, sae, batch = setting()
            assert before.preflight(model, sae, batch)["ok"].all()
            pca = ev.pca(kept_activations(model, HOOK, batch), 5, sae.cfg.metadata)
            found = ev.evaluate_all(model, {"sae": sae, "pca": pca}, batch)
            bits = ev.bits_per_byte(ev.text_bits(model, TEXTS, 256))
            return [(e.l0, e.explained_variance, e.delta_ce, e.mean_ablation_cost, e.kl) for e in found.values()], bits

        here, there = on_both(task)
        np.testing.assert_allclose(there[0], here[0], rtol=1e-3)
        assert there[1] == pytest.approx(here[1], rel=1e-5)

    @pytest.mark.parametrize("architecture", ["relu", "batch_topk", "jumprelu"])
    def test_training(self, architecture, tmp_path):
        x = np.random.default_rng(0).standard_normal((4_000, 16)).astype(np.float32)

        def task():
            monitor = training.Monitor()
            config = training.TrainConfig(tokens=8_000, batch=500, dead_after=1_000, resample_every=1_000)
            where = devices.device().type
            sae = training.train(x, SaeConfig(16, 64, architecture, k=4), config, monitor, checkpoint=tmp_path / where)
            assert sae.W_dec.device == torch.device("cpu")
            return [row["loss"] for row in monitor.rows]

        here, there = on_both(task)
        np.testing.assert_allclose(there, here, rtol=2e-3)

    def test_generation_and_steering(self):
        def task():
            model, sae, batch = setting()
            prompts = batch[:1].tokens[:, :6]
            out = []
            for change in (
                None,
                iv.add(sae.W_dec[7], 20.0),
                iv.changes.clamp(sae, 7, 30.0),
                iv.project_out(sae.W_dec[7], mean=sae.b_dec),
            ):
                hook = HOOK if change else None
                out += [iv.generate(model, prompts, 6, hook, change, cache=cache).tokens for cache in (True, False)]
            meter = Meter(model, HOOK, batch[:1], torch.arange(model.cfg.d_vocab) < 50)
            return [t.tolist() for t in out], meter(iv.suppress(sae, 7)).to_numpy().ravel()

        here, there = on_both(task)
        assert there[0] == here[0]
        np.testing.assert_allclose(there[1], here[1], rtol=1e-3)

    def test_attribution_and_costs(self):
        def task():
            model, sae, batch = setting()
            nodes, score = methods.open_prompt(model, sae, "The law of the land", 5, 6, ["A law of the land"])
            effects = methods.effects(score, nodes)
            cost = iv.changes.change_cost(model, batch, HOOK, iv.suppress(sae, [3, 7]))
            seen = methods.leads(model, ["The law", "It is"], 5, 6, HOOK, iv.add(sae.W_dec[7], 5.0))
            swaps = audit.swap_gaps(model, audit.load_counterfactuals().head(4), HOOK, {"off": iv.suppress(sae, 7)})
            edits = audit.edit_costs(model, batch, HOOK, {"off": iv.suppress(sae, [3, 7])})
            return effects, cost, seen, swaps["off"], edits

        for here, there in zip(*on_both(task), strict=True):
            np.testing.assert_allclose(np.asarray(there, float), np.asarray(here, float), rtol=2e-3, atol=1e-4)

    def test_the_explorer(self):
        from prism import explorer

        def task():
            it = explorer.Explorer("mini")
            matrix = it.texts(["The law is 3."])
            written = explorer.steer(it, "The law", int(matrix.values.sum(0).argmax()), "add", 1.0, 5)
            return matrix.values.toarray(), [part.nats for part in written]

        for here, there in zip(*on_both(task), strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["harvest", "evaluate", "losses", "steered"])
def test_the_script_for_a_real_gpu_runs_and_agrees(task, monkeypatch, capsys):
    """`tests/gpu.sh` is seldom run: here its comparisons are, on the pretended device."""
    import gpu_check

    arguments = {"harvest": ("blocks.1.attn.hook_z",), "losses": ("batch_topk",)}.get(task, ())
    monkeypatch.setattr(gpu_check, "FAILED", [])
    monkeypatch.setenv("PRISM_DEVICE", "cpu")
    with pretended():
        gpu_check.compare(task, lambda: getattr(gpu_check, task)(*arguments), 2e-2, 1e-2)
    assert not gpu_check.FAILED and "ok   " + task in capsys.readouterr().out
