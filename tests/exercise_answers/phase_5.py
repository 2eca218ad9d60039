"""Right answers to the exercises of phase 5 and wrong ones with a word of their hint."""

import numpy as np
import pandas as pd

from prism.phases import phase_5


def harmonic_f1(fires, is_token):
    hits = (fires & is_token).sum()
    if hits == 0:
        return 0.0
    precision, recall = hits / fires.sum(), hits / is_token.sum()
    return 2 * precision * recall / (precision + recall)


def set_f1(fires, is_token):
    a, b = set(np.flatnonzero(fires)), set(np.flatnonzero(is_token))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0


def counted_f1(fires, is_token):
    true = np.count_nonzero(fires * is_token)
    false = np.count_nonzero(fires & ~is_token) + np.count_nonzero(~fires & is_token)
    return true / (true + false / 2)


def loop_rows(column, groups):
    rows = sorted((row for row in range(len(column)) if column[row] > 0), key=lambda row: -column[row])
    size, more = divmod(len(rows), groups)
    starts = [group * size + min(group, more) for group in range(groups)]
    return [rows[start] for start in starts]


def series_rows(column, groups):
    series = pd.Series(column)
    order = series[series > 0].sort_values(ascending=False).index.to_numpy()
    return [int(part[0]) for part in np.array_split(order, groups)]


def argmax_rows(column, groups):
    active = np.flatnonzero(column)
    parts = np.array_split(active[np.argsort(column[active])[::-1]], groups)
    return np.array([part[column[part].argmax()] for part in parts])


def equal_ranges(column, groups):
    bins = np.digitize(column, np.linspace(0, column.max(), groups + 1)[1:-1], right=True)
    rows = [np.flatnonzero((bins == b) & (column > 0)) for b in reversed(range(groups))]
    return [r[column[r].argmax()] for r in rows]


RIGHT = [
    (phase_5.check_token_f1, harmonic_f1),
    (phase_5.check_token_f1, set_f1),
    (phase_5.check_token_f1, counted_f1),
    (phase_5.check_quantile_rows, loop_rows),
    (phase_5.check_quantile_rows, series_rows),
    (phase_5.check_quantile_rows, argmax_rows),
]

WRONG = [
    (phase_5.check_token_f1, lambda f, t: t[f].mean(), "precision alone"),
    (phase_5.check_token_f1, lambda f, t: f[t].mean(), "recall alone"),
    (phase_5.check_token_f1, lambda f, t: (t[f].mean() + f[t].mean()) / 2, "plain mean"),
    (phase_5.check_token_f1, lambda f, t: 1 - np.mean(f ^ t), "accuracy"),
    (phase_5.check_token_f1, lambda f, t: np.sum(f & t) / np.sum(f | t), "Jaccard"),
    (phase_5.check_token_f1, lambda f, t: np.sum(f & t) / (f.sum() + t.sum()), "*twice*"),
    (phase_5.check_token_f1, lambda f, t: 2 / (1 / t[f].mean() + 1 / f[t].mean()), "not nan"),
    (
        phase_5.check_quantile_rows,
        lambda c, n: [p[0] for p in np.array_split(np.argsort(-c, kind="stable"), n)],
        "silent tokens",
    ),
    (phase_5.check_quantile_rows, lambda c, n: loop_rows(c, n)[::-1], "turn the order round"),
    (
        phase_5.check_quantile_rows,
        lambda c, n: [p[-1] for p in np.array_split(np.argsort(-c)[: np.sum(c > 0)], n)],
        "the weakest token",
    ),
    (phase_5.check_quantile_rows, equal_ranges, "equal ranges"),
    (phase_5.check_quantile_rows, lambda c, n: [c[row] for row in loop_rows(c, n)], "Those are activations"),
    (
        phase_5.check_quantile_rows,
        lambda c, n: [list(np.flatnonzero(c)).index(row) for row in loop_rows(c, n)],
        "the whole column",
    ),
    (phase_5.check_quantile_rows, lambda c, n: c.argsort()[::-1][:n], "the top group only"),
]
