"""Right answers to the exercises of phase 6a and wrong ones with a word of their hint."""

from fractions import Fraction

import numpy as np
import torch
from scipy.interpolate import interp1d
from scipy.special import comb

from prism.phases.phase_6a import exercises as phase_6a


def loop_matched(noise, direction):
    return [[v / sum(w * w for w in row) ** 0.5 * float(direction @ direction) ** 0.5 for v in row] for row in noise]


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


def luck_by_orders(tried, directions):
    """Places for the features among all, less those that leave the first place to another."""
    every, without = (comb(directions + tried - first, tried, exact=True) for first in (0, 1))
    return (every - without) / every


RIGHT = [
    (phase_6a.check_matched, loop_matched),
    (phase_6a.check_matched, lambda n, d: n * (np.sqrt((d**2).sum()) / np.sqrt((n**2).sum(1)))[:, None]),
    (phase_6a.check_matched, lambda n, d: (torch.tensor(n).T / torch.tensor(n).norm(dim=1)).T * torch.tensor(d).norm()),
    (phase_6a.check_at_level, loop_at_level),
    (phase_6a.check_at_level, slope_at_level),
    (phase_6a.check_at_level, lambda g, c, v: interp1d([0, *c], [0, *g])(v)),
    (phase_6a.check_luck, lambda k, n: Fraction(k, k + n)),
    (phase_6a.check_luck, luck_by_orders),
    (phase_6a.check_luck, lambda k, n: np.mean(np.arange(k + n) < k)),
]

WRONG = [
    (phase_6a.check_matched, lambda n, d: n / np.linalg.norm(n, axis=1)[:, None], "length 1"),
    (phase_6a.check_matched, lambda n, d: np.linalg.norm(d) * n, "own length first"),
    (phase_6a.check_matched, lambda n, d: n / np.sqrt((n**2).sum()) * np.linalg.norm(d), "whole array"),
    (phase_6a.check_matched, lambda n, d: n / np.sqrt((n**2).sum(0)) * np.linalg.norm(d), "each column"),
    (phase_6a.check_matched, lambda n, d: n / (n * n).sum(1)[:, None] * (d @ d), "square root"),
    (phase_6a.check_at_level, lambda g, c, v: np.interp(v, c, g), "Start both lists with 0"),
    (phase_6a.check_at_level, lambda g, c, v: np.interp(v, [0, *g], [0, *c]), "swapped"),
    (phase_6a.check_at_level, lambda g, c, v: g[int(np.argmin([abs(x - v) for x in c]))], "nearest dose"),
    (phase_6a.check_at_level, lambda g, c, v: next(a for a, b in zip(g, c, strict=True) if b >= v), "first dose"),
    (phase_6a.check_at_level, lambda g, c, v: g[-1] * v / c[-1], "one straight line"),
    (phase_6a.check_luck, lambda k, n: (1 + n) ** -1, "for one feature"),
    (phase_6a.check_luck, lambda k, n: np.divide(k, n), "in the ranking, too"),
    (phase_6a.check_luck, lambda k, n: 1 - k / (k + n), "a random direction leads"),
    (phase_6a.check_luck, lambda k, n: 1 - (1 - 1 / (n + 1)) ** k, "the same one"),
    (phase_6a.check_luck, lambda k, n: int(k / (k + n)), "a whole number"),
]
