"""Training: it finds directions that are known, resumes exactly, and says what is wrong with its input."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from test_sae import random_sae
from torch.utils.data import DataLoader, TensorDataset

from prism.sae import SaeConfig, SparseAutoencoder, make_sae
from prism.sae.architectures import ARCHITECTURES
from prism.training import Monitor, TrainConfig, train
from prism.training.loop import Trainer, calibrate, resample, update
from prism.training.monitor import COLUMNS
from prism.training.sources import ArraySource, StreamSource, as_source


def mixtures(n: int, seed: int = 0, d_in: int = 16, d_true: int = 24):
    """Activations that are sums of two known unit directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = F.normalize(torch.from_numpy(rng.normal(size=(d_true, d_in))), dim=1).numpy()
    codes = np.zeros((n, d_true))
    for _ in range(2):
        codes[np.arange(n), rng.integers(0, d_true, n)] = 1 + rng.random(n)
    return (codes @ directions).astype(np.float32), directions


SMALL = TrainConfig(tokens=150_000, batch=256, lr=3e-3, dead_after=10_000)


@pytest.fixture(scope="module")
def trained():
    x, directions = mixtures(20_000)
    return x, directions, train(x, SaeConfig(16, 32, k=2), SMALL)


class TestTraining:
    def test_the_dense_way_is_taken_where_it_is_the_quicker(self, monkeypatch):
        called = []
        monkeypatch.setattr("prism.training.loop.dense_gradients", lambda *_: called.append("dense"))
        for architecture, l0 in (("relu", 100.0), ("relu", 5_000.0), ("topk", 5_000.0)):
            trainer = Trainer(random_sae(architecture), SMALL, torch.randn(50, 12))
            trainer.quick = lambda *_: called.append("sparse")
            trainer.l0 = l0
            trainer.gradients(torch.zeros(1, 12), torch.tensor([]), 0.0)
        assert called == ["sparse", "dense", "sparse"]

    def test_recovers_known_directions(self, trained):
        _, directions, sae = trained
        cosine = directions @ sae.W_dec.detach().numpy().T
        rows, columns = linear_sum_assignment(-cosine)
        matched = cosine[rows, columns]
        random = (
            directions @ F.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), dim=1).numpy().T
        )
        control = random[linear_sum_assignment(-random)].mean()
        assert matched.mean() > 0.9 > control + 0.2

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_architecture_finds_the_directions_at_the_l0_asked_for(self, architecture):
        x, directions = mixtures(20_000)
        k_decides = ARCHITECTURES[architecture].penalty is SparseAutoencoder.penalty
        target = None if k_decides else 2.5
        config = replace(SMALL, tokens=200_000, resample_every=20_000, target_l0=target)
        sae = train(x, SaeConfig(16, 32, architecture, k=2, sparsity=0.1), config)
        part = torch.from_numpy(x[:2_000])
        explained = 1 - (part - sae(part)).pow(2).sum() / (part - part.mean(0)).pow(2).sum()
        cosine = directions @ sae.W_dec.detach().numpy().T
        assert explained > (0.5 if architecture == "relu" else 0.8)  # L1 shrinks
        assert (sae.encode(part) > 0).sum(1).float().mean() == pytest.approx(target or 2, rel=0.2)
        assert cosine[linear_sum_assignment(-cosine)].mean() > 0.75

    def test_threshold_gives_k_features_a_token(self, trained):
        x, _, sae = trained
        l0 = (sae.encode(torch.from_numpy(x)) > 0).sum(1).float().mean()
        assert l0 == pytest.approx(2, rel=0.05)

    def test_decoder_rows_have_norm_one(self, trained):
        torch.testing.assert_close(trained[2].W_dec.norm(dim=1), torch.ones(32))

    def test_same_seed_same_weights(self):
        x, _ = mixtures(1_000)
        config = TrainConfig(tokens=1_280, batch=128)
        one, same = (train(x, SaeConfig(16, 32, k=2), config) for _ in range(2))
        assert torch.equal(one.W_enc, same.W_enc)

    def test_scale_of_the_input_does_not_matter(self):
        x, _ = mixtures(2_000)
        config = TrainConfig(tokens=12_800, batch=128)
        one, other = (train(x * s, SaeConfig(16, 32, k=2), config) for s in (1.0, 8.0))
        torch.testing.assert_close(one.W_dec, other.W_dec, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.b_dec * 8, other.b_dec, atol=1e-2, rtol=1e-2)


