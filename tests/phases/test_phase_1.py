"""Phase 1: its figure, and whose exercise its hypothesis is."""

import numpy as np
import pytest
from figure_checks import titled

from prism.exercises import progress
from prism.phases import phase_1


def test_dense_vs_sparse_draws_a_line_for_each_number_that_is_not_zero():
    activation, features = np.array([1.0, -2.0, 3.0]), np.array([0.0, 0.0, 5.0, 0.0])
    fig = titled(phase_1.dense_vs_sparse(activation, features), "channel", "value")
    assert [a.text for a in fig.layout.annotations] == [
        "Its activation: 3 numbers, 3 of them not zero",
        "Its features: 4 numbers, 1 of them not zero",
    ]
    assert list(fig.data[1].x) == [2, 2, 2] and list(fig.data[1].y[:2]) == [0, 5] and np.isnan(fig.data[1].y[2])


def test_dense_vs_sparse_takes_silent_features_and_refuses_none_at_all():
    assert "0 of them" in phase_1.dense_vs_sparse([1.0], np.zeros(5)).layout.annotations[1].text
    with pytest.raises(ValueError, match="no numbers"):
        phase_1.dense_vs_sparse([], [1.0])


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_1.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"1/hypothesis"}
