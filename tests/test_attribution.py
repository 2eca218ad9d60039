"""Attribution and ablation by hand values, on toys where they must agree or fail, and on the models themselves."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism import interventions as iv
from prism import visualization as viz
from prism.data import corpus_batch, load_corpus
from prism.evaluation import raw_channels
from prism.models import get_spec, kept_activations, load_model, load_sae

HOOK = "blocks.2.hook_resid_pre"


def toy(value, off=None, direction=None) -> iv.Nodes:
    """Nodes at one position whose activation *is* their values, unless other directions are given."""
    value = torch.tensor(value)
    direction = torch.eye(len(value)) if direction is None else torch.tensor(direction)
    off = torch.zeros(len(value)) if off is None else torch.tensor(off)
    n = len(value)
    return iv.Nodes((value @ direction)[None], torch.zeros(n, dtype=torch.long), torch.arange(n), value, off, direction)


def score_of(function):
    """A score of the activation at position 0."""
    return lambda x: function(x[:, 0])


def three(score, nodes):
    return [
        m(score, nodes).tolist() for m in (iv.gradient_times_activation, iv.integrated_gradients, iv.ablation_effects)
    ]


@pytest.fixture(scope="module")
def sae():
    return load_sae(get_spec("mini"))


@pytest.fixture(scope="module")
def prompts(mini):
    return iv.make_prompts(mini, corpus_batch(load_corpus("mini", 60), mini.tokenizer, 256), 10, 40)


@pytest.fixture(scope="module")
def opened(mini, sae, prompts):
    row = next(prompts.table.itertuples())
    return iv.open_prompt(mini, sae, prompts.tokens[0], iv.logit_difference(row.top, row.rival))


class TestToys:
    @given(st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 3), min_size=1, max_size=5))
    def test_on_a_linear_score_all_three_are_the_value_by_hand(self, rows):
        value, off, weight = ([row[i] for row in rows] for i in range(3))
        hand = [(v - o) * w for v, o, w in rows]
        for found in three(score_of(lambda x: x @ torch.tensor(weight) + 7), toy(value, off)):
            assert np.allclose(found, hand, atol=1e-4)

    def test_directions_that_overlap(self):
        nodes = toy([2.0, 3.0], direction=[[1.0, 1.0], [0.0, 2.0]])
        assert nodes.x.tolist() == [[2.0, 8.0]]
        for found in three(score_of(lambda x: x @ torch.tensor([1.0, -1.0])), nodes):
            assert np.allclose(found, [0.0, -6.0])

    def test_a_cap_hides_everything_from_slope_and_single_ablation(self):
        slope, path, single = three(score_of(lambda x: x.sum(1).clamp(max=1)), toy([1.0, 1.0]))
        assert slope == [0, 0] and single == [0, 0] and np.allclose(path, [0.5, 0.5], atol=0.02)
        nodes, both = toy([1.0, 1.0]), torch.ones(1, 2, dtype=torch.bool)
        assert iv.joint_effects(score_of(lambda x: x.sum(1).clamp(max=1)), nodes, both).item() == 1

    def test_a_saturated_sigmoid(self):
        slope, path, single = three(score_of(lambda x: x[:, 0].sigmoid()), toy([9.0]))
        assert slope[0] < 0.002 and single[0] == pytest.approx(0.4999, abs=1e-3)
        assert path[0] == pytest.approx(single[0], abs=0.01)

    def test_a_slope_of_the_wrong_sign(self):
        slope, path, single = three(score_of(lambda x: x[:, 0] - 2 * (x[:, 0] - 0.5).relu()), toy([0.8]))
        assert slope[0] == pytest.approx(-0.8) and single[0] == pytest.approx(0.2)
        assert path[0] == pytest.approx(0.2, abs=0.03)

    @given(st.integers(0, 50))
    def test_integrated_gradients_are_complete(self, seed):
        generator = torch.Generator().manual_seed(seed)
        value, off, inner, outer = (torch.randn(n, generator=generator) for n in (4, 4, 12, 3))
        score = score_of(lambda x: torch.tanh(x @ inner.view(4, 3)) @ outer)
        nodes = toy(value.tolist(), off.tolist())
        whole = iv.joint_effects(score, nodes, torch.ones(1, 4, dtype=torch.bool)).item()
        assert iv.integrated_gradients(score, nodes, 200).sum().item() == pytest.approx(whole, abs=1e-3)

    def test_no_steps(self):
        with pytest.raises(ValueError, match="at least 1"):
            iv.integrated_gradients(score_of(lambda x: x.sum(1)), toy([1.0]), 0)


class TestNodes:
    def test_features_and_errors_add_up_to_the_activation(self, opened, sae):
        nodes, _ = opened
        built = torch.zeros_like(nodes.x).index_add_(0, nodes.position, nodes.value[:, None] * nodes.direction)
        assert torch.allclose(built[1:] + sae.b_dec, nodes.x[1:], atol=1e-3)
        assert nodes.is_error.sum() == len(nodes.x) - 1 and (nodes.position > 0).all()
        active = sae.encode(nodes.x[1:]) > 0
        assert active.sum() == (~nodes.is_error).sum()

    def test_splice_check(self, mini, opened, prompts, sae):
        nodes, score = opened
        row = next(prompts.table.itertuples())
        logits = mini(prompts.tokens[:1], return_type="logits")[0, -1]
        clean = (logits[row.top] - logits[row.rival]).item()
        rebuilt = nodes.x.clone()
        rebuilt[1:] = sae.decode(sae.encode(nodes.x[1:])) + nodes.direction[nodes.is_error]
        with torch.no_grad():
            assert score(rebuilt[None]).item() == pytest.approx(clean, abs=1e-5 * logits.abs().max().item())
        assert iv.scores_with(score, nodes, nodes.value[None]).item() == pytest.approx(clean, abs=1e-4)

    def test_towards_another_prompt(self, mini, sae, prompts):
        one, other = (iv.prompt_nodes(mini, sae, t) for t in prompts.tokens[:2])
        between = iv.prompt_nodes(mini, sae, prompts.tokens[0], prompts.tokens[1])
        assert torch.allclose(between.with_values(between.off[None])[0], other.x, atol=1e-3)
        assert torch.equal(between.with_values(between.value[None])[0], one.x)

    def test_at_baseline(self, opened, sae):
        nodes, _ = opened
        means, error = torch.rand(sae.cfg.d_sae), torch.randn(sae.cfg.d_in)
        moved = iv.at_baseline(nodes, means[nodes.feature], error)
        place = int(nodes.position[0])
        off = moved.with_values(torch.where(moved.position == place, moved.off, moved.value)[None])[0]
        here = (nodes.position == place) & ~nodes.is_error
        wanted = sae.b_dec + means[nodes.feature[here]] @ sae.W_dec[nodes.feature[here]] + error
        assert torch.allclose(off[place], wanted, atol=1e-3)
        assert torch.equal(off[:place], nodes.x[:place])

    def test_subset_leaves_the_others_as_they_are(self, opened):
        nodes, _ = opened
        part = nodes.subset(nodes.position == 3)
        out = part.with_values(part.off[None])[0]
        assert torch.equal(out[4:], nodes.x[4:]) and not torch.equal(out[3], nodes.x[3])

    def test_shapes_that_differ(self, sae):
        with pytest.raises(ValueError, match="same tokens"):
            iv.take_apart(sae, torch.zeros(4, 192), torch.ones(5, dtype=torch.bool))

    def test_a_decoder_that_rescales_is_refused(self, sae):
        class Rescaling:
            W_dec, b_dec = sae.W_dec, sae.b_dec
            encode = staticmethod(sae.encode)

            @staticmethod
            def decode(f):
                return 3 * sae.decode(f)

        with pytest.raises(ValueError, match="rescales"):
            iv.take_apart(Rescaling, 10 * torch.randn(4, 192), torch.ones(4, dtype=torch.bool))

    def test_table(self, opened):
        nodes, _ = opened
        table = iv.node_table(nodes, [str(i) for i in range(len(nodes.x))], size=nodes.size)
        assert (table["node"] == "error").sum() == len(nodes.x) - 1
        assert (table["token"].astype(int) == table["position"]).all()

    def test_baseline_is_the_mean(self, mini, sae, prompts):
        x = kept_activations(mini, HOOK, prompts.batch)
        means, error = iv.baseline_of(sae, x)
        assert torch.allclose(means, sae.encode(x).mean(0), atol=1e-4)
        assert torch.allclose(error, (x - sae.decode(sae.encode(x))).mean(0), atol=1e-3)


class TestAblation:
    def test_one_node_is_the_model_run_with_that_node_taken_out(self, mini, opened, prompts):
        nodes, score = opened
        row = next(prompts.table.itertuples())
        found = iv.ablation_effects(score, nodes)
        clean = mini(prompts.tokens[:1], return_type="logits")[0, -1]
        for node in (0, len(nodes) // 2, len(nodes) - 1):

            def without(activation, hook, node=node):
                activation = activation.clone()
                activation[0, nodes.position[node]] -= nodes.value[node] * nodes.direction[node]
                return activation

            logits = mini.run_with_hooks(prompts.tokens[:1], fwd_hooks=[(HOOK, without)], return_type="logits")[0, -1]
            effect = (clean - logits)[row.top] - (clean - logits)[row.rival]
            assert found[node].item() == pytest.approx(effect.item(), abs=1e-3)

    @pytest.mark.parametrize("name", ["1-res", "2-mlp-out", "2-mlp-post"])
    def test_one_run_up_to_the_hook_serves_a_whole_batch(self, mini, prompts, name):
        other, tokens = load_sae(get_spec("mini"), name), prompts.tokens[1]
        nodes, score = iv.open_prompt(mini, other, tokens, iv.log_probability(5))
        x = nodes.with_values(torch.stack([nodes.value, nodes.off, 0.5 * nodes.value]))
        hook = other.cfg.metadata.hook_name
        slow = mini.run_with_hooks(tokens.expand(3, -1), fwd_hooks=[(hook, lambda a, hook: x)], return_type="logits")
        assert torch.allclose(score(x), slow[:, -1].log_softmax(-1)[:, 5], atol=1e-4)

    def test_a_llama_style_model(self, llama, mini):
        model = load_model(get_spec(str(llama)))
        tokens, hook = torch.arange(40, 48), "blocks.1.hook_resid_pre"
        score = iv.scorer(model, hook, tokens, iv.probability(3))
        _, cache = model.run_with_cache(tokens[None])
        x = torch.cat([cache[hook], cache[hook] + 1.0])
        slow = model.run_with_hooks(tokens.expand(2, -1), fwd_hooks=[(hook, lambda a, hook: x)], return_type="logits")
        assert torch.allclose(score(x), slow[:, -1].softmax(-1)[:, 3], atol=1e-6)
        slope = torch.autograd.grad(score(x.requires_grad_(True)).sum(), x)[0]
        assert slope.abs().max() > 0

    def test_gradient_is_ablation_for_small_steps(self, opened):
        nodes, score = opened
        near = replace(nodes, off=nodes.value * 0.98)
        found = iv.agreement(iv.gradient_times_activation(score, near), iv.ablation_effects(score, near))
        assert found["rank"] > 0.95 and found["weighted_sign"] > 0.98

    def test_unknown_hook_and_wrong_sets(self, mini, opened):
        with pytest.raises(ValueError, match="nearest"):
            iv.scorer(mini, "blocks.9.hook_resid_pre", torch.arange(4), iv.probability(0))
        nodes, score = opened
        with pytest.raises(ValueError, match="one column for each node"):
            iv.joint_effects(score, nodes, torch.ones(1, 3, dtype=torch.bool))

    def test_metrics(self):
        logits = torch.tensor([[0.0, np.log(3.0), -50.0]])
        assert iv.logit_difference(1, 0)(logits).item() == pytest.approx(np.log(3))
        assert iv.probability(1)(logits).item() == pytest.approx(0.75)
        assert iv.log_probability(0)(logits).item() == pytest.approx(np.log(0.25))

    def test_ablate_is_joint_effects_in_the_running_model(self, mini, sae, opened, prompts):
        nodes, score = opened
        features = nodes.feature[~nodes.is_error].unique()[:6]
        off = torch.linspace(0, 2, 6)
        means = torch.zeros(sae.cfg.d_sae).index_copy_(0, features, off)
        at = iv.at_baseline(nodes, means[nodes.feature], torch.zeros(sae.cfg.d_in))
        after = score(at.x[None]) - iv.joint_effects(score, at, torch.isin(at.feature, features)[None])
        with iv.edited(mini, HOOK, iv.ablate(sae, features, off), prompts.batch.keep[:1]):
            logits = mini(prompts.tokens[:1], return_type="logits")[0, -1]
        row = next(prompts.table.itertuples())
        assert (logits[row.top] - logits[row.rival]).item() == pytest.approx(after.item(), abs=1e-3)

    def test_ablate_leaves_silent_features_silent(self, sae):
        x = 10 * torch.randn(5, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
        silent = (sae.encode(x) == 0).all(0).nonzero()[:3, 0]
        assert torch.allclose(iv.ablate(sae, silent, torch.full((3,), 50.0))(x), x, atol=1e-4)

    def test_same_length(self):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        moved = iv.same_length(lambda x: x + torch.arange(6.0)[:, None], torch.tensor([0.0, -2.0, 0.0, 0.0]))(x) - x
        assert torch.allclose(moved[:, 1], -2 * torch.arange(6.0), atol=1e-5) and not moved[:, [0, 2, 3]].any()

    def test_noise_has_the_errors_length(self, opened):
        nodes, _ = opened
        noisy = iv.noise_for_errors(nodes, 1)
        assert torch.allclose(noisy.direction.norm(dim=1), nodes.direction.norm(dim=1), rtol=1e-4)
        assert torch.equal(noisy.direction[~nodes.is_error], nodes.direction[~nodes.is_error])
        cosine = torch.cosine_similarity(noisy.direction, nodes.direction, dim=1)[nodes.is_error]
        assert cosine.abs().mean() < 0.3


class TestSets:
    def test_top_set(self):
        assert iv.top_set(torch.tensor([1.0, -5.0, 3.0]), 2).tolist() == [True, False, True]
        assert iv.top_set(torch.tensor([1.0]), 9).tolist() == [True]

    def test_random_sets_have_their_size_and_differ(self):
        sets = iv.random_sets(50, 7, 20)
        assert (sets.sum(1) == 7).all() and len({tuple(s.tolist()) for s in sets}) > 15

    def test_matched_set_is_other_nodes_of_like_size(self):
        size = torch.arange(100.0)
        chosen = torch.zeros(100, dtype=torch.bool)
        chosen[[10, 50, 90]] = True
        got = iv.matched_set(chosen, size)
        assert got.sum() == 3 and not (got & chosen).any()
        assert (size[got].sort().values - torch.tensor([10.0, 50.0, 90.0])).abs().max() <= 5
        assert not iv.matched_set(torch.ones(4, dtype=torch.bool), size[:4]).any()

    def test_sums_are_exact_on_a_linear_score(self):
        nodes = toy([1.0, 2.0, -3.0, 0.5, 4.0])
        score = score_of(lambda x: x @ torch.tensor([1.0, 2.0, 0.3, -4.0, 1.0]))
        effects, rules = iv.effect_table(score, nodes), ["ablation", iv.METHODS[0]]
        found = iv.sums_against_sets(score, nodes, effects, rules, (2, 3, 5))
        assert set(found["size"]) == {2, 3} and np.allclose(found[["rank", "sign", "weighted_sign"]], 1)

    def test_best_sets(self):
        nodes = toy([1.0, 2.0, 3.0, 4.0])
        score = score_of(lambda x: x.sum(1))
        found = iv.best_sets(score, nodes, {"up": nodes.value, "down": -nodes.value}, (1, 2), "up").set_index(
            ["rule", "size"]
        )["effect"]
        assert found["up", 2] == 7 and found["down", 1] == 1 and found["matched in size", 2] == 3

    def test_agreement(self):
        assert iv.agreement([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]) == {"rank": 1.0, "sign": 1.0, "weighted_sign": 1.0}
        assert iv.agreement([1.0, 1.0], [-3.0, 1.0])["weighted_sign"] == 0.25
        assert np.isnan(iv.agreement([1.0, 1.0], [-3.0, 1.0])["rank"])
        with pytest.raises(ValueError, match="one for each"):
            iv.agreement([1.0], [1.0, 2.0])

    def test_intervals(self):
        assert iv.mean_interval([2.0, np.nan, 2.0]) == (2.0, 2.0, 2.0)
        assert np.isnan(iv.mean_interval([np.nan])).all()


class TestPrompts:
    def test_prompts_are_text_followed_by_its_next_token(self, mini, prompts):
        batch = corpus_batch(load_corpus("mini", 60), mini.tokenizer, 256)
        for i in (0, 17, len(prompts) - 1):
            row = prompts.table.iloc[i]
            ids = batch.tokens[int(row.document)][batch.keep[int(row.document)]].tolist()
            wanted = [*prompts.tokens[i, 1:].tolist(), int(row.truth)]
            assert any(ids[j : j + len(wanted)] == wanted for j in range(len(ids)))
        assert (prompts.tokens[:, 0] == mini.tokenizer.bos_token_id).all() and len(prompts) == 40

    def test_predictions_are_the_models(self, mini, prompts):
        logits = mini(prompts.tokens[:5], return_type="logits")[:, -1]
        assert logits.argmax(1).tolist() == prompts.table["top"][:5].tolist()
        truth = torch.tensor(prompts.table["truth"][:5].to_numpy())
        nats = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        assert np.allclose(nats, prompts.table["nats"][:5], atol=1e-4)
        assert np.allclose(np.exp(-prompts.table["nats"]), prompts.table["p_truth"], atol=1e-6)

    def test_predictions_under_a_change(self, mini, prompts):
        truth, change = torch.tensor(prompts.table["truth"][:4].to_numpy()), iv.add(torch.ones(192), 3.0)
        found = iv.predictions(mini, prompts.tokens[:4], truth, HOOK, change)
        with iv.edited(mini, HOOK, change, prompts.batch.keep[:4]):
            logits = mini(prompts.tokens[:4], return_type="logits")[:, -1]
        wanted = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        assert np.allclose(found["nats"], wanted, atol=1e-3)

    def test_select(self, prompts):
        few = prompts.select(np.array([3, 1]))
        assert torch.equal(few.tokens, prompts.tokens[[3, 1]]) and len(few) == 2
        assert len(prompts.select(prompts.table.index == 7)) == 1

    def test_too_long_or_too_short(self, mini):
        batch = corpus_batch(load_corpus("mini", 5), mini.tokenizer, 32)
        with pytest.raises(ValueError, match="smaller length"):
            iv.make_prompts(mini, batch, 400, 10)
        with pytest.raises(ValueError, match="at least 2"):
            iv.make_prompts(mini, batch, 1, 10)

    def test_minimal_pairs_differ_in_one_token_and_in_the_first_choice(self, mini, prompts):
        found = [(i, pair) for i in range(12) if (pair := iv.minimal_pair(mini, prompts, i)) is not None]
        assert len(found) >= 6
        for i, (swapped, place, new) in found:
            assert (swapped != prompts.tokens[i]).nonzero()[:, 0].tolist() == [place]
            assert 0 < place < len(swapped) - 1 and new != prompts.table["top"][i]
            assert mini(swapped[None], return_type="logits")[0, -1].argmax() == new

    def test_a_model_of_raw_channels(self, mini, prompts, sae):
        channels = raw_channels(kept_activations(mini, HOOK, prompts.batch), 384, sae.cfg.metadata)
        nodes = iv.prompt_nodes(mini, channels, prompts.tokens[0])
        assert nodes.direction[nodes.is_error].norm(dim=1).max() < 0.2  # all channels: next to no error is left


def test_figures(opened):
    nodes, score = opened
    table = iv.effect_table(score, nodes)
    shown = iv.node_table(nodes, [str(i) for i in range(len(nodes.x))], **table.drop(columns="is_error"))
    bars = viz.node_bars(shown.head(4), ["ablation", iv.METHODS[0]])
    assert [len(trace.x) for trace in bars.data] == [4, 4] and "4" not in bars.layout.title.text
    scatter = viz.effects_scatter(table, iv.METHODS[:2], most=60)
    assert sum(len(t.x) for t in scatter.data if t.mode == "markers") == 2 * 60
    rows = iv.best_sets(score, nodes, {"size": nodes.size}, (1, 2), "size").assign(prompt=0)
    lines = iv.mean_intervals(rows, ["rule", "size"], ["effect"])
    assert list(lines.columns) == ["rule", "size", "panel", "value", "low", "high"] and len(lines) == 4
    curves = viz.set_curves(lines, ["effect"], ["lost"], "A title", line_at=[0])
    assert len(curves.data) == 2 and curves.layout.yaxis.title.text == "lost"
    frame = lines.rename(columns={"rule": "group"}).assign(label=lines["size"])
    for fig in (bars, scatter, curves, viz.interval_bars(frame, "A title", "nats", "where")):
        assert isinstance(fig, go.Figure) and fig.layout.title.text
        assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
