"""Changes by hand-computed values, and their cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism.data import corpus_batch, load_corpus
from prism.evaluation.predictions import splice
from prism.interventions import add, project_out, suppress
from prism.interventions.changes import change_cost, clamp, edited
from prism.models import get_spec, kept_activations, load_sae

HOOK = "blocks.2.hook_resid_pre"


@pytest.fixture(scope="module")
def sae():
    return load_sae(get_spec("mini"))


@pytest.fixture(scope="module")
def batch(mini):
    return corpus_batch(load_corpus("mini"), mini.tokenizer, 64, 500)


def test_hand_cases():
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    assert add(torch.tensor([1.0, -1.0]), 2.0)(x).tolist() == [[3.0, 0.0], [2.0, -3.0]]
    assert project_out(torch.tensor([0.0, 5.0]), mean=torch.zeros(2))(x).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_large_mean_stays_when_a_direction_is_projected_out():
    """Around (100, 100): along (0, 1) all get the mean's 100. Uncentred, they would get 0 there."""
    x = torch.tensor([[101.0, 103.0], [99.0, 97.0]])
    change = project_out(torch.tensor([0.0, 2.0]), mean=torch.tensor([100.0, 100.0]))
    assert change(x).tolist() == [[101.0, 100.0], [99.0, 100.0]]
    assert change(torch.tensor([[100.0, 100.0]])).tolist() == [[100.0, 100.0]]
    with pytest.raises(TypeError, match="mean"):
        project_out(torch.tensor([0.0, 2.0]))


class TestClamp:
    def test_moves_along_the_decoder_row_by_what_is_missing(self, mini, sae, batch):
        x = kept_activations(mini, HOOK, batch)[:50]
        f = sae.encode(x)
        feature = int(f.sum(0).argmax())
        wanted = x + (7.0 - f[:, [feature]]) * sae.W_dec[feature]
        assert torch.allclose(clamp(sae, feature, 7.0)(x), wanted, atol=1e-4)

    def test_at_its_own_value_changes_nothing(self, mini, sae, batch):
        x = kept_activations(mini, HOOK, batch)[:1]
        assert torch.allclose(clamp(sae, [0, 1], sae.encode(x)[0, :2].tolist())(x), x, atol=1e-5)

    def test_suppress_is_clamp_at_zero(self, sae):
        x = torch.randn(4, sae.cfg.d_in, generator=torch.Generator().manual_seed(0)) * 5
        assert torch.equal(suppress(sae, [3, 4])(x), clamp(sae, [3, 4], 0.0)(x))

    @pytest.mark.parametrize("feature", [-1, 3072, [0, 5000]])
    def test_no_such_feature(self, sae, feature):
        with pytest.raises(IndexError, match="choose from 0 to 3071"):
            clamp(sae, feature, 1.0)


@given(st.integers(0, 100))
def test_nothing_of_a_direction_is_left_but_the_mean_of_it(seed):
    x, direction = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 2).split([5, 1])
    mean, direction = x.mean(0), direction[0]
    left = project_out(direction, mean=mean)(x)
    assert torch.allclose(left @ direction, (mean @ direction).expand(5), atol=1e-3)
    assert torch.allclose(left.mean(0), mean, atol=1e-4)
    assert torch.allclose(project_out(direction, mean=mean)(left), left, atol=1e-4)


def test_edited_is_splice_at_the_kept_positions(mini, batch):
    change = add(torch.ones(192), 0.5)
    with edited(mini, HOOK, change, batch.keep):
        inside = mini(batch.tokens, return_type="logits")
    assert torch.equal(inside, splice(mini, batch.tokens, HOOK, batch.keep, change))
    after = mini(batch.tokens, return_type="logits")
    assert torch.equal(after, splice(mini, batch.tokens, HOOK, batch.keep, lambda x: x))


def test_unknown_hook(mini):
    with pytest.raises(ValueError, match="nearest"):
        with edited(mini, "blocks.9.hook_resid_pre", lambda x: x):
            pass


class TestCost:
    def test_no_change_costs_nothing(self, mini, batch):
        cost = change_cost(mini, batch, HOOK, lambda x: x)
        assert (cost.changed - cost.clean).abs().max() < 1e-3
        assert cost.tokens.sum() == (batch.keep[:, :-1] & batch.keep[:, 1:]).sum()

    def test_a_blow_costs_much(self, mini, batch):
        cost = change_cost(mini, batch, HOOK, add(torch.randn(192, generator=torch.Generator().manual_seed(0)), 20.0))
        assert (cost.changed - cost.clean).sum() / cost.tokens.sum() > 0.5
