"""Exchange with SAELens: the same function as one of its SAEs, back from one, and saved in its format."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from prism.sae.architectures import BatchTopK, Gated, JumpReLU, ReLU, TopK, make_sae
from prism.sae.base import SaeConfig, SparseAutoencoder

KINDS = {  # ours -> theirs, and their settings
    ReLU: (StandardSAE, StandardSAEConfig),
    TopK: (TopKSAE, TopKSAEConfig),
    BatchTopK: (JumpReLUSAE, JumpReLUSAEConfig),  # one threshold for all features takes the batch's place
    Gated: (GatedSAE, GatedSAEConfig),
    JumpReLU: (JumpReLUSAE, JumpReLUSAEConfig),
}
NAMES = {"standard": "relu", "topk": "topk", "gated": "gated", "jumprelu": "jumprelu"}


@torch.no_grad()
def to_saelens(sae: SparseAutoencoder, metadata: SAEMetadata | None = None) -> SAE:
    """The same function as a SAELens SAE, ready for inference.

    BatchTopK and Matryoshka become 'jumprelu' with one threshold; the others keep their kind.
    """
    kind, settings = next(pair for cls, pair in KINDS.items() if isinstance(sae, cls))
    k = {"k": sae.config.k} if isinstance(sae, TopK) else {}
    theirs = kind(settings(sae.config.d_in, sae.config.d_sae, metadata=metadata or SAEMetadata(), **k))
    theirs.W_enc.copy_(sae.encoder.T)
    theirs.W_dec.copy_(sae.W_dec)
    theirs.b_dec.copy_(sae.b_dec)
    if isinstance(sae, Gated):
        for name, value in (("b_gate", sae.b_enc), ("b_mag", sae.b_mag), ("r_mag", sae.r_mag)):
            getattr(theirs, name).copy_(value)
    else:
        theirs.b_enc.copy_(sae.b_enc)
    if kind is JumpReLUSAE:
        theirs.threshold.copy_(sae.threshold.expand(sae.config.d_sae))
    return theirs.eval()


@torch.no_grad()
def from_saelens(theirs: SAE) -> SparseAutoencoder:
    """One of our SAEs with the weights of a SAELens SAE: the same function, to read or to train on.

    Raises:
        ValueError: an architecture or a setting that has no counterpart here.
    """
    name, cfg = theirs.cfg.architecture(), theirs.cfg
    if name not in NAMES:
        raise ValueError(f"no counterpart of SAELens' '{name}' here; there is one of {', '.join(NAMES)}")
    for setting, wanted in (("apply_b_dec_to_input", True), ("normalize_activations", "none"),
                            ("rescale_acts_by_decoder_norm", False)):  # fmt: skip
        if getattr(cfg, setting, wanted) != wanted:
            raise ValueError(f"this SAE has {setting} = {getattr(cfg, setting)!r}; only {wanted!r} can be taken over")
    k = getattr(cfg, "k", min(SaeConfig.k, cfg.d_sae))
    sae = make_sae(SaeConfig(cfg.d_in, cfg.d_sae, NAMES[name], k=k))
    sae.W_enc.copy_(theirs.W_enc.T)
    sae.W_dec.copy_(theirs.W_dec)
    sae.b_dec.copy_(theirs.b_dec)
    sae.b_enc.copy_(theirs.b_gate if name == "gated" else theirs.b_enc)
    if isinstance(sae, Gated):
        sae.b_mag.copy_(theirs.b_mag)
        sae.r_mag.copy_(theirs.r_mag)
    if isinstance(sae, JumpReLU):
        exact = theirs.threshold.double().clamp(min=0).log()  # e^-inf is 0; in float32, e^(log t) need not be t
        sae.log_threshold = torch.nn.Parameter(exact)
    return sae.eval()


def save_saelens(sae: SparseAutoencoder, folder: Path, metadata: SAEMetadata) -> None:
    """Write a trained SAE to a folder in SAELens' format, float16: `SAE.load_from_disk(folder)` reads it.

    The files are written to a temporary folder first, so that a full disk leaves what stood there.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        weights, cfg = to_saelens(sae, metadata).save_model(temporary)
        save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)
        settings = json.loads(Path(cfg).read_text()) | {"dtype": "float16"}
        Path(cfg).write_text(json.dumps(settings, indent=1) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        for file in (weights, cfg):
            os.replace(file, folder / Path(file).name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
