"""Training: the quick gradients are autograd's, and it finds directions that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from test_sae import random_sae

from prism.sae import SaeConfig
from prism.training import (
    TrainConfig,
    batches_of,
    calibrate,
    dense_gradients,
    gradients,
    resample,
    sparse_gradients,
    train,
)


class TestGradients:
    @settings(max_examples=60)
    @given(
        architecture=st.sampled_from(["relu", "tied relu", "topk", "batch_topk", "matryoshka"]),
        seed=st.integers(0, 10_000),
        n_dead=st.integers(0, 20),
        k=st.integers(1, 40),
        batch=st.integers(1, 12),
        strength=st.floats(0, 1),
    )
    def test_equal_to_autograd_in_float64(self, architecture, seed, n_dead, k, batch, strength):
        sae = random_sae(architecture.split()[-1], seed, k=k, tied=architecture.startswith("tied")).double().train()
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, 12, generator=generator).double()
        dead = torch.randperm(40, generator=generator)[:n_dead].sort().values
        slow = dense_gradients(sae, x, dead, strength)
        expected = [p.grad.clone() for p in sae.parameters()]
        quick = sparse_gradients(sae, x, dead, strength)
        assert quick.error == pytest.approx(slow.error, rel=1e-12)
        for p, grad in zip(sae.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad, atol=1e-12, rtol=1e-9)
        for mine, theirs in zip(quick.codes, slow.codes, strict=True):
            torch.testing.assert_close(mine, theirs)

    def test_a_batch_in_which_nothing_fires(self):
        sae = random_sae("topk").double()
        sae.b_enc.data.fill_(-100.0)
        found = sparse_gradients(sae, torch.randn(5, 12).double())
        assert len(found.codes.value) == 0 and np.isfinite(found.error)
        assert sae.W_enc.grad.abs().sum() == 0

    def test_dead_features_get_a_gradient_only_from_the_auxiliary_loss(self):
        sae = random_sae("topk").double()
        sae.b_enc.data[3] = -0.5  # alive enough for the auxiliary loss, never among the k largest
        sae.b_enc.data[4:] += 5
        x = torch.randn(64, 12).double()
        sparse_gradients(sae, x)
        assert sae.W_dec.grad[3].abs().sum() == 0
        sparse_gradients(sae, x, torch.tensor([3]))
        assert sae.W_dec.grad[3].abs().sum() > 0

    def test_the_dense_way_is_taken_where_it_is_the_quicker(self, monkeypatch):
        called = []
        monkeypatch.setattr("prism.training.sparse_gradients", lambda *_: called.append("sparse"))
        monkeypatch.setattr("prism.training.dense_gradients", lambda *_: called.append("dense"))
        for architecture, l0 in (("relu", 100.0), ("relu", 5_000.0), ("gated", 10.0), ("topk", 32.0)):
            gradients(random_sae(architecture), torch.zeros(1, 12), last_l0=l0)
        assert called == ["sparse", "dense", "dense", "sparse"]


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

    @pytest.mark.parametrize("architecture, sparsity", [("relu", 0.5), ("gated", 0.5), ("jumprelu", 0.1),
                                                        ("topk", 0), ("matryoshka", 0)])  # fmt: skip
    def test_every_architecture_learns(self, architecture, sparsity):
        x, directions = mixtures(20_000)
        settings = SaeConfig(16, 32, architecture, k=2, sparsity=sparsity)
        sae = train(x, settings, replace(SMALL, tokens=100_000, resample_every=20_000))
        part = torch.from_numpy(x[:2_000])
        f = sae.encode(part)
        explained = 1 - (part - sae(part)).pow(2).sum() / (part - part.mean(0)).pow(2).sum()
        cosine = directions @ sae.W_dec.detach().numpy().T
        assert explained > 0.6 and (f > 0).sum(1).float().mean() < 12
        assert cosine[linear_sum_assignment(-cosine)].mean() > 0.75

    def test_threshold_gives_k_features_a_token(self, trained):
        x, _, sae = trained
        l0 = (sae.encode(torch.from_numpy(x)) > 0).sum(1).float().mean()
        assert l0 == pytest.approx(2, rel=0.05)

    def test_decoder_rows_have_norm_one(self, trained):
        torch.testing.assert_close(trained[2].W_dec.norm(dim=1), torch.ones(32))

    def test_the_quick_path_trains_what_autograd_trains(self):
        x, _ = mixtures(4_000)
        config = TrainConfig(tokens=20 * 128, batch=128, dead_after=400)
        quick = train(x, SaeConfig(16, 32, k=2), config, way=sparse_gradients)
        slow = train(x, SaeConfig(16, 32, k=2), config, way=dense_gradients)
        for a, b in zip(quick.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)

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
        x = torch.randn(64, 12)
        x[7] *= 50
        sae.loss(x).backward()
        optimizer.step()
        kept = sae.W_dec[5].clone()
        resample(sae, optimizer, x, torch.tensor([2, 9]))
        towards = F.normalize(x[7] - sae.b_dec, dim=0)
        assert sae.W_dec[2] @ towards > 0.99 and sae.W_dec[9] @ towards > 0.99
        torch.testing.assert_close(sae.W_dec[[2, 9]].norm(dim=1), torch.ones(2))
        alive = [i for i in range(40) if i not in (2, 9)]
        torch.testing.assert_close(sae.W_enc[2].norm(), 0.2 * sae.W_enc[alive].norm(dim=1).mean())
        assert sae.b_enc[2] == 0 and torch.equal(sae.W_dec[5], kept)
        assert optimizer.state[sae.W_enc]["exp_avg"][[2, 9]].abs().sum() == 0
        assert optimizer.state[sae.W_enc]["exp_avg"][5].abs().sum() > 0

    def test_it_leaves_fewer_dead_features(self):
        x, _ = mixtures(20_000)
        x[:, 8:] *= 0.2
        settings = SaeConfig(16, 64, "relu", sparsity=1.5)
        config = replace(SMALL, tokens=150_000, dead_after=5_000)
        dead = {}
        for every in (10_000, 10**9):
            sae = train(x, settings, replace(config, resample_every=every))
            dead[every] = (sae.encode(torch.from_numpy(x)) > 0).any(0).logical_not().sum().item()
        assert dead[10_000] < dead[10**9]


class TestBadInput:
    def test_wrong_width(self):
        with pytest.raises(ValueError, match="8 wide; this SAE reads 16"):
            train(np.zeros((500, 8), np.float32), SaeConfig(16, 32, k=2), SMALL)

    def test_fewer_than_a_batch(self):
        with pytest.raises(ValueError, match="do not fill one batch of 256"):
            next(batches_of(np.zeros((100, 8), np.float32), SMALL))

    def test_not_a_number_names_the_step(self):
        x, _ = mixtures(1_000)
        x[7] = np.nan
        with pytest.raises(FloatingPointError, match="at step 0|not finite|nan"):
            train(x, SaeConfig(16, 32, k=2), TrainConfig(tokens=5_120, batch=256))


def test_batches_visit_every_row_once_an_epoch():
    rows = np.arange(40, dtype=np.float16)[:, None]
    batches = batches_of(rows, TrainConfig(tokens=80, batch=8))
    for _ in range(2):
        seen = torch.cat([next(batches) for _ in range(5)])
        assert sorted(seen[:, 0].tolist()) == list(range(40))


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
