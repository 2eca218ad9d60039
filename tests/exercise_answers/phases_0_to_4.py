"""Right answers to the exercises of phases 0 to 4 and wrong ones with a word of their hint."""

import math

import numpy as np
import torch
from scipy.stats import binom

from prism.phases import phase_1, phase_2
from prism.phases.phase_0 import exercises as phase_0
from prism.phases.phase_3 import exercises as phase_3
from prism.phases.phase_4 import exercises as phase_4
from prism.phases.phase_4b import exercises as phase_4b


def loop_l0(f, keep):
    counts = [int((f[b, p] > 0).sum()) for b in range(f.shape[0]) for p in range(f.shape[1]) if keep[b, p]]
    return sum(counts) / len(counts)


def loop_text_activation(f, keep):
    return np.stack([x[m].amax(0).numpy() for x, m in zip(f, keep, strict=True)])


def loop_p(observed, null):
    return (sum(1 for value in null if value >= observed) + 1) / (len(null) + 1)


def sum_collision(n, p):
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(2, n + 1))


def bisect_density(r):
    low, high = 1e-9, 1.0  # the gap below changes its sign once
    for _ in range(60):
        p = (low + high) / 2
        wins = (1 + r) * p**2 / 6 < min(1, r) * (p / 3 - p**2 / 4)
        low, high = (p, high) if wins else (low, p)
    return low


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def unit_dot(a, b):
    return a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5


def loop_interval(a, b, draws):
    means = sorted(float(np.mean([a[i] - b[i] for i in draw])) for draw in draws)
    return np.interp([0.025, 0.975], np.linspace(0, 1, len(means)), means)


def prefix(x, f, W, b, m):
    return (x - b - f[:, :m] @ W[:m]).square().sum(1).mean()


def loop_nested(x, f, W, b, widths):
    total = 0.0
    for m in widths:
        for row, code in zip(x, f, strict=True):
            rebuilt = b + sum(code[i] * W[i] for i in range(m))
            total += float(((row - rebuilt) ** 2).sum())
    return total / len(x) / len(widths)


def loop_l1(x, x_hat, f, norms, coefficient):
    total = 0.0
    for a, b, code in zip(x, x_hat, f, strict=True):
        total += float(((a - b) ** 2).sum())
        total += coefficient * sum(abs(float(v)) * float(n) for v, n in zip(code, norms, strict=True))
    return total / len(x)


def loop_topk(pre, k):
    out = np.zeros(pre.shape)
    for row, values in enumerate(pre.tolist()):
        for place in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
            out[row, place] = max(values[place], 0.0)
    return out


def loop_dead(f):
    return sum(all(v <= 0 for v in column) for column in f.T.tolist()) / f.shape[1]


def error(x, y):
    return (x - y).pow(2).sum(1).mean()


def at_rank(pre, k, dim=1):
    """The k-th largest value along an axis."""
    return pre.sort(dim=dim, descending=True).values.narrow(dim, k - 1, 1)