class TestResampling:
    def test_dead_features_turn_to_badly_rebuilt_activations(self):
        sae = random_sae("relu")
        optimizer = torch.optim.Adam(sae.parameters())
        x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
        x[[7, 8]] *= 50
        sae.loss(x).backward()
        optimizer.step()
        kept = sae.W_dec[5].clone()
        resample(sae, optimizer, x, torch.tensor([2, 9]))
        towards = F.normalize(x[[7, 8]] - sae.b_dec, dim=1)
        assert (sae.W_dec[[2, 9]] @ towards.T).max(1).values.min() > 0.99  # one each, in some order
        assert (sae.W_dec[[2, 9]] @ towards.T).max(0).values.min() > 0.99
        fires = sae.encode(x)[:, [2, 9]] > 0
        assert fires[[7, 8]].any(0).all() and fires.float().mean() < 0.1  # silent on nearly everything else
        torch.testing.assert_close(sae.W_dec[[2, 9]].norm(dim=1), torch.ones(2))
        alive = [i for i in range(40) if i not in (2, 9)]
        torch.testing.assert_close(sae.W_enc[2].norm(), 0.2 * sae.W_enc[alive].norm(dim=1).mean())
        assert sae.b_enc[2] < 0 and torch.equal(sae.W_dec[5], kept)
        assert optimizer.state[sae.W_enc]["exp_avg"][[2, 9]].abs().sum() == 0
        assert optimizer.state[sae.W_enc]["exp_avg"][5].abs().sum() > 0

    @pytest.mark.parametrize("architecture", ["gated", "jumprelu"])
    def test_a_newborn_feature_fires_whatever_silenced_the_old_one(self, architecture):
        sae = random_sae(architecture)
        name = "b_mag" if architecture == "gated" else "log_threshold"
        getattr(sae, name).data[3] = -50.0 if architecture == "gated" else 9.0
        x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
        assert not (sae.encode(x)[:, 3] > 0).any()
        resample(sae, torch.optim.Adam(sae.parameters()), x, torch.tensor([3]))
        assert (sae.encode(x)[:, 3] > 0).any()

    def test_it_leaves_fewer_dead_features(self):
        x, _ = mixtures(20_000)
        config = replace(SMALL, tokens=150_000, dead_after=5_000, target_l0=2.0)
        dead = {}
        for every in (10_000, 10**9):
            sae = train(x, SaeConfig(16, 256, "relu", sparsity=3.0), replace(config, resample_every=every))
            dead[every] = (sae.encode(torch.from_numpy(x)) > 0).any(0).logical_not().sum().item()
        assert dead[10_000] < dead[10**9]


class TestSteering:
    def test_the_coefficient_moves_against_the_error(self):
        trainer = Trainer(SaeConfig(16, 32, "relu", sparsity=1e-4), replace(SMALL, target_l0=2.0), torch.randn(50, 16))
        x = torch.from_numpy(mixtures(256)[0])
        before = trainer.sparsity
        assert trainer.take(x)["l0"] > 2 and trainer.sparsity > before
        trainer.sparsity = 1e4
        for _ in range(300):
            trainer.take(x)
        assert trainer.l0 < 2 and trainer.sparsity < 1e4


class TestDecoder:
    def test_norms_after_each_step(self):
        x, _ = mixtures(256 * 20)
        trainer = Trainer(SaeConfig(16, 32, k=2), SMALL, torch.from_numpy(x))
        for rows in torch.from_numpy(x).split(256):
            trainer.take(rows)
            torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(32))

    def test_frozen_it_stays_at_its_start(self):
        x, _ = mixtures(2_000)
        start = make_sae(SaeConfig(16, 32, k=2)).W_dec
        sae = train(x, SaeConfig(16, 32, k=2), replace(SMALL, tokens=5_000, freeze_decoder=True))
        assert torch.equal(sae.W_dec, start) and not torch.equal(sae.W_enc, start)

    def test_without_the_constraint_norms_drift(self):
        x, _ = mixtures(2_000)
        config = replace(SMALL, tokens=20_000, normalise_decoder=False)
        sae = train(x, SaeConfig(16, 32, "relu", sparsity=0.5), config)
        assert (sae.W_dec.norm(dim=1) - 1).abs().max() > 0.05

    def test_the_gradient_along_a_row_is_taken_out(self):
        sae = random_sae("topk")
        optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
        sae.loss(torch.randn(20, 12)).backward()
        rows = sae.W_dec.detach().clone()
        update(sae, optimizer, 0.1)
        along = (sae.W_dec.grad * rows).sum(1)
        assert along.abs().max() < 1e-5 < sae.W_dec.grad.norm(dim=1).max()


