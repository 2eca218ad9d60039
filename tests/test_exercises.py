"""The checks accept right answers however they are written, and name the mistake in wrong ones."""

import numpy as np
import pytest
import torch

from prism.exercises import check, phase_1, phase_2


def loop_l0(f, keep):
    counts = [int((f[b, p] > 0).sum()) for b in range(f.shape[0]) for p in range(f.shape[1]) if keep[b, p]]
    return sum(counts) / len(counts)


def loop_text_activation(f, keep):
    return np.stack([x[m].amax(0).numpy() for x, m in zip(f, keep, strict=True)])


def loop_p(observed, null):
    return (sum(1 for value in null if value >= observed) + 1) / (len(null) + 1)


def loop_jaccard(a, b):
    pairs = [(x > 0, y > 0) for x, y in zip(a, b, strict=True)]
    either = sum(x or y for x, y in pairs)
    return sum(x and y for x, y in pairs) / either if either else 0


RIGHT = [
    (phase_1.check_l0_without_bos, loop_l0),
    (phase_1.check_l0_without_bos, lambda f, keep: ((f > 0) * keep[..., None]).sum() / keep.sum()),
    (phase_1.check_l0_without_bos, lambda f, keep: torch.count_nonzero(f[keep], dim=1).double().mean()),
    (phase_1.check_text_activation, lambda f, keep: f.masked_fill(~keep[..., None], 0).max(1).values),
    (phase_1.check_text_activation, loop_text_activation),
    (phase_1.check_text_activation, lambda f, keep: torch.where(keep[..., None], f, -1.0).max(dim=1)[0]),
    (phase_1.check_ev, lambda x, y: 1 - (x - y).var(0, correction=0).sum() / x.var(0, correction=0).sum()
     - ((x - y).mean(0) ** 2).sum() / x.var(0, correction=0).sum()),
    (phase_1.check_ev, lambda x, y: 1 - np.linalg.norm(x - y) ** 2 / np.linalg.norm(x - x.mean(0)) ** 2),
    (phase_1.check_ev, lambda x, y: 1 - torch.mean((x - y) ** 2) / torch.mean((x - x.mean(0, keepdim=True)) ** 2)),
    (phase_2.check_specialist_score, lambda f, i: 2 * (f & i).sum() - f.sum()),
    (phase_2.check_specialist_score, lambda f, i: np.where(i, 1, -1)[f].sum()),
    (phase_2.check_specialist_score, lambda f, i: sum(1 if b else -1 for a, b in zip(f, i, strict=True) if a)),
    (phase_2.check_p_value, loop_p),
    (phase_2.check_p_value, lambda o, n: np.mean(np.append(n, o) >= o)),
    (phase_2.check_p_value, lambda o, n: 1 - (np.asarray(n) < o).sum() / (len(n) + 1)),
    (phase_2.check_jaccard, loop_jaccard),
    (phase_2.check_jaccard, lambda a, b: ((a > 0) & (b > 0)).sum() / max(((a > 0) | (b > 0)).sum(), 1)),
    (phase_2.check_jaccard, lambda a, b: np.nan_to_num(
        np.divide((a * b > 0).sum(), (a + b > 0).sum(), where=bool((a + b > 0).any()), out=np.zeros(())))),
]  # fmt: skip

WRONG = [
    (phase_1.check_l0_without_bos, lambda f, keep: (f > 0).sum(-1).float().mean(), "BOS and padding"),
    (phase_1.check_l0_without_bos, lambda f, keep: f[keep].sum(-1).mean(), "summed activations"),
    (phase_1.check_l0_without_bos, lambda f, keep: (f[keep] > 0).float().mean(), "share"),
    (phase_1.check_l0_without_bos, lambda f, keep: (f[keep] > 0).sum().item(), "mean per token"),
    (phase_1.check_l0_without_bos, lambda f, keep: f[keep] > 0, "shape"),
    (phase_1.check_text_activation, lambda f, keep: f.amax(1), "BOS or padding won"),
    (phase_1.check_text_activation, lambda f, keep: f.amax(0), "shape"),
    (phase_1.check_text_activation, lambda f, keep: (f * keep[..., None]).sum(1), "sum over tokens"),
    (phase_1.check_text_activation, lambda f, keep: (f * keep[..., None]).amax(2), "over the features"),
    (phase_1.check_text_activation, lambda f, keep: f[keep].max(), "Your function returned"),
    (phase_1.check_ev, lambda x, y: 1 - ((x - y) ** 2).sum() / (x**2).sum(), "uncentred"),
    (phase_1.check_ev, lambda x, y: ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), "from 1"),
    (phase_1.check_ev, lambda x, y: 1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum(), "per channel"),
    (phase_1.check_ev, lambda x, y: 1 - (x - y).abs().sum() / (x - x.mean(0)).abs().sum(), "absolute"),
    (phase_1.check_ev, lambda x, y: 1 / 0, "ZeroDivisionError"),
    (phase_2.check_specialist_score, lambda f, i: (f & i).sum(), "only the texts inside"),
    (phase_2.check_specialist_score, lambda f, i: (f & ~i).sum() - (f & i).sum(), "sign"),
    (phase_2.check_specialist_score, lambda f, i: f[i].mean() - f[~i].mean(), "shares"),
    (phase_2.check_specialist_score, lambda f, i: (f & i).sum() - (~i).sum(), "only those that fire"),
    (phase_2.check_specialist_score, lambda f, i: "seven", "Your function returned"),
    (phase_2.check_p_value, lambda o, n: (n >= o).mean(), "can be 0"),
    (phase_2.check_p_value, lambda o, n: (1 + (n > o).sum()) / (1 + len(n)), ">="),
    (phase_2.check_p_value, lambda o, n: (1 + (n < o).sum()) / (1 + len(n)), "below"),
    (phase_2.check_p_value, lambda o, n: (1 + (n >= o).sum()) / len(n), "number of shuffles"),
    (phase_2.check_p_value, lambda o, n: 2 * (1 + (n >= o).sum()) / (1 + len(n)), "one-sided"),
    (phase_2.check_jaccard, lambda a, b: ((a > 0) & (b > 0)).mean(), "all tokens"),
    (phase_2.check_jaccard, lambda a, b: ((a > 0) & (b > 0)).sum() / max((a > 0).sum(), 1), "conditional"),
    (phase_2.check_jaccard, lambda a, b: np.minimum(a, b).sum() / max(np.maximum(a, b).sum(), 1), "Your function"),
    (phase_2.check_jaccard, lambda a, b: ((a > 0) & (b > 0)).sum() / np.float64(((a > 0) | (b > 0)).sum()), "nan"),
    (phase_2.check_jaccard, lambda a, b: a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9), "cosine"),
]


@pytest.mark.parametrize(("checker", "answer"), RIGHT)
def test_right_answers_are_accepted(checker, answer, capsys):
    assert checker(answer) is answer
    assert "✓" in capsys.readouterr().out


@pytest.mark.parametrize(("checker", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(checker, answer, hint, capsys):
    assert checker(answer) is not answer
    out = capsys.readouterr().out
    assert "✗" in out and hint in out


def test_an_untouched_stub_falls_back_and_says_so(capsys):
    for module in (phase_1, phase_2):
        for name in (n for n in vars(module) if n.startswith("check_")):
            assert getattr(module, name)(lambda *args: None) is getattr(module, name.removeprefix("check_"))
            assert "not written yet" in capsys.readouterr().out


def test_every_case_counts(capsys):
    answer = check(lambda x: abs(x), lambda x: x, [(1,), (-1,)])
    assert answer(-1) == -1 and "wrong on case 2" in capsys.readouterr().out
