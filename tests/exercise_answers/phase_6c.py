"""Right answers to the exercises of phase 6c and wrong ones with a word of their hint."""

import heapq

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from prism.phases.phase_6c import exercises as phase_6c


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


def loop_survival(table):
    rows = [row for row in table.tolist() if row[0] >= 0]
    return [sum(row[i] >= 0 for row in rows) / len(rows) for i in range(table.shape[1])]


def frame_survival(table):
    frame = pd.DataFrame(table)
    return frame[frame[0] >= 0].ge(0).mean().to_numpy()


def sorted_greedy(likeness):
    pairs = sorted(np.ndindex(*likeness.shape), key=lambda ij: -likeness[ij])
    rows, columns, total = set(), set(), 0.0
    for i, j in pairs:
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            total += likeness[i, j]
    return total


def deleting_greedy(likeness):
    total = 0.0
    while likeness.size:
        i, j = divmod(int(np.argmax(likeness)), likeness.shape[1])
        total += likeness[i, j]
        likeness = np.delete(np.delete(likeness, i, 0), j, 1)
    return total


def heap_greedy(likeness):
    heap = [(-value, i, j) for (i, j), value in np.ndenumerate(likeness)]
    heapq.heapify(heap)
    free_rows, free_columns, total = set(range(likeness.shape[0])), set(range(likeness.shape[1])), 0.0
    while heap:
        value, i, j = heapq.heappop(heap)
        if i in free_rows and j in free_columns:
            free_rows.discard(i)
            free_columns.discard(j)
            total -= value
    return total


def rows_in_turn(likeness):
    left, total = likeness.copy(), 0.0
    for i in range(min(left.shape)):
        j = left[i].argmax()
        total += left[i, j]
        left[:, j] = -1
    return total


def struck_with_zeros(likeness):
    total = 0.0
    for _ in range(min(likeness.shape)):
        i, j = divmod(int(np.argmax(likeness)), likeness.shape[1])
        total += likeness[i, j]
        likeness[i, :] = likeness[:, j] = 0
    return total


def rows_struck_only(likeness):
    return float(np.sort(likeness.max(1))[::-1][: min(likeness.shape)].sum())


RIGHT = [
    (phase_6c.check_mutual_share, loop_mutual),
    (phase_6c.check_mutual_share, set_mutual),
    (phase_6c.check_mutual_share, where_mutual),
    (phase_6c.check_survival, loop_survival),
    (phase_6c.check_survival, frame_survival),
    (phase_6c.check_survival, lambda t: np.count_nonzero(t[t[:, 0] != -1] != -1, 0) / np.count_nonzero(t[:, 0] != -1)),
    (phase_6c.check_greedy_total, sorted_greedy),
    (phase_6c.check_greedy_total, deleting_greedy),
    (phase_6c.check_greedy_total, heap_greedy),
]

WRONG = [
    (phase_6c.check_mutual_share, lambda f, b: sum(j >= 0 and b[j] == i for i, j in enumerate(f)) / len(f), "have a p"),
    (phase_6c.check_mutual_share, lambda f, b: np.mean(b[f] == np.arange(len(f))), "the last entry"),
    (phase_6c.check_mutual_share, lambda f, b: sum(j >= 0 and b[j] == i for i, j in enumerate(f)), "number of mutual"),
    (phase_6c.check_mutual_share, lambda f, b: np.count_nonzero(f >= 0) / len(f), "ask the partner back"),
    (phase_6c.check_mutual_share, lambda f, b: np.mean([(f == j).sum() == 1 for j in f if j >= 0]), "nobody else"),
    (phase_6c.check_mutual_share, lambda f, b: b[f] == np.arange(len(f)), "Your function returned"),
    (phase_6c.check_survival, lambda t: (t >= 0).mean(0), "born later count too"),
    (phase_6c.check_survival, lambda t: (t >= 0).sum(0) / (t[:, 0] >= 0).sum(), "drop rows"),
    (phase_6c.check_survival, lambda t: (t[t[:, 0] >= 0] >= 0).sum(0), "give shares"),
    (phase_6c.check_survival, lambda t: (t[t[:, 0] >= 0] > 0).mean(0), "Feature 0"),
    (phase_6c.check_survival, lambda t: 1 - (t[t[:, 0] >= 0] >= 0).mean(0), "has died"),
    (phase_6c.check_survival, lambda t: (t[t[:, 0] >= 0] >= 0).mean(1), "axis 0"),
    (phase_6c.check_greedy_total, rows_in_turn, "rows in turn"),
    (phase_6c.check_greedy_total, rows_struck_only, "A partner serves twice"),
    (phase_6c.check_greedy_total, lambda m: rows_struck_only(m.T), "A feature is matched twice"),
    (phase_6c.check_greedy_total, lambda m: m[linear_sum_assignment(-m)].sum(), "best assignment"),
    (phase_6c.check_greedy_total, lambda m: sorted_greedy(m) / min(m.shape), "mean likeness"),
    (phase_6c.check_greedy_total, struck_with_zeros, "−inf, not 0"),
    (phase_6c.check_greedy_total, lambda m: m.sum(), "Your function returned"),
]