RIGHT = [
    (phase_0.check_collision, sum_collision),
    (phase_0.check_collision, lambda n, p: binom.sf(1, n, p)),
    (phase_0.check_collision, lambda n, p: 1 - np.power(1 - p, n - 1) * (1 - p + n * p)),
    (phase_0.check_critical_density, bisect_density),
    (phase_0.check_critical_density, lambda r: 4 * r / (2 + 5 * r) if r <= 1 else 4 / (5 + 2 * r)),
    (phase_0.check_critical_density, lambda r: np.minimum(1, r) / 3 / ((1 + r) / 6 + np.minimum(1, r) / 4)),
    (
        phase_0.check_recovered,
        lambda d, t, c: np.mean([any(float(torch.cosine_similarity(a, b, dim=0)) >= c for a in d) for b in t]),
    ),
    (phase_0.check_recovered, lambda d, t, c: ((unit(t) @ unit(d).T).max(1).values >= c).double().mean()),
    (phase_0.check_recovered, lambda d, t, c: ((unit(d) @ unit(t).T) >= c).any(0).sum().item() / len(t)),
    (phase_1.check_l0_without_bos, loop_l0),
    (phase_1.check_l0_without_bos, lambda f, keep: ((f > 0) * keep[..., None]).sum() / keep.sum()),
    (phase_1.check_l0_without_bos, lambda f, keep: torch.count_nonzero(f[keep], dim=1).double().mean()),
    (phase_1.check_text_activation, lambda f, keep: f.masked_fill(~keep[..., None], 0).max(1).values),
    (phase_1.check_text_activation, loop_text_activation),
    (phase_1.check_text_activation, lambda f, keep: torch.where(keep[..., None], f, -1.0).max(dim=1)[0]),
    (
        phase_1.check_ev,
        lambda x, y: (
            1
            - (x - y).var(0, correction=0).sum() / x.var(0, correction=0).sum()
            - ((x - y).mean(0) ** 2).sum() / x.var(0, correction=0).sum()
        ),
    ),
    (phase_1.check_ev, lambda x, y: 1 - np.linalg.norm(x - y) ** 2 / np.linalg.norm(x - x.mean(0)) ** 2),
    (phase_1.check_ev, lambda x, y: 1 - torch.mean((x - y) ** 2) / torch.mean((x - x.mean(0, keepdim=True)) ** 2)),
    (phase_2.check_specialist_score, lambda f, i: 2 * (f & i).sum() - f.sum()),
    (phase_2.check_specialist_score, lambda f, i: np.where(i, 1, -1)[f].sum()),
    (phase_2.check_specialist_score, lambda f, i: sum(1 if b else -1 for a, b in zip(f, i, strict=True) if a)),
    (phase_2.check_p_value, loop_p),
    (phase_2.check_p_value, lambda o, n: np.mean(np.append(n, o) >= o)),
    (phase_2.check_p_value, lambda o, n: 1 - (np.asarray(n) < o).sum() / (len(n) + 1)),
    (phase_3.check_recovered, lambda c, s, a: 1 - (s - c) / (a - c)),
    (phase_3.check_recovered, lambda c, s, a: np.divide(s - a, c - a)),
    (phase_3.check_recovered, lambda c, s, a: np.polyval(np.polyfit([c, a], [1, 0], 1), s)),
    (phase_3.check_paired_interval, loop_interval),
    (phase_3.check_paired_interval, lambda a, b, d: np.percentile(a[d].mean(1) - b[d].mean(1), [2.5, 97.5])),
    (
        phase_3.check_paired_interval,
        lambda a, b, d: torch.quantile(torch.tensor(a[d] - b[d]).mean(1), torch.tensor([0.025, 0.975]).double()),
    ),
    (phase_4.check_l1_loss, loop_l1),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: (torch.norm(x - y) ** 2 + c * (f.abs() * n).sum()) / len(x)),
    (
        phase_4.check_l1_loss,
        lambda x, y, f, n, c: np.mean(((x - y) ** 2).numpy().sum(-1) + c * np.abs(f.numpy()) @ n.numpy()),
    ),
    (
        phase_4.check_l1_loss,
        lambda x, y, f, n, c: (
            torch.nn.functional.mse_loss(y, x) * x.shape[1] + c * torch.einsum("bs,s->b", f.abs(), n).mean()
        ),
    ),
    (phase_4b.check_topk, loop_topk),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre >= at_rank(pre, k))),
    (phase_4b.check_topk, lambda pre, k: torch.where(pre.argsort(1, descending=True).argsort(1) < k, pre, 0).clamp(0)),
    (
        phase_4b.check_topk,
        lambda pre, k: np.where(pre.numpy() > np.sort(pre.numpy(), 1)[:, [-k - 1]], np.maximum(pre.numpy(), 0), 0),
    ),
    (phase_4b.check_nested_error, loop_nested),
    (
        phase_4b.check_nested_error,
        lambda x, f, W, b, w: torch.stack([((x - (f[:, :m] @ W[:m] + b)) ** 2).sum() / len(x) for m in w]).mean(),
    ),
    (
        phase_4b.check_nested_error,
        lambda x, f, W, b, w: float(np.mean([np.square((x - b - f[:, :m] @ W[:m]).numpy()).sum(1).mean() for m in w])),
    ),
    (phase_4.check_density, lambda f: torch.count_nonzero(f, dim=0) / len(f)),
    (phase_4.check_density, lambda f: np.mean(f.numpy() > 0, axis=0)),
    (phase_4.check_density, lambda f: [sum(v > 0 for v in column) / len(column) for column in f.T.tolist()]),
    (phase_4.check_dead_share, loop_dead),
    (phase_4.check_dead_share, lambda f: (f.amax(0) == 0).float().mean()),
    (phase_4.check_dead_share, lambda f: 1 - torch.count_nonzero(f.sum(0)).item() / f.shape[1]),
    (phase_4.check_dead_share, lambda f: (phase_4.density(f) == 0).double().mean().item()),
]

