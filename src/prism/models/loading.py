"""Loading a model with hook points: from this disk, or from the hub's cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial

import torch
import transformers
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism import hub
from prism.device import bulk_dtype, device, dtype_name
from prism.models.fetching import WHEELS
from prism.models.registry import ModelSpec


def from_hub(spec: ModelSpec, files: Callable[[], list], load: Callable, what: str):
    """Fetch what the cache lacks of some files, then `load()` from the cache alone; else one clear error.

    `files()` is empty for a release in another format than SAELens' own: SAELens downloads that itself.
    """
    try:
        wanted = files()
        hub.fetch(wanted, verify=False)
    except hub.HubError as error:
        raise hub.not_available(what, spec.name, spec.download, error) from None
    with hub.cached_only() if wanted else nullcontext():
        return load()


SMALL = 50_000_000  # parameters up to which a lower precision gains nothing


def load_model(spec: ModelSpec, sae: SAE | None = None, bulk: bool = False) -> TransformerBridge:
    """Load a language model with hook points, in float32, on the device that `PRISM_DEVICE` names.

    The same model with the same weight processing is loaded once and shared; two SAEs that need different
    processing get two variants of the model.

    Args:
        sae: an SAE for it; weights are processed as that SAE's metadata says (by default not at all).
        bulk: for work in bulk that no printed number rests on: in the number format that `device.bulk_dtype` chooses
            (small models stay as they are).

    Raises:
        FileNotFoundError: files missing, or neither cached nor downloadable.
        ValueError: a model without a tokenizer, or whose tokenizer has neither a BOS nor an end-of-text token.
    """
    processing = tuple(weight_processing(sae).items())
    model, low = _boot(spec, processing, None, device()), bulk_dtype()
    if not bulk or low == torch.float32 or sum(p.numel() for p in model.parameters()) < SMALL:
        return model
    return _lowered(spec, processing, device(), low)


def random_model(spec: ModelSpec, seed: int = 0) -> TransformerBridge:
    """The same architecture and tokenizer with untrained, random weights: a control for whatever an SAE finds.

    Source: Heap et al. 2025 (arXiv 2501.17727).
    """
    return _boot(spec, tuple(weight_processing(None).items()), seed, device())


@lru_cache(maxsize=1)
def _lowered(
    spec: ModelSpec, processing: tuple[tuple[str, bool], ...], where: torch.device, dtype: torch.dtype
) -> TransformerBridge:
    """A copy of the model in another number format; says so."""
    print(f"{spec.name}: bulk work runs in {dtype_name(dtype)} on this {where.type.upper()} (PRISM_DTYPE=float32 turns "
          "that off)", flush=True)  # fmt: skip
    model = _boot.__wrapped__(spec, processing, None, where)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype, print_details=False)
    for name, buffer in model.named_buffers():
        buffer.data = exact[name]  # rotary frequencies: rounded, they would turn by another angle
    model.cfg.dtype = dtype
    return model


@lru_cache(maxsize=2)
def _boot(
    spec: ModelSpec, processing: tuple[tuple[str, bool], ...], seed: int | None, where: torch.device
) -> TransformerBridge:
    source = spec.hub_id or str(spec.folder)
    if spec.folder is not None and not any(spec.folder.glob("*.safetensors")):
        help = f"; fetch it with `prism fetch {spec.name}`" if spec.name in WHEELS else ""
        raise FileNotFoundError(f"the model '{spec.name}' is missing: no safetensors file in '{spec.folder}'{help}")

    def load():
        tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer_folder or source)
        return tokenizer, AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")

    if spec.hub_id is None:
        with _no_progress_bar():  # there is nothing to wait for
            tokenizer, hf_model = load()
    else:
        tokenizer, hf_model = from_hub(spec, lambda: hub.model_files(spec.hub_id), load, "the model")
    if tokenizer.bos_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of '{spec.name}' has neither a BOS nor an end-of-text token")
        tokenizer.bos_token = tokenizer.eos_token  # as GPT-2 does
    if seed is not None:
        torch.manual_seed(seed)
        hf_model = type(hf_model)._from_config(hf_model.config, attn_implementation="eager").eval()
    hf_model.to(where)  # the bridge takes a model as it is
    bridge = TransformerBridge.boot_transformers(source, hf_model=hf_model, tokenizer=tokenizer, device=str(where))
    bridge.enable_compatibility_mode(disable_warnings=True, **dict(processing))
    bridge.weight_processing = dict(processing)
    if where.type != "cpu":
        bridge.register_forward_pre_hook(partial(_to_its_device, where))
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge.eval()


def _to_its_device(where: torch.device, module: torch.nn.Module, inputs: tuple) -> tuple:
    """Tokens from the CPU are taken as well: the bridge moves text alone."""
    return tuple(value.to(where) if isinstance(value, torch.Tensor) else value for value in inputs)


@contextmanager
def _no_progress_bar():
    """Transformers' progress bars off, and back to what they were."""
    bars = transformers.utils.logging
    was_on = bars.is_progress_bar_enabled()
    if was_on:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()


def weight_processing(sae: SAE | None) -> dict[str, bool]:
    """Weight processing that an SAE was trained with, from its own metadata; none where it names none."""
    steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    kwargs = (sae.cfg.metadata.model_from_pretrained_kwargs or {}) if sae is not None else {}
    wanted = {step: bool(kwargs.get(step, False)) for step in steps}
    return wanted if any(wanted.values()) else {"no_processing": True}
