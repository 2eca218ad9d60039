"""Activations of a model: streamed, no layer above the wanted one, and for GPT-2 without the hook points' cost."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge, MLPBridge
from transformers import GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from prism.data import TokenBatch

SITES = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")
LIBRARIES = ("transformers.", "transformer_lens.model_bridge.")  # attach hooks that only observe (and no hook point's)


def harvest(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size: int = 32,
    progress: bool | None = None,
) -> Iterator[Float[Tensor, "batch pos d_in"]]:
    """Stream one hook's activations, `batch_size` sequences at a time, never running a layer above it.

    Args:
        tokens: ids with BOS in front (see `data.tokenize`).
        progress: show a progress bar; by default for more than 20 batches.

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
        starts = tqdm(starts, desc=f"harvest {hook_name}", unit="batch", leave=False)
    for start in starts:
        yield activations_at(model, tokens[start : start + batch_size], [hook_name])[hook_name]


def harvest_kept(
    model: TransformerBridge, hook_name: str, batch: TokenBatch, batch_size: int = 32, progress: bool | None = None
) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """`harvest` without BOS and padding: the kept tokens' activations, `batch_size` sequences at a time.

    Raises:
        ValueError: as `harvest`; or at the first activation that is not a finite number.
    """
    row = 0
    for x in harvest(model, batch.tokens, hook_name, batch_size, progress):
        x, keep, row = x.cpu(), batch.keep[row : row + len(x)], row + len(x)
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

    A GPT-2 that nobody watches is run by `_gpt2_pass`; any other model, or one with hooks attached, by itself. The
    two agree up to rounding.

    Args:
        hook_names: hooks inside blocks, `blocks.LAYER.…`.
    """
    caught: dict[str, Tensor] = {}
    if all(name.split(".", 2)[2] in SITES for name in hook_names) and _is_plain_gpt2(model):
        for name, activation in _gpt2_pass(model, tokens):
            if name in hook_names:
                caught[name] = activation
            if len(caught) == len(set(hook_names)):
                break
        return caught

    def catch(name: str):
        return name, lambda activation, hook: caught.update({name: activation.detach()})

    stop = 1 + max(int(name.split(".")[1]) for name in hook_names)
    model.run_with_hooks(tokens, fwd_hooks=[catch(name) for name in hook_names], stop_at_layer=stop, return_type=None)
    return caught


def _gpt2_pass(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's forward pass as (hook name, activation), one after the other; what is not asked for is never computed.

    The same modules with the same (processed) weights as the model's own pass, without the hook points between them,
    and with fused attention, which never writes out the `[batch, head, pos, pos]` pattern.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    x = model.embed.original_component(tokens) + model.pos_embed.original_component(positions)
    for layer, block in enumerate(model.blocks):
        site = f"blocks.{layer}"
        attn, mlp = block.attn, block.mlp
        yield f"{site}.hook_resid_pre", x
        normed = block.ln1.original_component(x)
        q, k, v = (
            part.original_component(normed).unflatten(-1, (model.cfg.n_heads, -1)).transpose(1, 2)
            for part in (attn.q, attn.k, attn.v)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        attn_out = attn.o.original_component(z)
        yield f"{site}.hook_attn_out", attn_out
        x = x + attn_out
        yield f"{site}.hook_resid_mid", x
        pre = getattr(mlp, "in").original_component(block.ln2.original_component(x))
        post = F.gelu(pre, approximate="tanh")
        yield f"{site}.mlp.hook_post", post
        mlp_out = mlp.out.original_component(post)
        yield f"{site}.hook_mlp_out", mlp_out
        x = x + mlp_out
        yield f"{site}.hook_resid_post", x


def _is_plain_gpt2(model: TransformerBridge) -> bool:
    """Whether `_gpt2_pass` gives what the model's own pass would: a GPT-2 for inference, unwatched and unaltered."""
    if type(model) is not TransformerBridge or type(model.original_model) is not GPT2LMHeadModel:
        return False
    config = model.original_model.config
    if config.scale_attn_by_inverse_layer_idx or model.cfg.dtype != torch.float32 or model.cfg.n_devices > 1:
        return False
    if not all(
        type(block.attn) is JointQKVAttentionBridge
        and type(block.mlp) is MLPBridge
        and type(block.mlp.original_component.act) is NewGELUActivation
        for block in model.blocks
    ):
        return False
    return not any(module.training or _is_watched(module) for module in model.modules())


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether a hook is attached other than those that the libraries attach to themselves, which only look on."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(hook, "__module__", "").startswith(LIBRARIES) for hook in hooks)


def check_hook(model: TransformerBridge, hook_name: str) -> None:
    """Raise a ValueError with the nearest valid name if the model has no such hook point."""
    known = {*model.hook_dict, *_hook_aliases(model)}
    if hook_name not in known:
        near = difflib.get_close_matches(hook_name, sorted(known), n=1, cutoff=0.0)
        raise ValueError(f"no hook point '{hook_name}' in this model; the nearest is '{near[0]}'")


def _hook_aliases(model: TransformerBridge) -> set[str]:
    return {f"blocks.{layer}.{site}" for layer in range(model.cfg.n_layers) for site in SITES}
