"""What phase 0 computes beside its own text: matches with known directions, rivals of the SAE, one-dimensional toys."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA, FastICA
from torch import Tensor

from prism.sae import SaeConfig, SparseAutoencoder, make_sae


def matched_cosines(
    decoder: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_directions d_in"]
) -> Float[np.ndarray, " n_directions"]:
    """Cosine of each true direction with its partner among the decoder's rows, one row for each direction.

    The pairing is the one with the largest sum of cosines (Hungarian algorithm), so no row can stand for two
    directions. The sign counts: a feature only ever adds its row, so the opposite direction is another feature.

    Returns:
        In the order of `directions`; 0 for those left without a row where there are fewer rows than directions.

    Raises:
        ValueError: widths that differ, nothing to match, or a row without a direction (zero or not finite).
    """
    rows, truth = (torch.as_tensor(x).detach().double() for x in (decoder, directions))
    if rows.shape[-1] != truth.shape[-1] or not len(rows) or not len(truth):
        raise ValueError(f"decoder {tuple(rows.shape)} and directions {tuple(truth.shape)} need rows of one width")
    norms = torch.cat([rows.norm(dim=1), truth.norm(dim=1)])
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise ValueError("a row is zero or not finite, so it has no direction; leave such rows out")
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (truth / truth.norm(dim=1, keepdim=True)).T
    chosen, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
    out = np.zeros(len(truth))
    out[partners] = cosines.numpy()[chosen, partners]
    return out


def mcc(decoder: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_directions d_in"]) -> float:
    """Mean cosine of true directions with their partners among the decoder's rows, one to one: 1 where all were found.

    A *mean correlation coefficient* (Hyvärinen & Morioka 2016), with cosines for correlations. It is not MMCS, the mean
    *max* cosine similarity (Sharkey et al. 2022), in which one row may stand for many directions.

    For a method whose rows have no sign (PCA, ICA), give each row and its opposite.

    >>> mcc(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.eye(2))
    1.0

    Raises:
        ValueError: see `matched_cosines`.
    """
    return float(matched_cosines(decoder, directions).mean())


def input_reader(
    directions: Float[Tensor, "n_directions d_in"], encode: Callable[[Tensor], Tensor]
) -> Callable[[str, int], float]:
    """A function from an input in words and a learned feature to the feature's activation on that input.

    The words are the numbers of the true features that are present, each with strength 1: '17 4'. A number that stands
    there twice has strength 2.

    Args:
        directions: of the true features.
        encode: the SAE's encoder.
    """

    def activation(text: str, feature: int) -> float:
        names = re.split(r"[\s,]+", text.strip(" ,"))
        if wrong := [name for name in names if not name.isdecimal() or int(name) >= len(directions)]:
            raise ValueError(
                f"{wrong[0]!r} is no true feature; write numbers from 0 to {len(directions) - 1}, as '17 4'"
            )
        return float(encode(directions[[int(name) for name in names]].sum(0))[..., feature])

    return activation


def rivals(x: Float[Tensor, "samples d_in"], n_rows: int, seed: int) -> dict[str, Float[np.ndarray, "rows d_in"]]:
    """What other ways than an SAE find as directions: PCA, ICA (FastICA), and chance.

    PCA and ICA find at most one for each dimension and leave the sign open, so theirs stand there either way round: in
    half as many dimensions as directions that makes as many candidates as the others have.

    Args:
        x: the activations.
        n_rows: directions wanted.
        seed: of ICA's start; that of the random directions is far from it.
    """
    n = min(n_rows, x.shape[1])
    pca = PCA(n).fit(x).components_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on data without structure ICA does not converge; its score tells
        ica = FastICA(n, whiten="unit-variance", random_state=seed).fit(x).mixing_.T
    both_ways = {"PCA": np.concatenate([pca, -pca]), "ICA": np.concatenate([ica, -ica])}
    return both_ways | {"random": random_rows(n_rows, x.shape[1], seed=seed + 2_000).numpy()}


def library_sae(sae: object, sparsity: float) -> SparseAutoencoder:
    """The SAE that phase 0 writes by hand as one of `prism.sae`'s: the same weights, the first of its data sets.

    Args:
        sae: `W_enc` [sae, d_in, d_sae], `W_dec` [sae, d_sae, d_in], `b_enc` [sae, 1, d_sae] and `b_dec` [sae, 1, d_in].
        sparsity: weight of the L1 term.
    """
    d_sae, d_in = sae.W_dec[0].shape
    library = make_sae(SaeConfig(d_in, d_sae, architecture="relu", k=1, sparsity=sparsity))
    biases = {"b_enc": sae.b_enc[0, 0], "b_dec": sae.b_dec[0, 0]}
    library.load_state_dict({"W_enc": sae.W_enc[0].T, "W_dec": sae.W_dec[0], **biases})
    return library


def random_rows(*shape: int, seed: int) -> Float[Tensor, "... d_in"]:
    """Random directions of length 1 along the last axis."""
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- two features, one dimension -------------------------------------------------------------------------------------

LEVELS = 8  # values of an active feature, in place of all from 0 to 1


def expected_loss(
    W: Float[Tensor, "model 2"], b: Float[Tensor, "model 2"], p: Float[Tensor, " model"], r: Float[Tensor, " model"]
) -> Float[Tensor, " model"]:
    """Loss of each toy model of two features in one dimension, all cases weighted by their chances.

    The cases: none active; one active, at any of eight levels; both.

    Args:
        W, b: the weights.
        p: chance that a feature is active.
        r: importance of feature 2 relative to feature 1.
    """
    levels = (torch.arange(LEVELS) + 0.5) / LEVELS
    alone = torch.stack([levels, torch.zeros(LEVELS)], dim=1)
    cases = torch.cat([torch.zeros(1, 2), alone, alone.flip(1), torch.cartesian_prod(levels, levels)])
    chance = torch.cat(
        [
            ((1 - p) ** 2)[:, None],
            (p * (1 - p) / LEVELS)[:, None].expand(-1, 2 * LEVELS),
            (p**2 / LEVELS**2)[:, None].expand(-1, LEVELS**2),
        ],
        dim=1,
    )
    x_hat = ((cases @ W.T)[..., None] * W + b).relu()  # [case, model, feature]
    importance = torch.stack([torch.ones_like(r), r], dim=1)
    return torch.einsum("cki,ki,kc->k", (cases[:, None] - x_hat) ** 2, importance, chance)


def outcome(W: Float[Tensor, "model 2"]) -> Int[Tensor, " model"]:
    """What became of the second feature, an index into `figures.PHASES`; represented means that half of it returns."""
    one, two = (W**2 > 0.5).T
    found = torch.full((len(W),), 3)
    found[one & ~two], found[two & ~one] = 0, 2
    found[one & two & (W.prod(1) < 0)] = 1
    return found