class TestCheckpoints:
    @pytest.mark.parametrize("architecture", ["batch_topk", "relu", "jumprelu"])
    def test_resumed_it_is_the_same_run(self, architecture, tmp_path, monkeypatch):
        x, _ = mixtures(5_000)
        sae = SaeConfig(16, 32, architecture, k=2)
        config = replace(SMALL, tokens=256 * 40, dead_after=2_000, resample_every=2_000, target_l0=2.0)
        whole = Monitor(every=1)
        expected = train(x, sae, config, whole)

        class Stop(Exception):
            pass

        take = Trainer.take

        def stops(trainer, rows):
            if trainer.step == 26:
                raise Stop
            return take(trainer, rows)

        monkeypatch.setattr(Trainer, "take", stops)
        path = tmp_path / "run.safetensors"
        with pytest.raises(Stop):
            train(x, sae, config, Monitor(every=1), checkpoint=path)
        monkeypatch.undo()
        resumed = Monitor(every=1)
        found = train(x, sae, config, resumed, checkpoint=path)
        assert resumed.frame()["loss"].tolist() == whole.frame()["loss"].tolist()
        assert len(resumed.frame()) == 40
        for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]

    def test_another_run_is_refused(self, tmp_path):
        x, _ = mixtures(2_000)
        path, config = tmp_path / "run.safetensors", replace(SMALL, tokens=2_560)
        train(x, SaeConfig(16, 32, k=2), config, checkpoint=path)
        with pytest.raises(ValueError, match="belongs to another run: k 2 there and 3 here, lr 0.003 there and 0.01"):
            train(x, SaeConfig(16, 32, k=3), replace(config, lr=0.01), checkpoint=path)
        path.write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="no checkpoint of this trainer"):
            train(x, SaeConfig(16, 32, k=2), config, checkpoint=path)

    def test_another_number_of_threads_goes_on_with_the_stored_scale(self, tmp_path):
        """The mean of the same sample is rounded otherwise there; the run must still be the one that was begun."""
        x, config = torch.from_numpy(mixtures(2_000)[0]), replace(SMALL, tokens=256 * 8)
        expected, path = train(x, SaeConfig(16, 32, k=2), config), tmp_path / "run.safetensors"
        half = Trainer(SaeConfig(16, 32, k=2), config, x)
        for rows, _ in zip(ArraySource(x, 256, 0).batches(), range(4), strict=False):
            half.take(rows)
        half.save(path, [])
        resumed = Trainer(SaeConfig(16, 32, k=2), config, x)
        resumed.scale_to(resumed.scale * (1 + 2e-7))
        assert resumed.scale != half.scale
        resumed.load(path)
        assert (resumed.scale, resumed.variance) == (half.scale, half.variance)
        for rows, _ in zip(ArraySource(x, 256, 0).batches(4), range(4), strict=False):
            resumed.take(rows)
        found = resumed.finish()
        assert all(
            torch.equal(a, b) for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
        )
        for other in (1.001, 2.0):
            stranger = Trainer(SaeConfig(16, 32, k=2), config, x * other)
            with pytest.raises(ValueError, match="belongs to another run: input_scale"):
                stranger.load(path)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda state, tensors: state.pop("step"),
            lambda state, tensors: state.pop("key"),
            lambda state, tensors: state["key"].pop("input_scale"),
            lambda state, tensors: state.pop("low"),
            lambda state, tensors: state.update(step="7"),
            lambda state, tensors: state.update(step=None),
            lambda state, tensors: state.update(l0=[1]),
            lambda state, tensors: state.update(sparsity=None),
            lambda state, tensors: state.update(log_l0="a"),
            lambda state, tensors: state.update(rows=7),
            lambda state, tensors: state.update(rows=[1]),
            lambda state, tensors: state.update(rows=[{"loss": 1}]),
            lambda state, tensors: state.update(key=[1]),
            lambda state, tensors: state["key"].update(input_scale="1"),
            lambda state, tensors: tensors.pop("quiet"),
            lambda state, tensors: tensors.pop("sae.W_enc"),
            lambda state, tensors: tensors.pop("adam.W_enc.exp_avg"),
            lambda state, tensors: [tensors.pop(f"adam.W_dec.{key}") for key in ("step", "exp_avg", "exp_avg_sq")],
            lambda state, tensors: tensors.update(quiet=tensors["quiet"][:1].clone()),
            lambda state, tensors: tensors.update({"sae.W_dec": tensors["sae.W_dec"].double()}),
            lambda state, tensors: tensors.update({"adam.b_enc.exp_avg_sq": torch.zeros(3)}),
        ],
    )
    def test_a_checkpoint_that_lacks_something_or_has_another_type_is_none(self, spoil, tmp_path):
        x, path = torch.from_numpy(mixtures(600)[0]), tmp_path / "run.safetensors"
        trainer = Trainer(SaeConfig(16, 32, k=2), SMALL, x)
        trainer.take(x[:256])
        trainer.save(path, [{"step": 0}])
        Trainer(SaeConfig(16, 32, k=2), SMALL, x).load(path)
        with safe_open(path, "pt") as file:
            state, tensors = json.loads(file.metadata()["state"]), {name: file.get_tensor(name) for name in file.keys()}
        spoil(state, tensors)
        save_file(tensors, path, {"state": json.dumps(state)})
        with pytest.raises(ValueError, match="is no checkpoint of this trainer.*delete it to start anew"):
            Trainer(SaeConfig(16, 32, k=2), SMALL, x).load(path)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_architecture_goes_on(self, architecture, tmp_path):
        x, config = torch.from_numpy(mixtures(600)[0]), replace(SMALL, freeze_decoder=architecture == "topk")
        settings = SaeConfig(16, 32, architecture, k=2, tied=architecture == "relu")
        for way in ("sparse", "dense"):
            trainer, other = Trainer(settings, config, x, way), Trainer(settings, config, x, way)
            trainer.take(x[:256])
            trainer.save(tmp_path / "run.safetensors", [])
            other.load(tmp_path / "run.safetensors")
            assert trainer.take(x[256:512]) == other.take(x[256:512])

    def test_a_full_disk_is_said_with_the_path(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("prism.training.loop.save_file", full)
        path = tmp_path / "run.safetensors"
        with pytest.raises(OSError, match=f"could not write '{path}' .*No space left.*nothing was changed there"):
            train(mixtures(600)[0], SaeConfig(16, 32, k=2), TrainConfig(tokens=256, batch=256), checkpoint=path)
        assert not list(tmp_path.iterdir())

    def test_a_full_disk_leaves_the_last_checkpoint(self, tmp_path, monkeypatch):
        x, _ = mixtures(2_000)
        path, config = tmp_path / "run.safetensors", replace(SMALL, tokens=2_560)
        train(x, SaeConfig(16, 32, k=2), config, checkpoint=path)
        before = path.read_bytes()

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr("prism.training.loop.save_file", full)
        path_b = tmp_path / "other.safetensors"
        with pytest.raises(OSError, match="No space"):
            train(x, SaeConfig(16, 32, k=2), config, checkpoint=path_b)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


class TestMonitor:
    def test_the_log_becomes_a_table(self):
        x, _ = mixtures(2_000)
        monitor = Monitor(every=3)
        train(x, SaeConfig(16, 32, "relu"), replace(SMALL, tokens=2_560), monitor)
        log = monitor.frame()
        assert log["step"].tolist() == [0, 3, 6, 9] and list(log.columns) == list(COLUMNS)
        assert log["tokens"].iloc[-1] == 2_560 and (log["loss"] > log["mse"]).all()
        assert log.notna().all().all()

    def test_a_progress_bar_outside_notebooks(self, capsys):
        x, _ = mixtures(2_000)
        train(x, SaeConfig(16, 32, k=2), replace(SMALL, tokens=2_560), Monitor("my run"))
        assert "my run: 100%" in capsys.readouterr().err

    def test_curves_in_a_notebook(self, monkeypatch, capsys):
        shell = type("Shell", (), {"kernel": True})()
        shown = []
        monkeypatch.setattr("prism.training.monitor.get_ipython", lambda: shell)
        monkeypatch.setattr("prism.training.monitor.display", shown.append)
        monitor = Monitor("my run", every=1)
        monitor.start(100, 10)
        for step in range(100):
            row = dict(loss=1 / (step + 1), mse=1.0, l0=3.0, explained_variance=0.5, dead=0, lr=1.0, sparsity=0.0)
            monitor.record(step, **row)
        html = shown[0].value
        assert "my run" in html and "1,000 of 1,000 activations" in html and html.count("<polyline") == 4
        monitor.close()
        assert "my run: 1,000 activations, loss 0.01" in capsys.readouterr().out


class TestSources:
    def test_a_stream_is_mixed_and_complete(self):
        parts = [torch.arange(i, i + 10.0)[:, None] for i in range(0, 400, 10)]
        source = StreamSource(parts, batch=20, seed=0, size=200)
        seen = torch.cat([rows for rows, _ in zip(source.batches(), range(10), strict=False)])[:, 0]
        assert len(set(seen.tolist())) == 200 and (seen.diff() == 1).float().mean() < 0.1

    def test_a_stream_goes_on_where_it_was(self):
        parts = [torch.randn(7, 3) for _ in range(30)]
        whole = [b for b, _ in zip(StreamSource(parts, 16, seed=1).batches(), range(9), strict=False)]
        later = [b for b, _ in zip(StreamSource(parts, 16, seed=1).batches(4), range(5), strict=False)]
        for mine, theirs in zip(later, whole[4:], strict=True):
            assert torch.equal(mine, theirs)

    def test_torch_datasets_and_loaders(self):
        x, directions = mixtures(20_000)
        rows = [torch.from_numpy(row) for row in x[:2_000]]
        loader = DataLoader(rows, batch_size=500)
        for activations in (rows, loader, torch.from_numpy(x), x.astype(np.float16)):
            sae = train(activations, SaeConfig(16, 32, k=2), replace(SMALL, tokens=5_120))
            assert sae.W_dec.shape == (32, 16)

    def test_every_number_format_and_tuples_of_one(self):
        x = torch.from_numpy(mixtures(600)[0])
        pairs = TensorDataset(x)
        arrays = [x.numpy().astype(np.longdouble), pd.DataFrame(x.numpy()), [(row,) for row in x]]
        tensors = [x.bfloat16(), x.half(), x.double(), x.clone().requires_grad_()]
        sources = [*arrays, *tensors, pairs, DataLoader(pairs, batch_size=100)]
        wanted = train(x, SaeConfig(16, 32, k=2), TrainConfig(tokens=512, batch=256))
        for activations in sources:
            sae = train(activations, SaeConfig(16, 32, k=2), TrainConfig(tokens=512, batch=256))
            torch.testing.assert_close(sae.b_dec, wanted.b_dec, atol=0.1, rtol=0)
        exact = train(x.double(), SaeConfig(16, 32, k=2), TrainConfig(tokens=512, batch=256))
        assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), wanted.parameters(), strict=True))

    @pytest.mark.parametrize(
        "activations, said",
        [
            (lambda x: TensorDataset(x, x[:, 0]), "come as list (2 tensors)"),
            (lambda x: TensorDataset(x, x), "come as list (2 tensors)"),
            (lambda x: x[None], "do not fill one batch"),
            (lambda x: x[:, 0], "shape (600,)"),
            (lambda x: x[:, None], "shape (600, 1, 16)"),
            (lambda x: x.tolist(), "16 tensors"),
            (lambda x: [{"x": row} for row in x], "come as dict"),
            (lambda x: np.full((600, 16), "a"), "could not convert"),
            (lambda x: DataLoader(x, batch_size=None), "shape (16,)"),
        ],
    )
    def test_what_is_no_table_of_numbers_is_one_sentence(self, activations, said):
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            train(activations(torch.from_numpy(mixtures(600)[0])), SaeConfig(16, 32, k=2), SMALL)
        assert "\n" not in str(error.value)

    def test_what_can_be_read_only_once_is_refused_when_it_ends(self):
        x = torch.from_numpy(mixtures(2_000)[0])
        with pytest.raises(ValueError, match="read only once"):
            train(iter(x.split(100)), SaeConfig(16, 32, k=2), SMALL)


