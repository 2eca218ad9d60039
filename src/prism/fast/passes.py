"""Forward passes of GPT-2 and of Llama-like models without the cost of hook points.

A pass runs the bridge's own modules with its own (processed) weights, one block after the other, in whatever number
format and on whatever device they are, with fused attention, which never writes out the `[batch, head, pos, pos]`
pattern. It can begin at any block, so that a change of one hook costs only what lies above it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    GatedMLPBridge,
    JointQKVAttentionBridge,
    MLPBridge,
    PositionEmbeddingsAttentionBridge,
)
from transformers import GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
from transformers.activations import NewGELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SITES = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")
LIBRARIES = ("transformers.", "transformer_lens.model_bridge.", "prism.models.")  # their hooks only observe, or move
Changes = Mapping[str, Callable[[Tensor], Tensor]]  # hook name -> what becomes of its activation


class StrippedPass:
    """A model's forward pass as (hook name, activation), one after the other; what is not asked for is not computed."""

    def __init__(self, model: TransformerBridge):
        self.model = model

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What enters the first block."""
        raise NotImplementedError

    def attention(self, block, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What a block's attention adds to the residual stream, layer norm included."""
        raise NotImplementedError

    def neurons(self, mlp, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_mlp"]:
        """What an MLP's output matrix reads, from the normed residual stream."""
        raise NotImplementedError

    def walk(
        self, x: Float[Tensor, "batch pos d_model"], first: int = 0, changes: Changes | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The blocks from number `first` on, fed with `x`; changed activations are handed on as they have become."""
        changes, same = changes or {}, lambda value: value
        for layer in range(first, len(self.model.blocks)):
            block = self.model.blocks[layer]
            pre, attn, mid, post, mlp, end = (f"blocks.{layer}.{site}" for site in SITES)
            x = changes.get(pre, same)(x)
            yield pre, x
            attn_out = changes.get(attn, same)(self.attention(block, x))
            yield attn, attn_out
            x = changes.get(mid, same)(x + attn_out)
            yield mid, x
            neurons = changes.get(post, same)(self.neurons(block.mlp, block.ln2.original_component(x)))
            yield post, neurons
            mlp_out = changes.get(mlp, same)(block.mlp.out.original_component(neurons))
            yield mlp, mlp_out
            x = changes.get(end, same)(x + mlp_out)
            yield end, x

    def activations(self, tokens: Int[Tensor, "batch pos"], hook_names: Collection[str]) -> dict[str, Tensor]:
        """Some hooks' activations from one pass, which ends with the last of them."""
        wanted, caught = set(hook_names), {}
        for name, activation in self.walk(self.embed(tokens)):
            if name in wanted:
                caught[name] = activation
            if len(caught) == len(wanted):
                break
        return caught

    def last_state(
        self, x: Float[Tensor, "batch pos d_model"], first: int = 0, changes: Changes | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads, from the residual stream before block `first`."""
        for _, value in self.walk(x, first, changes):
            x = value  # the last one is the residual stream after the last block
        return self.model.ln_final.original_component(x)

    def logits(self, state: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """The unembedding alone: of as many states as you have memory for."""
        return self.model.unembed.original_component(state)


class GPT2Pass(StrippedPass):
    """Learned positions, LayerNorm, GELU."""

    def embed(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.model.embed.original_component(tokens) + self.model.pos_embed.original_component(positions)

    def attention(self, block, x):
        normed, attn = block.ln1.original_component(x), block.attn
        q, k, v = (
            part.original_component(normed).unflatten(-1, (self.model.cfg.n_heads, -1)).transpose(1, 2)
            for part in (attn.q, attn.k, attn.v)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return attn.o.original_component(z.transpose(1, 2).flatten(2))

    def neurons(self, mlp, x):
        return F.gelu(getattr(mlp, "in").original_component(x), approximate="tanh")


class LlamaPass(StrippedPass):
    """Rotary positions, RMSNorm, heads that share keys and values, SwiGLU."""

    def embed(self, tokens):
        return self.model.embed.original_component(tokens)

    def walk(self, x, first=0, changes=None):
        positions = torch.arange(x.shape[1], device=x.device)[None]
        self.cos_sin = self.model.rotary_emb.original_component(x, positions)  # the same in every block
        return super().walk(x, first, changes)

    def attention(self, block, x):
        normed, attn = block.ln1.original_component(x), block.attn
        d_head = self.cos_sin[0].shape[-1]
        q, k, v = (
            part.original_component(normed).unflatten(-1, (-1, d_head)).transpose(1, 2)
            for part in (attn.q, attn.k, attn.v)
        )
        q, k = apply_rotary_pos_emb(q, k, *self.cos_sin)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return attn.o.original_component(z.transpose(1, 2).flatten(2))

    def neurons(self, mlp, x):
        return F.silu(mlp.gate.original_component(x)) * getattr(mlp, "in").original_component(x)


def stripped(model: TransformerBridge, hook_names: Collection[str] = ()) -> StrippedPass | None:
    """The quick pass of a model, or None where it would not give what the model's own pass does.

    It gives the same for GPT-2 and Llama-like models that are there for inference, unwatched and unaltered.

    Args:
        hook_names: what will be read or changed; the quick pass knows `SITES` alone.
    """
    if type(model) is not TransformerBridge or model.cfg.n_devices > 1:
        return None
    if any(name.partition(".")[0] != "blocks" or name.split(".", 2)[-1] not in SITES for name in hook_names):
        return None
    kind = type(model.original_model)
    if kind is GPT2LMHeadModel and _is_plain_gpt2(model):
        found = GPT2Pass
    elif kind in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM) and _is_plain_llama(model):
        found = LlamaPass
    else:
        return None
    return None if any(module.training or _is_watched(module) for module in model.modules()) else found(model)


def _is_plain_gpt2(model: TransformerBridge) -> bool:
    config = model.original_model.config
    return (
        not config.scale_attn_by_inverse_layer_idx
        and config.scale_attn_weights
        and all(
            type(block.attn) is JointQKVAttentionBridge
            and type(block.mlp) is MLPBridge
            and type(block.mlp.original_component.act) is NewGELUActivation
            for block in model.blocks
        )
    )


def _is_plain_llama(model: TransformerBridge) -> bool:
    config = model.original_model.config
    return getattr(config, "sliding_window", None) is None and all(
        type(block.attn) is PositionEmbeddingsAttentionBridge
        and type(block.mlp) is GatedMLPBridge
        and isinstance(block.mlp.original_component.act_fn, SiLUActivation | torch.nn.SiLU)
        for block in model.blocks
    )


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether a hook is attached other than those of the libraries and of our loader, which change no activation."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    owners = (getattr(getattr(hook, "func", hook), "__module__", None) for hook in hooks)
    return any(not (owner or "").startswith(LIBRARIES) for owner in owners)
