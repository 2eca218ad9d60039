"""What phase 4 reads from the model, and how it measures a dictionary on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.sparse import csr_matrix, diags
from torch import Tensor
from tqdm.auto import tqdm

from prism.data import TokenBatch, corpus_batch, held_out_documents, token_table, training_documents
from prism.evaluation import Evaluation
from prism.evaluation.streaming import SequenceSums, Sums
from prism.features import FeatureMatrix, encode_activations
from prism.models import ModelSpec, activations_at, metadata_of
from prism.sae import SparseAutoencoder, to_saelens
from prism.training import TrainConfig

LENGTH = 128  # tokens of each document, BOS included: short ones make room for many
ROWS = 16  # sequences that are read at once
AT_ONCE = 2_048  # tokens that are encoded at once


@dataclass(frozen=True, eq=False)
class Held:
    """Several hooks' activations on held-out documents: one row a token, the same tokens for all hooks.

    Attributes:
        x: hook name -> activations, BOS and padding left out.
        kept: False on tokens that are massive at the first hook.
        table: where each token came from (`data.token_table`), its document's kind as category.
    """

    x: Mapping[str, Float[Tensor, "tokens d_in"]]
    kept: Bool[Tensor, " tokens"]
    table: pd.DataFrame

    def encode(self, sae: SAE) -> FeatureMatrix:
        """The features of an SAE at one of the hooks; none fires on a massive token."""
        found = encode_activations(sae, [self.x[sae.cfg.metadata.hook_name]], self.table, self.kept.numpy())
        values = csr_matrix(
            diags(self.kept.numpy().astype(np.float32)) @ found.values
        )  # also of an SAE that has no limit
        values.eliminate_zeros()
        return FeatureMatrix(values, self.table.assign(massive=~self.kept.numpy()))

    def neurons(self, hook_name: str) -> FeatureMatrix:
        """A hook's channels as they are, a column where they are above zero and a column where they are below."""
        x = self.x[hook_name] * self.kept[:, None]
        table = self.table.assign(massive=~self.kept.numpy())
        return FeatureMatrix(csr_matrix(torch.cat([x, -x], dim=1).relu().numpy()), table)


def shallowest(spec: ModelSpec) -> str:
    """The hook of the model's SAE that needs the fewest blocks: of the residual stream, if one reads that."""
    saes = sorted(spec.saes.values(), key=lambda s: ("resid" not in s.hook_name, s.layer))
    return saes[0].hook_name


def neuron_sae(spec: ModelSpec) -> str:
    """Name of the model's SAE on the neurons of an MLP; of its default SAE where it has none."""
    return next((name for name, s in spec.saes.items() if s.hook_name.endswith("mlp.hook_post")), spec.default_sae)


