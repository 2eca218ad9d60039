"""Right answers to the exercises of phase 6c and wrong ones with a word of their hint."""

import numpy as np
import pandas as pd

from prism.phases.phase_6c import exercises


def loop_twice(there, at_home, bar):
    lost = [h for t, h in zip(there, at_home, strict=True) if t <= bar]
    return sum(h <= bar for h in lost) / len(lost)


def set_twice(there, at_home, bar):
    gone, gone_at_home = (set(np.flatnonzero(r <= bar)) for r in (there, at_home))
    return len(gone & gone_at_home) / len(gone)


def frame_twice(there, at_home, bar):
    return pd.DataFrame({"there": there, "home": at_home}).query("there <= @bar")["home"].le(bar).mean()


def loop_token(column, ids):
    return [np.mean([column[j] for j in range(len(ids)) if ids[j] == ids[i] and j != i]) for i in range(len(ids))]


def frame_token(column, ids):
    group = pd.Series(column).groupby(ids)
    return (group.transform("sum") - column) / (group.transform("size") - 1)


def matrix_token(column, ids):
    same = (ids[:, None] == ids) & ~np.eye(len(ids), dtype=bool)
    return same @ column / same.sum(axis=1)


def with_itself(column, ids):
    return pd.Series(column).groupby(ids).transform("mean")


def one_too_many(column, ids):
    return [
        sum(c for j, c in enumerate(column) if ids[j] == i and j != k) / (ids == i).sum() for k, i in enumerate(ids)
    ]


RIGHT = [
    (exercises.check_lost_twice, loop_twice),
    (exercises.check_lost_twice, set_twice),
    (exercises.check_lost_twice, frame_twice),
    (exercises.check_of_the_token, loop_token),
    (exercises.check_of_the_token, frame_token),
    (exercises.check_of_the_token, matrix_token),
]

WRONG = [
    (exercises.check_lost_twice, lambda t, h, b: ((t <= b) * (h <= b)).sum() / len(t), "divided by all"),
    (exercises.check_lost_twice, lambda t, h, b: (t[h <= b] <= b).mean(), "other way round"),
    (exercises.check_lost_twice, lambda t, h, b: 1 - (h[t <= b] <= b).mean(), "*has* a partner"),
    (exercises.check_lost_twice, lambda t, h, b: np.count_nonzero((t <= b) & (h <= b)), "number of features"),
    (exercises.check_lost_twice, lambda t, h, b: np.count_nonzero(h <= b) / len(h), "of *all* features"),
    (exercises.check_lost_twice, lambda t, h, b: h <= b, "Your function returned"),
    (exercises.check_of_the_token, with_itself, "must not help"),
    (exercises.check_of_the_token, one_too_many, "divide by one less"),
    (exercises.check_of_the_token, lambda c, i: np.bincount(i, c)[i] - c, "give their mean"),
    (exercises.check_of_the_token, lambda c, i: (c.sum() - c) / (len(c) - 1), "with the same id"),
    (exercises.check_of_the_token, lambda c, i: pd.Series(c).groupby(i).mean(), "not one an id"),
    (exercises.check_of_the_token, lambda c, i: c, "Your function returned"),
]
