"""Phase 4: what it reads and measures, its figures, and 'Diagnose the broken run'."""

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import titled
from scipy.sparse import csr_matrix

from prism import evaluation as ev
from prism.data import DATA
from prism.exercises import progress
from prism.features import FeatureMatrix
from prism.models import get_spec, load_model, load_sae
from prism.phases.phase_4 import exercises, figures, methods

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def broken_runs():
    return exercises.load_broken_runs()


class TestReading:
    def test_documents_take_kinds_in_turn_and_stop_when_there_are_enough(self):
        spec = get_spec("mini")
        tokenizer = load_model(spec).tokenizer
        batch, kinds = ev.documents.take(spec, tokenizer, 3_000)
        assert batch.n_tokens >= 3_000 > batch[:-1].n_tokens and len(kinds) == len(batch)
        first = kinds.iloc[: kinds.nunique()]
        assert first.is_unique, "one of each kind comes first"
        held, _ = ev.documents.take(spec, tokenizer, 3_000, held_out=True)
        rows = {tuple(row) for row in batch.tokens[:, :40].tolist()}
        assert not rows & {tuple(row) for row in held.tokens[:, :40].tolist()}

    def test_no_unit_fires_on_a_token_that_is_too_long(self):
        spec = get_spec("mini")
        model, hooks = load_model(spec), (methods.shallowest(spec), "blocks.2.mlp.hook_post")
        whole = ev.held_out(spec, model, hooks, 1_000, 1e9)
        norms = whole.x[hooks[0]].norm(dim=1)
        some = ev.held_out(spec, model, hooks, 1_000, float(norms.median()))
        stay = norms <= norms.median()
        assert 0 < stay.sum() < len(stay)
        assert torch.equal(some.kept, stay) and whole.kept.all()
        assert some.table["token"].tolist() == whole.table["token"].tolist(), "every token is there to be read"
        neurons, x = some.neurons(hooks[1]), some.x[hooks[1]] * stay[:, None]
        np.testing.assert_allclose(neurons.column(3) - neurons.column(3 + x.shape[1]), x[:, 3], rtol=1e-6)
        features = some.encode(load_sae(spec, "2-mlp-post"))
        assert features.massive == neurons.massive == (~stay).sum()
        assert not features.values[~stay.numpy()].nnz and features.values[stay.numpy()].nnz

    def test_measures_are_those_of_the_definitions(self):
        spec = get_spec("mini")
        sae, x = load_sae(spec, "2-res"), torch.randn(300, 192, generator=torch.Generator().manual_seed(0)) * 20
        found = ev.measure(sae, x, np.repeat([4, 2, 9], 100))
        with torch.no_grad():
            f = sae.encode(x)
            x_hat = sae.decode(f)
        assert found.explained_variance == pytest.approx(float(ev.explained_variance(x, x_hat)), abs=1e-6)
        assert found.l0 == pytest.approx((f > 0).sum(1).double().mean().item())
        assert found.relative_reconstruction_bias == pytest.approx(
            float(x_hat.pow(2).sum() / (x * x_hat).sum()), rel=1e-5
        )
        assert found.per_sequence["tokens"].tolist() == [100, 100, 100]

    def test_hooks_are_the_shallowest_residual_one_and_the_neurons(self):
        spec = get_spec("mini")
        assert methods.shallowest(spec) == "blocks.1.hook_resid_pre" and methods.neuron_sae(spec) == "2-mlp-post"
        gpt2 = get_spec("gpt2-small")
        assert methods.shallowest(gpt2) == "blocks.6.hook_resid_pre" and methods.neuron_sae(gpt2) == gpt2.default_sae

    def test_percentiles_by_hand(self):
        scores = pd.DataFrame({"kind": ["neuron"] * 5 + ["feature"] * 3, "unit": [9, 8, 7, 6, 5, 1, 2, 3]})
        scores["score"] = [0.1, 0.2, 0.2, 0.4, 0.5, 0.9, 0.7, 0.8]
        chosen = methods.at_percentiles(scores, "score", (0.0, 0.5, 1.0))
        assert chosen["neuron"].tolist() == [9, 8, 5] and chosen["feature"].tolist() == [2, 3, 1]
        assert chosen["neuron's score"].tolist() == [0.1, 0.2, 0.5] and chosen["feature's score"].tolist() == [
            0.7,
            0.8,
            0.9,
        ]

    def test_model_and_twin_lose_the_same_tokens(self):
        x, twin = torch.arange(10.0).reshape(5, 2), -torch.arange(6.0).reshape(3, 2)
        ours, theirs = methods.same_tokens(x, twin, torch.tensor([True, False, True, True, False]))
        assert ours.tolist() == [[0, 1], [4, 5]] and theirs.tolist() == [[0, -1], [-4, -5]]

    def test_some_columns_in_the_order_given(self):
        table = pd.DataFrame({"text": [0, 0], "position": [1, 2], "token": ["a", "b"], "token_id": [1, 2]})
        some = methods.only(FeatureMatrix(csr_matrix([[1.0, 0, 3], [0, 2, 0]]), table), np.array([2, 0]))
        assert some.values.toarray().tolist() == [[3, 1], [0, 0]] and some.table is table


