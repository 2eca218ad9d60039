"""What phase 3 compares, and one pass of the model that reads for all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prism.data import TokenBatch
from prism.evaluation import Evaluation, evaluate_all
from prism.features import FeatureMatrix, encode_activations
from prism.models import ModelSpec, activations_at, is_massive, load_sae, massive_norm, random_model, residual_hook

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


def untrained_twin(spec: ModelSpec, members: dict, batch: TokenBatch, seed: int = 0) -> dict[str, Evaluation]:
    """The family's `random-model` measured on the model that it was trained on, whose weights are random; without ΔCE,
    for that model predicts nothing. Empty if the member is not there."""
    mine = {name: members[name] for name in ("random-model",) if name in members}
    return measure(dict.fromkeys(mine, random_model(spec)), mine, batch, seed, with_ce=False) if mine else {}


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