class TestBadInput:
    def test_wrong_width(self):
        with pytest.raises(ValueError, match="8 wide; this SAE reads 16"):
            train(np.zeros((500, 8), np.float32), SaeConfig(16, 32, k=2), SMALL)

    def test_fewer_than_a_batch(self):
        with pytest.raises(ValueError, match="do not fill one batch of 256"):
            as_source(np.zeros((100, 8), np.float32), 256, 0)

    def test_not_a_number_names_the_step(self):
        x, _ = mixtures(1_000)
        x[7] = np.nan
        with pytest.raises(FloatingPointError, match="at step 0|not finite|nan"):
            train(x, SaeConfig(16, 32, k=2), TrainConfig(tokens=5_120, batch=256))

    @pytest.mark.parametrize(
        "spoil, error, said",
        [
            (lambda x: 0 * x, ValueError, "all activations are zero"),
            (lambda x: 0 * x + 0.1, ValueError, "all activations are the same"),
            (lambda x: 0 * x + x[:1], ValueError, "all activations are the same"),
            (lambda x: 0 * x + np.nan, FloatingPointError, "600 of 600 activations are not finite"),
            (lambda x: np.where(x > 1, np.inf, x), FloatingPointError, "activations are not finite"),
            (lambda x: x.astype(float) * 1e60, FloatingPointError, "activations are not finite in float32"),
            (lambda x: x * 1e25, FloatingPointError, "activations are not finite in float32"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_activations_without_anything_to_learn_are_not_blamed_on_the_learning_rate(self, spoil, error, said):
        with pytest.raises(error, match=said) as raised:
            train(spoil(mixtures(600)[0]), SaeConfig(16, 32, k=2), SMALL)
        assert "rate" not in str(raised.value)

    def test_each_kind_of_loss_that_is_not_finite_has_its_cause(self):
        x = torch.from_numpy(mixtures(600)[0])
        trainer = Trainer(SaeConfig(16, 32, k=2), SMALL, x)
        with pytest.raises(FloatingPointError, match=r"loss became (nan|inf) at step 0.*activations are not finite"):
            trainer.take(x / 0)
        with pytest.raises(FloatingPointError, match="cause is a learning rate that is too high"):
            train(x, SaeConfig(16, 32, k=2), replace(SMALL, lr=1e30, normalise_decoder=False))

    def test_very_large_and_very_small_activations_train_as_others_do(self):
        x = mixtures(2_000)[0]
        one, *others = (
            train(x * s, SaeConfig(16, 32, k=2), TrainConfig(tokens=5_120, batch=128)) for s in (1.0, 8e5, 1e-7)
        )
        for other in others:
            torch.testing.assert_close(one.W_dec, other.W_dec, atol=1e-3, rtol=1e-3)


def test_batches_visit_every_row_once_an_epoch():
    rows = np.arange(40, dtype=np.float16)[:, None]
    batches = ArraySource(rows, 8, seed=0).batches()
    for _ in range(2):
        seen = torch.cat([next(batches) for _ in range(5)])
        assert sorted(seen[:, 0].tolist()) == list(range(40))


def test_batches_go_on_where_they_were():
    rows = np.arange(40, dtype=np.float16)[:, None]
    whole = [b for b, _ in zip(ArraySource(rows, 8, seed=3).batches(), range(12), strict=False)]
    later = [b for b, _ in zip(ArraySource(rows, 8, seed=3).batches(7), range(5), strict=False)]
    assert torch.equal(torch.cat(later), torch.cat(whole[7:]))


def test_calibration_ignores_what_training_left():
    sae = random_sae("batch_topk", k=4).eval()
    x = torch.randn(2_000, 12)
    sae.threshold.fill_(99.0)
    calibrate(sae, x)
    assert (sae.encode(x) > 0).sum(1).float().mean() == pytest.approx(4, abs=0.01)


def test_schedule():
    config = TrainConfig(tokens=1_000, batch=10, warmup_share=0.1, decay_share=0.5)
    scales = [config.lr_scale(step) for step in range(config.steps)]
    assert scales[0] == pytest.approx(0.1) and scales[9] == 1.0 and scales[50] == 1.0
    assert scales[75] == pytest.approx(0.5) and scales[99] == pytest.approx(0.02)
