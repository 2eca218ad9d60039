"""Massive tokens: told by the residual stream, silent in every feature, counted, and never replaced."""

import copy

import numpy as np
import pytest
import torch

from prism.analysis import most_frequent
from prism.analysis.feature import summarise_feature
from prism.data import TokenBatch, load_texts, token_table, tokenize
from prism.evaluation import evaluate, evaluate_all
from prism.evaluation.predictions import sequence_nats, splice
from prism.evaluation.preflight import PreflightError, preflight
from prism.features import encode_activations, encode_features, word_features
from prism.features.encoding import channel_features
from prism.interventions import suppress
from prism.models import (
    activations_at,
    get_spec,
    harvest_kept,
    is_massive,
    kept_activations,
    load_sae,
    ordinary,
    random_model,
)

SPEC = get_spec("mini")


@pytest.fixture(scope="module")
def batch(mini):
    return tokenize(list(load_texts()["text"][:12]), mini.tokenizer, SPEC.context)


def limited(name, mini, batch, share):
    """An SAE with a constant above which so many of the tokens lie; and where they lie."""
    sae = copy.deepcopy(load_sae(SPEC, name))
    norms = activations_at(mini, batch.tokens, ["blocks.2.hook_resid_pre"])["blocks.2.hook_resid_pre"].norm(dim=-1)
    sae.cfg.metadata.massive_norm = float(norms[batch.keep].quantile(1 - share))
    return sae, (norms > sae.cfg.metadata.massive_norm) & batch.keep


@pytest.mark.parametrize("name", ["2-res", "2-mlp-out", "2-mlp-post"])
def test_told_by_the_residual_stream_whatever_the_hook(name, mini, batch):
    sae, massive = limited(name, mini, batch, 0.1)
    assert torch.equal(ordinary(mini, sae, batch).keep, batch.keep & ~massive)
    assert massive.sum() / batch.n_tokens == pytest.approx(0.1, abs=0.01)


def test_an_sae_without_a_constant_leaves_every_token_in(mini, batch):
    sae = load_sae(SPEC, "2-res")
    assert ordinary(mini, sae, batch) is batch
    assert evaluate(mini, sae, batch, with_ce=False).massive is None
    assert "massive" not in encode_features(mini, sae, batch, token_table(batch, mini.tokenizer)).table


@pytest.mark.parametrize("name", ["2-res", "2-mlp-out"])
def test_no_feature_fires_on_them_and_densities_do_not_count_them(name, mini, batch):
    sae, massive = limited(name, mini, batch, 0.1)
    table = token_table(batch, mini.tokenizer)
    found, plain = encode_features(mini, sae, batch, table), encode_features(mini, load_sae(SPEC, name), batch, table)
    rows = massive[batch.keep].numpy()
    assert np.array_equal(found.table["massive"], rows) and found.massive == rows.sum()
    assert found.values[rows].nnz == 0 < plain.values[rows].nnz
    assert (found.values[~rows] != plain.values[~rows]).nnz == 0
    np.testing.assert_allclose(found.density(), plain.select(~rows).density())
    assert found.l0() == pytest.approx(plain.select(~rows).l0())
    assert found.select(np.ones(len(rows), bool)).massive == rows.sum()


def test_channels_leave_them_out_too(mini, batch):
    sae, massive = limited("2-mlp-post", mini, batch, 0.1)
    plain = token_table(batch, mini.tokenizer)
    table = encode_features(mini, sae, batch, plain).table
    some, rows = TokenBatch(batch.tokens, batch.keep & ~massive), ~massive[batch.keep].numpy()
    hook = "blocks.2.hook_resid_pre"
    found = channel_features(mini, hook, batch, table)
    wanted = channel_features(mini, hook, some, token_table(some, mini.tokenizer))
    assert found.values[~rows].nnz == 0 and found.massive == massive.sum()
    assert abs(found.values[rows] - wanted.values).max() < 1e-5
    np.testing.assert_allclose(found.density(), wanted.density())
    cut = channel_features(mini, hook, batch, table, l0=20)
    assert cut.l0() == pytest.approx(20, abs=0.01)


def test_cached_activations_of_the_residual_stream_tell_by_themselves(mini, batch):
    sae, _ = limited("2-res", mini, batch, 0.1)
    table = token_table(batch, mini.tokenizer)
    cached = encode_activations(sae, harvest_kept(mini, sae.cfg.metadata.hook_name, batch), table)
    assert (cached.values != encode_features(mini, sae, batch, table).values).nnz == 0
    assert cached.massive > 0


@pytest.mark.parametrize("name", ["2-res", "2-mlp-out"])
def test_measured_without_them_and_spliced_around_them(name, mini, batch):
    sae, massive = limited(name, mini, batch, 0.1)
    found, keep = evaluate(mini, sae, batch), batch.keep & ~massive
    assert found.massive == massive.sum() and found.n_tokens == keep.sum()
    x = activations_at(mini, batch.tokens, [sae.cfg.metadata.hook_name])[sae.cfg.metadata.hook_name][keep].double()
    error = (x - sae.decode(sae.encode(x.float()))).pow(2).sum()
    assert found.explained_variance == pytest.approx(1 - float(error / (x - x.mean(0)).pow(2).sum()), abs=1e-6)
    mask = keep[:, 1:] & keep[:, :-1]
    logits = [
        splice(mini, batch.tokens, sae.cfg.metadata.hook_name, keep, change)
        for change in (lambda x: x, lambda x: sae.decode(sae.encode(x)))
    ]
    clean, spliced = (sequence_nats(each, batch.tokens, mask).sum() / mask.sum() for each in logits)
    assert found.delta_ce == pytest.approx(float(spliced - clean), abs=1e-5)


