"""Phase 6b: prompts that must agree, nodes that add up, effects by hand, figures, its hypothesis."""

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled

from prism.data import tokenize
from prism.evaluation import pca
from prism.exercises import progress
from prism.interventions import suppress
from prism.models import get_spec, kept_activations, load_sae
from prism.phases.phase_6b import exercises, figures, methods

HOOK, TEXT, TWIN = "blocks.2.hook_resid_pre", "The book of the law", "The man of the law"


@pytest.fixture(scope="module")
def sae():
    return load_sae(get_spec("mini"))


@pytest.fixture(scope="module")
def verbs(mini):
    return [methods.token_of(mini.tokenizer, word) for word in ("are", "is")]


@pytest.fixture(scope="module")
def opened(mini, sae, verbs):
    return methods.open_prompt(mini, sae, TEXT, *verbs)


def activation(mini, text):
    """A prompt's activation at the SAE's hook, BOS in front."""
    _, cache = mini.run_with_cache(methods.prompt_ids(mini.tokenizer, text)[None])
    return cache[HOOK][0]


def toy(value, off=None):
    """Nodes at one position after BOS whose activation *is* their values."""
    value, n = torch.tensor(value), len(value)
    x = torch.stack([torch.zeros(n), value])
    off = torch.zeros(n) if off is None else torch.tensor(off)
    return methods.Nodes(x, torch.ones(n, dtype=torch.long), torch.arange(n), value, off, torch.eye(n))


class TestPrompts:
    def test_every_noun_stands_in_both_numbers_and_prompts_of_a_phrase_are_of_one_length(self, mini):
        found = methods.agreement_prompts(mini.tokenizer)
        counts = found.groupby(["subject", "second", "phrase"]).size()
        assert len(counts) == 4 * len(methods.PHRASES) and counts.nunique() == 1
        for _, group in found.groupby(["phrase", "second"]):
            assert len({len(methods.prompt_ids(mini.tokenizer, text)) for text in group["text"]}) == 1
        plural = found.query("noun == 'man' and subject == 'plural' and second == 'singular'")["text"]
        assert plural.iloc[0] == "The men to the cabinet"

    def test_a_tokenizer_that_cuts_every_word_into_letters(self):
        found = methods.agreement_prompts(lambda text, add_special_tokens: {"input_ids": list(text)})
        assert set(found["noun"]) == {"woman"} or len(set(map(len, found["noun"]))) == 1

    def test_capitals_are_of_one_length_and_told_apart_by_the_lead(self, mini):
        found = methods.capital_prompts(mini.tokenizer, "The capital of {} is")
        assert len({len(methods.prompt_ids(mini.tokenizer, text)) for text in found["text"]}) == 1 and len(found) > 9
        leads = np.arange(len(found)) - 4.5
        wrong, right, enough = methods.wrong_and_right(found.assign(lead=leads))
        assert enough and len(right) == 5 and (wrong["lead"] > 0).all() and list(wrong.index) == sorted(wrong.index)
        wrong, right, enough = methods.wrong_and_right(found.assign(lead=leads + 99))
        assert not enough and abs(len(wrong) - len(right)) < 2 and wrong["lead"].min() > right["lead"].max()

    def test_leads_are_the_models(self, mini, verbs):
        texts = ["The law", "The man of the law", "A book"]
        found = methods.leads(mini, texts, *verbs)
        for text, lead in zip(texts, found, strict=True):
            logits = mini(methods.prompt_ids(mini.tokenizer, text)[None], return_type="logits")[0, -1]
            assert lead == pytest.approx((logits[verbs[0]] - logits[verbs[1]]).item(), abs=1e-4)

    def test_chosen_features_beside_random_ones_of_as_much_activation(self, mini, sae, opened):
        active = opened[0].feature[~opened[0].is_error].unique().tolist()
        chosen, *draws = methods.with_random(mini, sae, [TEXT, TWIN], active[:2], 3, 0)
        assert chosen == active[:2] and [len(one) for one in draws] == [2, 2, 2]
        both = {int(f) for text in (TEXT, TWIN) for f in methods.take_apart(sae, activation(mini, text)).feature}
        assert all(set(one) <= both - set(chosen) for one in draws)

    def test_leads_under_a_change(self, mini, sae, verbs, opened):
        nodes, score = opened
        feature = int(nodes.feature[0])
        wanted = methods.leads(mini, [TEXT], *verbs)[0] - methods.effects(score, nodes, nodes.feature[None] == feature)
        found = methods.leads(mini, [TEXT], *verbs, HOOK, suppress(sae, feature))
        assert found[0] == pytest.approx(wanted.item(), abs=1e-3)


