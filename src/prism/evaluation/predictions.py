"""What a model predicts on some tokens, as it is and with one hook's activations changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prism.data import TokenBatch
from prism.evaluation.metrics import kl
from prism.fast import stripped
from prism.models import check_hook

LOGITS = 2**23  # logits made at once (32 MB), by passes that can make them in parts: with copies below 128 MB
Change = Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_in"]]


def counted(batch: TokenBatch) -> Bool[Tensor, "batch pos-1"]:
    """Which predictions count: those of a kept token, made from a kept token. A text of one token has none.

    Raises:
        ValueError: there is none at all.
    """
    mask = batch.keep[:, :-1] & batch.keep[:, 1:]
    if not mask.any():
        raise ValueError(
            "no text has two tokens in a row, so there is no prediction to measure; give at least one of two tokens"
        )
    return mask


def at_kept(keep: Bool[Tensor, "batch pos"] | None, change: Change) -> Callable[[Tensor], Tensor]:
    """A change of the kept positions' activations as one of the whole `[batch, pos, d_in]`; None keeps all."""

    def changed(activation: Tensor) -> Tensor:
        where = torch.ones(activation.shape[:2], dtype=torch.bool) if keep is None else keep
        out = activation.clone()
        out[where] = change(activation[where]).to(activation.dtype)
        return out

    return changed


def hooks_for(hook_name: str, changed: Callable[[Tensor], Tensor]) -> list[tuple[str, Callable]]:
    """The bridge's forward hooks that put `changed(activation)` in the place of a hook's activation.

    One, but for `hook_resid_mid`: there the bridge's hook is on what the MLP's norm reads, and the residual stream
    would go on unchanged beside it, so the change is added at the block's end as well.
    """
    if not hook_name.endswith(".hook_resid_mid"):
        return [(hook_name, lambda x, hook: changed(x))]
    moved = []

    def read(x: Tensor, hook) -> Tensor:
        out = changed(x)
        moved[:] = [out - x]
        return out

    end = hook_name.replace("hook_resid_mid", "hook_resid_post")
    return [(hook_name, read), (end, lambda x, hook: x + moved.pop() if moved else None)]


