"""A model's SAEs by name: from this disk, from the hub's cache, or trained here once; and those that are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from prism import hub
from prism.data import CACHE, DATA, TokenBatch, corpus_batch, first_sequences, held_out_documents, training_documents
from prism.device import as_float16, bulk_dtype, device, dtype_name
from prism.models.harvesting import harvest_kept
from prism.models.loading import from_hub, load_model, random_model
from prism.models.massive import norm_limit, without_massive
from prism.models.registry import HOME_TOKENS, MINI, SMOLLM2, ModelSpec, SaeSpec
from prism.sae import SaeConfig, SparseAutoencoder, read_sae, ready, save_saelens
from prism.training import Monitor, TrainConfig, train

WIDTH = 8  # features a channel, of the SAEs that are trained here
TARGET_L0 = 32
PENALISED = {"relu": 1.0, "gated": 0.5, "jumprelu": 0.5}  # first guess of the coefficient; L0 steers it


def load_sae(spec: ModelSpec, name: str | None = None) -> SAE:
    """Load a pretrained SAE in float32 on the CPU, ready for inference (streams use a copy on the model's device).

    Raises:
        ValueError: unknown SAE name; or an SAE that is damaged or not honoured here (see `prism.sae.read_sae`).
        FileNotFoundError: embedded files missing, or neither cached nor downloadable.
    """
    sae_spec = spec.sae(name)
    if sae_spec.source is not None:
        return ready(
            from_hub(
                spec,
                lambda: hub.sae_files(*sae_spec.source),
                lambda: SAE.from_pretrained(*sae_spec.source, device="cpu"),
                f"the SAE '{sae_spec.name}'",
            )
        )
    folder = sae_spec.folder or trained_here(spec, sae_spec)
    if not (folder / "sae_weights.safetensors").is_file():
        raise FileNotFoundError(f"the SAE '{sae_spec.name}' is missing: no sae_weights.safetensors in '{folder}'")
    return read_sae(folder)


def home_folder(spec: ModelSpec) -> Path:
    """Where SAEs that this machine trained for a model are kept.

    The name has a key of the model's files, and the device and number format of bulk work where they are not the CPU
    and float32.
    """
    low = "" if bulk_dtype() == torch.float32 else f"-{dtype_name(bulk_dtype())}"
    how = "" if device().type == "cpu" and not low else f"-{device().type}{low}"
    if spec.folder is None:
        return CACHE / "saes" / f"{spec.name}{how}"
    files = sorted(spec.folder.glob("*.safetensors")) + [spec.folder / "config.json"]
    key = hashlib.sha256(str([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]).encode()).hexdigest()
    return CACHE / "saes" / f"{spec.name}-{key[:12]}{how}"


def trained_here(spec: ModelSpec, sae_spec: SaeSpec) -> Path:
    """Folder of an SAE trained on this machine for a model that has none; trains it first if need be (minutes).

    A small SAE (8 features a channel, BatchTopK with k = 32) from the embedded corpus, read by the model's own
    tokenizer: enough to run every notebook, not enough to study the model. Kept under a key of the model's files.
    """
    folder, hook_name = home_folder(spec) / sae_spec.name, sae_spec.hook_name
    if not (folder / "sae_weights.safetensors").is_file():
        print(f"{spec.name} has no SAE: training a small one at {hook_name}, once")
        activations = training_activations(spec, hook_name, HOME_TOKENS)
        d_in, distinct = activations.shape[1], len(activations)
        config = TrainConfig(tokens=4 * distinct, dead_after=distinct // 2)
        _train(spec, hook_name, activations, SaeConfig(d_in, WIDTH * d_in), config, folder, f"SAE at {hook_name}")
    return folder


def _train(
    spec: ModelSpec,
    hook_name: str,
    activations: np.ndarray,
    sae: SaeConfig,
    config: TrainConfig,
    folder: Path,
    title: str,
    random_weights: bool = False,
) -> None:
    """Train an SAE on one hook of a model and save it in SAELens' format."""
    trained = train(activations, sae, config, Monitor(title))
    limit = training_limit(spec, hook_name, random_weights)
    save_saelens(trained, folder, metadata_of(trained, config, spec, hook_name, len(activations), massive_norm=limit))


def metadata_of(
    sae: SparseAutoencoder,
    config: TrainConfig,
    spec: ModelSpec,
    hook_name: str,
    distinct: int,
    text: str = "",
    massive_norm: float | None = None,
) -> SAEMetadata:
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


def held_out_batch(spec: ModelSpec, tokenizer, n_tokens: int) -> TokenBatch:
    """Tokens of the held-out documents, at least `n_tokens` if there are so many."""
    return first_sequences(corpus_batch(held_out_documents(spec.corpus), tokenizer, spec.context), n_tokens)


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


# The family: SAEs of equal settings, to be compared.


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


def load_family(spec: ModelSpec, name: str, tokens: int = 400_000, distinct: int = HOME_TOKENS) -> SAE:
    """A member of the family at the model's default hook: embedded, or trained here once (about a minute) and kept.

    Args:
        tokens: activations to train on, where it must be trained; distinct: how many of them are different.

    Raises:
        ValueError: no such member.
    """
    member_configs(name, 1)  # refuses an unknown name before anything is loaded
    folder = next((home / name for home in _homes(spec) if name in _members_in(home)), _homes(spec)[-1] / name)
    if not (folder / "sae_weights.safetensors").is_file():
        hook_name, member = spec.sae().hook_name, FAMILY[name]
        activations = training_activations(spec, hook_name, distinct, member.random_model)
        settings = member_configs(name, activations.shape[1], tokens)
        _train(spec, hook_name, activations, *settings, folder, member.title, member.random_model)
    return read_sae(folder)
