"""Whether an SAE belongs to a model, before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from sae_lens import SAE
from transformer_lens.supported_models import MODEL_ALIASES

from prism.data import TokenBatch
from prism.evaluation.streaming import TOKENS_AT_ONCE, splice_check
from prism.models import MODELS, check_hook, kept_activations, massive_norm, ordinary, weight_processing
from prism.sae import check_settings


class PreflightError(ValueError):
    """An SAE and a model that do not belong together; the message says why."""


@torch.no_grad()
def preflight(model, sae, batch: TokenBatch, published_l0: float | None = None) -> pd.DataFrame:
    """Whether an SAE belongs to a model and to these tokens, as its metadata says, before anything is measured.

    Args:
        batch: some tokens with BOS in front; 16 sequences are enough.
        published_l0: what the SAE's makers state; None skips that check.

    Returns:
        One row a check: check, found, wanted, ok.

    Raises:
        PreflightError: a check failed; the message names it, with what was found and what was wanted.
    """
    metadata, rows = sae.cfg.metadata, []

    def check(name: str, found, wanted, ok: bool) -> None:
        rows.append((name, str(found), str(wanted), ok))
        if not ok:
            raise PreflightError(
                f"preflight of the SAE at '{metadata.hook_name}' failed at {name}: found {found}, wanted {wanted}"
            )

    if isinstance(sae, SAE):
        cfg = sae.cfg
        found = (
            f"{cfg.architecture()}, normalize_activations {cfg.normalize_activations}, "
            f"apply_b_dec_to_input {cfg.apply_b_dec_to_input}"
        )
        try:
            check_settings(sae)
        except ValueError as error:
            check("settings", found, error, False)
        check("settings", found, "honoured here", True)
    ours, named = _names(model), metadata.model_name
    same = not named or _plain(named) in map(_plain, ours)
    check(
        "model",
        ours[0],
        f"{named or 'any, as none is named'}"
        if same
        else f"{named} (where both are one model, write {ours[0]} as model_name into the SAE's cfg.json)",
        same,
    )
    try:
        check_hook(model, metadata.hook_name)
    except ValueError as error:
        check("hook point", metadata.hook_name, error, False)
    check("hook point", metadata.hook_name, "a hook point of the model", True)
    if massive_norm(sae) is not None:
        batch = ordinary(model, sae, batch)
        check("ordinary tokens", batch.n_tokens, "more than 0", batch.n_tokens > 0)
    x = kept_activations(model, metadata.hook_name, batch)
    check("width", " × ".join(map(str, x.shape[1:])), sae.cfg.d_in, x.shape[1:] == (sae.cfg.d_in,))
    processing = getattr(model, "weight_processing", None)
    wanted = weight_processing(sae)
    names = [", ".join(k for k, on in (p or {}).items() if on) or "unknown" for p in (processing, wanted)]
    check("weight processing", *names, processing == wanted)
    check("BOS", *_bos(model, batch, metadata.prepend_bos))
    check("positions", *_positions(batch, metadata))
    drift = splice_check(model, sae, batch)
    check("splice check", f"{drift:.1e} nats", "below 1e-4", drift < 1e-4)
    found = sum(int((sae.encode(part) > 0).sum()) for part in x.split(TOKENS_AT_ONCE)) / len(x)
    if published_l0:
        check(
            "L0",
            f"{found:.1f}",
            f"{published_l0 / 2:g} to {published_l0 * 2:g} (published: {published_l0:g})",
            published_l0 / 2 <= found <= published_l0 * 2,
        )
    else:
        check("L0", f"{found:.1f}", "more than 0 (none published)", found > 0)
    return pd.DataFrame(rows, columns=["check", "found", "wanted", "ok"])


def _names(model) -> list[str]:
    """What a model may be called, the name to show first: in the registry, on the hub, or its folder's."""
    source = str(model.cfg.model_name)
    known = [
        name
        for spec in MODELS.values()
        if source in (spec.hub_id, str(spec.folder))
        for name in (spec.name, spec.hub_id, spec.title)
        if name
    ]
    cached = [part.removeprefix("models--").replace("--", "/") for part in Path(source).parts if "models--" in part]
    return known or [*cached, Path(source).name]


def _plain(name: str) -> str:
    """A model's name without its owner or folder; one for all the names that TransformerLens has for a model."""
    name = Path(name).name.lower()
    official = (one for one, aliases in MODEL_ALIASES.items() if name in map(str.lower, aliases))
    return Path(next(official, name)).name.lower()


def _bos(model, batch: TokenBatch, prepended: bool | None) -> tuple[str, str, bool]:
    """What stands in front of the texts, and what stood there in training."""
    is_bos = batch.tokens[:, 0] == model.tokenizer.bos_token_id
    if prepended is False:
        none = not is_bos.any()
        wanted = "none in front, as prepend_bos is false: TokenBatch(tokens[:, 1:], keep[:, 1:])"
        return "none in front" if none else "in front", wanted, none
    first = bool(is_bos.all()) and not bool(batch.keep[:, 0].any())
    return "in front, not counted" if first else "missing or counted", "in front, not counted", first


def _positions(batch: TokenBatch, metadata) -> tuple[str, str, bool]:
    """Where the kept tokens stand, and where those of training stood."""
    kept = batch.keep.any(0).nonzero().flatten()
    wanted = range(*slice(*(metadata.seqpos_slice or (None,))).indices(batch.keep.shape[1]))
    found = f"{int(kept.min())} to {int(kept.max())}" if len(kept) else "none"
    trained = f" (trained on a context of {metadata.context_size})" if metadata.context_size else ""
    within = {*kept.tolist()} <= {*wanted}
    return found, f"any{trained}" if within else f"seqpos_slice {metadata.seqpos_slice}: keep no others", within
