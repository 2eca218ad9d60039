"""Every metric on a case whose answer is known by hand; streams against whole arrays; SAELens where it agrees."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sae_lens.evals import ExplainedVarianceCalculator, get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler
from saelens_agreement import agreement_with_saelens

from prism import evaluation as ev
from prism import models
from prism.data import TokenBatch, corpus_batch, load_corpus, tokenize
from prism.evaluation import metrics
from prism.evaluation import preflight as before
from prism.evaluation.results import RATIOS
from prism.evaluation.streaming import Sums
from prism.models import get_spec, harvest, load_sae


@pytest.fixture(scope="module")
def batch(mini) -> TokenBatch:
    return corpus_batch(load_corpus("mini", 12), mini.tokenizer, 64)


@pytest.fixture(scope="module")
def sae():
    return load_sae(get_spec("mini"))


class Fixed:
    """An SAE whose reconstruction is any function of its input."""

    def __init__(self, sae, change):
        self.cfg, self.change = sae.cfg, change

    def encode(self, x):
        return torch.cat([x, torch.ones(len(x), self.cfg.d_sae - x.shape[1])], dim=1)

    def decode(self, f):
        return self.change(f[:, : self.cfg.d_in])


class TestPure:
    def test_hand_cases(self):
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        assert metrics.mse(x, x + torch.tensor([1.0, 2.0])) == 5.0
        assert ev.explained_variance(x, x) == 1.0
        assert ev.explained_variance(x, x.mean(0).expand_as(x)) == 0.0
        assert ev.explained_variance(x, torch.tensor([[2.0, 2.0], [3.0, 4.0]])) == pytest.approx(1 - 1 / 4)
        assert metrics.cosine(x, 3 * x) == pytest.approx(1.0)
        sums = Sums(2, 2)
        sums.add(x, x / 2, x)
        assert sums.measures()["relative_reconstruction_bias"] == pytest.approx(0.5)
        assert metrics.relative_reconstruction_bias(2.0, 4.0) == 0.5 and np.isnan(
            metrics.relative_reconstruction_bias(0.0, 0.0)
        )
        assert metrics.density(torch.tensor([[0.0, 1.0], [0.0, 3.0]])).tolist() == [0, 1]
        assert ev.metrics.l0(torch.tensor([[0.0, 1.0], [2.0, 3.0]])) == 1.5

    def test_constant_activations_have_no_variance_to_explain(self):
        with pytest.raises(ValueError, match="do not vary"):
            ev.explained_variance(torch.ones(3, 2), torch.ones(3, 2))

    def test_trap_uncentred_variance_flatters(self):
        torch.manual_seed(0)
        x = torch.randn(1000, 8) + 1.6
        mean = x.mean(0).expand_as(x)
        uncentred = 1 - ((x - mean).pow(2).sum() / x.pow(2).sum()).item()
        assert uncentred > 0.7 and ev.explained_variance(x, mean) == pytest.approx(0.0, abs=1e-9)

    def test_trap_zero_ablation_flatters(self):
        assert metrics.ce_recovered(4.694, 4.714, 13.08) == pytest.approx(0.9976, abs=1e-4)
        assert metrics.ce_recovered(4.694, 4.714, 4.794) == pytest.approx(0.8)
        assert metrics.ce_recovered(1.0, 1.0, 3.0) == 1.0 and metrics.ce_recovered(1.0, 3.0, 3.0) == 0.0

    def test_edges(self):
        assert np.isnan(metrics.ce_recovered(2.0, 2.5, 2.0))
        assert np.isnan(metrics.paired_bootstrap(np.ones(1), np.ones(1))).all()
        low, high = metrics.paired_bootstrap(np.array([1.0, 0, 2]), np.array([1.0, 0, 1]))
        assert 1 <= low <= high <= 2
        with pytest.raises(ValueError, match="differ in shape"):
            metrics.mse(torch.zeros(2, 3), torch.zeros(3))

    def test_kl_of_two_coins(self):
        p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
        expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
        assert metrics.kl(p.log(), q.log()) == pytest.approx(expected, abs=1e-6)

    @given(arrays(np.float32, (7, 5), elements=st.floats(-10, 10, width=32)))
    def test_kl_is_never_negative(self, logits):
        other = torch.from_numpy(np.roll(logits, 1, axis=1).copy())
        assert metrics.kl(torch.from_numpy(logits), other) >= -1e-6

    def test_bootstrap_covers_a_known_mean_and_narrows(self):
        rng = np.random.default_rng(0)
        few, many = rng.normal(2, 1, 20), rng.normal(2, 1, 2000)
        low, high = metrics.paired_bootstrap(few, np.ones(20))
        low2, high2 = metrics.paired_bootstrap(many, np.ones(2000))
        assert low < 2 < high and low2 < 2 < high2 and high2 - low2 < (high - low) / 3


class TestSums:
    @given(
        arrays(np.float32, (12, 3), elements=st.floats(-100, 100, width=32)),
        st.lists(st.integers(0, 12), min_size=0, max_size=4),
    )
    def test_streamed_equals_whole(self, x, cuts):
        x = torch.from_numpy(x) + torch.tensor([1000.0, 0, 0]) + torch.arange(12.0)[:, None]
        x_hat, f = x + 0.5, (x - 3).relu()
        sums = Sums(3, 3)
        edges = [0, *sorted(cuts), 12]
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            sums.add(x[a:b], x_hat[a:b], f[a:b])
        assert sums.n == 12
        found, wide = sums.measures(), (x.double(), x_hat.double())
        assert found["l0"] == pytest.approx(ev.metrics.l0(f))
        assert found["mse"] == pytest.approx(metrics.mse(*wide))
        assert found["explained_variance"] == pytest.approx(ev.explained_variance(x, x_hat), abs=1e-9)
        assert found["cosine"] == pytest.approx(metrics.cosine(x, x_hat))
        power, dot = wide[1].pow(2).sum().item(), (wide[0] * wide[1]).sum().item()
        assert found["relative_reconstruction_bias"] == pytest.approx(metrics.relative_reconstruction_bias(power, dot))
        np.testing.assert_allclose(found["density"], metrics.density(f))
        assert found["dead"] == int((metrics.density(f) == 0).sum())
        torch.testing.assert_close(sums.mean, x.double().mean(0))


class TestEvaluate:
    def test_identity_costs_nothing(self, mini, sae, batch):
        result = ev.evaluate(mini, Fixed(sae, lambda x: x), batch)
        assert result.explained_variance == 1.0 and result.mse == 0.0
        assert result.delta_ce == pytest.approx(0, abs=1e-5)
        assert result.ce_recovered_mean == pytest.approx(1, abs=1e-4)
        assert result.ce_recovered_zero == pytest.approx(1, abs=1e-4)
        assert result.kl == pytest.approx(0, abs=1e-5)

    def test_zero_and_mean_are_the_zeros_of_their_scales(self, mini, sae, batch):
        assert ev.evaluate(mini, Fixed(sae, torch.zeros_like), batch).ce_recovered_zero == pytest.approx(0, abs=1e-6)
        x = torch.cat(list(harvest(mini, batch.tokens, sae.cfg.metadata.hook_name)))[batch.keep]
        mean = x.double().mean(0).float()
        result = ev.evaluate(mini, Fixed(sae, lambda x: mean.expand_as(x)), batch)
        assert result.ce_recovered_mean == pytest.approx(0, abs=1e-4)
        assert result.mean_ablation_cost == pytest.approx(result.delta_ce, abs=1e-6)
        assert result.mean_ablation_interval[0] < result.mean_ablation_cost < result.mean_ablation_interval[1]
        assert result.explained_variance == pytest.approx(0, abs=1e-6)

    def test_streamed_equals_the_pure_functions(self, mini, sae, batch):
        result = ev.evaluate(mini, sae, batch, batch_size=5)
        x = torch.cat(list(harvest(mini, batch.tokens, sae.cfg.metadata.hook_name)))[batch.keep]
        f = sae.encode(x)
        assert result.l0 == pytest.approx(ev.metrics.l0(f), rel=1e-6)
        assert result.mse == pytest.approx(metrics.mse(x, sae.decode(f)), rel=1e-4)
        assert result.explained_variance == pytest.approx(ev.explained_variance(x, sae.decode(f)), abs=1e-5)
        np.testing.assert_allclose(result.density, metrics.density(f), atol=1e-9)
        assert result.dead == int((metrics.density(f) == 0).sum())
        assert result.delta_ce_interval[0] <= result.delta_ce <= result.delta_ce_interval[1]

    def test_bos_and_padding_do_not_count(self, mini, sae, batch):
        """Padding changes nothing, and an SAE that fails on BOS alone is never asked about BOS."""
        first = ev.evaluate(mini, sae, batch)
        padded = TokenBatch(
            torch.cat([batch.tokens, batch.tokens[:, :1].expand(-1, 3)], 1),
            torch.cat([batch.keep, torch.zeros(len(batch), 3, dtype=torch.bool)], 1),
        )
        second = ev.evaluate(mini, sae, padded)
        for name in ("n_tokens", "l0", "explained_variance", "ce_clean", "delta_ce", "kl"):
            assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-4), name
        with_bos = TokenBatch(batch.tokens, torch.ones_like(batch.keep))
        assert ev.evaluate(mini, sae, with_bos, with_ce=False).n_tokens > first.n_tokens

    def test_parts_can_be_left_out(self, mini, sae, batch):
        result = ev.evaluate(mini, sae, batch, with_ce=False)
        assert result.ce_clean is None and "delta_ce" not in result.to_frame().index
        result = ev.evaluate(mini, sae, batch, ablations=False, with_kl=False)
        assert result.delta_ce is not None and result.kl is None and result.ce_recovered_mean is None

    def test_wrong_width_is_said(self, mini, sae, batch):
        class Wrong:
            class cfg:
                d_in, d_sae, metadata = 7, 9, sae.cfg.metadata

        with pytest.raises(ValueError, match="gives 192 numbers a token, the SAE reads 7"):
            ev.evaluate(mini, Wrong, batch)

    def test_no_tokens_is_said(self, mini, sae, batch):
        with pytest.raises(ValueError, match="keeps no token"):
            ev.evaluate(mini, sae, TokenBatch(batch.tokens, torch.zeros_like(batch.keep)))

    def test_bos_is_never_spliced(self, mini, sae, batch):
        bos = next(harvest(mini, batch.tokens[:1], sae.cfg.metadata.hook_name))[0, 0]
        seen = []

        def refuse_bos(x):
            seen.append(len(x))
            assert not torch.isclose(x, bos, atol=1e-4).all(1).any()
            return x

        assert ev.evaluate(mini, Fixed(sae, refuse_bos), batch).explained_variance == 1.0
        assert sum(seen) >= 2 * batch.n_tokens

    def test_nan_activations_are_said(self, mini, sae, batch, monkeypatch):
        nothing = torch.full((*batch.tokens.shape, 192), float("nan"))
        monkeypatch.setattr(models.harvesting, "harvest", lambda *a: iter([nothing]))
        with pytest.raises(ValueError, match="NaN or infinite"):
            ev.evaluate(mini, sae, batch, with_ce=False, batch_size=len(batch))

    def test_unknown_hook_is_said(self, mini, batch):
        with pytest.raises(ValueError, match="nearest is 'blocks.2.hook_resid_pre'"):
            ev.predictions.splice(mini, batch.tokens, "blocks.2.hook_resid_pr", batch.keep, lambda x: x)

    def test_splice_check(self, mini, sae, batch):
        assert ev.streaming.splice_check(mini, sae, batch) < 1e-5

    @pytest.mark.filterwarnings("error")
    def test_texts_of_one_token_have_no_prediction_and_spoil_none(self, mini, sae):
        texts = ["The cat sat on the mat.", "Once upon a time there was a dog.", "def f(x): return x"]
        whole = tokenize(texts, mini.tokenizer, 64)
        mixed = tokenize([" the", texts[0], " a", *texts[1:]], mini.tokenizer, 64)
        alone, among = ev.evaluate(mini, sae, whole), ev.evaluate(mini, sae, mixed)
        for name in ("ce_clean", "delta_ce", "kl"):
            assert getattr(among, name) == pytest.approx(getattr(alone, name), rel=1e-4), name
        assert (among.per_sequence["predictions"] == 0).sum() == 2 and among.n_tokens == alone.n_tokens + 2
        low, high = among.delta_ce_interval
        assert low < among.delta_ce < high and among.interval("delta_ce") == pytest.approx((low, high))
        table = ev.evaluation_table({"a": among, "b": alone})
        assert table.notna().all().all()
        assert np.isfinite(ev.paired_difference(among, among)).all()
        assert ev.streaming.splice_check(mini, sae, mixed) < 1e-5

    @pytest.mark.filterwarnings("error")
    def test_texts_of_one_token_alone_are_one_sentence(self, mini, sae):
        from prism.interventions import add
        from prism.interventions.changes import change_cost

        ones = tokenize([" the", " a", " cat"], mini.tokenizer, 64)
        said = "no text has two tokens in a row, so there is no prediction to measure; give at least one of two tokens"
        hook = sae.cfg.metadata.hook_name
        for measure in (
            lambda: ev.evaluate(mini, sae, ones),
            lambda: ev.streaming.splice_check(mini, sae, ones),
            lambda: change_cost(mini, ones, hook, add(torch.ones(192), 1.0)),
            lambda: before.preflight(mini, sae, ones),
        ):
            with pytest.raises(ValueError, match=said):
                measure()
        with pytest.raises(ValueError, match="no prediction to compare"):
            metrics.kl(torch.zeros(0, 5), torch.zeros(0, 5))
        without = ev.evaluate(mini, sae, ones, with_ce=False)
        assert without.n_tokens == 3 and np.isfinite(without.interval("l0")).all()
        assert ev.text_bits(mini, [" the", " a"], 64).gt(0).all().all()

    def test_several_at_once_are_each_as_alone(self, mini, sae, batch):
        spec = get_spec("mini")
        saes = {name: load_sae(spec, name) for name in ("2-res", "1-res", "2-mlp-out")}
        together = ev.evaluate_all(mini, saes, batch)
        for name, one in saes.items():
            alone = ev.evaluate(mini, one, batch)
            pd.testing.assert_frame_equal(alone.to_frame(), together[name].to_frame())
            pd.testing.assert_frame_equal(alone.per_sequence, together[name].per_sequence)

    def test_the_literatures_loss_recovered_flatters_here_too(self, mini, sae, batch):
        result = ev.evaluate(mini, sae, batch, with_kl=False)
        assert result.ce_recovered_zero > result.ce_recovered_mean and result.delta_ce > 0


class TestIntervals:
    @pytest.fixture(scope="class")
    def found(self, mini, sae, batch):
        return ev.evaluate(mini, sae, batch)

    def test_sequences_add_up_to_the_whole(self, found):
        sums = found.per_sequence.sum()
        assert sums["tokens"] == found.n_tokens
        assert sums["active"] / sums["tokens"] == pytest.approx(found.l0)
        assert 1 - sums["residual"] / sums["total"] == pytest.approx(found.explained_variance, abs=1e-9)
        assert (sums["nats_sae"] - sums["nats_clean"]) / sums["predictions"] == pytest.approx(found.delta_ce)

    @pytest.mark.parametrize("measure", RATIOS)
    def test_interval_holds_its_measure(self, found, measure):
        low, high = found.interval(measure)
        assert low < getattr(found, measure) < high

    def test_interval_of_delta_ce_is_the_one_in_the_result(self, found):
        assert found.interval("delta_ce") == pytest.approx(found.delta_ce_interval)

    def test_by_hand(self, found):
        """Two sequences of one token, L0 0 and 4: a resample has mean 0, 2 or 4, the extremes a quarter each."""
        sums = pd.DataFrame({"tokens": [1.0, 1.0], "active": [0.0, 4.0]})
        found = replace(found, n_tokens=2, l0=2.0, per_sequence=sums)
        assert found.interval("l0") == (0.0, 4.0)
        assert ev.paired_difference(found, found, "l0") == (0.0, 0.0, 0.0)

    def test_difference_to_itself_plus_a_constant_has_no_spread(self, found):
        sums = found.per_sequence.assign(active=found.per_sequence["active"] + 3 * found.per_sequence["tokens"])
        more = replace(found, l0=found.l0 + 3, per_sequence=sums)
        assert ev.paired_difference(more, found, "l0") == pytest.approx((3, 3, 3))
        width = np.diff(found.interval("l0"))[0]
        assert width > 0.1

    def test_what_cannot_be_compared_is_said(self, mini, sae, batch, found):
        with pytest.raises(ValueError, match="different tokens"):
            ev.paired_difference(found, ev.evaluate(mini, sae, batch[:5]))
        with pytest.raises(ValueError, match="choose from l0"):
            found.interval("cosine")
        with pytest.raises(ValueError, match="was not measured"):
            ev.evaluate(mini, sae, batch, with_ce=False).interval("delta_ce")

    def test_table_has_a_row_an_sae(self, mini, sae, batch, found):
        table = ev.evaluation_table({"a": found, "b": ev.evaluate(mini, sae, batch, with_ce=False)})
        assert list(table.index) == ["a", "b"] and table.loc["a", "delta_ce"] == found.delta_ce
        assert np.isnan(table.loc["b", "delta_ce"]) and (table["l0_low"] < table["l0"]).all()
        assert table.loc["a", "dead_share"] == found.dead / found.d_sae


class TestAgainstSaeLens:
    def test_explained_variance(self):
        torch.manual_seed(0)
        x = torch.randn(300, 8) + 5
        x_hat = x + 0.3 * torch.randn(300, 8)
        theirs = ExplainedVarianceCalculator()
        for a, b in zip(x.split(70), x_hat.split(70), strict=True):
            theirs.add_batch(sae_output=b, hidden_acts=a)
        assert ev.explained_variance(x, x_hat) == pytest.approx(theirs.compute(), abs=1e-4)

    def test_cross_entropy_and_kl(self, mini, sae):
        """SAELens counts every prediction, so both are compared on full sequences without the one made from BOS."""
        tokens = corpus_batch(load_corpus("mini", 60), mini.tokenizer, 64).tokens
        full = tokens[(tokens[:, 1:] != mini.tokenizer.bos_token_id).all(1)][:6]
        keep = torch.ones_like(full, dtype=torch.bool)
        keep[:, 0] = False
        ours = ev.evaluate(mini, sae, TokenBatch(full, keep))
        theirs = get_recons_loss(
            sae, mini, ActivationScaler(), full, True, True, ignore_tokens=[mini.tokenizer.bos_token_id]
        )
        clean = theirs["ce_loss_without_sae"][:, 1:].mean().item()
        spliced = theirs["ce_loss_with_sae"][:, 1:].mean().item()
        assert ours.ce_clean == pytest.approx(clean, abs=1e-4)
        assert ours.delta_ce == pytest.approx(spliced - clean, abs=1e-4)
        assert ours.kl == pytest.approx(theirs["kl_div_with_sae"][:, 1:-1].mean().item(), abs=1e-4)

    @pytest.mark.parametrize("name", ["2-res", "2-mlp-out"])
    def test_run_evals(self, mini, name):
        """All that `run_evals` says, where it means the same; and where it does not, the reason and the direction."""
        batch = corpus_batch(load_corpus("mini", 40), mini.tokenizer, 64)
        frame = agreement_with_saelens(mini, load_sae(get_spec("mini"), name), batch, batch_size=8)
        same = frame[frame["same definition"]]
        assert {"l0", "mse", "explained_variance", "cosine", "ce_clean", "ce_sae"} <= set(same["measure"])
        np.testing.assert_allclose(same["ours"], same["theirs"], rtol=1e-4, atol=1e-5)
        assert (frame["why not"] == "").equals(frame["same definition"])
        other = frame[~frame["same definition"]].set_index("SAELens")
        assert abs(other.loc["explained_variance_legacy", "difference"]) > 1e-3
        assert abs(other.loc["kl_div_with_sae", "difference"]) < 0.02
        assert abs(other.loc["relative_reconstruction_bias", "difference"]) < 1e-3

    def test_nothing_to_compare_is_said(self, mini, sae, batch):
        with pytest.raises(ValueError, match="free of special tokens"):
            agreement_with_saelens(mini, sae, TokenBatch(batch.tokens, torch.zeros_like(batch.keep)))


class TestPreflight:
    @pytest.fixture(scope="class")
    def fitting(self, mini):
        from prism.data import corpus_batch, load_corpus
        from prism.models import get_spec, load_sae

        batch = corpus_batch(load_corpus("mini", n_documents=12), mini.tokenizer, 64)
        return mini, load_sae(get_spec("mini")), batch

    @pytest.fixture
    def sae(self, fitting):
        import copy

        return copy.deepcopy(fitting[1])

    def test_passes_where_they_belong_together(self, fitting):
        from prism.evaluation.preflight import preflight

        frame = preflight(*fitting, published_l0=32)
        assert frame["ok"].all()
        assert list(frame["check"]) == [
            "settings",
            "model",
            "hook point",
            "width",
            "weight processing",
            "BOS",
            "positions",
            "splice check",
            "L0",
        ]

    @pytest.mark.parametrize(
        "hook, reason",
        [
            ("blocks.9.hook_resid_pre", "failed at hook point.*nearest is"),
            ("blocks.2.mlp.hook_post", "failed at width: found 768, wanted 192"),
        ],
    )
    def test_wrong_hook(self, fitting, sae, hook, reason):
        from prism.evaluation.preflight import PreflightError, preflight

        sae.cfg.metadata.hook_name = hook
        with pytest.raises(PreflightError, match=reason):
            preflight(fitting[0], sae, fitting[2])

    def test_other_weight_processing(self, fitting, sae):
        from prism.evaluation.preflight import PreflightError, preflight

        sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
        with pytest.raises(PreflightError, match="found no_processing, wanted center_writing_weights"):
            preflight(fitting[0], sae, fitting[2])

    def test_no_bos(self, fitting):
        from prism.evaluation.preflight import PreflightError, preflight

        model, sae, batch = fitting
        with pytest.raises(PreflightError, match="BOS: found missing or counted"):
            preflight(model, sae, type(batch)(batch.tokens[:, 1:], batch.keep[:, 1:]))

    @pytest.mark.parametrize(
        "settings, metadata, reason",
        [
            (
                {"normalize_activations": "expected_average_only_in"},
                {},
                "failed at settings.*fold what training measured",
            ),
            ({"architecture": lambda: "transcoder"}, {}, "failed at settings.*rebuilds another activation"),
            ({"reshape_activations": "hook_z"}, {"hook_name": "blocks.2.attn.hook_z"}, "heads are not read one by one"),
            ({}, {"hook_name_out": "blocks.2.hook_mlp_out"}, "failed at settings.*does not rebuild what it reads"),
            (
                {},
                {"model_name": "gpt2-small"},
                "failed at model: found mini, wanted gpt2-small .*write mini as model_name",
            ),
            ({}, {"model_name": "mini-small"}, "failed at model"),
            (
                {},
                {"prepend_bos": False},
                "failed at BOS: found in front, wanted none in front, as prepend_bos is false",
            ),
            ({}, {"seqpos_slice": [5, 40]}, r"positions: found 1 to 63, wanted seqpos_slice \[5, 40\]: keep no others"),
        ],
    )
    def test_what_the_metadata_says(self, fitting, sae, settings, metadata, reason):
        from prism.evaluation.preflight import PreflightError, preflight

        for owner, values in ((sae.cfg, settings), (sae.cfg.metadata, metadata)):
            for name, value in values.items():
                setattr(owner, name, value)
        with pytest.raises(PreflightError, match=reason):
            preflight(fitting[0], sae, fitting[2])

    @pytest.mark.parametrize("name", [None, "mini", "someone/Mini", "/models/mini", "mini/"])
    def test_names_of_one_model(self, fitting, sae, name):
        from prism.evaluation.preflight import preflight

        sae.cfg.metadata.model_name = name
        assert preflight(fitting[0], sae, fitting[2][:2])["ok"].all()

    @pytest.mark.parametrize(
        "source, name, same",
        [
            ("openai-community/gpt2", "gpt2", True),
            ("openai-community/gpt2", "gpt2-small", True),
            ("openai-community/gpt2", "gpt2-medium", False),
            ("openai-community/gpt2", "distilgpt2", False),
            ("google/gemma-2-2b", "gemma-2-2b", True),
            ("google/gemma-2-2b", "gemma-2-2b-it", False),
            ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped", True),
            ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m", False),
            ("/home/me/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", True),
            ("/home/me/other", "meta-llama/Llama-3.2-1B", False),
            ("/hub/models--openai-community--gpt2/snapshots/1a2b", "gpt2-small", True),
        ],
    )
    def test_aliases(self, source, name, same):
        from types import SimpleNamespace

        from prism.evaluation.preflight import _names, _plain

        names = _names(SimpleNamespace(cfg=SimpleNamespace(model_name=source)))
        assert (_plain(name) in map(_plain, names)) == same

    def test_batches_that_fit_the_metadata(self, fitting, sae):
        from prism.evaluation.preflight import preflight

        model, _, batch = fitting
        sae.cfg.metadata.prepend_bos, sae.cfg.metadata.seqpos_slice = False, [None, 30]
        keep = batch.keep.clone()
        keep[:, 31:] = False
        assert preflight(model, sae, type(batch)(batch.tokens[:4, 1:], keep[:4, 1:]))["ok"].all()

    @pytest.mark.parametrize("published", [5.0, 500.0])
    def test_l0_far_from_the_published_one(self, fitting, published):
        from prism.evaluation.preflight import PreflightError, preflight

        with pytest.raises(PreflightError, match="failed at L0.*published"):
            preflight(*fitting, published_l0=published)

    def test_an_sae_that_never_fires(self, fitting, sae):
        from prism.evaluation.preflight import PreflightError, preflight

        sae.threshold.data.fill_(1e9)
        with pytest.raises(PreflightError, match="failed at L0: found 0.0, wanted more than 0"):
            preflight(fitting[0], sae, fitting[2])
