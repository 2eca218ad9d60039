"""Exchange with SAELens: the same function as one of its SAEs, back from one, and saved in its format."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import sae_lens
import torch
from jaxtyping import Float
from sae_lens import SAE, TrainingSAE
from sae_lens.loading.pretrained_sae_loaders import handle_pre_6_0_config, read_sae_components_from_disk
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism.device import as_float16
from prism.files import read_json, reading
from prism.manifest import intact
from prism.sae.architectures import BatchTopK, Gated, JumpReLU, ReLU, TopK, make_sae
from prism.sae.base import SaeConfig, SparseAutoencoder

KINDS = {  # ours -> theirs, and their settings
    ReLU: (StandardSAE, StandardSAEConfig),
    BatchTopK: (JumpReLUSAE, JumpReLUSAEConfig),  # one threshold for all features takes the batch's place
    TopK: (TopKSAE, TopKSAEConfig),  # after BatchTopK, which is one
    Gated: (GatedSAE, GatedSAEConfig),
    JumpReLU: (JumpReLUSAE, JumpReLUSAEConfig),
}
NAMES = {"standard": "relu", "topk": "topk", "gated": "gated", "jumprelu": "jumprelu"}
ONLY_TRAINING = ("batchtopk", "matryoshka_batchtopk")  # known in training alone: they become 'jumprelu'
FIELDS = {
    "model_name": str,
    "prepend_bos": bool,
    "context_size": int,
    "seqpos_slice": list,
    "hook_head_index": int,
    "model_from_pretrained_kwargs": dict,
}
SCALER = "activation_scaler.json"  # what a checkpoint of SAELens' training has beside it
HEADS = "heads are not read one by one; an SAE at blocks.L.hook_attn_out reads them together"
PER_HEAD = re.compile(r"attn\.hook_(rot_)?(q|k|v|z|result|pattern|attn_scores)$")
OTHER_WEIGHTS = (
    "checkpoint_index",
    "checkpoint_value",
    "revision",
    "first_n_layers",
    "refactor_factored_attn_matrices",
)


@torch.no_grad()
def to_saelens(sae: SparseAutoencoder, metadata: SAEMetadata | None = None) -> SAE:
    """The same function as a SAELens SAE, ready for inference.

    BatchTopK and Matryoshka become 'jumprelu' with one threshold; the others keep their kind.
    """
    kind, settings = next(pair for cls, pair in KINDS.items() if isinstance(sae, cls))
    k = {"k": sae.config.k} if kind is TopKSAE else {}
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
    check_settings(theirs)
    for setting, wanted in (
        ("apply_b_dec_to_input", True),
        ("normalize_activations", "none"),
        ("rescale_acts_by_decoder_norm", False),
    ):
        if getattr(cfg, setting, wanted) != wanted:
            raise ValueError(f"this SAE has {setting} = {getattr(cfg, setting)!r}; only {wanted!r} can be taken over")
    k = getattr(cfg, "k", min(SaeConfig.k, cfg.d_sae))
    sae = make_sae(SaeConfig(cfg.d_in, cfg.d_sae, NAMES[name], k=k))
    sae.W_enc.copy_(theirs.W_enc.T)
    sae.W_dec.copy_(theirs.W_dec * getattr(theirs.activation_fn, "norm", torch.ones(1))[:, None])
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
    """Write a trained SAE to a folder in SAELens' format: `SAE.load_from_disk(folder)` reads it. In float16 if it fits.

    The files are written to a temporary folder first, so that a full disk leaves what stood there.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        weights, cfg = to_saelens(sae, metadata).save_model(temporary)
        tensors = load_file(weights)
        halves = {name: as_float16(tensor).contiguous() for name, tensor in tensors.items()}
        dtype = "float16" if {tensor.dtype for tensor in halves.values()} == {torch.float16} else "float32"
        save_file(halves if dtype == "float16" else tensors, weights)
        settings = json.loads(Path(cfg).read_text(encoding="utf-8")) | {"dtype": dtype}
        Path(cfg).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for file in (weights, cfg):
            os.replace(file, folder / Path(file).name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write '{folder}' ({error}); nothing was changed there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_config(folder: str | Path) -> dict:
    """What `cfg.json` in an SAE's folder says, with its hook point as `hook_name`.

    Raises:
        ValueError: damaged, or a field is missing or of another kind; the message names file and field.
    """
    path = Path(folder) / "cfg.json"
    cfg = read_json(path)
    metadata = (cfg.get("metadata") or cfg) if isinstance(cfg, dict) else None  # in one level before SAELens 6
    if not isinstance(metadata, dict):
        raise ValueError(
            f"'{path}' does not hold the settings of an SAE: needed is an object with d_in, d_sae and, in "
            "an object metadata, hook_name"
        )
    for field in ("d_in", "d_sae"):
        if type(cfg.get(field)) is not int or cfg[field] < 1:
            raise ValueError(f"'{path}' has {field} = {cfg.get(field)!r}; needed is a whole number above 0")
    for field, kind in FIELDS.items():
        if not isinstance(value := metadata.get(field), kind | None):
            raise ValueError(f"'{path}' has {field} = {value!r}; needed is null or a value of type {kind.__name__}")
    hook = metadata.get("hook_name", metadata.get("hook_point"))
    if not isinstance(hook, str) or not re.match(r"blocks\.\d+\.\w", hook):
        raise ValueError(f"'{path}' names the hook point {hook!r}; needed is metadata.hook_name blocks.L.…")
    return cfg | {"hook_name": hook}


def read_sae(folder: str | Path) -> SAE:
    """An SAE from a folder in SAELens' format, in float32 and `ready`; one saved in training in its inference form.

    Raises:
        ValueError: files that are damaged or do not fit together, or a setting that is not honoured here.
    """
    folder = intact(Path(folder))
    cfg, weights, scaler = read_config(folder), folder / "sae_weights.safetensors", folder / SCALER
    name = cfg.get("architecture", None if cfg.get("metadata") else "standard")
    in_training = "decoder_init_norm" in cfg or name in ONLY_TRAINING
    with reading(weights):
        try:
            _check_architecture(name, (*NAMES, *ONLY_TRAINING))
            settings = cfg if cfg.get("metadata") else handle_pre_6_0_config(cfg)
            settings["metadata"].setdefault("sae_lens_version", sae_lens.__version__)  # else read as one before 6
            _check_activation(cfg, settings)
            parts = read_sae_components_from_disk(settings | {"device": "cpu", "dtype": "float32"}, weights)
            sae = (TrainingSAE if in_training else SAE).load_from_disk(folder, converter=lambda *_, **__: parts)
            if sae.cfg.normalize_activations != "none" and scaler.is_file():
                _fold_normalization(sae, scaler)
            return ready(_for_inference(sae) if in_training else sae)
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"the SAE in '{folder}' cannot be loaded: {' '.join(what.split())}") from error


