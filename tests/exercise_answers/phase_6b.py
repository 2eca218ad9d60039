"""Right answers to the exercises of phase 6b and wrong ones with a word of their hint."""

import numpy as np

from prism.phases.phase_6b import exercises as phase_6b

RIGHT = [
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x > 0]).sum() / np.abs(x).sum()),
    (
        phase_6b.check_sign_agreement,
        lambda e, x: sum(abs(b) for a, b in zip(e, x, strict=True) if (a > 0) == (b > 0)) / sum(map(abs, x)),
    ),
    (phase_6b.check_sign_agreement, lambda e, x: np.average(np.sign(e) == np.sign(x), weights=np.abs(x))),
    (phase_6b.check_share_of_way, lambda c, k, p: 1 - (c - p) / (c - k)),
    (phase_6b.check_share_of_way, lambda c, k, p: (k - p) / (k - c)),
    (phase_6b.check_share_of_way, lambda c, k, p: np.interp(p, [-99, 99], [(-99 - k) / (c - k), (99 - k) / (c - k)])),
]

WRONG = [
    (phase_6b.check_sign_agreement, lambda e, x: (e * x > 0).mean(), "share of nodes"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(e[e * x > 0]).sum() / np.abs(e).sum(), "the estimate"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x < 0]).sum() / np.abs(x).sum(), "*wrong*"),
    (phase_6b.check_sign_agreement, lambda e, x: x[e * x > 0].sum() / x.sum(), "cancel"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x > 0]).sum(), "divide"),
    (phase_6b.check_share_of_way, lambda c, k, p: (c - p) / (c - k), "still missing"),
    (phase_6b.check_share_of_way, lambda c, k, p: p / c, "not from zero"),
    (phase_6b.check_share_of_way, lambda c, k, p: (p - k) / c, "whole way"),
    (phase_6b.check_share_of_way, lambda c, k, p: p - k, "no unit"),
    (phase_6b.check_share_of_way, lambda c, k, p: (p - k) / (k - c), "wrong sign"),
]
