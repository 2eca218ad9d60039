"""SAE architectures: what they select, what they export."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError

from prism.sae import BatchTopK, SaeConfig, fold_scale, make_sae, save_saelens, to_saelens
from prism.sae.architectures import ARCHITECTURES, JumpReLU, TopK
from prism.sae.saelens import from_saelens

ALL = list(ARCHITECTURES)


def random_sae(architecture: str, seed: int = 0, d_in: int = 12, d_sae: int = 40, k: int = 4, tied: bool = False):
    """An SAE with every weight away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    sae = make_sae(SaeConfig(d_in, d_sae, architecture, k=k, aux_k=5, seed=seed, tied=tied, sparsity=0.3))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "W_dec":
                parameter += (0.2 if name == "b_dec" else 0.1) * torch.randn(parameter.shape, generator=generator)
        if isinstance(sae, BatchTopK):
            sae.threshold.fill_(0.7)
    return sae


class TestSelection:
    def test_topk_keeps_the_largest_of_each_row(self):
        pre = torch.tensor([[3.0, 1.0, 2.0, 0.5], [-1.0, 4.0, -2.0, -3.0]])
        f = make_sae(SaeConfig(2, 4, "topk", k=2)).activation(pre)
        assert f.tolist() == [[3, 0, 2, 0], [0, 4, 0, 0]]  # the second row has one positive entry only

    def test_batch_topk_shares_its_budget_between_rows(self):
        sae = make_sae(SaeConfig(2, 4, "batch_topk", k=2)).train()
        pre = torch.tensor([[3.0, 1.0, 2.0, 0.5], [-1.0, 0.75, -2.0, -3.0]])
        assert sae.activation(pre).tolist() == [[3, 1, 2, 0], [0, 0.75, 0, 0]]
        pre[1, 1] = 0.25
        assert sae.activation(pre).tolist() == [[3, 1, 2, 0.5], [0, 0, 0, 0]]

    def test_batch_topk_uses_its_threshold_after_training(self):
        sae = make_sae(SaeConfig(2, 4, "batch_topk", k=1)).eval()
        sae.threshold.fill_(1.0)
        pre = torch.tensor([[3.0, 1.0, 2.0, 0.5], [0.0, 0.5, 0.0, 1.25]])
        assert sae.activation(pre).tolist() == [[3, 0, 2, 0], [0, 0, 0, 1.25]]


class TestShapes:
    @given(
        architecture=st.sampled_from(ALL),
        d_in=st.integers(1, 9),
        d_sae=st.integers(1, 20),
        batch=st.integers(1, 7),
        k=st.integers(1, 20),
        seed=st.integers(0, 1_000),
        training=st.booleans(),
    )
    def test_any_size(self, architecture, d_in, d_sae, batch, k, seed, training):
        sae = random_sae(architecture, seed, d_in, d_sae, min(k, d_sae)).train(training)
        x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(seed))
        f, x_hat = sae.encode(x), sae(x)
        assert f.shape == (batch, d_sae) and x_hat.shape == x.shape and (f >= 0).all()
        dead = torch.arange(0, d_sae, 3)
        for loss in (sae.loss(x), sae.loss(x, dead), sae.loss(x, dead, sparsity=0.0)):
            assert loss.ndim == 0 and torch.isfinite(loss) and loss >= 0
        assert sae.loss(x, sparsity=2.0) >= sae.loss(x, sparsity=1.0) >= sae.loss(x, sparsity=0.0)
        if training and architecture == "topk":
            assert (f > 0).sum(1).max() <= k
        if training and architecture in ("batch_topk", "matryoshka"):
            assert (f > 0).sum() <= batch * k


