"""SAE architectures: what they select, what they export."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from prism.sae import BatchTopK, SaeConfig, TopK, fold_scale, make_sae, save_saelens


def random_sae(architecture: str, seed: int = 0, d_in: int = 12, d_sae: int = 40, k: int = 4):
    """An SAE with every weight away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    sae = make_sae(SaeConfig(d_in, d_sae, architecture, k=k, aux_k=5, seed=seed))
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn(sae.W_enc.shape, generator=generator)
        sae.b_enc += 0.1 * torch.randn(sae.b_enc.shape, generator=generator)
        sae.b_dec += 0.2 * torch.randn(sae.b_dec.shape, generator=generator)
        sae.threshold.fill_(0.7)
    return sae


class TestSelection:
    def test_topk_keeps_the_largest_of_each_row(self):
        sae = make_sae(SaeConfig(2, 4, "topk", k=2))
        pre = torch.tensor([[3.0, 1.0, 2.0, 0.5], [-1.0, 4.0, -2.0, -3.0]])
        assert sae.select(pre).tolist() == [0, 2, 5]  # the second row has one positive entry only

    def test_batch_topk_shares_its_budget_between_rows(self):
        sae = make_sae(SaeConfig(2, 4, "batch_topk", k=2)).train()
        pre = torch.tensor([[3.0, 1.0, 2.0, 0.5], [-1.0, 0.6, -2.0, -3.0]])
        assert sae.select(pre).tolist() == [0, 1, 2, 5]
        pre[1, 1] = 0.1
        assert sae.select(pre).tolist() == [0, 1, 2, 3]

    def test_batch_topk_uses_its_threshold_after_training(self):
        sae = make_sae(SaeConfig(2, 4, "batch_topk", k=1)).eval()
        sae.threshold.fill_(1.0)
        assert sae.select(torch.tensor([[3.0, 1.0, 2.0, 0.5], [0.0, 0.6, 0.0, 1.1]])).tolist() == [0, 2, 7]

    @given(seed=st.integers(0, 10_000), threshold=st.floats(0, 3), k=st.integers(1, 20))
    def test_looking_only_near_the_last_threshold_changes_nothing(self, seed, threshold, k):
        pre = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed))
        sae = make_sae(SaeConfig(3, 20, "batch_topk", k=k)).train()
        expected = sae.select(pre).tolist()
        sae.threshold.fill_(threshold)
        assert sae.select(pre).tolist() == expected
        largest = np.argsort(-pre.flatten().numpy(), kind="stable")[: 6 * k]
        assert expected == sorted(i for i in largest if pre.flatten()[i] > 0)

    @pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
    def test_encode_holds_exactly_the_selected_entries(self, architecture):
        sae = random_sae(architecture).train()
        x = torch.randn(30, 12)
        f = sae.encode(x)
        assert f.flatten().nonzero()[:, 0].tolist() == sae.select(sae.pre_activations(x)).tolist()
        assert (f >= 0).all()


class TestExport:
    @pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
    def test_saelens_computes_the_same_to_the_bit(self, architecture):
        sae = random_sae(architecture).eval()
        x = torch.randn(50, 12)
        theirs = sae.to_saelens()
        pre = (x - sae.b_dec) @ sae.W_enc.T.contiguous() + sae.b_enc  # the order in which SAELens adds
        torch.testing.assert_close(theirs.encode(x), sae.encode(x), atol=1e-6, rtol=1e-5)
        kept = theirs.encode(x) > 0
        assert torch.equal(theirs.encode(x)[kept], pre[kept])
        torch.testing.assert_close(theirs(x), sae(x), atol=1e-5, rtol=1e-5)

    def test_files_load_in_saelens(self, tmp_path):
        sae = random_sae("batch_topk").eval()
        save_saelens(sae, tmp_path / "one", SAEMetadata(model_name="tiny", hook_name="blocks.0.hook_resid_pre"))
        loaded = SAE.load_from_disk(tmp_path / "one", dtype="float32")
        assert loaded.cfg.architecture() == "jumprelu"
        assert loaded.cfg.metadata.hook_name == "blocks.0.hook_resid_pre"
        torch.testing.assert_close(loaded.W_dec, sae.W_dec.half().float())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]

    def test_a_failed_write_leaves_the_old_files(self, tmp_path, monkeypatch):
        sae = random_sae("topk")
        save_saelens(sae, tmp_path / "one", SAEMetadata())
        before = {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()}

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr("prism.sae.save_file", full)
        with pytest.raises(OSError, match="No space"):
            save_saelens(random_sae("topk", seed=1), tmp_path / "one", SAEMetadata())
        assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]

    @pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
    def test_folding_the_scale(self, architecture):
        sae = random_sae(architecture).eval()
        x = torch.randn(50, 12)
        expected, codes = sae(x * 2.5) / 2.5, sae.encode(x * 2.5) / 2.5
        fold_scale(sae, 2.5)
        torch.testing.assert_close(sae(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae.encode(x), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


class TestSettings:
    def test_names(self):
        assert isinstance(make_sae(SaeConfig(4, 8, "topk", k=2)), TopK)
        assert isinstance(make_sae(SaeConfig(4, 8, k=2)), BatchTopK)
        with pytest.raises(ValueError, match="no architecture 'top'; choose from topk, batch_topk"):
            make_sae(SaeConfig(4, 8, "top", k=2))

    @pytest.mark.parametrize("k", [0, 9])
    def test_k_must_fit(self, k):
        with pytest.raises(ValueError, match="between 1 and d_sae = 8"):
            make_sae(SaeConfig(4, 8, k=k))

    def test_seed_decides_the_start(self):
        one, same, other = (make_sae(SaeConfig(4, 8, k=2, seed=s)) for s in (0, 0, 1))
        assert torch.equal(one.W_dec, same.W_dec) and not torch.equal(one.W_dec, other.W_dec)
        assert torch.equal(one.W_enc, one.W_dec)