@torch.no_grad()
def ready(sae: SAE) -> SAE:
    """An SAE as it is used here: checked, each decoder row of norm 1 (in place), frozen.

    Raises:
        ValueError: a setting that is not honoured here, or weights that are NaN or infinite.
    """
    check_settings(sae)
    for name, tensor in sae.named_parameters():
        if len(bad := (~tensor.isfinite()).nonzero()):
            where = "row" if tensor.ndim > 1 else "entry"
            raise ValueError(f"{where} {int(bad[0, 0])} of {name} is NaN or infinite; fetch or train it again")
    _fold_decoder(sae)
    return sae.eval().requires_grad_(False)


def check_settings(sae: SAE) -> None:
    """Refuse an SAE that would be taken for another, by a setting or a piece of its metadata that is not honoured here.

    Raises:
        ValueError: the message names the setting.
    """
    cfg, metadata = sae.cfg, sae.cfg.metadata
    _check_architecture(cfg.architecture(), NAMES)
    hook, applied = metadata.hook_name, ("none", "layer_norm", "constant_norm_rescale")  # the latter two by SAELens
    kwargs = metadata.model_from_pretrained_kwargs or {}
    for name, found, honoured, why in (
        (
            "normalize_activations",
            cfg.normalize_activations,
            cfg.normalize_activations in applied,
            "fold what training measured into the weights (`sae.fold_activation_norm_scaling_factor`), save it again",
        ),
        ("reshape_activations", cfg.reshape_activations, cfg.reshape_activations == "none", HEADS),
        ("hook_head_index", metadata.hook_head_index, metadata.hook_head_index is None, HEADS),
        ("hook_name", hook, not PER_HEAD.search(hook or ""), HEADS),
        (
            "hook_name_out",
            metadata.hook_name_out,
            metadata.hook_name_out in (None, hook),
            "it does not rebuild what it reads",
        ),
        *(
            (
                name,
                kwargs.get(name),
                kwargs.get(name) in (None, "main") or kwargs[name] is False,
                "it belongs to other weights of its model than those that are loaded here",
            )
            for name in OTHER_WEIGHTS
        ),
    ):
        if not honoured:
            raise ValueError(f"this SAE has {name} = {found!r}, which is not honoured here: {why}")


