"""Measures that models of different size and tokenizer share: bits per byte, and the share of a model that is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from prism.data import tokenize
from prism.evaluation.predictions import Predictions, logit_rows
from prism.evaluation.results import Evaluation


@torch.no_grad()
def text_bits(model, texts: Sequence[str], context: int, batch_size: int | None = None) -> pd.DataFrame:
    """What each text costs a model, in bits, beside the text's size.

    Every token counts, the first as well (it is predicted from BOS alone), since a text's bytes are the same under
    every tokenizer only as a whole.

    Args:
        model: from `models.load_model`; its own tokenizer reads the texts.
        context: the model's longest sequence, BOS included (tokens).
        batch_size: texts at a time; by default as many as `logit_rows` says.

    Returns:
        One row a text, in order: bits, tokens, bytes (of its UTF-8).

    Raises:
        ValueError: an empty text, or one that does not fit the context.
    """
    batch = tokenize(texts, model.tokenizer, context)
    lengths, nats = batch.keep.sum(1), np.zeros(len(batch))
    for rows in lengths.argsort().split(batch_size or logit_rows(model, batch)):  # alike in length: little padding
        width = 1 + int(lengths[rows].max())
        tokens, keep = batch.tokens[rows, :width], batch.keep[rows, :width]
        seen = Predictions(model, tokens)
        nats[rows.numpy()] = seen.nats(seen.clean, keep[:, 1:])
    sizes = [len(text.encode()) for text in texts]
    return pd.DataFrame({"bits": nats / math.log(2), "tokens": lengths.numpy(), "bytes": sizes})


def bits_per_byte(frame: pd.DataFrame) -> float:
    """Bits of all texts over bytes of all texts, from `text_bits`.

    >>> bits_per_byte(pd.DataFrame({"bits": [8.0, 4.0], "bytes": [2, 4]}))
    2.0
    """
    return float(frame["bits"].sum() / frame["bytes"].sum())


def lost_share(
    found: Evaluation, counts: Int[np.ndarray, "resamples sequences"] | None = None
) -> Float[np.ndarray, " resamples"]:
    """Share of what mean-ablation destroys that a reconstruction loses: 1 − CE recovered against the mean.

    Nats are divided by nats of the same model, so that models with different losses can be compared by it.

    Args:
        found: from `evaluate`, with cross-entropies and ablations.
        counts: how often each sequence is drawn in each resample; without it, the one value of all sequences.

    Returns:
        One share a resample; NaN or infinite where mean-ablation costs nothing.

    Raises:
        ValueError: an evaluation without ablations.
    """
    sums = found.per_sequence
    if sums is None or "nats_mean" not in sums:
        raise ValueError("the share lost needs the ablations; evaluate with with_ce=True and ablations=True")
    cost, ablated = ((sums[f"nats_{kind}"] - sums["nats_clean"]).to_numpy() for kind in ("sae", "mean"))
    counts = np.ones((1, len(sums))) if counts is None else counts
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts @ cost) / (counts @ ablated)
