"""Activations of a model: streamed, and no layer above the wanted one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from prism.data import TokenBatch
from prism.fast import stripped


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
            raise ValueError(
                f"activations at '{hook_name}' are NaN or infinite (first in text {row - len(x) + text}, "
                f"position {position}); check the model's weights and its number format"
            )
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

    Raises:
        ValueError: one of the hooks was never called.
    """
    tokens = tokens.to(model.cfg.device)
    caught: dict[str, Tensor] = {}

    def catch(name: str):
        return name, lambda activation, hook: caught.update({name: activation.detach().float().cpu()})

    if (quick := stripped(model, hook_names)) is not None:
        caught = {name: x.float().cpu() for name, x in quick.activations(tokens, hook_names).items()}
    else:
        hooks, stop = list(map(catch, hook_names)), 1 + max(int(name.split(".")[1]) for name in hook_names)
        model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=stop, return_type=None)
    if missing := [name for name in hook_names if name not in caught]:
        raise ValueError(f"the hook '{missing[0]}' was never called, so it gave no activation")
    return caught


def check_hook(model: TransformerBridge, hook_name: str) -> None:
    """Raise a ValueError with the nearest valid name if no activation that counts passes through a hook point."""
    if not hasattr(model, "firing"):  # another loader's
        model.firing = firing_hooks(model, torch.arange(min(8, model.cfg.d_vocab))[None])[0]
    if hook_name not in model.firing:
        near = difflib.get_close_matches(hook_name, sorted(model.firing), n=1, cutoff=0.0)
        hint = f"; the nearest is '{near[0]}'" if near else ""
        raise ValueError(f"no hook point '{hook_name}' fires in this model{hint}")


@torch.inference_mode(False)
@torch.enable_grad()
def firing_hooks(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> tuple[frozenset[str], Float[Tensor, "batch pos d_vocab"]]:
    """Names of the hook points that the model's computation passes through, from one pass; and its logits.

    A name alone says little: a block that adds attention and MLP side by side has no activation between them, and
    attention may be handed a copy of its pattern. So each hook multiplies by a one of its own, and counts if the logits
    depend on that one and the hook is what it is called.
    """
    ones: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def mark(x: Tensor, hook) -> Tensor | None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return None
        values[id(hook)] = x.detach()
        if hook.name.endswith(("hook_scale", "hook_normalized")):  # a norm changed inside is computed by another way
            return None
        return x * ones.setdefault(id(hook), torch.ones((), device=x.device, requires_grad=True))

    points = model.hook_dict
    distinct = {id(point): point for point in points.values()}.values()
    for point in distinct:
        point.add_hook(mark, level=-1)  # a level that no context of the bridge has
    try:
        logits = model(tokens.to(model.cfg.device), return_type="logits")
    finally:
        for point in distinct:
            point.remove_hooks(level=-1)
    counts = _computed_from(logits)
    idle = {key for key, one in ones.items() if get_gradient_edge(one).node not in counts}
    names = {name for name, point in points.items() if id(point) in values.keys() - idle}
    return frozenset(names - _misnamed(points, values, model.cfg.n_layers)), logits.detach()


def _computed_from(result: Tensor) -> set:
    """The nodes of autograd's graph that a tensor was computed from."""
    seen, todo = set(), [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [source for source, _ in node.next_functions]
    return seen


def _misnamed(points: dict, values: dict[int, Tensor], n_layers: int) -> set[str]:
    """Hook points that are not what their name says: with experts, 'neurons' that are the MLP's input or output; and
    a middle of the block to which more is done than that the MLP's output is added."""
    found = set()
    for block in (f"blocks.{layer}." for layer in range(n_layers)):
        for site, other in (("mlp.hook_pre", "mlp.hook_in"), ("mlp.hook_post", "hook_mlp_out")):
            if points.get(block + site) is points.get(block + other):
                found.add(block + site)
        sites = ("hook_resid_mid", "hook_mlp_out", "hook_resid_post")
        mid, mlp, end = (values.get(id(points.get(block + site))) for site in sites)
        if any(x is None for x in (mid, mlp, end)) or not torch.allclose(mid + mlp, end, 1e-3, 1e-3):
            found.add(f"{block}hook_resid_mid")
    return found