def a_log(steps=60, level=30.0):
    step = np.arange(steps)
    return pd.DataFrame(
        {
            "step": step,
            "loss": level + 50 / (step + 1),
            "l0": 300.0 / (step + 1),
            "explained_variance": 1 - 1 / (step + 2),
            "dead": step // 10,
        }
    )


@pytest.mark.parametrize("n", [1, 2, 7])
def test_training_curves_draw_every_run_in_every_panel(n):
    logs = {f"run {i} {SCRIPT}": a_log(level=30 + i) for i in range(n)}
    fig = titled(figures.training_curves(logs), "step")
    assert len(fig.data) == 3 * n and sum(bool(trace.showlegend) for trace in fig.data) == n
    assert "<script>" not in fig.to_json()
    np.testing.assert_allclose(fig.data[0].y, logs[next(iter(logs))]["loss"])
    assert fig.layout.yaxis.type == "log"


def test_training_curves_survive_zeros_and_leaps():
    log = a_log()
    log.loc[3, "loss"], log.loc[4, "explained_variance"] = 0.0, -20.0
    fig = figures.training_curves({"a": log})
    assert np.isnan(fig.data[0].y[3]) and fig.layout.yaxis2.range[0] > -0.2
    assert figures.training_curves({"a": log.assign(loss=0.0)}).data  # nothing that a log axis could show
    low, _ = figures.training_curves({"a": log.assign(dead=0)}).layout.yaxis3.range
    assert -0.1 < low < 0  # a line at zero does not lie on the axis


def test_diagnosis_figure_puts_the_healthy_run_behind_each(broken_runs):
    fig = titled(figures.diagnosis_figure(broken_runs), "decoder<br>norm", "step")
    assert len(fig.data) == 2 * 6 * 7
    assert "cut off" in fig.layout.title.subtitle.text  # a run leaps below the panel
    healthy = broken_runs[broken_runs["run"] == "healthy"]
    for grey, line in zip(fig.data[::2], fig.data[1::2], strict=True):
        assert grey.line.color != line.line.color and len(grey.x) == len(healthy)
    np.testing.assert_allclose(fig.data[0].y, healthy["loss"])
    assert [a.text for a in fig.layout.annotations] == [f"<b>{run}</b>" for run in "ABCDEF"]
    text = fig.to_json().lower()
    assert not any(word in text for word in ("bos", "shuffle", "rate too"))


# ---------------------------------------------------------------- what gives a fault away in a log


def late(log, column):
    """A column's values in the second half of the steps."""
    return log[column].iloc[-round(0.5 * len(log)) :]


def wobble(values):
    """Median distance of the values from their running median over 31 rows: single leaps do not count."""
    return (values - values.rolling(31, center=True, min_periods=1).median()).abs().median()


SYMPTOMS = {  # fault -> its number in a log, the limit beyond which it speaks for the fault, and on which side
    exercises.RATE: (lambda log: late(log, "loss").max() / late(log, "loss").median(), 1.4, True),
    exercises.PENALTY: (lambda log: late(log, "l0").median(), 4.0, False),
    exercises.NORMS: (lambda log: log["decoder_norm"].iloc[-1], 1.2, True),
    exercises.BOS: (lambda log: (log["largest_input_norm"] / log["input_norm"]).median(), 5.0, True),
    exercises.ORDER: (lambda log: wobble(late(log, "explained_variance")), 0.02, True),
    exercises.DEAD: (lambda log: log["dead"].iloc[-1] / 768, 0.6, True),
}