def test_activations_of_another_hook_do_not_tell_and_are_refused(mini, batch):
    sae, _ = limited("2-mlp-out", mini, batch, 0.1)
    x = kept_activations(mini, sae.cfg.metadata.hook_name, batch)
    with pytest.raises(ValueError, match="do not tell which tokens are massive; use encode_features"):
        encode_activations(sae, [x], token_table(batch, mini.tokenizer))


def test_what_is_not_finite_is_an_error_not_a_massive_token(mini, batch, monkeypatch):
    sae, _ = limited("2-res", mini, batch, 0.1)
    assert is_massive(torch.tensor([1.0, 5.0, float("nan"), float("inf")]), 2.0).tolist() == [False, True, False, False]

    def broken(model, tokens, hooks):
        found = activations_at(model, tokens, hooks)
        return {name: x.index_fill(0, torch.tensor([1]), float("nan")) for name, x in found.items()}

    monkeypatch.setattr("prism.models.massive.activations_at", broken)
    monkeypatch.setattr("prism.models.harvesting.activations_at", broken)
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate(mini, sae, batch, with_ce=False)


def test_words_and_saes_without_a_constant(mini, batch):
    sae, massive = limited("2-res", mini, batch, 0.1)
    table = encode_features(mini, sae, batch, token_table(batch, mini.tokenizer)).table
    words = word_features(batch, table, len(mini.tokenizer))
    assert words.l0() == 1.0 and words.massive == massive.sum()
    plain = encode_features(mini, load_sae(SPEC, "1-res"), batch, table)
    assert plain.massive == 0 and plain.values[massive[batch.keep].numpy()].nnz > 0


def test_a_feature_is_not_changed_where_none_counts_as_firing(mini, batch):
    sae, massive = limited("2-res", mini, batch, 0.1)
    x = activations_at(mini, batch.tokens, ["blocks.2.hook_resid_pre"])["blocks.2.hook_resid_pre"][batch.keep]
    feature = int(encode_features(mini, sae, batch, token_table(batch, mini.tokenizer)).density().argmax())
    moved = (suppress(sae, feature)(x) - x).norm(dim=-1) > 1e-4
    assert not moved[massive[batch.keep]].any() and moved[~massive[batch.keep]].any()


def test_other_measures_leave_them_out(mini, batch):
    sae, _ = limited("2-res", mini, batch, 0.1)
    matrix = encode_features(mini, sae, batch, token_table(batch, mini.tokenizer))
    feature = int(matrix.firing_counts().argmax())
    assert summarise_feature(matrix, feature).density == pytest.approx(matrix.density()[feature])
    top = most_frequent(matrix, 3, by="token").iloc[0]
    assert top["share"] == pytest.approx(top["density"])


def test_weights_that_changed_are_looked_at_again(batch):
    model = random_model(SPEC, seed=3)
    sae, massive = limited("2-res", model, batch, 0.1)
    assert ordinary(model, sae, batch).n_tokens == batch.n_tokens - massive.sum()
    with torch.no_grad():
        model.W_E.mul_(100)
    assert ordinary(model, sae, batch).n_tokens < batch.n_tokens / 2


def test_preflight_says_that_nothing_is_left(mini, batch):
    sae = copy.deepcopy(load_sae(SPEC, "2-res"))
    sae.cfg.metadata.massive_norm = 1e-3
    with pytest.raises(PreflightError, match="ordinary tokens: found 0"):
        preflight(mini, sae, batch)


def test_bfloat16_and_bare_objects_are_read(mini, batch):
    class Bare:
        class cfg:  # noqa: N801
            d_sae = 2

        def encode(self, x):
            return x[:, :2].relu()

    table = token_table(batch, mini.tokenizer)
    assert encode_activations(Bare(), [torch.ones(len(table), 4)], table).l0() == 2
    sae, massive = limited("2-res", mini, batch, 0.1)
    x = kept_activations(mini, "blocks.2.hook_resid_pre", batch).bfloat16()
    assert abs(encode_activations(sae, [x.float()], table).massive - massive.sum()) <= 3


def test_several_saes_are_measured_on_the_same_tokens(mini, batch):
    sae, massive = limited("2-res", mini, batch, 0.1)
    found = evaluate_all(mini, {"one": sae, "other": load_sae(SPEC, "1-res")}, batch, with_ce=False)
    assert found["one"].n_tokens == found["other"].n_tokens == batch.n_tokens - massive.sum()


def test_only_massive_tokens_is_an_error(mini, batch):
    sae = copy.deepcopy(load_sae(SPEC, "2-res"))
    sae.cfg.metadata.massive_norm = 1e-3
    with pytest.raises(ValueError, match="every token of the batch is massive"):
        evaluate(mini, sae, TokenBatch(batch.tokens, batch.keep))
