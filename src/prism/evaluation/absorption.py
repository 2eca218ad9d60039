"""First-letter absorption: does a feature for 'begins with X' fall silent where a more special feature takes over?

Chanin et al. 2024 (arXiv 2409.14507). A small model is a weak test of it: it knows few words, many of them in pieces,
and its letters are few tokens each; so counts and intervals are part of the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from prism.evaluation.metrics import paired_bootstrap
from prism.evaluation.probing import auc_interval, fit_probe, tokens_matching
from prism.features import FeatureMatrix

WORD_START = r"^ [A-Za-z]{2,}$"  # the tokens that are asked about: a space, then letters


@dataclass(frozen=True)
class AbsorptionConfig:
    """What counts as absorbed."""

    min_words: int = 20  # different tokens that a letter needs, to be asked about
    per_word: int = 8  # occurrences of one token at most, so that ' the' does not decide for T
    max_features: int = 5  # features that may stand for one letter together …
    f1_gain: float = 0.03  # … each further one must raise F1 on the train words by this (as in the paper)
    min_coverage: float = 0.1  # a letter's feature fires on this share of its train words: else it is a word's feature
    min_f1: float = 0.3  # of the letter's features on held-out words: below it there is no letter feature
    cosine: float = 3.0  # of the absorbing feature's direction with the probe's, in units of 1/sqrt(d_in): chance level
    share: float = 0.4  # of all that points along the probe must come from the absorbing feature
    shuffle: bool = False  # the control: letters dealt to the words at random
    seed: int = 0


def first_letter_absorption(
    sae, x: Float[Tensor, "tokens d_in"], matrix: FeatureMatrix, config: AbsorptionConfig = AbsorptionConfig()
) -> pd.DataFrame:
    """How often a letter's features miss a word that a linear probe gets right, with another feature in their place.

    For each letter: half of the *words* (tokens of the vocabulary, so that no word is in both halves) train a logistic
    regression on the raw activation; the letter's features are those whose firing tells its words best, as many as
    raise F1. On the other half, a token of the letter on which the probe is right is *absorbed* if none of the
    letter's features fires, but one does that lies along the probe's direction and makes up most of what points there.

    Where the letter's features tell held-out words badly (F1 below `min_f1`), there is no letter feature that anything
    could have absorbed: counts are given, the rate is NaN.

    Args:
        sae: an SAE or a `Dictionary`.
        x: raw activations of the matrix's tokens.
        matrix: the same tokens through `sae`.

    Returns:
        One row a letter: letter, words, probe_auc (on held-out words), features, f1 (of the letter's features, on
        held-out words), measurable, positive (held-out tokens that the probe gets right), silent (of those, without a
        letter feature), absorbed, rate = absorbed / positive, low, high (95 %, words resampled).

    Raises:
        ValueError: activations and matrix of different tokens, or no letter with enough words.
    """
    if len(x) != matrix.n_tokens:
        raise ValueError(f"{len(x)} activations for {matrix.n_tokens} tokens of the matrix; give both the same")
    rows, words, letters = _word_starts(matrix.table, config)
    if config.shuffle:
        kinds, first, codes = np.unique(words, return_index=True, return_inverse=True)
        letters = np.random.default_rng(config.seed).permutation(letters[first])[codes]
    different = pd.DataFrame({"letter": letters, "word": words}).drop_duplicates()["letter"].value_counts()
    wanted = sorted(different[different >= config.min_words].index)
    if not wanted:
        raise ValueError(f"no letter begins {config.min_words} different tokens; give more text or a lower min_words")
    data = _Words.make(x[torch.from_numpy(rows)].numpy(), matrix.values[rows], words, config.seed)
    decoder = sae.W_dec.detach().double().numpy()
    found = [_one_letter(letter, letters == letter, data, decoder, config) for letter in wanted]
    return pd.DataFrame([row for row in found if row is not None])


def absorption_total(found: pd.DataFrame, n: int = 2000, seed: int = 0) -> pd.Series:
    """All measurable letters together, and how many there are.

    Returns:
        letters, measurable, mean probe_auc and f1 (of all letters); positive, silent, absorbed, rate, low, high (of
        the measurable ones; 95 %, letters resampled), NaN where there are none.
    """
    some = found[found["measurable"]]
    low, high = paired_bootstrap(some["absorbed"].to_numpy(float), some["positive"].to_numpy(float), n, seed)
    total = some[["positive", "silent", "absorbed"]].sum()
    rate = total["absorbed"] / total["positive"] if total["positive"] else float("nan")
    counts = {"letters": len(found), "measurable": len(some)} | found[["probe_auc", "f1"]].mean().to_dict()
    return pd.Series(counts | total.to_dict() | {"rate": rate, "low": low, "high": high})


def _word_starts(table: pd.DataFrame, config: AbsorptionConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of word-initial tokens, at most `per_word` of each, with the token's id and its first letter."""
    rows = np.random.default_rng(config.seed).permutation(np.flatnonzero(tokens_matching(table, WORD_START)))
    part = table.iloc[rows]
    rows = np.sort(rows[part.groupby("token_id").cumcount().to_numpy() < config.per_word])
    part = table.iloc[rows]
    return rows, part["token_id"].to_numpy(), part["token"].astype(str).str[1].str.lower().to_numpy()


