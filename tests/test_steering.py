"""Steering: text generated under a change, with and without a KV cache."""

import pytest
import torch

from prism.data import corpus_batch, load_corpus
from prism.evaluation.predictions import splice
from prism.interventions import add, generate, project_out, suppress
from prism.interventions.changes import clamp
from prism.models import get_spec, kept_activations, load_model, load_sae, random_model
from prism.models.registry import local_spec

HOOK = "blocks.2.hook_resid_pre"
KINDS = ("add", "clamp", "suppress", "project out")


@pytest.fixture(scope="module")
def sae():
    return load_sae(get_spec("mini"))


@pytest.fixture(scope="module")
def batch(mini):
    return corpus_batch(load_corpus("mini"), mini.tokenizer, 24, 600)


@pytest.fixture(scope="module")
def tokens(batch):
    return batch.tokens[batch.keep[:, 1:].all(1)][:6]


def four_changes(sae, x):
    """The four changes by a feature that fires often, at twice its maximum."""
    f = sae.encode(x)
    feature = int((f > 0).sum(0).argmax())
    row, value = sae.W_dec[feature], 2 * float(f[:, feature].max())
    made = (add(row, value), clamp(sae, feature, value), suppress(sae, feature), project_out(row, mean=x.mean(0)))
    return dict(zip(KINDS, made, strict=True))


def same_with_and_without_cache(model, hook, change, prompts, temperature):
    """Whether both ways agree, and how far the change moved any log-probability."""
    cached, whole = (generate(model, prompts, 8, hook, change, cache, temperature, seed=1) for cache in (True, False))
    clean = generate(model, prompts, 8, temperature=temperature, seed=1)
    assert torch.equal(cached.tokens, whole.tokens)
    assert torch.allclose(cached.log_probs, whole.log_probs, atol=1e-3)
    return (cached.log_probs - clean.log_probs).abs().max().item(), cached


class TestCache:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("kind", KINDS)
    def test_mini(self, mini, sae, batch, tokens, kind, temperature):
        change = four_changes(sae, kept_activations(mini, HOOK, batch))[kind]
        moved, _ = same_with_and_without_cache(mini, HOOK, change, tokens[:3, :9], temperature)
        assert moved > 0.01

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_llama_style_model(self, llama, tokens, temperature):
        model = load_model(local_spec(llama))
        push = torch.randn(32, generator=torch.Generator().manual_seed(0))
        for change in (add(push, 0.5), project_out(push, mean=torch.zeros(32))):
            moved, _ = same_with_and_without_cache(
                model, "blocks.1.hook_resid_pre", change, tokens[:3, :9], temperature
            )
            assert moved > 1e-4

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_random_gpt2(self, tokens, temperature):
        model = random_model(get_spec("mini"))
        push = torch.randn(192, generator=torch.Generator().manual_seed(0))
        for change in (add(push, 1.0), project_out(push, mean=torch.zeros(192))):
            moved, _ = same_with_and_without_cache(model, HOOK, change, tokens[:3, :9], temperature)
            assert moved > 1e-3

    def test_weights_as_processed(self, mini, tokens):
        """The cached pass must read the same, processed, weights as `model(tokens)`."""
        done = generate(mini, tokens[:2, :9], 6, temperature=0)
        log_p = mini(done.tokens, return_type="logits").log_softmax(-1)[:, 8:-1]
        assert torch.equal(log_p.argmax(-1), done.new)
        assert torch.allclose(log_p.gather(-1, done.new[..., None])[..., 0], done.log_probs, atol=1e-3)

    def test_every_position_but_bos_is_changed(self, mini, tokens):
        """One pass over the finished text, changed everywhere but at BOS, predicts just what was generated."""
        push = add(torch.randn(192, generator=torch.Generator().manual_seed(1)), 6.0)
        done = generate(mini, tokens[:2, :9], 6, HOOK, push, temperature=0)
        keep = torch.arange(done.tokens.shape[1]).expand(done.tokens.shape) > 0
        whole = splice(mini, done.tokens, HOOK, keep, push)[:, 8:-1].argmax(-1)
        assert torch.equal(whole, done.new)
        only_prompt = splice(mini, done.tokens, HOOK, keep & (torch.arange(keep.shape[1]) < 9), push)[:, 8:-1].argmax(
            -1
        )
        assert not torch.equal(only_prompt, done.new)

    def test_a_hook_that_skips_position_0_fails_here(self, mini, tokens):
        push = torch.randn(192, generator=torch.Generator().manual_seed(1)) * 6

        def skip_bos(activation, hook):
            return torch.cat([activation[:, :1], activation[:, 1:] + push], dim=1)

        with mini.hooks(fwd_hooks=[(HOOK, skip_bos)]):
            cached, whole = (generate(mini, tokens[:3, :9], 8, cache=cache, temperature=0) for cache in (True, False))
        assert not torch.allclose(cached.log_probs, whole.log_probs, atol=1e-2)


class TestGenerate:
    def test_seeds(self, mini, tokens):
        one, same, other = (generate(mini, tokens[:2, :9], 6, seed=seed).tokens for seed in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert torch.equal(one[:, :9], tokens[:2, :9])

    def test_samples_follow_the_distribution(self, mini, tokens):
        p = mini(tokens[:1, :9], return_type="logits")[0, -1].softmax(-1)
        likely = int(p.argmax())
        drawn = generate(mini, tokens[:1, :9].expand(400, -1), 1, seed=3).new[:, 0]
        assert abs((drawn == likely).float().mean().item() - p[likely].item()) < 4 * (p[likely] / 400).sqrt().item()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"n_tokens": 0}, "choose from 1 to 247"),
            ({"n_tokens": 248}, "choose from 1 to 247"),
            ({"temperature": -1.0}, "temperature"),
            ({"hook_name": HOOK}, "both hook_name and change"),
            ({"hook_name": "blocks.9.hook_resid_pre", "change": lambda x: x}, "nearest"),
        ],
    )
    def test_bad_input(self, mini, tokens, more, words):
        with pytest.raises(ValueError, match=words):
            generate(mini, tokens[:, :9], **({"n_tokens": 3} | more))
