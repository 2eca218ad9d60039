"""Phase 4: the loss, density and dead features, a hypothesis, and 'Diagnose the broken run' with its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import pandas as pd
import torch

from prism.data import DATA, read_table
from prism.exercises import check, progress
from prism.exercises.hypothesis import try_hypothesis


def l1_loss(
    x: torch.Tensor, x_hat: torch.Tensor, f: torch.Tensor, norms: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """Squared error summed over `d_in` plus `coefficient` × `Σᵢ fᵢ ‖W_dec,i‖` (no `fᵢ` below 0), means over tokens."""
    return (x - x_hat).pow(2).sum(1).mean() + coefficient * (f @ norms).mean()


def check_l1_loss(answer: Callable) -> Callable:
    """Check exercise 1."""

    def parts(x, y, f, n):
        return (x - y).pow(2), f * n

    mistakes = {
        "Sum the squared error over d_in and average over tokens only; you averaged over d_in as well.": (
            lambda x, y, f, n, c: (x - y).pow(2).mean() + c * (f @ n).mean()
        ),
        "You forgot the decoder norms: each f_i counts times the length of its decoder row.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum(1).mean() + c * f.sum(1).mean()
        ),
        "You added up over the tokens of the batch; take the mean, or the loss depends on the batch's size.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum() + c * (f @ n).sum()
        ),
        "Only the error became a mean over tokens; the penalty is still a sum over the batch.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum(1).mean() + c * (f @ n).sum()
        ),
        "You averaged the penalty over features; add it up over d_sae.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum(1).mean() + c * (f * n).mean()
        ),
        "Square the error; you took its length.": (
            lambda x, y, f, n, c: (x - y).norm(dim=1).mean() + c * (f @ n).mean()
        ),
        "That penalty counts active features (L0) and has no gradient; L1 adds up their activations.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum(1).mean() + c * (f > 0).float().sum(1).mean()
        ),
        "The coefficient belongs to the penalty; you left it out.": (
            lambda x, y, f, n, c: (x - y).pow(2).sum(1).mean() + (f @ n).mean()
        ),
        "The coefficient weighs the penalty only, not the error.": (
            lambda x, y, f, n, c: c * sum(part.sum(1).mean() for part in parts(x, y, f, n))
        ),
    }
    draw = torch.Generator().manual_seed(0)
    x, noise, f = (torch.randn(*shape, generator=draw) for shape in ((6, 4), (6, 4), (6, 8)))
    norms = torch.linspace(0.5, 2.0, 8)
    cases = [
        (x, x + 0.5 * noise, f.relu(), norms, 0.3),
        (x, x - noise, f.relu(), 3 * norms, 2.0),
    ]
    return check(answer, l1_loss, cases, mistakes)


def density(f: torch.Tensor) -> torch.Tensor:
    """Share of tokens on which each feature of `[tokens, d_sae]` fires."""
    return (f > 0).float().mean(0)


def _codes() -> list[tuple[torch.Tensor]]:
    """Two codes: with dead features, one that always fires, faint activations, and a token on which nothing fires."""
    f = torch.zeros(40, 7)
    f[:, 0] = torch.linspace(0.2, 3, 40)
    f[::4, 2], f[7, 3], f[10:31, 4], f[3:6, 6] = 1.5, 9.0, 0.004, 0.003
    quiet = f.clone()
    quiet[35:, 0] = 0
    return [(quiet,), (f,)]


def check_density(answer: Callable) -> Callable:
    """Check exercise 2, first half."""
    mistakes = {
        "The mean ran over the features of a token; take it over the tokens of each feature (dim 0).": (
            lambda f: (f > 0).float().mean(1)
        ),
        "`>= 0` is true of every activation, the zeros too; a feature fires where it is above zero.": (
            lambda f: (f >= 0).float().mean(0)
        ),
        "That is the mean activation; count the tokens on which it is above zero.": lambda f: f.mean(0),
        "That is a number of tokens; divide by how many there are.": lambda f: (f > 0).float().sum(0),
        "You asked for more than 0 and lost the faint activations; whatever is above zero counts.": (
            lambda f: (f > 0.01).float().mean(0)
        ),
        "That is one number for all features; keep one for each.": lambda f: (f > 0).float().mean(),
        "You divided by the tokens on which any feature fires; divide by all tokens.": (
            lambda f: (f > 0).float().sum(0) / (f > 0).any(1).sum()
        ),
    }
    return check(answer, density, _codes(), mistakes)


def dead_share(f: torch.Tensor) -> float:
    """Share of the features of `[tokens, d_sae]` that fire on none of the tokens."""
    return (~(f > 0).any(0)).float().mean().item()


def check_dead_share(answer: Callable) -> Callable:
    """Check exercise 2, second half."""
    mistakes = {
        "That is the share of silent *tokens*; ask of each feature (along dim 0) whether it ever fires.": (
            lambda f: (~(f > 0).any(1)).float().mean()
        ),
        "That is the share of zeros among all activations; a feature is dead only if all of its own are zero.": (
            lambda f: (f == 0).float().mean()
        ),
        "You counted features that are silent on at least one token; dead ones are silent on all.": (
            lambda f: (f <= 0).any(0).float().mean()
        ),
        "`>= 0` is true of zeros as well, so that no feature seems dead; ask for above zero.": (
            lambda f: (~(f >= 0).any(0)).float().mean()
        ),
        "That is the share alive; take it from 1.": lambda f: (f > 0).any(0).float().mean(),
        "That is a number of features; divide by d_sae.": lambda f: (~(f > 0).any(0)).float().sum(),
        "You counted rare features in as well; dead means that it never fires.": (
            lambda f: (density(f) < 0.05).float().mean()
        ),
        "You counted faint features as dead; however small, an activation above zero is a firing.": (
            lambda f: (f.amax(0) < 0.01).float().mean()
        ),
    }
    return check(answer, dead_share, _codes(), mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("4", fire, silent, activation)


# --- diagnose the broken run -----------------------------------------------------------------------------------------

HEALTHY = "healthy"
RATE, PENALTY, NORMS, BOS, ORDER, DEAD = FAULTS = (
    "learning rate too high",
    "sparsity penalty too strong",
    "decoder norms not held at 1",
    "BOS in the data",
    "activations not shuffled",
    "features dead and never revived",
)
KEY = {"A": BOS, "B": PENALTY, "C": ORDER, "D": DEAD, "E": RATE, "F": NORMS}
COLUMNS = {  # of a log, which give each fault away
    RATE: ("loss",),
    PENALTY: ("l0", "explained_variance"),
    NORMS: ("decoder_norm", "activation"),
    BOS: ("largest_input_norm",),
    ORDER: ("explained_variance", "loss"),
    DEAD: ("dead",),
}


def load_broken_runs() -> pd.DataFrame:
    """The logs of runs A to F and of the healthy one, below one another: `run`, `step`, and a column a measure.

    Norms of inputs are in the model's units; `activation` is the mean over active features, for inputs of mean norm
    `sqrt(d_in)`. All runs share model, hook, width (768) and schedule: warm-up over 5 % of the steps, decay over the
    last 25 %.
    """
    return read_table(DATA / "broken_runs.parquet")


def check_diagnosis(answer: Mapping[str, str | None]) -> dict[str, str]:
    """Check exercise 4: says of each run whether its fault is the one named, and which columns to look at if not.

    Args:
        answer: run -> one of `FAULTS`, or None where nothing is said yet.

    Returns:
        The key.
    """
    if not isinstance(answer, Mapping):
        print(f"✗ diagnosis: give a dictionary, {{'A': 'one of exercises.FAULTS', …}}, not {type(answer).__name__}.")
        progress.record("4", "diagnosis", progress.TRIED)
        return dict(KEY)
    said = {run: answer.get(run) for run in KEY}
    if all(fault is None for fault in said.values()):
        print("… diagnosis is not written yet. Going on with the reference answer.")
        return dict(KEY)
    right = 0
    for run, fault in said.items():
        verdict = _verdict(run, fault)
        right += verdict.startswith("✓")
        print(verdict)
    print(f"{right} of {len(KEY)} right." + ("" if right == len(KEY) else " Going on with the reference answer."))
    progress.record("4", "diagnosis", progress.SOLVED if right == len(KEY) else progress.TRIED)
    return dict(KEY)


def _verdict(run: str, fault: object) -> str:
    """One run's line: right, wrong with the columns to compare, no such fault, or nothing said."""
    columns = " and ".join(f"`{name}`" for name in COLUMNS[KEY[run]])
    if fault is None:
        return f"… {run}: nothing said yet. Compare {columns} with the healthy run."
    if not isinstance(fault, str) or fault not in FAULTS:
        near = get_close_matches(fault if isinstance(fault, str) else "", FAULTS, 1, 0)[0]
        return f"✗ {run}: that is none of the six faults; did you mean '{near}'?"
    if fault == KEY[run]:
        return f"✓ {run}: {fault}"
    return f"✗ {run}: '{fault}' would look otherwise. Compare {columns} with the healthy run."
