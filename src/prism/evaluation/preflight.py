"""Whether an SAE belongs to a model, before anything is measured."""

from __future__ import annotations

import pandas as pd
import torch

from prism.data import TokenBatch
from prism.evaluation.streaming import ENCODE_TOKENS, splice_check
from prism.models import check_hook, kept_activations, massive_norm, ordinary, weight_processing


class PreflightError(ValueError):
    """An SAE and a model that do not belong together; the message says why."""


@torch.no_grad()
def preflight(model, sae, batch: TokenBatch, published_l0: float | None = None) -> pd.DataFrame:
    """Whether an SAE belongs to a model: six checks before anything is measured.

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
            raise PreflightError(f"preflight of the SAE at '{metadata.hook_name}' failed at {name}: "
                                 f"found {found}, wanted {wanted}")  # fmt: skip

    try:
        check_hook(model, metadata.hook_name)
    except ValueError as error:
        check("hook point", metadata.hook_name, error, False)
    check("hook point", metadata.hook_name, "a hook point of the model", True)
    if massive_norm(sae) is not None:
        batch = ordinary(model, sae, batch)
        check("ordinary tokens", batch.n_tokens, "more than 0", batch.n_tokens > 0)
    x = kept_activations(model, metadata.hook_name, batch)
    check("width", x.shape[1], sae.cfg.d_in, x.shape[1] == sae.cfg.d_in)
    processing = getattr(model, "weight_processing", None)
    wanted = weight_processing(sae)
    names = [", ".join(k for k, on in (p or {}).items() if on) or "unknown" for p in (processing, wanted)]
    check("weight processing", *names, processing == wanted)
    bos = model.tokenizer.bos_token_id
    first = bool((batch.tokens[:, 0] == bos).all()) and not bool(batch.keep[:, 0].any())
    check("BOS", "in front, not counted" if first else "missing or counted", "in front, not counted", first)
    drift = splice_check(model, sae, batch)
    check("splice check", f"{drift:.1e} nats", "below 1e-4", drift < 1e-4)
    found = sum(int((sae.encode(part) > 0).sum()) for part in x.split(ENCODE_TOKENS)) / len(x)
    if published_l0:
        check("L0", f"{found:.1f}", f"{published_l0 / 2:g} to {published_l0 * 2:g} (published: {published_l0:g})",
              published_l0 / 2 <= found <= published_l0 * 2)  # fmt: skip
    else:
        check("L0", f"{found:.1f}", "more than 0 (none published)", found > 0)
    return pd.DataFrame(rows, columns=["check", "found", "wanted", "ok"])
