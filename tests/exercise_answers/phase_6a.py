"""Right answers to the exercises of phase 6a and wrong ones with a word of their hint."""

from collections import Counter

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import interp1d
from scipy.stats import rankdata

from prism.exercises import phase_6a


def loop_matched(noise, direction):
    return [[v / sum(w * w for w in row) ** 0.5 * float(direction @ direction) ** 0.5 for v in row] for row in noise]


def loop_repeated(tokens, n):
    seen, again = set(), 0
    for i in range(len(tokens) - n + 1):
        gram = str(tokens[i : i + n])
        again += gram in seen
        seen.add(gram)
    return again / (len(tokens) - n + 1)


def counted_repeated(tokens, n):
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    return sum(c - 1 for c in counts.values()) / sum(counts.values())


def loop_at_level(gain, cost, level):
    g0, c0 = 0.0, 0.0
    for g, c in zip(gain, cost, strict=True):
        if c >= level:
            return g0 + (g - g0) * (level - c0) / (c - c0)
        g0, c0 = g, c


def slope_at_level(gain, cost, level):
    k = int(np.searchsorted(cost, level))
    gain, cost = np.append(0, gain), np.append(0, cost)
    return gain[k] + np.diff(gain)[k] / np.diff(cost)[k] * (level - cost[k])


def sorted_score(p, lens):
    order = list(np.argsort(-np.asarray(p)))
    rank = min(order.index(i) for i in lens)
    return (1 - rank / len(order)) * max(p[i] for i in lens)


def best_token_score(p, lens):
    token = max(lens, key=lambda i: p[i])
    return p[token] * (len(p) - sum(q > p[token] for q in p)) / len(p)


def ranked_score(p, lens):
    rank = rankdata(-p, method="min")[lens].min() - 1
    return (1 - rank / len(p)) * p[lens].max()


def grams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


RIGHT = [
    (phase_6a.check_matched, loop_matched),
    (phase_6a.check_matched, lambda n, d: n * (np.sqrt((d**2).sum()) / np.sqrt((n**2).sum(1)))[:, None]),
    (phase_6a.check_matched, lambda n, d: (torch.tensor(n).T / torch.tensor(n).norm(dim=1)).T * torch.tensor(d).norm()),
    (phase_6a.check_repeated, loop_repeated),
    (phase_6a.check_repeated, counted_repeated),
    (phase_6a.check_repeated, lambda t, n: pd.Series(grams(t, n)).duplicated().mean()),
    (phase_6a.check_at_level, loop_at_level),
    (phase_6a.check_at_level, slope_at_level),
    (phase_6a.check_at_level, lambda g, c, v: interp1d([0, *c], [0, *g])(v)),
    (phase_6a.check_output_score, sorted_score),
    (phase_6a.check_output_score, best_token_score),
    (phase_6a.check_output_score, ranked_score),
]

WRONG = [
    (phase_6a.check_matched, lambda n, d: n / np.linalg.norm(n, axis=1)[:, None], "length 1"),
    (phase_6a.check_matched, lambda n, d: np.linalg.norm(d) * n, "own length first"),
    (phase_6a.check_matched, lambda n, d: n / np.sqrt((n**2).sum()) * np.linalg.norm(d), "whole array"),
    (phase_6a.check_matched, lambda n, d: n / np.sqrt((n**2).sum(0)) * np.linalg.norm(d), "each column"),
    (phase_6a.check_matched, lambda n, d: n / (n * n).sum(1)[:, None] * (d @ d), "square root"),
    (phase_6a.check_repeated, lambda t, n: len(set(grams(t, n))) / len(grams(t, n)), "different"),
    (phase_6a.check_repeated, lambda t, n: 1 - len(set(grams(t, n)[:-1])) / len(grams(t, n)[:-1]), "the last n-gram"),
    (phase_6a.check_repeated, lambda t, n: 1 - len(set(t)) / len(t), "single tokens"),
    (phase_6a.check_repeated, lambda t, n: sum(c - 1 for c in Counter(grams(t, n)).values()) / len(t), "not of tokens"),
    (phase_6a.check_repeated, lambda t, n: 1 - len(set(grams(t, n)[::n])) / len(grams(t, n)[::n]), "overlap"),
    (phase_6a.check_at_level, lambda g, c, v: np.interp(v, c, g), "Start both lists with 0"),
    (phase_6a.check_at_level, lambda g, c, v: np.interp(v, [0, *g], [0, *c]), "swapped"),
    (phase_6a.check_at_level, lambda g, c, v: g[int(np.argmin([abs(x - v) for x in c]))], "nearest dose"),
    (phase_6a.check_at_level, lambda g, c, v: next(a for a, b in zip(g, c, strict=True) if b >= v), "first dose"),
    (phase_6a.check_at_level, lambda g, c, v: g[-1] * v / c[-1], "one straight line"),
    (phase_6a.check_output_score, lambda p, t: max(p[i] for i in t), "largest probability alone"),
    (phase_6a.check_output_score, lambda p, t: 1 - sum(p > p[t].max()) / len(p), "rank's part alone"),
    (phase_6a.check_output_score, lambda p, t: (1 - sum(p >= p[t].max()) / len(p)) * p[t].max(), "from 0"),
    (phase_6a.check_output_score, lambda p, t: (1 - sum(p > p[t].max()) / len(p)) * sum(p[t]), "not their sum"),
    (
        phase_6a.check_output_score,
        lambda p, t: (1 - sum(p > p[t].max()) / len(t)) * p[t].max(),
        "size of the vocabulary",
    ),
]
