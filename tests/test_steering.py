"""Steering: the KV cache, responses, curves at equal cost, targets and output scores."""

import numpy as np
import pytest
import torch

from prism.data import corpus_batch, load_corpus, load_texts, tokenize
from prism.evaluation import splice
from prism.interventions import (
    Curve,
    Response,
    add,
    at_cost,
    clamp,
    class_auc,
    compare_at_cost,
    count_tokens,
    dose_response,
    gain_at_cost,
    generate,
    lens_tokens,
    output_scores,
    project_out,
    repetition,
    respond,
    steering_curve,
    suppress,
    text_probe,
    text_windows,
    token_log_odds,
    typical_tokens,
)
from prism.models import get_spec, kept_activations, load_model, load_sae, local_spec, random_model
from prism.visualization import candidate_figure, dose_figure, equal_cost_figure, samples_table

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


class TestRespond:
    def test_by_hand(self, mini, tokens):
        targets = torch.zeros(mini.cfg.d_vocab, 2, dtype=torch.bool)
        targets[5:50, 0] = targets[40:900, 1] = True
        found = respond(mini, tokens, targets)
        p = mini(tokens, return_type="logits").softmax(-1)[:, 1:-1]
        wanted = torch.stack([p[..., 5:50].sum(-1).mean(1), p[..., 40:900].sum(-1).mean(1)], dim=1)
        assert np.allclose(found.share, wanted.numpy(), atol=1e-5)
        nats = -p.gather(-1, tokens[:, 2:, None])[..., 0].log().mean(1)
        assert np.allclose(found.nats, nats.numpy(), atol=1e-4)

    def test_a_change_and_a_prefix(self, mini, tokens):
        targets = torch.ones(mini.cfg.d_vocab, 1, dtype=torch.bool)
        plain, same = respond(mini, tokens, targets), respond(mini, tokens, targets, HOOK, lambda x: x)
        assert np.allclose(plain.share, 1, atol=1e-4) and np.allclose(plain.nats, same.nats, atol=1e-5)
        behind = respond(mini, tokens, targets, prefix=tokens[:, 1:6])
        assert not np.allclose(behind.nats, plain.nats, atol=1e-3)
        whole = torch.cat([tokens[:, :1], tokens[:, 1:6], tokens[:, 1:]], dim=1)
        logits = mini(whole, return_type="logits")[:, 6:-1]
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 2:], reduction="none").mean(1)
        assert np.allclose(behind.nats, nats.numpy(), atol=1e-4)

    def test_too_short(self, mini, tokens):
        with pytest.raises(ValueError, match="at least 3"):
            respond(mini, tokens[:, :2], torch.ones(mini.cfg.d_vocab, 1, dtype=torch.bool))


def curve(gain, cost, doses=(1.0, 2.0)):
    """A curve of one class on as many equal sequences as there are columns."""
    return Curve(np.array(doses), np.array(gain, dtype=float)[..., None], np.array(cost, dtype=float))


class TestCurves:
    def test_at_cost(self):
        gain, cost = np.array([0.1, 0.4]), np.array([0.2, 0.6])
        assert at_cost(gain, cost, 0.1).item() == pytest.approx(0.05)
        assert at_cost(gain, cost, 0.6).item() == pytest.approx(0.4)
        assert np.isnan(at_cost(gain, cost, 0.7))
        falling = at_cost(np.array([0.1, 0.3, 0.5]), np.array([-0.1, 0.4, 0.2]), 0.15)  # the first crossing counts
        assert falling.item() == pytest.approx(0.2)
        many = at_cost(np.stack([gain, 2 * gain]), np.stack([cost, cost]), 0.4)
        assert many == pytest.approx([0.25, 0.5])
        with pytest.raises(ValueError, match="above 0"):
            at_cost(gain, cost, 0.0)

    def test_dose_at_cost_and_frame(self):
        made = curve([[0.1, 0.3], [0.5, 0.7]], [[0.1, 0.1], [0.3, 0.3]])
        assert made.dose_at_cost(0.2) == pytest.approx(1.5) and made.dose_at_cost(9.0) == 2.0
        assert made.frame("x", 0)["gain"].tolist() == pytest.approx([0.2, 0.6])
        assert gain_at_cost(made, 0.2, 0) == pytest.approx(0.4)

    def test_compare_at_cost(self):
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 0.1, 40)
        cost = np.array([0.2 + 0 * noise, 0.6 + 0 * noise])
        better, worse = (curve([0.1 * k + noise, 0.3 * k + noise], cost) for k in (2, 1))
        lead, low, high = compare_at_cost(better, worse, 0.4, 0)
        assert lead == pytest.approx(0.2) and low == pytest.approx(0.2) and high == pytest.approx(0.2)  # it is paired
        gain, low, high = compare_at_cost(better, None, 0.4, 0)
        assert low < gain < high and high - low > 0.01
        assert all(np.isnan(compare_at_cost(better, worse, 9.0, 0)))

    def test_steer_and_doses(self, mini, tokens):
        targets = torch.zeros(mini.cfg.d_vocab, 1, dtype=torch.bool)
        targets[:300] = True
        clean = respond(mini, tokens, targets)
        push = torch.randn(192, generator=torch.Generator().manual_seed(0))
        made = steering_curve(mini, tokens, targets, HOOK, push, (1.0, 4.0), clean)
        again = respond(mini, tokens, targets, HOOK, add(push, 4.0))
        assert np.allclose(made.gain[1], again.share - clean.share) and np.allclose(
            made.cost[1], again.nats - clean.nats
        )
        for wrong in ((), (2.0, 1.0), (0.0, 1.0)):
            with pytest.raises(ValueError, match="rising from above 0"):
                dose_response(lambda s: Response(clean.share, clean.nats), wrong, clean)


