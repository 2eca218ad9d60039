"""Dictionaries that are no SAEs: hand cases, the best of their kind by algebra, and the same tables as SAEs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.saes.sae import SAEMetadata

from prism import evaluation as ev
from prism.data import corpus_batch, load_corpus, token_table
from prism.evaluation import preflight as before
from prism.features import encode_features
from prism.models import get_spec, kept_activations, load_sae

METADATA = SAEMetadata(hook_name="blocks.2.hook_resid_pre")


def _sample(seed: int = 0, n: int = 200, d: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mix + 5 * torch.randn(d, generator=generator)


def _ev(dictionary, x) -> float:
    return ev.explained_variance(x, dictionary.decode(dictionary.encode(x)))


class TestPca:
    @given(seed=st.integers(0, 1000))
    def test_with_all_components_it_is_exact(self, seed):
        x = _sample(seed)
        assert _ev(ev.pca(x, 6, METADATA), x) == pytest.approx(1, abs=1e-5)

    def test_by_hand(self):
        """Spread 2 along (1, 1), 1 along (1, −1), around (3, 0): of each token the longer of the two is kept."""
        x = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [1.0, -1.0], [-1.0, 1.0]]) + torch.tensor([3.0, 0.0])
        one = ev.pca(x, 1, METADATA)
        torch.testing.assert_close(one.b_dec, torch.tensor([3.0, 0.0]))
        assert (one.encode(x) > 0).sum(1).tolist() == [1, 1, 1, 1]  # each token lies on one axis
        torch.testing.assert_close(one.decode(one.encode(x)), x)
        both = x[:1] + torch.tensor([[0.5, -0.5]])
        torch.testing.assert_close(one.decode(one.encode(both)), x[:1])

    def test_axes_are_those_of_numpy(self):
        x = _sample()
        axes = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[2]
        cosines = np.abs((ev.pca(x, 2, METADATA).W_dec[:6].numpy() * axes).sum(1))
        np.testing.assert_allclose(cosines, 1, atol=1e-4)

    @given(seed=st.integers(0, 100), k=st.integers(1, 6))
    def test_more_components_never_hurt_and_beat_the_channels_on_correlated_data(self, seed, k):
        x = _sample(seed)
        assert _ev(ev.pca(x, k, METADATA), x) >= _ev(ev.pca(x, max(1, k - 1), METADATA), x) - 1e-6


class TestRandomDirections:
    def test_the_scale_is_the_best_there_is(self):
        x = _sample()
        made = ev.random_directions(x, 3, METADATA, d_sae=40)
        best, scale = _ev(made, x), made.scale
        assert 0 < scale < 1  # overlapping directions make the sum too long
        for factor in (0.95, 1.05):
            made.scale = factor * scale
            assert _ev(made, x) < best

    def test_seeds_differ_and_repeat(self):
        x = _sample()
        one, same, other = (ev.random_directions(x, 3, METADATA, 40, seed).W_dec for seed in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(40))


def test_k_is_the_l0_and_is_bounded_by_the_directions():
    x = _sample()
    assert ev.metrics.l0(ev.pca(x, 2, METADATA).encode(x)) == 2.0
    assert ev.pca(x, 99, METADATA).k == 12 and ev.metrics.l0(ev.pca(x, 99, METADATA).encode(x)) == 6.0
    with pytest.raises(ValueError, match="k of at least 1"):
        ev.pca(x, 0, METADATA)


def test_they_stand_in_the_same_tables_as_an_sae(mini):
    sae = load_sae(get_spec("mini"))
    fit = corpus_batch(load_corpus("mini", 40, seed=1), mini.tokenizer, 128)
    batch = corpus_batch(load_corpus("mini", 12), mini.tokenizer, 64)
    x, metadata = kept_activations(mini, sae.cfg.metadata.hook_name, fit), sae.cfg.metadata
    k = round(ev.metrics.l0(sae.encode(x)))
    saes = {"2-res": sae, "PCA": ev.pca(x, k, metadata), "random": ev.random_directions(x, k, metadata, 1_536)}
    table = ev.evaluation_table(ev.evaluate_all(mini, saes, batch, with_kl=False))
    assert (table["l0"] - table.loc["2-res", "l0"]).abs().max() < 3
    assert table["explained_variance"].idxmax() == "2-res" and table["delta_ce"].idxmin() == "2-res"
    assert table.loc["PCA", "explained_variance"] > table.loc["random", "explained_variance"]
    matrix = encode_features(mini, saes["PCA"], batch, token_table(batch, mini.tokenizer))
    assert matrix.l0() == pytest.approx(table.loc["PCA", "l0"])
    assert before.preflight(mini, saes["PCA"], batch)["ok"].all()
