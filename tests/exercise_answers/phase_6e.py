"""Right answers to the exercises of phase 6e and wrong ones with a word of their hint."""

import math

import numpy as np

from prism.phases.phase_6e import exercises as phase_6e


def loop_bits(nats, texts):
    total = sum(float(value) / math.log(2) for value in nats)
    return total / sum(len(text.encode("utf-8")) for text in texts)


def two_pointers(a, b):
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append((i, j))
        i, j = i + (a[i] <= b[j]), j + (b[j] <= a[i])
    return found


def intersect(a, b):
    _, i, j = np.intersect1d(a, b, return_indices=True)
    return np.column_stack([i, j])


def dictionary(a, b):
    place = {int(end): j for j, end in enumerate(b)}
    return [(i, place[int(end)]) for i, end in enumerate(a) if int(end) in place]


def n_bytes(texts):
    return np.array([len(text.encode()) for text in texts])


RIGHT = [
    (phase_6e.check_bits_per_byte, loop_bits),
    (phase_6e.check_bits_per_byte, lambda n, t: np.sum(n) / np.log(2) / len("".join(t).encode())),
    (phase_6e.check_bits_per_byte, lambda n, t: np.average(n / np.log(2) / n_bytes(t), weights=n_bytes(t))),
    (phase_6e.check_shared_ends, two_pointers),
    (phase_6e.check_shared_ends, intersect),
    (phase_6e.check_shared_ends, dictionary),
    (phase_6e.check_shared_ends, lambda a, b: {(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x == y}),
]

WRONG = [
    (phase_6e.check_bits_per_byte, lambda n, t: np.sum(n) / n_bytes(t).sum(), "nats per byte"),
    (phase_6e.check_bits_per_byte, lambda n, t: np.sum(n) * math.log(2) / n_bytes(t).sum(), "multiplied by ln 2"),
    (phase_6e.check_bits_per_byte, lambda n, t: np.sum(n) / math.log(2) / len("".join(t)), "counted characters"),
    (phase_6e.check_bits_per_byte, lambda n, t: (n / math.log(2) / n_bytes(t)).mean(), "averaged the texts"),
    (phase_6e.check_bits_per_byte, lambda n, t: np.mean(n) / math.log(2), "divide by all the bytes"),
    (phase_6e.check_bits_per_byte, lambda n, t: np.sum(n), "Your function returned"),
    (phase_6e.check_shared_ends, lambda a, b: [(e, e) for e in a if e in b], "the ends themselves"),
    (phase_6e.check_shared_ends, lambda a, b: [(j, i) for i, j in two_pointers(a, b)], "wrong way round"),
    (phase_6e.check_shared_ends, lambda a, b: two_pointers([0, *a[:-1]], [0, *b[:-1]]), "*begin*"),
    (phase_6e.check_shared_ends, lambda a, b: [(i, i) for i, _ in enumerate(zip(a, b, strict=False))], "their number"),
    (
        phase_6e.check_shared_ends,
        lambda a, b: [(i, i) for i, (x, y) in enumerate(zip(a, b, strict=False)) if x == y],
        "those with equal ends",
    ),
]
