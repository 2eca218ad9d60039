"""Right answers to the exercises of phase 6b and wrong ones with a word of their hint."""

import numpy as np
import torch

from prism.exercises import phase_6b


def midpoints(g, v, o, s):
    total = np.zeros(len(v))
    for i in range(s):
        total = total + g(o + (2 * i + 1) / (2 * s) * (v - o))
    return [(b - a) * t / s for a, b, t in zip(o, v, total, strict=True)]


def weighted(gradient, points, v, o, s):
    return (v - o) * np.mean([gradient(o + a * (v - o)) for a in points(s)], axis=0)


RIGHT = [
    (phase_6b.check_attribution, lambda v, o, g: v * g - o * g),
    (phase_6b.check_attribution, lambda v, o, g: [(a - b) * c for a, b, c in zip(v, o, g, strict=True)]),
    (phase_6b.check_attribution, lambda v, o, g: torch.mul(torch.tensor(v - o), torch.tensor(g))),
    (phase_6b.check_path_attribution, midpoints),
    (
        phase_6b.check_path_attribution,
        lambda g, v, o, s: (
            (v - o) / s * sum(g((1 - a) * o + a * v) for a in np.linspace(1 / (2 * s), 1 - 1 / (2 * s), s))
        ),
    ),
    (
        phase_6b.check_path_attribution,
        lambda g, v, o, s: np.einsum("sn,n->n", [g(o + (i + 0.5) * (v - o) / s) for i in range(s)], (v - o) / s),
    ),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x > 0]).sum() / np.abs(x).sum()),
    (
        phase_6b.check_sign_agreement,
        lambda e, x: sum(abs(b) for a, b in zip(e, x, strict=True) if (a > 0) == (b > 0)) / sum(map(abs, x)),
    ),
    (phase_6b.check_sign_agreement, lambda e, x: np.average(np.sign(e) == np.sign(x), weights=np.abs(x))),
    (phase_6b.check_restored, lambda c, k, p: 1 - (c - p) / (c - k)),
    (phase_6b.check_restored, lambda c, k, p: (k - p) / (k - c)),
    (phase_6b.check_restored, lambda c, k, p: np.interp(p, [-99, 99], [(-99 - k) / (c - k), (99 - k) / (c - k)])),
]

WRONG = [
    (phase_6b.check_attribution, lambda v, o, g: v * g, "go to `off`"),
    (phase_6b.check_attribution, lambda v, o, g: (o - v) * g, "sign"),
    (phase_6b.check_attribution, lambda v, o, g: g, "how far"),
    (phase_6b.check_attribution, lambda v, o, g: abs((v - o) * g), "speak against"),
    (phase_6b.check_attribution, lambda v, o, g: float(((v - o) * g).sum()), "each node"),
    (phase_6b.check_path_attribution, lambda g, v, o, s: (v - o) * g(v), "all along the path"),
    (phase_6b.check_path_attribution, lambda g, v, o, s: s * np.array(midpoints(g, v, o, s)), "you summed"),
    (
        phase_6b.check_path_attribution,
        lambda g, v, o, s: (v - o) * np.mean([g((i + 0.5) / s * v) for i in range(s)], axis=0),
        "starts at `off`",
    ),
    (phase_6b.check_path_attribution, lambda g, v, o, s: np.array(midpoints(g, v, o, s)) / (v - o), "how far"),
    (phase_6b.check_path_attribution, lambda g, v, o, s: weighted(g, lambda s: np.arange(s) / s, v, o, s), "left end"),
    (
        phase_6b.check_path_attribution,
        lambda g, v, o, s: weighted(g, lambda s: np.arange(1, s + 1) / s, v, o, s),
        "right end",
    ),
    (phase_6b.check_sign_agreement, lambda e, x: (e * x > 0).mean(), "share of nodes"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(e[e * x > 0]).sum() / np.abs(e).sum(), "the estimate"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x < 0]).sum() / np.abs(x).sum(), "*wrong*"),
    (phase_6b.check_sign_agreement, lambda e, x: x[e * x > 0].sum() / x.sum(), "cancel"),
    (phase_6b.check_sign_agreement, lambda e, x: np.abs(x[e * x > 0]).sum(), "divide"),
    (phase_6b.check_restored, lambda c, k, p: (c - p) / (c - k), "still missing"),
    (phase_6b.check_restored, lambda c, k, p: p / c, "not from zero"),
    (phase_6b.check_restored, lambda c, k, p: (p - k) / c, "whole way"),
    (phase_6b.check_restored, lambda c, k, p: p - k, "no unit"),
    (phase_6b.check_restored, lambda c, k, p: (p - k) / (k - c), "wrong sign"),
]
