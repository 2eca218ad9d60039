"""Phase 6e: what a model and its SAE are, and what a byte of text costs two models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from prism.analysis import confidence_interval
from prism.evaluation import bits_per_byte
from prism.phases.phase_6e.methods import Reading


def size(reading: Reading) -> int:
    """Number of a model's parameters, read off its settings (shared weights once)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(reading.model.original_model.config).num_parameters()


def describe(reading: Reading) -> dict[str, object]:
    """What a model and its SAE are, for a table: sizes, where the SAE reads, and how many features fire at once."""
    block = re.search(r"\d+", reading.sae.cfg.metadata.hook_name)
    return {
        "parameters": size(reading),
        "vocabulary": reading.model.cfg.d_vocab,
        "tokens": len(reading.matrix.table),
        "SAE in block": f"{block.group() if block else '?'} of {reading.model.cfg.n_layers}",
        "features": reading.matrix.values.shape[1],
        "L0": reading.matrix.l0(),
    }


def bits_interval(cost: pd.DataFrame, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of bits per byte over texts, from `evaluation.text_bits`."""
    rows = cost[["bits", "bytes"]].to_numpy(float)
    return confidence_interval(rows, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), seed=seed)


def bits_gap(large: pd.DataFrame, small: pd.DataFrame, seed: int = 0) -> tuple[float, float, float]:
    """How many bits per byte a model needs fewer than another on the same texts, and the 95 % interval over texts.

    Args:
        large, small: of `evaluation.text_bits`, one row a text.
    """
    rows = np.column_stack([small["bits"] - large["bits"], large["bytes"]]).astype(float)
    gap = rows[:, 0].sum() / rows[:, 1].sum()
    return gap, *confidence_interval(rows, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), seed=seed)


def gaps(large: pd.DataFrame, small: pd.DataFrame, kinds: Mapping[str, Sequence[int]], seed: int = 0) -> pd.DataFrame:
    """`bits_gap` for each kind of text, the largest first.

    Args:
        kinds: name -> its rows in the two tables.

    Returns:
        One row a kind: bits fewer (per byte), low, high.
    """
    rows = {kind: bits_gap(large.loc[of], small.loc[of], seed) for kind, of in kinds.items()}
    return pd.DataFrame(rows, index=["bits fewer", "low", "high"]).T.sort_values("bits fewer", ascending=False)


def by_kind(costs: Mapping[str, pd.DataFrame], kinds: Mapping[str, Sequence[int]], seed: int = 0) -> pd.DataFrame:
    """Bits per byte of each model on each kind of text, for `visualization.grouped_dots`: with `bits_interval`."""
    rows = [
        (kind, name, bits_per_byte(cost.loc[of]), *bits_interval(cost.loc[of], seed))
        for name, cost in costs.items()
        for kind, of in kinds.items()
    ]
    return pd.DataFrame(rows, columns=["category", "model", "value", "low", "high"])
