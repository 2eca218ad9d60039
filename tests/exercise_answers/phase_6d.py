"""Right answers to the exercises of phase 6d and wrong ones with a word of their hint."""

import json
import re

import numpy as np
import torch

from prism.phases.phase_6d import exercises as phase_6d


def balanced_by_loop(said, truth):
    right = {True: [], False: []}
    for s, t in zip(said, truth, strict=True):
        right[bool(t)].append(bool(s) == bool(t))
    return sum(sum(x) / len(x) for x in right.values()) / 2


def hard_by_loop(fires, ids, row, radius):
    out = []
    for place, token in enumerate(ids):
        near = [f for other, f in enumerate(fires) if abs(other - place) <= radius]
        if token == ids[row] and not any(near):
            out.append(place)
    return out


def hard_by_convolution(fires, ids, row, radius):
    count = np.convolve(np.asarray(fires, float), np.ones(2 * radius + 1), "full")[radius : radius + len(ids)]
    return np.where((ids == ids[row]) & (count < 0.5))[0]


def hard_by_distance(fires, ids, row, radius):
    where = np.flatnonzero(fires)
    far = np.abs(np.arange(len(ids))[:, None] - where[None]).min(1) > radius
    return np.flatnonzero(far & (np.asarray(ids) == ids[row]))


def list_by_split(answer, n):
    if answer.count("[") != 1 or answer.count("]") != 1:
        return [-1] * n
    items = [part.strip() for part in answer.split("[")[1].split("]")[0].split(",")]
    return [int(i) for i in items] if len(items) == n and all(i in ("0", "1") for i in items) else [-1] * n


def list_by_pattern(answer, n):
    found = re.findall(r"\[[^\[\]]*\]", answer)
    good = len(found) == 1 and re.fullmatch(r"\[ *[01] *(, *[01] *)*\]", found[0]) and found[0].count(",") == n - 1
    return np.array([float(c) for c in found[0] if c in "01"]) if good else -np.ones(n)


def numbers_of_list(answer, n):
    found = re.findall(r"\[([^\[\]]*)\]", answer)
    items = [int(part) for part in found[0].split(",")] if len(found) == 1 else []
    return items if len(items) == n and set(items) <= {0, 1} else [-1] * n


def list_by_json(answer, n):
    found = re.findall(r"\[[^\[\]]*\]", answer)
    try:
        items = json.loads(found[0]) if len(found) == 1 else []
    except json.JSONDecodeError:
        items = []
    return torch.tensor(items if len(items) == n and set(items) <= {0, 1} else [-1] * n)


EXERCISES = {
    "balanced": (
        phase_6d.check_balanced,
        [
            lambda s, t: 0.5 * (s[t].mean() + (1 - s[~t].mean())),
            balanced_by_loop,
            lambda s, t: np.mean([np.mean(s[t == k] == k) for k in (True, False)]),
        ],
        {
            "plain accuracy": lambda s, t: np.mean(s == t),
            "count as much": lambda s, t: (s & t).sum() / t.sum(),
            "left alone": lambda s, t: (s[t].mean() + s[~t].mean()) / 2,
            "by 2": lambda s, t: s[t].mean() + 1 - s[~t].mean(),
            "precision": lambda s, t: (t[s].mean() + (~t[~s]).mean()) / 2,
        },
    ),
    "hard negatives": (
        phase_6d.check_hard_negatives,
        [hard_by_loop, hard_by_convolution, hard_by_distance, lambda *a: set(hard_by_loop(*a))],
        {
            "whole window": lambda f, i, row, r: [p for p in range(len(i)) if i[p] == i[row] and not f[p]],
            "must be the same": lambda f, i, row, r: [
                p for p in range(len(i)) if not f[max(0, p - r) : p + r + 1].any()
            ],
            "return the rows": lambda f, i, row, r: np.isin(np.arange(len(i)), hard_by_loop(f, i, row, r)),
            "to the right": lambda f, i, row, r: [
                p for p in range(len(i)) if i[p] == i[row] and not f[max(0, p - r) : p + 1].any()
            ],
            "leaves out its end": lambda f, i, row, r: [
                p for p in range(len(i)) if i[p] == i[row] and not f[max(0, p - r) : p + r].any()
            ],
        },
    ),
    "list": (
        phase_6d.check_read_list,
        [list_by_split, list_by_pattern, list_by_json],
        {
            "do not fill it up": lambda a, n: (
                ([int(c) for c in re.findall(r"\d", a)] + [0] * n)[:n]
                if a.count("[") == 1 and set(re.findall(r"\d", a)) <= {"0", "1"}
                else [-1] * n
            ),
            "`n` times": lambda a, n: (
                [int(c) for c in re.findall(r"\d", a)]
                if a.count("[") == 1 and set(re.findall(r"\d", a)) <= {"0", "1"}
                else [-1] * n
            ),
            "what would 2 mean": lambda a, n: (
                [int(c) for c in re.findall(r"\d", a)]
                if a.count("[") == 1 and len(re.findall(r"\d", a)) == n
                else [-1] * n
            ),
            "which one did you believe": lambda a, n: list_by_split("[" + a.split("[")[-1] if "[" in a else a, n),
            "'yes'": numbers_of_list,
            "from anywhere": lambda a, n: [int(c) for c in re.findall("[01]", a)][:n],
        },
    ),
}

RIGHT = [(check, answer) for check, right, _ in EXERCISES.values() for answer in right]
WRONG = [(check, answer, hint) for check, _, wrong in EXERCISES.values() for hint, answer in wrong.items()]