class TestDiagnosis:
    def test_each_symptom_shows_in_its_run_and_in_no_other(self, broken_runs):
        logs = dict(list(broken_runs.groupby("run")))
        assert set(logs) == {*exercises.KEY, exercises.HEALTHY} and set(exercises.KEY.values()) == set(exercises.FAULTS)
        for run, log in logs.items():
            shown = [fault for fault, (of, limit, above) in SYMPTOMS.items() if (of(log) > limit) == above]
            assert shown == ([exercises.KEY[run]] if run in exercises.KEY else []), run

    def test_each_symptom_is_far_from_its_limit(self, broken_runs):
        logs = dict(list(broken_runs.groupby("run")))
        for run, fault in exercises.KEY.items():
            of, limit, above = SYMPTOMS[fault]
            ratios = pd.Series({name: of(log) / limit for name, log in logs.items()})
            ratio, others = ratios[run], ratios.drop(run)
            assert (ratio > 1.3 and others.max() < 0.95) if above else (ratio < 0.6 and others.min() > 1.5)

    def test_the_logs_are_small_whole_and_say_nothing_in_words(self, broken_runs):
        path = DATA / "broken_runs.parquet"
        assert path.stat().st_size < 100_000
        data = path.read_bytes().lower()
        assert not [word for word in (b"bos", b"shuffl", b"rate", b"penalty", b"never") if word in data]
        assert len(broken_runs.groupby("run").size().unique()) == 1
        numbers = broken_runs.drop(columns="run")
        assert np.isfinite(numbers.to_numpy(float)).all()
        assert {c for columns in exercises.COLUMNS.values() for c in columns} <= set(numbers)
        assert not {"lr", "sparsity"} & set(numbers)

    def test_the_key_is_right(self, capsys):
        assert exercises.check_diagnosis(dict(exercises.KEY)) == exercises.KEY
        assert "6 of 6 right" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "fault",
        [np.array([1, 2]), pd.DataFrame(), [exercises.BOS], 10**5000, "\ud83d", "bos data"],
        ids=["array", "frame", "list", "number", "half a character", "words"],
    )
    def test_what_is_no_name_of_a_fault_is_told(self, fault, capsys):
        assert exercises.check_diagnosis({"A": fault, "B": exercises.KEY["B"]}) == exercises.KEY
        out = capsys.readouterr().out
        assert "✗ A: that is none of the six faults; did you mean '" in out and "1 of 6 right" in out

    @pytest.mark.parametrize("answer", [["A"], "BOS", 3, exercises.check_diagnosis])
    def test_what_is_no_dictionary_is_told(self, answer, capsys):
        assert exercises.check_diagnosis(answer) == exercises.KEY
        assert "give a dictionary" in capsys.readouterr().out

    @pytest.mark.parametrize("stub", [{}, dict.fromkeys("ABCDEF")])
    def test_an_untouched_stub_gets_the_key_and_says_so(self, stub, capsys):
        assert exercises.check_diagnosis(stub) == exercises.KEY
        assert "not written yet" in capsys.readouterr().out

    def test_a_wrong_run_is_told_where_to_look_but_not_the_answer(self, capsys):
        for run, fault in exercises.KEY.items():
            for other in set(exercises.FAULTS) - {fault}:
                exercises.check_diagnosis({**exercises.KEY, run: other})
                out = capsys.readouterr().out
                line = next(x for x in out.splitlines() if x.startswith(f"✗ {run}"))
                assert fault not in line and all(f"`{c}`" in line for c in exercises.COLUMNS[fault])
                assert out.count("✓") == 5 and "5 of 6 right" in out


def test_the_hypothesis_is_phase_4s(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    exercises.check_hypothesis("a", "b", {"a": 1.0, "b": 0.0}.get)
    assert "it stands, for now" in capsys.readouterr().out and "4/hypothesis" in progress.load()