@dataclass(frozen=True, eq=False)
class _Words:
    """Word-initial tokens: standardised activations, features, words, and which are the train half."""

    z: Float[np.ndarray, "tokens d_in"]
    spread: Float[np.ndarray, " d_in"]
    features: csr_matrix
    words: Int[np.ndarray, " tokens"]
    train: Bool[np.ndarray, " tokens"]

    @classmethod
    def make(cls, x: np.ndarray, features: csr_matrix, words: np.ndarray, seed: int) -> _Words:
        kinds, codes = np.unique(words, return_inverse=True)
        train = (np.random.default_rng(seed).permutation(len(kinds)) < len(kinds) // 2)[codes]
        spread = np.maximum(x[train].std(0), 1e-9)
        return cls((x - x[train].mean(0)) / spread, spread, features, words, train)


def _f1(found: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of `found`."""
    return 2 * float((found & labels).sum()) / max(float(found.sum() + labels.sum()), 1.0)


def _letter_features(data: _Words, labels: np.ndarray, config: AbsorptionConfig) -> list[int]:
    """The features whose firing tells the letter best on the train words (F1), as many together as raise F1."""
    fires, labels = (data.features[data.train] > 0).astype(np.float32), labels[data.train]
    codes = np.unique(data.words[data.train][labels], return_inverse=True)[1]
    by_word = csr_matrix((np.ones(len(codes), np.float32), (codes, np.arange(len(codes))))) @ fires[labels]
    words = by_word.getnnz(axis=0) / (codes.max() + 1)
    general = words >= min(config.min_coverage, words.max())
    covered, own, best = np.zeros(len(labels), dtype=bool), [], 0.0
    for _ in range(config.max_features):
        hits = fires.T @ (labels & ~covered) + (labels & covered).sum()  # with each feature added to those chosen
        found = fires.T @ (~covered).astype(np.float32) + covered.sum()
        scores = np.where(general, 2 * hits / (found + labels.sum()), -1.0)
        feature = int(scores.argmax())
        if own and scores[feature] < best + config.f1_gain:
            break
        own, best = [*own, feature], scores[feature]
        covered |= fires[:, [feature]].toarray().ravel() > 0
    return own


def _one_letter(
    letter: str, labels: np.ndarray, data: _Words, decoder: np.ndarray, config: AbsorptionConfig
) -> dict | None:
    """One row of the result; None where a half has no word of the letter."""
    train, held = data.train, ~data.train
    if not labels[train].any() or not labels[held].any():
        return None
    probe = fit_probe(data.z[train], labels[train], 0.1)
    direction = probe.coef_[0] / data.spread  # the probe's weight for the raw activation
    direction = direction / np.linalg.norm(direction)
    own = _letter_features(data, labels, config)
    scores = probe.decision_function(data.z[held])
    fires = np.asarray(data.features[held][:, own].sum(1)).ravel() > 0
    positive = labels[held] & (scores > 0)
    silent = positive & ~fires
    absorbed = np.zeros(len(silent), dtype=bool)
    absorbed[silent] = _replaced(data.features[held][silent], decoder, direction, config)
    per_word = pd.DataFrame({"absorbed": absorbed, "positive": positive}).groupby(data.words[held]).sum().astype(float)
    low, high = paired_bootstrap(per_word["absorbed"].to_numpy(), per_word["positive"].to_numpy(), seed=config.seed)
    counts = {"positive": int(positive.sum()), "silent": int(silent.sum()), "absorbed": int(absorbed.sum())}
    f1 = _f1(fires, labels[held])
    measurable = f1 >= config.min_f1 and counts["positive"] > 0
    rate, low, high = (counts["absorbed"] / counts["positive"], low, high) if measurable else [float("nan")] * 3
    return {
        "letter": letter,
        "words": len(np.unique(data.words[labels])),
        "probe_auc": auc_interval(scores, labels[held], n=1)[0],
        "features": own,
        "f1": f1,
        "measurable": measurable,
        **counts,
        "rate": rate,
        "low": low,
        "high": high,
    }


def _replaced(
    features: csr_matrix, decoder: np.ndarray, direction: np.ndarray, config: AbsorptionConfig
) -> Bool[np.ndarray, " tokens"]:
    """Whether one firing feature lies along the direction and makes up `share` of what the features put there."""
    along = decoder @ direction
    cosine = along / np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    parts = features.multiply(along).toarray().clip(min=0)  # [tokens, d_sae]; few tokens
    largest = parts.argmax(1)
    most = parts[np.arange(len(parts)), largest]
    enough = most >= config.share * np.maximum(parts.sum(1), 1e-12)
    return enough & (cosine[largest] > config.cosine / np.sqrt(len(direction)))
