"""A measure that models of different size and tokenizer share: bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from prism.data import tokenize
from prism.evaluation.predictions import Predictions, logit_rows


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
