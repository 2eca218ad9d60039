"""The SAEs that notebooks compare: equal settings, trained once, with controls that are controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sae_lens import SAE

from prism import models
from prism.data import CACHE, held_out_documents, training_documents
from prism.models import FAMILY, load_family, metadata_of, saes, trained_family
from prism.models.saes import member_configs, training_activations
from prism.sae import save_saelens
from prism.training import train

SPEC = models.get_spec("mini")


def test_members_differ_only_in_what_their_name_says():
    sae, config = member_configs("batch_topk", 192)
    assert member_configs("topk", 192) == (replace(sae, architecture="topk"), config)
    assert member_configs("seed-1", 192) == (replace(sae, seed=1), replace(config, seed=1))
    assert member_configs("random-decoder", 192) == (sae, replace(config, freeze_decoder=True))
    assert member_configs("random-model", 192) == (sae, config)
    for name in ("relu", "gated", "jumprelu"):
        other, steered = member_configs(name, 192)
        assert replace(other, architecture="batch_topk", sparsity=sae.sparsity) == sae
        assert replace(steered, target_l0=None) == config and steered.target_l0 == sae.k


def test_unknown_member():
    with pytest.raises(ValueError, match="no SAE 'reluu' in the family; choose from batch_topk"):
        load_family(SPEC, "reluu")


def test_training_and_held_out_documents_share_nothing():
    train, held = (set(documents["text"]) for documents in (training_documents("mini"), held_out_documents("mini")))
    assert len(held) > 300 and not train & held


def test_activations_are_those_of_the_model_without_bos(mini):
    found = training_activations(SPEC, "blocks.1.hook_resid_pre", 1_000)
    assert found.shape == (1_000, 192) and found.dtype == np.float16
    first = training_documents("mini")["tokens"].iloc[0][: SPEC.context - 1]
    ids = torch.tensor([[mini.tokenizer.bos_token_id, *first]])
    expected = mini.run_with_cache(ids)[1]["blocks.1.hook_resid_pre"][0, 1:]
    torch.testing.assert_close(torch.from_numpy(found[: len(first)]).float(), expected, atol=0.02, rtol=2e-3)


def test_massive_tokens_are_not_trained_on_and_the_sae_carries_the_constant(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("prism.models.saes.CACHE", tmp_path)
    monkeypatch.setattr("prism.models.massive.FACTOR", 1.02)
    spec = models.get_spec(str(llama))
    saes.training_activations.cache_clear()
    saes.training_limit.cache_clear()
    limit = saes.training_limit(spec, spec.sae().hook_name)
    x = training_activations(spec, spec.sae().hook_name, 4_000)
    assert len(x) < 3_900 and np.linalg.norm(x.astype(np.float32), axis=1).max() <= limit * 1.001
    assert load_family(spec, "topk", tokens=4_096, distinct=4_000).cfg.metadata.massive_norm == limit
    saes.training_activations.cache_clear()
    saes.training_limit.cache_clear()


@pytest.mark.parametrize("times", [1e6, 1e-8])
def test_activations_beyond_half_precision_are_trained_on_as_they_are(times, tmp_path, monkeypatch):
    """Public report unsloth #4014: embeddings of a model that are a million times larger."""
    harvest = saes.harvest_kept
    monkeypatch.setattr(saes, "harvest_kept", lambda *what: (x * times for x in harvest(*what)))
    saes.training_activations.cache_clear()
    x = torch.from_numpy(training_activations(SPEC, SPEC.sae().hook_name, 3_000))
    assert x.dtype == torch.float32 and x.isfinite().all()
    saes.training_activations.cache_clear()
    settings, config = member_configs("topk", 192, 8_192)
    trained = train(x, settings, config)
    save_saelens(trained, tmp_path, metadata_of(trained, config, SPEC, SPEC.sae().hook_name, len(x)))
    sae = SAE.load_from_disk(tmp_path)
    assert all(value.isfinite().all() for value in sae.state_dict().values())
    rebuilt = sae.decode(sae.encode(x))
    assert 1 - (x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum() > 0


def test_no_token_of_mini_is_massive():
    assert saes.training_limit(SPEC, SPEC.sae().hook_name) is None


def test_a_random_model_has_the_same_shape_and_other_weights(mini):
    one, same, other = (models.random_model(SPEC, seed) for seed in (0, 0, 1))
    assert one.cfg.d_model == mini.cfg.d_model and one is same
    weights = [model.W_E.detach() for model in (mini, one, other)]
    assert not torch.allclose(weights[0], weights[1]) and not torch.allclose(weights[1], weights[2])


def test_another_model_trains_its_own_once(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("prism.models.saes.CACHE", tmp_path)
    spec = models.get_spec(str(llama))
    saes.training_activations.cache_clear()
    first = load_family(spec, "random-decoder", tokens=8_192, distinct=4_000)
    assert first.cfg.d_in == 32 and first.cfg.metadata.hook_name == spec.sae().hook_name
    assert first.cfg.metadata.training_samples == 8_192 and "4,000 tokens" in first.cfg.metadata.training_data
    monkeypatch.setattr("prism.models.saes.train", None)  # would fail if called
    again = load_family(spec, "random-decoder")
    assert torch.equal(first.W_dec, again.W_dec) and CACHE != tmp_path


@pytest.mark.parametrize("name", FAMILY)
def test_the_embedded_members_are_at_the_l0_that_they_share(name):
    sae = load_family(SPEC, name)
    assert sae.cfg.d_sae == 8 * 192 and sae.cfg.metadata.training_samples >= 2_000_000
    if name != "random-model":
        x = torch.from_numpy(training_activations(SPEC, SPEC.sae().hook_name, 4_000)).float()
        assert (sae.encode(x) > 0).sum(1).float().mean() == pytest.approx(32, rel=0.2)


def test_trained_family_names_what_is_on_this_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(saes, "DATA", tmp_path / "data")
    monkeypatch.setattr(saes, "home_folder", lambda spec: tmp_path / "home")
    assert trained_family(SPEC) == set()
    for folder in ("data/saes/family/topk", "home/family/relu", "home/family/half-written"):
        (tmp_path / folder).mkdir(parents=True)
        if "half" not in folder:
            (tmp_path / folder / "sae_weights.safetensors").touch()
    assert trained_family(SPEC) == {"topk", "relu"}
    assert trained_family(models.get_spec("gpt2-small")) == {"relu"}
