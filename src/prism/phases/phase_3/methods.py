"""What phase 3 compares, and one pass of the model that reads for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prism.data import TokenBatch, token_table, tokenize
from prism.evaluation import Evaluation, evaluate_all, pca
from prism.features import FeatureMatrix, encode_activations, encode_features
from prism.models import (
    ModelSpec,
    activations_at,
    is_massive,
    kept_activations,
    load_sae,
    massive_norm,
    random_model,
    residual_hook,
)

ROWS = 8  # sequences that are read at once


@dataclass(frozen=True, eq=False)
class Reading:
    """One hook's activations on some texts, for any dictionary of that hook to encode.

    Attributes:
        x: one row a token, BOS and padding left out.
        norms: length of the residual stream before the hook's block, which tells massive tokens.
        table: where each token came from (`data.token_table`).
    """

    x: Float[Tensor, "tokens d_in"]
    norms: Float[Tensor, " tokens"]
    table: pd.DataFrame

    def ordinary(self, dictionary) -> Bool[np.ndarray, " tokens"]:
        """False on tokens that are massive, as the dictionary's metadata have it (see `models.massive`)."""
        limit = massive_norm(dictionary)
        return np.ones(len(self.x), bool) if limit is None else ~is_massive(self.norms, limit).numpy()

    def encode(self, dictionary) -> FeatureMatrix:
        """The features of all tokens under a dictionary of this hook."""
        return encode_activations(dictionary, [self.x], self.table, self.ordinary(dictionary))


@torch.no_grad()
def read(models: dict, saes: dict, batch: TokenBatch, table: pd.DataFrame) -> dict[str, Reading]:
    """The texts' activations at the hook of each SAE, by the hook's name: one pass of a model for all its hooks.

    Args:
        models: name -> the model whose weights are processed as the SAE's metadata say.
        saes: name -> SAE.
        batch: the texts' tokens; table: their `data.token_table`.
    """
    found: dict[str, Reading] = {}
    for model in {id(model): model for model in models.values()}.values():
        hooks = {sae.cfg.metadata.hook_name for name, sae in saes.items() if models[name] is model}
        wanted = sorted(hooks | {residual_hook(hook) for hook in hooks})
        parts: dict[str, list[Tensor]] = {hook: [] for hook in wanted}
        for start in range(0, len(batch), ROWS):
            some = batch[start : start + ROWS]
            for hook, x in activations_at(model, some.tokens, wanted).items():
                parts[hook].append(x[some.keep])
        whole = {hook: torch.cat(x) for hook, x in parts.items()}
        found |= {hook: Reading(whole[hook], whole[residual_hook(hook)].norm(dim=-1), table) for hook in hooks}
    return found


def measure(models: dict, saes: dict, batch: TokenBatch, seed: int = 0, **settings) -> dict[str, Evaluation]:
    """`evaluation.evaluate_all` where SAEs need models of differently processed weights; in the order of `saes`."""
    found: dict[str, Evaluation] = {}
    for model in {id(model): model for model in models.values()}.values():
        mine = {name: sae for name, sae in saes.items() if models[name] is model}
        found |= evaluate_all(model, mine, batch, with_kl=False, seed=seed, **settings)
    return {name: found[name] for name in saes}


def untrained_twin(
    spec: ModelSpec, members: dict, batch: TokenBatch, sample: TokenBatch, seed: int = 0
) -> dict[str, Evaluation]:
    """The family's `random-model` measured on the model that it was trained on, whose weights are random; and PCA of
    the same activations at the same L0, fitted on `sample`. Without ΔCE, for that model predicts nothing. Empty if the
    member is not there."""
    if "random-model" not in members:
        return {}
    sae, model = members["random-model"], random_model(spec)
    found = measure({"random-model": model}, {"random-model": sae}, batch, seed, with_ce=False)
    x = kept_activations(model, sae.cfg.metadata.hook_name, sample)
    rival = {"its PCA": pca(x, max(1, round(found["random-model"].l0)), sae.cfg.metadata)}
    return found | measure(dict.fromkeys(rival, model), rival, batch, seed, with_ce=False)


def to_compare(spec: ModelSpec, most: int = 4) -> list[str]:
    """An SAE of each hook point, the default one's first, at most so many: residual streams by depth, then others."""
    first: dict[str, str] = {}
    for name in (spec.default_sae, *spec.saes):
        first.setdefault(spec.sae(name).hook_name, name)
    chosen = list(first.values())[:most]
    return sorted(chosen, key=lambda name: ("resid" not in spec.sae(name).hook_name, spec.sae(name).layer))


def of_one_hook(spec: ModelSpec, members: dict) -> dict:
    """Name -> SAE, the narrowest first: those of the hook that has the most widths, the family's own among them."""
    plain = {name: members[name] for name in ("batch_topk",) if name in members}
    widths: dict[str, dict] = {spec.sae().hook_name: plain}
    for name, one in spec.saes.items():
        widths.setdefault(one.hook_name, {})[name] = None
    chosen = max(widths.values(), key=len)
    saes = {name: load_sae(spec, name) if sae is None else sae for name, sae in chosen.items()}
    return dict(sorted(saes.items(), key=lambda pair: pair[1].cfg.d_sae))


def last_values(
    model, saes: dict, texts: Sequence[str], features: Sequence[tuple[str, int]], context: int
) -> pd.DataFrame:
    """What features do on the *last* token of each text: a row a text, a column a pair of SAE and feature.

    Args:
        saes: name -> SAE.
        features: pairs of an SAE's name and a feature's number.
        context: the model's longest sequence, BOS included (tokens).
    """
    batch = tokenize(list(texts), model.tokenizer, context)
    table = token_table(batch, model.tokenizer)
    last = table.groupby("text").tail(1).index
    matrices = {name: encode_features(model, saes[name], batch, table) for name, _ in features}
    columns = {f"{name} {i}": matrices[name].column(i)[last] for name, i in features}
    return pd.DataFrame(columns, index=list(texts))


def windows(matrix: FeatureMatrix, feature: int, n: int = 5, before: int = 9) -> list[str]:
    """What stands before a feature's strongest token, that token included, in the `n` texts where it is strongest."""
    column = pd.Series(matrix.column(feature))
    best = column.groupby(matrix.table["text"].to_numpy()).idxmax()
    best = [row for row in best if column[row] > 0]
    tokens, starts = matrix.table["token"].astype(str).to_numpy(), matrix.table["text"].to_numpy()
    shown = []
    for row in sorted(best, key=lambda row: -column[row])[:n]:
        rows = [r for r in range(max(0, row - before), row + 1) if starts[r] == starts[row]]
        shown.append("".join(tokens[rows]).replace("\n", "↵") + f"▮ {column[row]:.0f}")
    return shown
