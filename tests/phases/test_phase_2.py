"""Phase 2: its figures, and whose exercise its hypothesis is."""

import numpy as np
import pytest
from figure_checks import titled

from prism.analysis.specialist_search import Null
from prism.data import CATEGORY_TITLES
from prism.exercises import progress
from prism.phases import phase_2


def test_category_heatmap_sorts_texts_into_the_fixed_order():
    categories = ["conversational", "python", "math", "python"]
    values = np.array([[0.0, 4.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    fig = titled(phase_2.category_heatmap(values, [11, 12], categories, "two features"), "texts", "")
    assert fig.data[0].z.tolist() == [[1.0, 0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert [float(v) for v in fig.data[0].customdata[0]] == [4.0, 2.0, 1.0, 0.0]
    bands = [note.text.replace("<br>", " ") for note in fig.layout.annotations]
    assert bands == [CATEGORY_TITLES[name] for name in ("python", "math", "conversational")]
    assert "maximum" in fig.data[0].colorbar.title.text


def test_category_heatmap_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(features, texts\)"):
        phase_2.category_heatmap(np.ones((2, 1)), [0], ["math"], "one feature")


def test_null_figure_shows_the_best_of_each_shuffle_and_what_was_found():
    null = Null(np.array([[1, 3], [4, 2], [3, 3], [0, 3]]), ("python", "math"))  # the best of each: 3, 4, 3, 3
    fig = titled(phase_2.null_figure(null, {"python": 9, "math": 7, "social": 9}), "specialist score", "shuffles")
    shuffled, found = fig.data
    assert list(shuffled.x) == [3, 4] and list(shuffled.y) == [0.75, 0.25]
    assert list(found.x) == [9, 7] and list(found.text) == ["python<br>social", "math"]


def test_the_hypothesis_counts_for_this_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISM_PROGRESS", str(tmp_path / "progress.sqlite"))
    phase_2.check_hypothesis("a b c", "d", len)
    assert "  5.0  'a b c'" in capsys.readouterr().out and set(progress.load()) == {"2/hypothesis"}
