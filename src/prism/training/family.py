"""SAEs trained on this machine: one for a model that has none, and the further ones that notebooks compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from prism.data import DATA, TokenBatch, corpus_batch, load_corpus
from prism.device import as_float16
from prism.manifest import intact
from prism.models import (
    HOME_TOKENS,
    MINI,
    SMOLLM2,
    ModelSpec,
    harvest_kept,
    home_folder,
    load_model,
    norm_limit,
    random_model,
    without_massive,
)
from prism.sae import SaeConfig, SparseAutoencoder, read_sae, save_saelens
from prism.training.loop import TrainConfig, train
from prism.training.monitor import Monitor

WIDTH = 8  # features a channel, of the SAEs that are compared
TARGET_L0 = 32
HELD_OUT = 10  # every so many documents of a corpus, one is kept out of training, for evaluation
PENALISED = {"relu": 1.0, "gated": 0.5, "jumprelu": 0.5}  # first guess of the coefficient; L0 steers it


@dataclass(frozen=True)
class Member:
    """One of the SAEs that are compared: what it is, and how it differs from BatchTopK at seed 0."""

    title: str
    sae: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    random_model: bool = False


FAMILY: dict[str, Member] = {
    "batch_topk": Member("BatchTopK"),
    "topk": Member("TopK", {"architecture": "topk"}),
    "matryoshka": Member("Matryoshka BatchTopK", {"architecture": "matryoshka"}),
    "relu": Member("ReLU + L1", {"architecture": "relu"}),
    "gated": Member("Gated", {"architecture": "gated"}),
    "jumprelu": Member("JumpReLU", {"architecture": "jumprelu"}),
    "seed-1": Member("BatchTopK, seed 1", {"seed": 1}, {"seed": 1}),
    "seed-2": Member("BatchTopK, seed 2", {"seed": 2}, {"seed": 2}),
    "random-decoder": Member("BatchTopK with a frozen random decoder", training={"freeze_decoder": True}),
    "random-model": Member("BatchTopK on the model with random weights", random_model=True),
}


def member_configs(
    name: str, d_in: int, tokens: int = 1_000_000, target_l0: int = TARGET_L0, width: int = WIDTH
) -> tuple[SaeConfig, TrainConfig]:
    """Settings of one member of the family: all share width (features a channel), tokens, batches and L0.

    Raises:
        ValueError: no such member.
    """
    if name not in FAMILY:
        raise ValueError(f"no SAE '{name}' in the family; choose from {', '.join(FAMILY)}")
    member = FAMILY[name]
    sae = replace(SaeConfig(d_in, width * d_in, k=min(target_l0, width * d_in)), **member.sae)
    config = TrainConfig(tokens=tokens, dead_after=tokens // 16, resample_every=tokens // 10)
    if sae.architecture in PENALISED:
        sae = replace(sae, sparsity=PENALISED[sae.architecture])
        config = replace(config, target_l0=float(target_l0))
    return sae, replace(config, **member.training)


def training_documents(corpus: str) -> pd.DataFrame:
    """The documents of a corpus that SAEs are trained on here: nine of ten, without copies of the tenth."""
    documents = load_corpus(corpus)
    copies = documents["text"].isin(held_out_documents(corpus)["text"])
    return documents[~copies].reset_index(drop=True)


def held_out_documents(corpus: str) -> pd.DataFrame:
    """The other tenth, for evaluation."""
    return load_corpus(corpus).iloc[::HELD_OUT].reset_index(drop=True)


def held_out_batch(spec: ModelSpec, tokenizer, n_tokens: int) -> TokenBatch:
    """Tokens of the held-out documents, at least `n_tokens` if there are so many."""
    return first_sequences(corpus_batch(held_out_documents(spec.corpus), tokenizer, spec.context), n_tokens)


def first_sequences(batch: TokenBatch, n_tokens: int) -> TokenBatch:
    """The first sequences of a batch that hold at least `n_tokens` together; all if there are fewer."""
    enough = int((batch.keep.sum(1).cumsum(0) < n_tokens).sum()) + 1
    return batch[:enough]


@lru_cache(maxsize=2)
def training_activations(
    spec: ModelSpec, hook_name: str, n_tokens: int = HOME_TOKENS, random_weights: bool = False
) -> np.ndarray:
    """One hook's activations on the training documents, `[tokens, d_in]`, as float16 if they fit there; BOS, padding
    and massive tokens are left out.

    Args:
        n_tokens: how many at most; fewer if the corpus holds fewer.
    """
    model = random_model(spec) if random_weights else load_model(spec, bulk=True)
    limit = training_limit(spec, hook_name, random_weights)
    batch = without_massive(model, first_sequences(_training_batch(spec), n_tokens), hook_name, limit)
    return np.concatenate([as_float16(x).numpy() for x in harvest_kept(model, hook_name, batch)])[:n_tokens]


@lru_cache(maxsize=1)
def _training_batch(spec: ModelSpec) -> TokenBatch:
    """All training documents of a model's corpus as tokens."""
    return corpus_batch(training_documents(spec.corpus), load_model(spec).tokenizer, spec.context)


