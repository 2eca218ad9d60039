"""How well a model predicts texts, in a unit that models with different tokenizers share: bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from prism.data import tokenize
from prism.evaluation.streaming import logit_rows, sequence_nats


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
    size, nats = batch_size or logit_rows(model, batch), []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        nats.append(sequence_nats(model(part.tokens, return_type="logits"), part.tokens, part.keep[:, 1:]))
    return pd.DataFrame({
        "bits": np.concatenate(nats) / math.log(2), "tokens": batch.keep.sum(1).numpy(),
        "bytes": [len(text.encode()) for text in texts],
    })  # fmt: skip


def bits_per_byte(frame: pd.DataFrame) -> float:
    """Bits of all texts over bytes of all texts, from `text_bits`.

    >>> bits_per_byte(pd.DataFrame({"bits": [8.0, 4.0], "bytes": [2, 4]}))
    2.0
    """
    return float(frame["bits"].sum() / frame["bytes"].sum())
