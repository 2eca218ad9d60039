"""Our measures beside SAELens' own, on the same tokens: what the tests of `evaluation` hold them against."""

from __future__ import annotations

import warnings
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import torch
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from prism.data import TokenBatch
from prism.evaluation.predictions import logit_rows
from prism.evaluation.results import Evaluation
from prism.evaluation.streaming import evaluate
from prism.models import ordinary

ROWS = (  # ours, the group and the name in SAELens' results, why the two differ ("" where they do not)
    ("l0", "sparsity", "l0", ""),
    ("mse", "reconstruction_quality", "mse", ""),
    ("explained_variance", "reconstruction_quality", "explained_variance", ""),
    (
        "explained_variance",
        "reconstruction_quality",
        "explained_variance_legacy",
        "a ratio for each token, then averaged; the mean is taken within each batch",
    ),
    ("cosine", "reconstruction_quality", "cossim", ""),
    (
        "relative_reconstruction_bias",
        "shrinkage",
        "relative_reconstruction_bias",
        "a ratio for each batch, then averaged",
    ),
    ("ce_clean", "model_performance_preservation", "ce_loss_without_sae", ""),
    ("ce_sae", "model_performance_preservation", "ce_loss_with_sae", ""),
    ("ce_zero", "model_performance_preservation", "ce_loss_with_ablation", "SAELens sets BOS to zero as well"),
    ("ce_recovered_zero", "model_performance_preservation", "ce_loss_score", "SAELens sets BOS to zero as well"),
    ("kl", "model_behavior_preservation", "kl_div_with_sae", "SAELens also counts the last position"),
)


@torch.no_grad()
def agreement_with_saelens(model, sae, batch: TokenBatch, batch_size: int | None = None) -> pd.DataFrame:
    """`evaluate` and `sae_lens.evals.run_evals` on the same sequences, measure by measure.

    SAELens leaves tokens out by their id, we by their position, so only full sequences count that have no special
    token but the BOS in front. Both then see the same tokens and the same predictions.

    Args:
        batch: some of its sequences must be unpadded and free of special tokens.
        batch_size: sequences at a time; by default as many as `logit_rows` says.

    Returns:
        One row a measure: measure, ours, SAELens (its own name for it), theirs, difference (ours − theirs), same
        definition, and why not.

    Raises:
        ValueError: no sequence can be compared.
    """
    tokens = _comparable(model, sae, batch)
    size = min(batch_size or logit_rows(model, batch, whole=True), len(tokens))
    tokens = tokens[: len(tokens) // size * size]
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0] = False
    ours = evaluate(model, sae, TokenBatch(tokens, keep), size)
    theirs, features = _run_evals(model, sae, tokens, size)
    rows = [(name, _ours(ours, name), key, theirs[group][key], not reason, reason) for name, group, key, reason in ROWS]
    density = np.array(features["feature_density"])
    gap = int(np.abs(ours.density - density).argmax())
    rows.append(
        (f"density of feature {gap}, which differs most", ours.density[gap], "feature_density", density[gap], True, "")
    )
    frame = pd.DataFrame(rows, columns=["measure", "ours", "SAELens", "theirs", "same definition", "why not"])
    frame.insert(4, "difference", frame["ours"] - frame["theirs"])
    return frame


def _comparable(model, sae, batch: TokenBatch) -> Tensor:
    """Full sequences that begin with BOS and have no special and no massive token after it."""
    special = torch.tensor(model.tokenizer.all_special_ids)
    clean = batch.keep[:, 1:].all(1) & ~torch.isin(batch.tokens[:, 1:], special).any(1)
    clean &= batch.tokens[:, 0] == model.tokenizer.bos_token_id
    clean &= (ordinary(model, sae, batch).keep == batch.keep).all(1)  # SAELens would count them
    if not clean.any():
        raise ValueError("no sequence is full (unpadded) and free of special tokens; give longer documents")
    return batch.tokens[clean]


def _run_evals(model, sae, tokens: Tensor, size: int) -> tuple[dict, dict]:
    """SAELens' results on exactly these sequences: its store reads them from memory, once for each of its passes."""
    rows, metadata = datasets.Dataset.from_dict({"tokens": tokens.tolist()}), sae.cfg.metadata
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a context size that it is then given
        store = ActivationsStore(
            model,
            rows,
            False,
            metadata.hook_name,
            None,
            tokens.shape[1],
            sae.cfg.d_in,
            n_batches_in_buffer=2,
            total_training_tokens=tokens.numel(),
            store_batch_size_prompts=size,
            prepend_bos=True,
            train_batch_size_tokens=tokens.numel(),
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
        )
        n = len(tokens) // size
        config = replace(get_eval_everything_config(size, n, n), compute_featurewise_weight_based_metrics=False)
        return run_evals(sae, store, model, ActivationScaler(), config)


def _ours(found: Evaluation, name: str) -> float:
    if name in ("ce_sae", "ce_zero"):
        sums = found.per_sequence
        return sums[name.replace("ce", "nats")].sum() / sums["predictions"].sum()
    return getattr(found, name)
