"""Activations of a model: streamed, and no layer above the wanted one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from prism.data import TokenBatch
from prism.fast import SITES, stripped


def harvest(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size: int = 32,
    progress: bool | str | None = None,
) -> Iterator[Float[Tensor, "batch pos d_in"]]:
    """Stream one hook's activations, `batch_size` sequences at a time, never running a layer above it.

    They are on the CPU and in float32, wherever and in whatever number format the model runs.

    Args:
        tokens: ids with BOS in front (see `data.tokenize`).
        progress: show a progress bar, under this label if it is one; by default for more than 20 batches.

    Raises:
        ValueError: unknown hook, or sequences longer than the model's context.
    """
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"sequences of {tokens.shape[1]} tokens; '{model.cfg.model_name}' takes {model.cfg.n_ctx}")
    check_hook(model, hook_name)
    if not hook_name.startswith("blocks."):
        raise ValueError(f"'{hook_name}' is not inside a block; harvest reads hooks named blocks.LAYER.…")
    starts: Iterable[int] = range(0, len(tokens), batch_size)
    if progress if progress is not None else len(starts) > 20:
        label = progress if isinstance(progress, str) else f"harvest {hook_name}"
        starts = tqdm(starts, desc=label, unit="batch", leave=False)
    for start in starts:
        yield activations_at(model, tokens[start : start + batch_size], [hook_name])[hook_name]


def harvest_kept(
    model: TransformerBridge,
    hook_name: str,
    batch: TokenBatch,
    batch_size: int = 32,
    progress: bool | str | None = None,
) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """`harvest` without BOS and padding: the kept tokens' activations, `batch_size` sequences at a time.

    Raises:
        ValueError: as `harvest`; or at the first activation that is not a finite number.
    """
    row = 0
    for x in harvest(model, batch.tokens, hook_name, batch_size, progress):
        keep, row = batch.keep[row : row + len(x)], row + len(x)
        kept = x[keep]
        finite = torch.isfinite(kept).flatten(1).all(1)
        if not finite.all():
            text, position = keep.nonzero()[~finite][0].tolist()
            raise ValueError(f"activations at '{hook_name}' are NaN or infinite (first in text {row - len(x) + text}, "
                             f"position {position}); check the model's weights and its number format")  # fmt: skip
        yield kept


def kept_activations(
    model: TransformerBridge, hook_name: str, batch: TokenBatch, batch_size: int = 32
) -> Float[Tensor, "tokens d_in"]:
    """The same in memory: for samples (20,000 tokens of 768 channels are 60 MB)."""
    return torch.cat(list(harvest_kept(model, hook_name, batch, batch_size)))


@torch.no_grad()
def activations_at(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_names: Collection[str]
) -> dict[str, Float[Tensor, "batch pos d_in"]]:
    """Several hooks' activations from one forward pass, which stops after the last of them.

    A GPT-2 or a Llama-like model that nobody watches is run by `fast.stripped`; any other, or one with hooks attached,
    by itself. The two agree up to rounding.

    Args:
        hook_names: hooks inside blocks, `blocks.LAYER.…`.
    """
    tokens = tokens.to(model.cfg.device)
    if (quick := stripped(model, hook_names)) is not None:
        return {name: x.float().cpu() for name, x in quick.activations(tokens, hook_names).items()}
    caught: dict[str, Tensor] = {}

    def catch(name: str):
        return name, lambda activation, hook: caught.update({name: activation.detach().float().cpu()})

    stop = 1 + max(int(name.split(".")[1]) for name in hook_names)
    model.run_with_hooks(tokens, fwd_hooks=[catch(name) for name in hook_names], stop_at_layer=stop, return_type=None)
    return caught


def check_hook(model: TransformerBridge, hook_name: str) -> None:
    """Raise a ValueError with the nearest valid name if the model has no such hook point."""
    known = {*model.hook_dict, *_hook_aliases(model)}
    if hook_name not in known:
        near = difflib.get_close_matches(hook_name, sorted(known), n=1, cutoff=0.0)
        raise ValueError(f"no hook point '{hook_name}' in this model; the nearest is '{near[0]}'")


def _hook_aliases(model: TransformerBridge) -> set[str]:
    return {f"blocks.{layer}.{site}" for layer in range(model.cfg.n_layers) for site in SITES}