WRONG = [
    (phase_0.check_collision, lambda n, p: 1 - (1 - p) ** n, "at least *one*"),
    (phase_0.check_collision, lambda n, p: 1 - (1 - p) ** n - p * (1 - p) ** (n - 1), "n ways"),
    (phase_0.check_collision, lambda n, p: binom.pmf(2, n, p), "exactly two"),
    (phase_0.check_collision, lambda n, p: p * p, "one given pair"),
    (phase_0.check_collision, lambda n, p: math.comb(n, 2) * p**2, "expected number"),
    (phase_0.check_collision, lambda n, p: binom.cdf(1, n, p), "take it from 1"),
    (phase_0.check_collision, lambda n, p: n * p, "Your function returned"),
    (phase_0.check_critical_density, lambda r: 4 * r / (2 + 5 * r), "up to 1"),
    (phase_0.check_critical_density, lambda r: 2 * min(1, r) / (1 + r), "variance"),
    (phase_0.check_critical_density, lambda r: 4 * max(1, r) / (2 * (1 + r) + 3 * max(1, r)), "*less*"),
    (phase_0.check_critical_density, lambda r: 4 * min(1, r) / (2 + 3 * min(1, r)), "add up"),
    (phase_0.check_critical_density, lambda r: 4 / (5 + 2 * r), "*less*"),
    (phase_0.check_critical_density, lambda r: 4 / 7, "Your function returned"),
    (phase_0.check_recovered, lambda d, t, c: ((d @ t.T).amax(0) >= c).float().mean(), "lengths"),
    (phase_0.check_recovered, lambda d, t, c: ((unit(d) @ unit(t).T).amax(1) >= c).float().mean(), "decoder rows"),
    (phase_0.check_recovered, lambda d, t, c: ((unit(d) @ unit(t).T).abs().amax(0) >= c).float().mean(), "sign"),
    (phase_0.check_recovered, lambda d, t, c: ((unit(d) @ unit(t).T).amax(0) >= c).sum(), "divide by how many"),
    (phase_0.check_recovered, lambda d, t, c: (unit(d) @ unit(t).T).amax(0).mean(), "mean cosine"),
    (phase_0.check_recovered, lambda d, t, c: ((unit(d) @ unit(t).T) >= c).float().mean(), "counted pairs"),
    (phase_1.check_l0_without_bos, lambda f, keep: (f > 0).sum(-1).float().mean(), "BOS and padding"),
    (phase_1.check_l0_without_bos, lambda f, keep: f[keep].sum(-1).mean(), "summed activations"),
    (phase_1.check_l0_without_bos, lambda f, keep: (f[keep] > 0).float().mean(), "share"),
    (phase_1.check_l0_without_bos, lambda f, keep: (f[keep] > 0).sum().item(), "mean per token"),
    (phase_1.check_l0_without_bos, lambda f, keep: f[keep] > 0, "shape"),
    (phase_1.check_text_activation, lambda f, keep: f.amax(1), "BOS or padding won"),
    (phase_1.check_text_activation, lambda f, keep: f.amax(0), "shape"),
    (phase_1.check_text_activation, lambda f, keep: (f * keep[..., None]).sum(1) / keep.sum(1)[:, None], "the mean"),
    (phase_1.check_text_activation, lambda f, keep: torch.where(keep[..., None], f, 0).amax(0), "over the texts"),
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
    (phase_3.check_recovered, lambda c, s, a: (s - c) / (a - c), "*lost*"),
    (phase_3.check_recovered, lambda c, s, a: (a - s) / a, "ablated loss"),
    (phase_3.check_recovered, lambda c, s, a: (a - s) / (s - c), "cost of the SAE"),
    (phase_3.check_recovered, lambda c, s, a: (s - a) / (a - c), "sign"),
    (phase_3.check_recovered, lambda c, s, a: a - s, "in nats"),
    (
        phase_3.check_paired_interval,
        lambda a, b, d: np.quantile(a[d].mean(1) - b[d[::-1]].mean(1), [0.025, 0.975]),
        "same row of `draws`",
    ),
    (phase_3.check_paired_interval, lambda a, b, d: np.quantile((a - b)[d], [0.025, 0.975]), "single sequences"),
    (phase_3.check_paired_interval, lambda a, b, d: np.quantile((a - b)[d].mean(0), [0.025, 0.975]), "axis 1"),
    (phase_3.check_paired_interval, lambda a, b, d: np.quantile((a - b)[d].mean(1), [0.05, 0.95]), "90 %"),
    (phase_3.check_paired_interval, lambda a, b, d: np.quantile((b - a)[d].mean(1), [0.025, 0.975]), "a minus b"),
    (phase_3.check_paired_interval, lambda a, b, d: (a - b).mean(), "Your function returned"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: ((x - y) ** 2).mean() + c * (f.abs() @ n).mean(), "over d_in"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) + c * f.abs().sum(1).mean(), "decoder norms"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: ((x - y) ** 2).sum() + c * (f.abs() @ n).sum(), "of the batch;"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) + c * (f.abs() @ n).sum(), "Only the error"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) + c * (f.abs() * n).mean(), "over features"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) ** 0.5 + c * (f.abs() @ n).mean(), "Your function"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: (x - y).norm(dim=1).mean() + c * (f.abs() @ n).mean(), "its length"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) + c * (f != 0).sum(1).double().mean(), "no gradient"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: error(x, y) + (f.abs() @ n).mean(), "left it out"),
    (phase_4.check_l1_loss, lambda x, y, f, n, c: c * (error(x, y) + (f.abs() @ n).mean()), "penalty only"),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre >= at_rank(pre, min(k, len(pre)), 0)), "over the tokens"),
    (phase_4b.check_topk, lambda pre, k: pre * (pre.abs() >= at_rank(pre.abs(), k)), "by absolute value; a strongly"),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre.abs() >= at_rank(pre.abs(), k)), "fewer than k are left"),
    (phase_4b.check_topk, lambda pre, k: pre * (pre >= at_rank(pre, k)), "Negative values"),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre >= at_rank(pre, k + 1)), "One too many"),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre > at_rank(pre, k)), "One too few"),
    (phase_4b.check_topk, lambda pre, k: pre.relu() * (pre >= at_rank(pre.reshape(1, -1), k * len(pre))), "BatchTopK"),
    (phase_4b.check_topk, lambda pre, k: (pre.relu() * (pre >= at_rank(pre, k)) > 0).float(), "return their values"),
    (phase_4b.check_topk, lambda pre, k: pre.topk(k).values.clamp(min=0), "k values alone"),
    (phase_4b.check_topk, lambda pre, k: pre.clamp(min=0), "that is ReLU"),
    (phase_4b.check_nested_error, lambda x, f, W, b, w: error(x, f @ W + b), "all features"),
    (phase_4b.check_nested_error, lambda x, f, W, b, w: sum(prefix(x, f, W, 0 * b, m) for m in w) / len(w), "b_dec"),
    (phase_4b.check_nested_error, lambda x, f, W, b, w: sum(prefix(x, f, W, b, m) for m in w), "sum over prefixes"),
    (
        phase_4b.check_nested_error,
        lambda x, f, W, b, w: sum(prefix(x, f, W, b, m) for m in w) / len(w) / 4,
        "over d_in",
    ),
    (phase_4b.check_nested_error, lambda x, f, W, b, w: prefix(x, f, W, b, w[0]), "smallest prefix"),
    (
        phase_4b.check_nested_error,
        lambda x, f, W, b, w: sum(prefix(x, f.flip(1), W.flip(0), b, m) for m in w) / len(w),
        "general ones",
    ),
    (phase_4.check_density, lambda f: (f > 0).double().mean(1), "dim 0"),
    (phase_4.check_density, lambda f: (f >= 0).double().mean(0), ">= 0"),
    (phase_4.check_density, lambda f: f.sum(0) / len(f), "mean activation"),
    (phase_4.check_density, lambda f: (f > 0).sum(0), "number of tokens"),
    (phase_4.check_density, lambda f: (f > 0.01).double().mean(0), "faint"),
    (phase_4.check_density, lambda f: (f > 0).double().mean(), "one number"),
    (phase_4.check_density, lambda f: (f > 0)[(f > 0).any(1)].double().mean(0), "any feature fires"),
    (phase_4.check_dead_share, lambda f: (f.amax(1) == 0).double().mean(), "*tokens*"),
    (phase_4.check_dead_share, lambda f: (f == 0).double().mean(), "share of zeros"),
    (phase_4.check_dead_share, lambda f: (f.amin(0) == 0).double().mean(), "at least one token"),
    (phase_4.check_dead_share, lambda f: 1 - (f >= 0).any(0).double().mean(), "zeros as well"),
    (phase_4.check_dead_share, lambda f: (f > 0).any(0).double().mean(), "alive"),
    (phase_4.check_dead_share, lambda f: (f.amax(0) == 0).sum(), "number of features"),
    (phase_4.check_dead_share, lambda f: ((f > 0).double().mean(0) < 0.05).double().mean(), "rare features"),
    (phase_4.check_dead_share, lambda f: (f.amax(0) < 0.01).double().mean(), "faint features"),
]
