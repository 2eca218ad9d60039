"""Phase 2: its figures, and whose exercise its hypothesis is."""

import numpy as np
import pytest
from figure_checks import titled

from prism.analysis.specialist_search import Null
from prism.data import CATEGORIES, CATEGORY_TITLES
from prism.exercises import progress
from prism.phases import phase_2


@pytest.mark.parametrize("scale, expected", [("log1p", np.log1p(4.0)), ("feature", 1.0)])
def test_category_heatmap_sorts_texts_into_the_fixed_order(scale, expected):
    categories = ["conversational", "python", "math", "python"]
    values = np.array([[0.0, 4.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    fig = titled(phase_2.category_heatmap(values, [11, 12], categories, scale), "texts", "feature")
    assert fig.data[0].z[0, 0] == pytest.approx(expected)
    assert [float(v) for v in fig.data[0].customdata[0]] == [4.0, 2.0, 1.0, 0.0]
    bands = [note.text.replace("<br>", " ") for note in fig.layout.annotations]
    assert bands == [CATEGORY_TITLES[name] for name in ("python", "math", "conversational")]
    assert ("log" if scale == "log1p" else "maximum") in fig.data[0].colorbar.title.text


def test_category_heatmap_says_what_is_wrong():
    with pytest.raises(ValueError, match="'log1p' or 'feature'"):
        phase_2.category_heatmap(np.ones((1, 1)), [0], ["math"], scale="log")
    with pytest.raises(ValueError, match=r"\(features, texts\)"):
        phase_2.category_heatmap(np.ones((2, 1)), [0], ["math"])


def test_null_figure_shows_quantiles_and_the_observed():
    names = tuple(reversed(CATEGORIES))  # the figure has its own order
    null = Null(np.arange(101)[:, None] + 10 * np.arange(7)[::-1], names)
    fig = titled(phase_2.null_figure(null, {"python": 9, "math": 120}), "specialist score", "category")
    traces = {trace.name: trace for trace in fig.data}
    assert list(traces["5th to 95th percentile"].x[:2]) == [5, 95]
    assert list(traces["median"].x) == [50 + 10 * i for i in range(7)]
    assert list(traces["median"].y) == list(CATEGORY_TITLES.values())
    assert list(traces["observed best"].x) == [9, None, 120, None, None, None, None]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_2.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"2/hypothesis"}