class TestNodes:
    def test_features_and_errors_add_up_to_the_activation(self, opened, sae):
        nodes, _ = opened
        built = torch.zeros_like(nodes.x).index_add_(0, nodes.position, nodes.value[:, None] * nodes.direction)
        assert torch.allclose(built[1:] + sae.b_dec, nodes.x[1:], atol=1e-3)
        assert nodes.is_error.sum() == len(nodes.x) - 1 and (nodes.position > 0).all()

    def test_towards_a_twin(self, mini, sae, verbs, opened):
        nodes, score = methods.open_prompt(mini, sae, TEXT, *verbs, [TWIN])
        other, _ = methods.open_prompt(mini, sae, TWIN, *verbs)
        assert torch.allclose(nodes.with_values(nodes.off[None])[0], other.x, atol=1e-3)
        assert torch.equal(nodes.with_values(nodes.value[None])[0], opened[0].x)
        every = methods.effects(score, nodes, torch.ones(1, len(nodes), dtype=torch.bool))
        here, there = methods.leads(mini, [TEXT, TWIN], *verbs)
        assert every.item() == pytest.approx(here - there, abs=1e-3)

    def test_a_table_to_read(self, mini, sae, verbs):
        nodes, _ = methods.open_prompt(mini, sae, TEXT, *verbs, [TWIN])
        table = methods.node_table(mini.tokenizer, TEXT, nodes)
        assert methods.first_difference(nodes) == 2 and list(table["node"][table["feature"] == -1])[1] == "error · book"
        assert table["node"][0] == f"{nodes.feature[0]} · book" and np.allclose(table["size"], nodes.size)

    def test_towards_a_mean(self, mini, sae, verbs):
        nodes, _ = methods.open_prompt(mini, sae, TEXT, *verbs, [TEXT, TWIN])
        both = [methods.open_prompt(mini, sae, text, *verbs)[0].x for text in (TEXT, TWIN)]
        assert torch.allclose(nodes.with_values(nodes.off[None])[0], sum(both) / 2, atol=1e-3)

    def test_lengths_that_differ(self, mini, sae, verbs):
        with pytest.raises(ValueError, match="one length"):
            methods.take_apart(sae, torch.zeros(4, 192), torch.zeros(1, 5, 192))
        with pytest.raises(ValueError, match="one length"):
            methods.open_prompt(mini, sae, TEXT, *verbs, ["The law"])

    def test_a_decoder_that_rescales_is_refused(self, sae):
        class Rescaling:
            W_dec, b_dec = sae.W_dec, sae.b_dec
            encode = staticmethod(sae.encode)

            @staticmethod
            def decode(f):
                return 3 * sae.decode(f)

        with pytest.raises(ValueError, match="rescales"):
            methods.take_apart(Rescaling(), torch.randn(4, 192) * 10)

    def test_all_principal_axes_leave_next_to_no_error(self, mini, sae, verbs):
        x = kept_activations(mini, HOOK, tokenize([TEXT, TWIN], mini.tokenizer, 64))
        axes = pca(x, 384, sae.cfg.metadata)
        nodes, _ = methods.open_prompt(mini, axes, TEXT, *verbs)
        assert nodes.direction[nodes.is_error].norm(dim=1).max() < 0.2


class TestEffects:
    def test_by_hand(self):
        nodes = toy([2.0, -1.0, 3.0], [0.5, 0.0, 3.0])
        found = methods.effects(lambda x: x[:, 1] @ torch.tensor([1.0, 2.0, 5.0]), nodes)
        assert np.allclose(found, [1.5, -2.0, 0.0])

    def test_a_cap_hides_a_node_behind_the_other(self):
        nodes, cap = toy([1.0, 1.0]), lambda x: x[:, 1].sum(1).clamp(max=1)
        assert methods.effects(cap, nodes).tolist() == [0, 0]
        assert methods.effects(cap, nodes, torch.ones(1, 2, dtype=torch.bool)).item() == 1

    def test_splice_check(self, mini, opened, sae, verbs):
        nodes, score = opened
        rebuilt = nodes.x.clone()
        rebuilt[1:] = sae.b_dec  # from the nodes alone: what the SAE decodes plus its error is x by definition
        rebuilt.index_add_(0, nodes.position, nodes.value[:, None] * nodes.direction)
        with torch.no_grad():
            found = score(rebuilt[None]).item()
        assert found == pytest.approx(methods.leads(mini, [TEXT], *verbs)[0], abs=1e-3)

    def test_a_llama_style_model(self, llama):
        from prism.models import load_model

        model = load_model(get_spec(str(llama)))
        tokens, hook = methods.prompt_ids(model.tokenizer, TEXT), "blocks.1.hook_resid_pre"
        score = methods.scorer(model, hook, tokens, 3, 4)
        _, cache = model.run_with_cache(tokens[None])
        x = torch.cat([cache[hook], cache[hook] + 1.0])
        slow = model.run_with_hooks(tokens.expand(2, -1), fwd_hooks=[(hook, lambda a, hook: x)], return_type="logits")
        assert torch.allclose(score(x), slow[:, -1, 3] - slow[:, -1, 4], atol=1e-5)
        slope = torch.autograd.grad(score(x.requires_grad_(True)).sum(), x)[0]
        assert slope.abs().max() > 0


def test_figures():
    table = pd.DataFrame({"node": ["feature 4 · <b>", "error · x"], "ablation": [1.0, -2.0], "gradient": [0.5, 0.0]})
    bars = titled(figures.node_bars(table, ["ablation", "gradient"], "A title"))
    assert [list(trace.x) for trace in bars.data] == [[1, -2], [0.5, 0]] and "&lt;b&gt;" in bars.data[0].y[0]
    assert len({trace.marker.color for trace in bars.data}) == 2
    prompts = pd.DataFrame({"lead": [1.0, 2, 3], "off": [0.0, -1, 2], "random": [1.5, 2.5, 3]}, index=[7, 5, 7])
    names = {"lead": "as it is", "off": "edited", "random": "random"}
    leads = titled(figures.leads_figure(prompts, ["a <b>", "c", "a <b>"], names, "A title", "lead"), "lead, in logits")
    joined, *dots = leads.data
    assert [dot.x.tolist() for dot in dots] == [[1, 2, 3], [0, -1, 2], [1.5, 2.5, 3]]
    assert np.array_equal(joined.x, [1, 0, np.nan, 2, -1, np.nan, 3, 2, np.nan], equal_nan=True)
    assert all(np.allclose(joined.y[i::3], dots[i].y) for i in (0, 1))  # each line ends on its prompt's two dots
    assert len({dot.marker.color for dot in dots}) == 3 and list(leads.layout.yaxis.ticktext) == ["a &lt;b&gt;", "c"]
    assert [round(float(y)) for y in dots[1].y] == [0, 1, 0]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"6b/hypothesis"}
