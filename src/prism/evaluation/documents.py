"""A model's own corpus in activations: held-out documents at several hooks, and a dictionary measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from scipy.sparse import csr_matrix, diags
from torch import Tensor
from tqdm.auto import tqdm

from prism.data import TokenBatch, corpus_batch, held_out_documents, token_table, training_documents
from prism.evaluation.results import Evaluation
from prism.evaluation.streaming import SequenceSums, Sums
from prism.features import FeatureMatrix, encode_activations
from prism.models import ModelSpec, activations_at

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


def take(spec: ModelSpec, tokenizer, n_tokens: int, held_out: bool = False) -> tuple[TokenBatch, pd.Series]:
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
    batch, kinds = take(spec, model.tokenizer, n_tokens, held_out=True)
    table, x = token_table(batch, model.tokenizer, kinds), read(model, hooks, batch)
    return Held(x, x[hooks[0]].norm(dim=1) <= limit, table)


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
