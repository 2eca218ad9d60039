"""Right answers to the exercises of phase 6f and wrong ones with a word of their hint."""

import math

import numpy as np

from prism.phases.phase_6f import exercises as phase_6f


def loop_threshold(s, y, r):
    for limit in sorted(set(s[y].tolist()), reverse=True):
        if sum(v >= limit for v in s[y].tolist()) / int(y.sum()) >= r - 1e-12:
            return limit


RIGHT = [
    (phase_6f.check_threshold, loop_threshold),
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s[y])[y.sum() - math.ceil(r * y.sum() - 1e-9)]),
    (phase_6f.check_threshold, lambda s, y, r: sorted(s[y].tolist())[::-1][math.ceil(r * sum(y) - 1e-9) - 1]),
    (phase_6f.check_precision, lambda r, f, p: 1 / (1 + f * (1 - p) / (r * p))),
    (phase_6f.check_precision, lambda r, f, p: 1 - f * (1 - p) / (f * (1 - p) + r * p)),
    (phase_6f.check_precision, lambda r, f, p: np.divide(r * p, f + p * (r - f))),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: aa + bb - ab - ba),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: np.diff([ba - bb, aa - ab])[0]),
    (
        phase_6f.check_swap_effect,
        lambda aa, ab, ba, bb: np.linalg.multi_dot(
            [np.array([1.0, -1.0]), np.array([[aa, ab], [ba, bb]]), np.array([1.0, -1.0])]
        ),
    ),
]

WRONG = [
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s)[::-1][math.ceil(r * len(s) - 1e-9) - 1], "positives alone"),
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s[~y])[::-1][math.ceil(r * (~y).sum() - 1e-9) - 1], "negatives"),
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s[y])[math.ceil(r * y.sum() - 1e-9) - 1], "upwards"),
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s[y])[::-1][int(r * y.sum()) - 1], "One positive short"),
    (
        phase_6f.check_threshold,
        lambda s, y, r: np.sort(s[y])[::-1][min(math.ceil(r * y.sum()), y.sum() - 1)],
        "index 0",
    ),
    (phase_6f.check_threshold, lambda s, y, r: np.sort(s[y])[::-1][int(r * y.sum())], "index 0"),
    (phase_6f.check_threshold, lambda s, y, r: np.quantile(s[y], 1 - r), "interpolates"),
    (phase_6f.check_threshold, lambda s, y, r: 1 / 0, "ZeroDivisionError"),
    (phase_6f.check_precision, lambda r, f, p: r / (r + f), "how rare"),
    (phase_6f.check_precision, lambda r, f, p: f * (1 - p) / (f * (1 - p) + r * p), "*false*"),
    (phase_6f.check_precision, lambda r, f, p: p * r / (f + p * r), "share of the negatives"),
    (phase_6f.check_precision, lambda r, f, p: r * p, "raises the alarm"),
    (phase_6f.check_precision, lambda r, f, p: 1 - f, "specificity"),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: aa - ab, "after text a alone"),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: aa - ba, "one target in two texts"),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: (aa - ab) + (ba - bb), "wrong sign"),
    (phase_6f.check_swap_effect, lambda aa, ab, ba, bb: (ba - bb) - (aa - ab), "wrong way round"),
    (phase_6f.check_swap_effect, lambda *v: math.exp(v[0]) - math.exp(v[1]) - math.exp(v[2]) + math.exp(v[3]), "expon"),
    (phase_6f.check_swap_effect, lambda *v: sum(v), "Your function returned"),
]