@contextmanager
def changing(model, hook_name: str, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the model's passes have `changed(activation)` in the place of a hook's activation.

    Raises:
        ValueError: no such hook; or it was never called, so that nothing was changed.
    """
    check_hook(model, hook_name)
    calls = []
    with model.hooks(fwd_hooks=hooks_for(hook_name, lambda x: calls.append(1) or changed(x))):
        yield
    if not calls:
        raise ValueError(f"the hook '{hook_name}' was never called, so nothing was changed")


def splice(model, tokens: Tensor, hook_name: str, keep: Tensor, change: Change) -> Tensor:
    """Logits `[batch, pos, d_vocab]` with one hook's activations changed at kept positions: the definition.

    Args:
        change: maps the kept activations `[tokens, d_in]` to what takes their place.
    """
    with changing(model, hook_name, at_kept(keep, change)):
        return model(tokens.to(model.cfg.device), return_type="logits")


def sequence_nats(logits: Tensor, tokens: Tensor, mask: Tensor) -> np.ndarray:
    """Cross-entropy summed over each sequence's masked predictions, float64 `[batch]`: the definition."""
    picked = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(-1)
    return -(picked.double() * mask).sum(1).numpy()


def logit_rows(model, batch: TokenBatch, hook_names: Collection[str] = (), whole: bool = False) -> int:
    """Sequences to run at once: 16, or where whole logits must be held, as many of them as fill 128 MB (at least 1).

    Args:
        hook_names: hooks that will be changed; `Predictions` holds whole logits for some of them.
        whole: whether whole logits are held in any case, as another library would.
    """
    if not whole and stripped(model, hook_names) is not None:
        return 16
    return max(1, min(16, 2**25 // (batch.tokens.shape[1] * model.cfg.d_vocab)))


class Predictions:
    """A model's predictions on some tokens: what lies below the hooks runs once, and each change what lies above.

    A *state* is what the unembedding reads. Logits are made from it in parts, so that a large vocabulary never fills
    the memory. A model without a quick pass (see `fast.stripped`) runs whole passes, and its states are the logits.

    Args:
        model: as `models.load_model` gives it.
        tokens: BOS in front.
        hook_names: hooks that will be changed.

    Raises:
        ValueError: no such hook.
    """

    def __init__(self, model, tokens: Int[Tensor, "batch pos"], hook_names: Collection[str] = ()):
        for name in hook_names:
            check_hook(model, name)
        self.model, self.tokens = model, tokens.to(model.cfg.device)
        self.quick = stripped(model, hook_names)
        self.entered: dict[int, Tensor] = {}  # block that a changed pass begins with -> residual stream before it
        if self.quick is None:
            return
        blocks = {self._entry(name)[0] for name in hook_names} or {0}
        wanted = {f"blocks.{block}.hook_resid_pre": block for block in blocks}
        for name, value in self.quick.walk(self.quick.embed(self.tokens)):
            if name in wanted:
                self.entered[wanted[name]] = value
            if len(self.entered) == len(wanted):
                break

    @cached_property
    def clean(self) -> Tensor:
        """The states of the model as it is."""
        if self.quick is None:
            return self.model(self.tokens, return_type="logits")
        block = max(self.entered)
        return self.quick.last_state(self.entered[block], block)

    def _entry(self, hook_name: str) -> tuple[int, str]:
        """Block from which a changed pass must run, and the hook's name in it."""
        _, block, site = hook_name.split(".", 2)
        after = int(block) + 1
        if site == "hook_resid_post" and after < len(self.model.blocks):
            return after, f"blocks.{after}.hook_resid_pre"  # the same activation, one block later
        return int(block), hook_name

    def changed(self, hook_name: str, keep: Bool[Tensor, "batch pos"] | None, change: Change) -> Tensor:
        """The states under a change at the kept positions (None: at all) of one of the hooks named at the start."""
        edit = at_kept(keep, change)
        if self.quick is None:
            with changing(self.model, hook_name, edit):
                return self.model(self.tokens, return_type="logits")
        block, name = self._entry(hook_name)
        if block not in self.entered:
            raise ValueError(f"'{hook_name}' was not named when these predictions were begun")
        return self.quick.last_state(self.entered[block], block, {name: edit})

    def logits(self, states: Float[Tensor, "n d_state"]) -> Float[Tensor, "n d_vocab"]:
        """Next-token logits of some states, in float32."""
        return (states if self.quick is None else self.quick.logits(states)).float()

    def parts(self, n: int) -> list[Tensor]:
        """`range(n)` in pieces of as many states as have logits made at once."""
        return list(torch.arange(n).split(max(1, LOGITS // self.model.cfg.d_vocab))) if n else []

    def nats(self, states: Tensor, mask: Bool[Tensor, "batch pos-1"]) -> Float[np.ndarray, " batch"]:
        """Cross-entropy summed over each sequence's masked predictions (nats, float64)."""
        return self.measure({"": states}, mask)[0][""]

    def measure(
        self, states: Mapping[str, Tensor], mask: Bool[Tensor, "batch pos-1"], divergent: Collection[str] = ()
    ) -> tuple[dict[str, Float[np.ndarray, " batch"]], dict[str, float]]:
        """`nats` of several states, and KL(clean ‖ state) summed over the masked predictions for those in `divergent`.

        Args:
            mask: which predictions count: of position `p + 1` from position `p`.
        """
        sequence, targets = mask.nonzero()[:, 0].cpu().numpy(), self.tokens[:, 1:][mask]
        kept = {name: state[:, :-1][mask] for name, state in states.items()}
        clean = self.clean[:, :-1][mask] if divergent else None
        nats, divergence = {name: [] for name in states}, dict.fromkeys(divergent, 0.0)
        for rows in self.parts(len(targets)):
            before = self.logits(clean[rows]) if divergent else None
            for name in states:
                logits = self.logits(kept[name][rows])
                picked = logits.gather(-1, targets[rows, None])[:, 0] - logits.logsumexp(-1)
                nats[name].append(-picked.double().cpu())
                if name in divergence:
                    divergence[name] += kl(before, logits) * len(rows)
        sums = {
            name: np.bincount(sequence, torch.cat(parts).numpy(), len(mask)) if parts else np.zeros(len(mask))
            for name, parts in nats.items()
        }
        return sums, divergence