@lru_cache(maxsize=8)
def training_limit(spec: ModelSpec, hook_name: str, random_weights: bool = False) -> float | None:
    """Norm of the residual stream above which `training_activations` leaves a token out (see `models.massive`).

    Returns:
        None where no token of a sample exceeds it, as in small models.
    """
    model, sample = random_model(spec) if random_weights else load_model(spec), _training_batch(spec)[:64]
    limit = norm_limit(model, sample, hook_name)
    return limit if without_massive(model, sample, hook_name, limit).n_tokens < sample.n_tokens else None


def _homes(spec: ModelSpec) -> list[Path]:
    """Where a model's family may be: embedded, in the model's own folder, or trained here."""
    embedded = {MINI.folder: DATA / "saes" / "family", SMOLLM2.folder: DATA / "smollm2" / "saes" / "family"}
    beside = spec.folder and embedded.get(spec.folder, spec.folder / "saes" / "family")
    return ([beside] if beside else []) + [home_folder(spec) / "family"]


def _members_in(home: Path) -> set[str]:
    return {file.parent.name for file in home.glob("*/sae_weights.safetensors")}


def trained_family(spec: ModelSpec) -> set[str]:
    """Names of the members that are on this disk for a model: embedded, or trained here."""
    return set().union(*map(_members_in, _homes(spec)))


def family_front(spec: ModelSpec) -> pd.DataFrame | None:
    """Measures of a model's family at several L0, as its makers wrote them (`front.csv`); None if it has none.

    Returns:
        One row an SAE: member, target_l0, and measures of `evaluation.evaluate` under their names there.
    """
    path = next((home / "front.csv" for home in _homes(spec) if (home / "front.csv").is_file()), None)
    return pd.read_csv(intact(path)) if path else None


def load_family(
    spec: ModelSpec, name: str, monitor: Monitor | None = None, tokens: int = 400_000, distinct: int = HOME_TOKENS
) -> SAE:
    """A member of the family at the model's default hook: embedded, or trained here once (about a minute) and kept.

    Args:
        tokens: activations to train on, where it must be trained; distinct: how many of them are different.

    Raises:
        ValueError: no such member.
    """
    member_configs(name, 1)  # refuses an unknown name before anything is loaded
    folder = next((home / name for home in _homes(spec) if name in _members_in(home)), _homes(spec)[-1] / name)
    if not (folder / "sae_weights.safetensors").is_file():
        hook_name = spec.sae().hook_name
        activations = training_activations(spec, hook_name, distinct, FAMILY[name].random_model)
        sae, config = member_configs(name, activations.shape[1], tokens)
        trained = train(activations, sae, config, monitor or Monitor(FAMILY[name].title))
        limit = training_limit(spec, hook_name, FAMILY[name].random_model)
        metadata = metadata_of(trained, config, spec, hook_name, len(activations), massive_norm=limit)
        save_saelens(trained, folder, metadata)
    return read_sae(folder)


def train_for_model(spec: ModelSpec, hook_name: str, folder: Path) -> None:
    """Train an SAE of modest size on one hook of a model and save it in SAELens' format."""
    activations = training_activations(spec, hook_name, HOME_TOKENS)
    d_in = activations.shape[1]
    config = TrainConfig(tokens=4 * len(activations), dead_after=len(activations) // 2)
    trained = train(activations, SaeConfig(d_in, WIDTH * d_in), config, progress=f"SAE at {hook_name}")
    limit = training_limit(spec, hook_name)
    save_saelens(trained, folder, metadata_of(trained, config, spec, hook_name, len(activations), massive_norm=limit))


def metadata_of(
    sae: SparseAutoencoder, config: TrainConfig, spec: ModelSpec, hook_name: str, distinct: int, text: str = "",
    massive_norm: float | None = None,
) -> SAEMetadata:  # fmt: skip
    """What SAELens keeps beside an SAE's weights: trained without weight processing, BOS in front but left out.

    Args:
        distinct: different activations that it was trained on; text: what they came from, if not the spec's corpus.
        massive_norm: of the residual stream, above which a token was left out (see `models.massive`).
    """
    return SAEMetadata(
        model_name=spec.name,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=spec.context,
        prepend_bos=True,
        exclude_special_tokens=False,  # end tokens between documents are trained on, position 0 is not
        model_from_pretrained_kwargs={},
        training_samples=config.steps * config.batch,
        training_data=text or f"{distinct:,} tokens of the corpus '{spec.corpus}'",
        training_architecture=sae.config.architecture,
        **({} if massive_norm is None else {"massive_norm": massive_norm}),
    )
