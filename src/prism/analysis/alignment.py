"""Tokens of two tokenizers that end at the same character, so that two models can be compared word by word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def token_ends(texts: Sequence[str], tokenizer) -> list[Int[np.ndarray, " tokens"]]:
    """Where each token of each text ends (in characters), in the order of `data.tokenize`, BOS left out.

    Raises:
        ValueError: a tokenizer that does not know (only fast ones do).
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("this tokenizer does not say where its tokens lie in the text; load the fast version of it")
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [np.array([end for _, end in offsets], dtype=np.int64) for offsets in found]


def aligned_rows(
    ends_a: Sequence[Int[np.ndarray, " tokens_a"]], ends_b: Sequence[Int[np.ndarray, " tokens_b"]]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows of two token tables whose tokens end at the same character of the same text.

    A causal model has then read the same text in both cases, however it was cut up. Of several tokens with one end
    (the bytes of one character) the last counts. With the same tokenizer twice, the rows are the same twice.

    >>> aligned_rows([np.array([2, 5, 9])], [np.array([5, 7, 9])])
    (array([1, 2]), array([0, 2]))

    Args:
        ends_a: from `token_ends`; ends_b: of the same texts with another tokenizer.

    Returns:
        Row numbers, counted over all texts, as in a `data.token_table`.

    Raises:
        ValueError: different numbers of texts.
    """
    if len(ends_a) != len(ends_b):
        raise ValueError(f"{len(ends_a)} texts against {len(ends_b)}; give the token ends of the same texts")
    rows: list[list[np.ndarray]] = [[], []]
    offset_a = offset_b = 0
    for a, b in zip(ends_a, ends_b, strict=True):
        _, from_a, from_b = np.intersect1d(a[::-1], b[::-1], return_indices=True)  # the last of equal ones comes first
        rows[0].append(offset_a + len(a) - 1 - from_a)
        rows[1].append(offset_b + len(b) - 1 - from_b)
        offset_a, offset_b = offset_a + len(a), offset_b + len(b)
    return tuple(np.concatenate(part).astype(np.int64) for part in rows)