class TestExport:
    @pytest.mark.parametrize("architecture", ALL)
    def test_saelens_computes_the_same_to_the_bit(self, architecture):
        sae = random_sae(architecture).eval()
        x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
        theirs = to_saelens(sae)
        assert torch.equal(theirs.encode(x), sae.encode(x)) and (theirs.encode(x) > 0).any()
        assert torch.equal(theirs(x), sae(x))

    @pytest.mark.parametrize("architecture", ALL)
    def test_there_and_back(self, architecture):
        sae = random_sae(architecture).eval()
        back = from_saelens(to_saelens(sae))
        x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
        assert torch.equal(back(x), sae(x))
        assert type(back) is type(sae) or isinstance(sae, BatchTopK) and isinstance(back, JumpReLU)

    def test_what_has_no_counterpart_is_refused(self):
        theirs = to_saelens(random_sae("relu"))
        theirs.cfg.apply_b_dec_to_input = False
        with pytest.raises(ValueError, match="apply_b_dec_to_input = False; only True"):
            from_saelens(theirs)
        theirs.cfg.architecture = lambda: "transcoder"
        with pytest.raises(ValueError, match="no counterpart of SAELens' 'transcoder'"):
            from_saelens(theirs)

    def test_tied_weights_export_as_their_transpose(self):
        sae = random_sae("relu", tied=True).eval()
        assert {name for name, _ in sae.named_parameters()} == {"W_dec", "b_enc", "b_dec"}
        x = torch.randn(50, 12)
        assert torch.equal(to_saelens(sae)(x), sae(x))

    def test_files_load_in_saelens(self, tmp_path):
        sae = random_sae("batch_topk").eval()
        save_saelens(sae, tmp_path / "one", SAEMetadata(model_name="tiny", hook_name="blocks.0.hook_resid_pre"))
        loaded = SAE.load_from_disk(tmp_path / "one", dtype="float32")
        assert loaded.cfg.architecture() == "jumprelu"
        assert loaded.cfg.metadata.hook_name == "blocks.0.hook_resid_pre"
        torch.testing.assert_close(loaded.W_dec, sae.W_dec.half().float())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]

    @pytest.mark.parametrize("scale", [1e7, 1e-8, 1.0])
    @pytest.mark.parametrize("architecture", ALL)
    def test_an_sae_of_any_scale_is_saved_as_it_is(self, architecture, scale, tmp_path):
        sae = random_sae(architecture).eval()
        fold_scale(sae, 1 / scale)  # as if trained on activations so many times larger
        x = scale * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
        expected = sae(x)
        save_saelens(sae, tmp_path / "one", SAEMetadata())
        cfg = json.loads((tmp_path / "one" / "cfg.json").read_text(encoding="utf-8"))
        assert cfg["dtype"] == ("float16" if scale == 1 else "float32")
        for dtype in ("float32", None):
            loaded = SAE.load_from_disk(tmp_path / "one", **({"dtype": dtype} if dtype else {})).float()
            assert all(value.isfinite().all() for value in loaded.state_dict().values())
            share = (loaded(x) - expected).norm() / expected.norm()
            assert share < (0.1 if scale == 1 else 1e-5)  # rounding moves a few activations over their threshold

    def test_a_full_disk_is_said_with_the_folder(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("prism.sae.saelens.save_file", full)
        with pytest.raises(OSError, match=f"could not write '{tmp_path / 'one'}' .*No space left.*nothing was changed"):
            save_saelens(random_sae("topk"), tmp_path / "one", SAEMetadata())
        assert not list(tmp_path.iterdir())

    def test_a_failed_write_leaves_the_old_files(self, tmp_path, monkeypatch):
        sae = random_sae("topk")
        save_saelens(sae, tmp_path / "one", SAEMetadata())
        before = {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()}

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr("prism.sae.saelens.save_file", full)
        with pytest.raises(OSError, match="No space"):
            save_saelens(random_sae("topk", seed=1), tmp_path / "one", SAEMetadata())
        assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]

    @pytest.mark.parametrize("architecture", ALL)
    def test_folding_the_scale(self, architecture):
        sae = random_sae(architecture).eval()
        x = torch.randn(50, 12)
        expected, codes = sae(x * 2.5) / 2.5, sae.encode(x * 2.5) / 2.5
        fold_scale(sae, 2.5)
        torch.testing.assert_close(sae(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae.encode(x), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


class TestLosses:
    """Hand-computed values on an SAE with two features along the two axes."""

    def axes(self, architecture, **settings):
        sae = make_sae(SaeConfig(2, 2, architecture, k=1, **settings)).train()
        with torch.no_grad():
            for weights in {sae.encoder, sae.W_dec}:
                weights.copy_(torch.eye(2))
        return sae

    def test_relu(self):
        sae = self.axes("relu", sparsity=0.5)
        x = torch.tensor([[3.0, -1.0], [1.0, 2.0]])
        # errors 1 and 0, L1 3 and 3
        assert sae.loss(x).item() == pytest.approx(0.5 + 0.5 * 3)
        assert sae.loss(x, sparsity=0.0).item() == pytest.approx(0.5)
        with torch.no_grad():
            sae.W_dec.mul_(2)  # f is [3, 0], [1, 2]: x̂ doubles, and so does the weighted L1
        assert sae.loss(x).item() == pytest.approx((9 + 1 + 1 + 4) / 2 + 0.5 * 6)

    def test_topk(self):
        assert self.axes("topk").loss(torch.tensor([[3.0, 1.0], [1.0, 2.0]])).item() == pytest.approx(1.0)

    def test_auxiliary(self):
        sae = self.axes("topk", aux_k=1, aux_coefficient=0.25)
        x = torch.tensor([[3.0, 1.0]])
        # feature 0 wins; the error is [0, 1]; dead feature 1 rebuilds it exactly, or not at all if nothing is dead
        assert sae.loss(x, torch.tensor([1])).item() == pytest.approx(1.0)
        assert sae.loss(x, torch.tensor([0])).item() == pytest.approx(1.0 + 0.25 * (9 + 1))

    def test_matryoshka(self):
        sae = self.axes("matryoshka", prefixes=(0.5, 1.0))
        x = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
        # both features are active once; the prefix of one feature misses the second token
        assert sae.widths == (1, 2)
        assert sae.loss(x).item() == pytest.approx((4 / 2 + 0) / 2)

    def test_jumprelu_counts_what_exceeds_its_threshold(self):
        sae = self.axes("jumprelu", sparsity=0.5)
        with torch.no_grad():
            sae.log_threshold.copy_(torch.tensor([1.0, 1.0]).log())
        x = torch.tensor([[3.0, 0.9], [1.5, 2.0]])
        # errors 0.81 and 0, L0 1 and 2
        assert sae.loss(x).item() == pytest.approx(0.405 + 0.5 * 1.5)

    def test_jumprelu_gradient_of_the_threshold(self):
        sae = self.axes("jumprelu", sparsity=1.0, bandwidth=0.5)
        with torch.no_grad():
            sae.log_threshold.zero_()  # thresholds of 1
        x = torch.tensor([[1.1, 0.0]])  # inside the window of feature 0 only
        sae.loss(x).backward()
        # L0: −1/ε; error: 2 (x̂ − x) · ∂f/∂θ is 0, since x̂ = x; θ = e^0, so ∂θ/∂log θ = 1
        assert sae.log_threshold.grad.tolist() == pytest.approx([-2.0, 0.0])

    def test_gated(self):
        sae = self.axes("gated", sparsity=0.5)
        with torch.no_grad():
            sae.b_enc.copy_(torch.tensor([-1.0, 0.0]))  # the gate of feature 0 opens above 1
        x = torch.tensor([[3.0, 0.5]])
        # f = x; gate [2, 0.5]: L1 2.5; frozen reconstruction misses [1, 0]
        assert sae.loss(x).item() == pytest.approx(0 + 0.5 * 2.5 + 1)
        assert sae.encode(torch.tensor([[0.9, 0.5]])).tolist()[0] == pytest.approx([0.0, 0.5])


class TestSettings:
    def test_names(self):
        assert isinstance(make_sae(SaeConfig(4, 8, "topk", k=2)), TopK)
        assert isinstance(make_sae(SaeConfig(4, 8, k=2)), BatchTopK)
        with pytest.raises(ValueError, match=f"no architecture 'top'; choose from {', '.join(ARCHITECTURES)}"):
            make_sae(SaeConfig(4, 8, "top", k=2))

    @pytest.mark.parametrize("k", [0, 9])
    def test_k_must_fit(self, k):
        with pytest.raises(ValueError, match="between 1 and d_sae = 8"):
            make_sae(SaeConfig(4, 8, k=k))

    def test_tied_weights_are_for_relu(self):
        with pytest.raises(ValueError, match="only 'relu' can tie"):
            make_sae(SaeConfig(4, 8, "topk", k=2, tied=True))

    @pytest.mark.parametrize("prefixes", [(0.5,), (0.5, 0.25, 1.0), (0.0, 1.0)])
    def test_prefixes_rise_to_one(self, prefixes):
        with pytest.raises(ValueError, match="rise from above 0 to 1"):
            make_sae(SaeConfig(4, 8, "matryoshka", k=2, prefixes=prefixes))

    def test_seed_decides_the_start(self):
        one, same, other = (make_sae(SaeConfig(4, 8, k=2, seed=s)) for s in (0, 0, 1))
        assert torch.equal(one.W_dec, same.W_dec) and not torch.equal(one.W_dec, other.W_dec)
        assert torch.equal(one.W_enc, one.W_dec)


def test_thresholds_come_back_to_the_bit():
    """e^(log t) is not t in float32: a value that stands at its threshold would fire there and not here."""
    theirs = to_saelens(random_sae("jumprelu"))
    theirs.threshold.data = torch.rand(theirs.threshold.shape, generator=torch.Generator().manual_seed(0)) * 50
    back = from_saelens(theirs)
    assert back.threshold.dtype == torch.float32 and torch.equal(back.threshold, theirs.threshold)
    assert torch.equal(to_saelens(back).threshold, theirs.threshold)