class TestTargets:
    def test_log_odds_by_hand(self):
        delta, errors = token_log_odds(np.array([9, 1]), np.array([5, 5]), prior=0)
        assert delta.tolist() == pytest.approx([np.log(9), -np.log(9)])
        assert errors[0] == pytest.approx(np.log(9) / np.sqrt(1 / 9 + 1 / 5))

    def test_typical_tokens(self):
        counts = np.array([[100, 50, 2, 30], [2, 50, 0, 300], [1, 60, 0, 300]])
        assert typical_tokens(counts)[:, 0].tolist() == [True, False, False, False]  # token 2 is too rare to tell
        with pytest.raises(ValueError, match="two or more"):
            typical_tokens(counts[:1])

    def test_counts(self, mini):
        found = count_tokens(["a a", "b", "a"], ["x", "y", "x"], mini.tokenizer, mini.cfg.d_vocab)
        assert {kind: int(c.sum()) for kind, c in found.items()} == {"x": 3, "y": 1}
        with pytest.raises(ValueError, match="one for each"):
            count_tokens(["a"], [], mini.tokenizer, 10)

    def test_auc(self):
        from sklearn.metrics import roc_auc_score

        values, inside = np.random.default_rng(0).integers(0, 4, (30, 3)), np.arange(30) < 9
        wanted = [roc_auc_score(inside, column) for column in values.T]
        assert class_auc(values, inside) == pytest.approx(wanted)
        with pytest.raises(ValueError, match="at least one of each"):
            class_auc(values, inside & False)

    def test_repetition(self):
        assert repetition(torch.tensor([[1, 2, 3, 4, 5], [7, 7, 7, 7, 7]])).tolist() == pytest.approx([0, 2 / 3])
        with pytest.raises(ValueError, match="3-gram"):
            repetition(torch.tensor([[1, 2]]))

    def test_windows(self, mini):
        batch = tokenize(list(load_texts("confirm")["text"][:3]), mini.tokenizer, 256)
        windows, source = text_windows(batch, 8, most=2)
        assert windows.shape == (6, 9) and source.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(windows[3, 1:], batch.tokens[1, 9:17]) and (windows[:, 0] == batch.tokens[0, 0]).all()
        with pytest.raises(ValueError, match="no text has 500"):
            text_windows(batch, 500)

    def test_probe(self):
        texts, kinds = ["def f(x): return x"] * 5 + ["the cat sat on the mat"] * 5, ["code"] * 5 + ["prose"] * 5
        assert text_probe(texts, kinds).predict(["def g(y): return y", "the mat"]).tolist() == ["code", "prose"]
        with pytest.raises(ValueError, match="two kinds"):
            text_probe(texts[:5], kinds[:5])


class TestOutputScores:
    def test_by_hand(self, mini, tokens):
        direction = 30 * mini.W_U[:, 77] / mini.W_U[:, 77].norm()
        prompt = tokens[:1, :6]
        last = torch.zeros(1, 6, dtype=torch.bool)
        last[:, -1] = True
        p = splice(mini, prompt, HOOK, last, add(direction, 1.0))[0, -1].softmax(-1)
        lens = (direction @ mini.W_U).topk(20).indices
        order = p.argsort(descending=True).tolist()
        best = min(order.index(int(i)) for i in lens)
        wanted = (1 - best / len(p)) * p[lens].max().item()
        both = output_scores(mini, HOOK, torch.stack([direction, -direction]), prompt)
        assert both[0] == pytest.approx(wanted, rel=1e-3) and both[0] != pytest.approx(both[1], rel=1e-2)

    def test_lens(self, mini):
        row = mini.W_U[:, 10] / mini.W_U[:, 10].norm() ** 2 * 100 - mini.W_U[:, 11]
        assert torch.equal(lens_tokens(mini, torch.stack([row, row]), 3)[1], (row @ mini.W_U).topk(3).indices)
        with pytest.raises(ValueError, match="residual stream has 192"):
            lens_tokens(mini, torch.ones(5))


def test_figures():
    import pandas as pd

    made = curve([[0.1, 0.3], [0.5, 0.7]], [[0.1, 0.1], [9.0, 9.0]])
    null = pd.concat([made.frame("random", 0).assign(direction=i) for i in range(3)])
    points = pd.concat([made.frame("a<b", 0), made.frame("prompt", 0).assign(dose=np.nan)])
    fig = dose_figure(points, null, 0.25)
    assert [trace.name for trace in fig.data if trace.xaxis == "x"] == ["3 random directions", "a&lt;b"]
    assert len({trace.name for trace in fig.data}) == 3 and fig.layout.xaxis2.range[1] == 2.0
    rows = [
        {"kind": "python", "method": m, "gain": g, "low": g - 1, "high": g + 1} for m, g in (("x", 1.0), ("y", np.nan))
    ]
    band = pd.DataFrame({"kind": ["python"], "low": [0.0], "high": [1.0]})
    assert len(equal_cost_figure(pd.DataFrame(rows), band).data) == 3
    table = pd.DataFrame(
        {
            "kind": ["python", "z"],
            "feature": [1, 2],
            "gain": [0.1, 0.2],
            "input AUC": [1, 0.5],
            "output score": [0, 1],
        }
    )
    assert len(candidate_figure(table).data) == 4


def test_samples_are_escaped():
    shown = samples_table({"way": ["<script>alert(1)</script>"]}, ["<b>"])
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<b>" not in shown
    assert samples_table({"prompt": ["x"]}, ["y"]).count(">prompt<") == 1  # what was continued is called 'opening'
    with pytest.raises(ValueError, match="one for each"):
        samples_table({"way": []}, ["x"])
