"""Phase 1: its figure, and whose exercise its hypothesis is."""

import numpy as np
import pytest
from figure_checks import titled

from prism.exercises import progress
from prism.phases import phase_1


def test_dense_vs_sparse_computes_the_shares():
    activations, features = np.array([1.0, -2.0, 3.0, 0.5]), np.array([0.0, 0.0, 0.0, 2.0])
    fig = titled(phase_1.dense_vs_sparse(activations, features), "share", "value")
    assert [a.text for a in fig.layout.annotations] == ["Activations: 100.00% non-zero", "Features: 25.00% non-zero"]
    zeros = next(trace for trace in fig.data if trace.name == "Features: exactly 0")
    assert zeros.y[0] == pytest.approx(0.75)
    assert sum(sum(trace.y) for trace in fig.data if trace.name.startswith("Features")) == pytest.approx(1)


def test_dense_vs_sparse_takes_silent_features_and_refuses_none_at_all():
    assert "0.00%" in phase_1.dense_vs_sparse([1.0], np.zeros(5)).layout.annotations[1].text
    with pytest.raises(ValueError, match="empty"):
        phase_1.dense_vs_sparse([], [1.0])


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_1.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"1/hypothesis"}
