"""Right answers to the exercises of phase 6c and wrong ones with a word of their hint."""

import numpy as np
import pandas as pd

from prism.phases import phase_6c


def loop_mutual(forward, backward):
    chosen = [(i, j) for i, j in enumerate(forward) if j >= 0]
    return sum(backward[j] == i for i, j in chosen) / len(chosen)


def set_mutual(forward, backward):
    there = {(i, int(j)) for i, j in enumerate(forward) if j >= 0}
    back = {(int(i), j) for j, i in enumerate(backward) if i >= 0}
    return len(there & back) / len(there)


def where_mutual(forward, backward):
    returned = np.where(forward >= 0, backward[forward], -2)
    return (returned == np.arange(len(forward))).sum() / (forward >= 0).sum()


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
    (phase_6c.check_mutual_share, loop_mutual),
    (phase_6c.check_mutual_share, set_mutual),
    (phase_6c.check_mutual_share, where_mutual),
    (phase_6c.check_of_the_token, loop_token),
    (phase_6c.check_of_the_token, frame_token),
    (phase_6c.check_of_the_token, matrix_token),
]

WRONG = [
    (phase_6c.check_mutual_share, lambda f, b: sum(j >= 0 and b[j] == i for i, j in enumerate(f)) / len(f), "have a p"),
    (phase_6c.check_mutual_share, lambda f, b: np.mean(b[f] == np.arange(len(f))), "the last entry"),
    (phase_6c.check_mutual_share, lambda f, b: sum(j >= 0 and b[j] == i for i, j in enumerate(f)), "number of mutual"),
    (phase_6c.check_mutual_share, lambda f, b: np.count_nonzero(f >= 0) / len(f), "ask the partner back"),
    (phase_6c.check_mutual_share, lambda f, b: np.mean([(f == j).sum() == 1 for j in f if j >= 0]), "nobody else"),
    (phase_6c.check_mutual_share, lambda f, b: b[f] == np.arange(len(f)), "Your function returned"),
    (phase_6c.check_of_the_token, with_itself, "must not help"),
    (phase_6c.check_of_the_token, one_too_many, "divide by one less"),
    (phase_6c.check_of_the_token, lambda c, i: np.bincount(i, c)[i] - c, "give their mean"),
    (phase_6c.check_of_the_token, lambda c, i: (c.sum() - c) / (len(c) - 1), "with the same id"),
    (phase_6c.check_of_the_token, lambda c, i: pd.Series(c).groupby(i).mean(), "not one an id"),
    (phase_6c.check_of_the_token, lambda c, i: c, "Your function returned"),
]