def _check_architecture(name: str | None, known: Collection[str]) -> None:
    if name not in known:
        why = "; a transcoder rebuilds another activation than it reads" if "transcoder" in str(name) else ""
        raise ValueError(f"no counterpart of SAELens' '{name}' here; there is one of {', '.join(known)}{why}")


def _check_activation(cfg: dict, settings: dict) -> None:
    """Refuse an activation function that SAELens 6 would silently take for another."""
    kind, wanted = settings["architecture"], cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    if wanted not in ("relu", kind):
        raise ValueError(f"this SAE has activation_fn = {wanted!r}, which is not honoured here; 'relu' is, and topk")
    k = settings.get("k")
    if kind == "topk" and not (type(k) is int and 0 < k <= cfg["d_sae"]):
        raise ValueError(f"this SAE is of kind topk and has k = {k!r}; needed is a whole number up to d_sae")


def _fold_normalization(sae: SAE, path: Path) -> None:
    """Fold into the weights what training measured and, at a checkpoint, kept beside them."""
    scaler = ActivationScaler()
    with reading(path):
        scaler.load(path)
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        sae.fold_activation_whitening(scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix)


def _for_inference(trained: TrainingSAE) -> SAE:
    """What SAELens would save for inference."""
    weights = trained.state_dict()
    trained.process_state_dict_for_saving_inference(weights)
    sae = SAE.from_dict(trained.cfg.get_inference_sae_cfg_dict())
    sae.load_state_dict(weights)
    return sae


class Rescaled(torch.nn.Module):
    """An activation function whose result is multiplied by the norms that decoder rows had: TopK chooses before."""

    def __init__(self, activation_fn: torch.nn.Module, norm: Float[Tensor, " d_sae"]):
        super().__init__()
        self.activation_fn = activation_fn
        self.register_buffer("norm", norm)

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return self.activation_fn(pre) * self.norm


def _fold_decoder(sae: SAE) -> None:
    """Give each decoder row norm 1 and its activation the row's size: the same function, and activations compare.

    An SAE whose rows have norm 1 already (within a percent) stays as it is, to the bit.
    """
    norm = sae.get_W_dec_norm()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    elif (norm - 1).abs().max() < 0.01:
        return
    elif isinstance(sae, TopKSAE):
        sae.W_dec.div_(norm[:, None])
        sae.activation_fn = Rescaled(sae.activation_fn, norm)
    else:
        sae.fold_W_dec_norm()
