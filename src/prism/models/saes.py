"""Loading a model's SAEs: from this disk, from the hub's cache, or trained once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from sae_lens import SAE

from prism import hub
from prism.data import CACHE
from prism.device import bulk_dtype, device, dtype_name
from prism.models.loading import from_hub
from prism.models.registry import ModelSpec, SaeSpec
from prism.sae import read_sae, ready


def load_sae(spec: ModelSpec, name: str | None = None) -> SAE:
    """Load a pretrained SAE in float32 on the CPU, ready for inference (streams use a copy on the model's device).

    Raises:
        ValueError: unknown SAE name; or an SAE that is damaged or not honoured here (see `prism.sae.read_sae`).
        FileNotFoundError: embedded files missing, or neither cached nor downloadable.
    """
    sae_spec = spec.sae(name)
    if sae_spec.source is not None:
        return ready(from_hub(
            spec,
            lambda: hub.sae_files(*sae_spec.source),
            lambda: SAE.from_pretrained(*sae_spec.source, device="cpu"),
            f"the SAE '{sae_spec.name}'",
        ))  # fmt: skip
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
    from prism.training import train_for_model  # here, because training reads activations through this package

    folder = home_folder(spec) / sae_spec.name
    if not (folder / "sae_weights.safetensors").is_file():
        print(f"{spec.name} has no SAE: training a small one at {sae_spec.hook_name}, once")
        train_for_model(spec, sae_spec.hook_name, folder)
    return folder