def documents(spec: ModelSpec, tokenizer, n_tokens: int, held_out: bool = False) -> tuple[TokenBatch, pd.Series]:
    """The beginnings of the corpus's documents, a kind after the other in turn, until there are enough tokens.

    Args:
        held_out: of the tenth that no SAE here is trained on, else of the rest.

    Returns:
        Their tokens, and each one's kind.
    """
    texts = held_out_documents(spec.corpus) if held_out else training_documents(spec.corpus)
    texts = texts.loc[texts.groupby("kind").cumcount().sort_values(kind="stable").index]
    texts = texts.head(n_tokens // 20 + 20)  # far more than are needed: nearly all are longer
    batch = corpus_batch(texts, tokenizer, min(LENGTH, spec.context))
    enough = int(np.searchsorted(np.cumsum(batch.keep.sum(1).numpy()), n_tokens)) + 1
    return batch[:enough], texts["kind"].iloc[:enough]


@torch.no_grad()
def read(model, hooks: tuple[str, ...], batch: TokenBatch) -> dict[str, Float[Tensor, "tokens d_in"]]:
    """Several hooks' activations on the kept tokens of a batch, from one pass, with a progress bar."""
    parts: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    for start in tqdm(range(0, len(batch), ROWS), desc=f"reading {hooks[0]}", unit="batch", leave=False):
        some = batch[start : start + ROWS]
        for hook, x in activations_at(model, some.tokens, hooks).items():
            parts[hook].append(x[some.keep].flatten(1).float())
    return {hook: torch.cat(part) for hook, part in parts.items()}


def held_out(spec: ModelSpec, model, hooks: tuple[str, ...], n_tokens: int, limit: float) -> Held:
    """About `n_tokens` tokens of held-out documents at several hooks.

    Args:
        limit: tokens whose activation at the first hook is longer are massive.
    """
    batch, kinds = documents(spec, model.tokenizer, n_tokens, held_out=True)
    table, x = token_table(batch, model.tokenizer, kinds), read(model, hooks, batch)
    return Held(x, x[hooks[0]].norm(dim=1) <= limit, table)


def as_saelens(sae: SparseAutoencoder, spec: ModelSpec, hook_name: str, distinct: int, limit: float) -> SAE:
    """A trained SAE as SAELens has it, with what this curriculum wants to know of it.

    Args:
        distinct: activations that it was trained on; limit: the norm above which a token was left out.
    """
    config = TrainConfig(tokens=distinct)
    return to_saelens(sae, metadata_of(sae, config, spec, hook_name, distinct, massive_norm=float(limit)))


@torch.no_grad()
def measure(dictionary, x: Float[Tensor, "tokens d_in"], text: np.ndarray) -> Evaluation:
    """What `evaluation.evaluate` measures without the model, of activations that are there already.

    Args:
        dictionary: anything with `encode` and `decode`.
        text: each token's document.
    """
    rows = torch.from_numpy(np.unique(text, return_inverse=True)[1])
    found, documents = Sums(x.shape[1], len(dictionary.W_dec)), SequenceSums(int(rows.max()) + 1, x.shape[1])
    for part, of in zip(x.split(AT_ONCE), rows.split(AT_ONCE), strict=True):
        f = dictionary.encode(part)
        x_hat = dictionary.decode(f)
        found.add(part, x_hat, f)
        documents.add(of, part, x_hat, f)
    return Evaluation(**found.measures(), per_sequence=documents.frame(found.mean))


def same_tokens(
    x: Float[Tensor, "tokens d_in"], of_twin: Float[Tensor, "some d_in"], keep: Bool[Tensor, " tokens"]
) -> tuple[Float[Tensor, "kept d_in"], Float[Tensor, "kept d_in"]]:
    """A model's and its twin's activations on the same tokens: as many as the twin's, and of these the kept ones."""
    kept = keep[: len(of_twin)]
    return x[: len(of_twin)][kept], of_twin[kept]


def only(matrix: FeatureMatrix, units: Int[np.ndarray, " units"]) -> FeatureMatrix:
    """Some columns of a matrix, in the order given: column `i` of the result was `units[i]`."""
    return FeatureMatrix(csr_matrix(matrix.values[:, units]), matrix.table)


def at_percentiles(scores: pd.DataFrame, by: str, shares: tuple[float, ...]) -> pd.DataFrame:
    """The neuron and the feature at each percentile of a score: units in order of it, ties in order of the unit.

    Args:
        scores: from `units.compare_units`.
        by: the column that they are put in order of.
        shares: from 0, the lowest, to 1.

    Returns:
        One row a share, its index; columns `neuron` and `feature`, and each one's score as `neuron's purity` for a
        score of that name.
    """
    chosen, reached = {}, {}
    for kind in ("neuron", "feature"):
        units = scores[scores["kind"] == kind].sort_values([by, "unit"])
        at = [round(share * (len(units) - 1)) for share in shares]
        chosen[kind] = units["unit"].to_numpy(int)[at]
        reached[f"{kind}'s {by}"] = units[by].to_numpy(float)[at]
    return pd.DataFrame(chosen | reached, index=pd.Index(shares, name="percentile"))
