"""Pretrain `mini` and its relatives on the mixture of all kinds, resumable to the bit.

Warm-up, a constant phase, then a linear decay to zero over the last quarter (WSD): the checkpoint from before
the decay can be resumed for a longer run, so training is never thrown away. Matrices are trained with Muon
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), everything else with AdamW.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prism.build.corpus import END, MIXTURE
from prism.files import reading, replacing


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one pretraining run."""

    architecture: str = "gpt2"  # or "llama": RMSNorm, rotary positions, SwiGLU
    n_layer: int = 4
    d_model: int = 192
    d_head: int = 32
    context: int = 256  # tokens in a sequence, the leading end-of-text token included
    batch: int = 32  # sequences in a step
    tokens: float = 30e6  # tokens to train on in all
    warmup: float = 0.8e6  # tokens of linear warm-up
    decay_share: float = 0.25  # last share of the tokens, over which the learning rate falls to zero
    lr_matrix: float = 0.02  # Muon, for the matrices inside the blocks
    lr_other: float = 3e-3  # AdamW, for embeddings, norms and biases
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    seed: int = 0
    checkpoint_minutes: float = 4.0

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return max(1, int(self.tokens / (self.batch * self.context)))

    @property
    def decay_start(self) -> int:
        """First step of the decay."""
        return int(self.steps * (1 - self.decay_share))

    def lr_scale(self, step: int) -> float:
        """Learning-rate factor at a step: warm-up, constant, linear decay to zero."""
        warmup = min(1.0, (step + 1) * self.batch * self.context / max(self.warmup, 1.0))
        decay = (self.steps - step) / max(1, self.steps - self.decay_start)
        return min(warmup, 1.0, decay)


MINI = PretrainConfig()
RELATIVES = {  # the further models that phase 6e compares: one smaller, one of another architecture
    "mini-small": PretrainConfig(n_layer=2, d_model=128, tokens=7e6),
    "mini-llama": PretrainConfig(architecture="llama", n_layer=4, d_model=128, tokens=7e6),
}


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: all directions of a matrix move by the same amount.

    The Newton–Schulz iteration runs in float32 (bfloat16 products are slow on CPUs).
    """

    def __init__(self, params, lr: float, weight_decay: float, out_first: bool):
        """`out_first`: matrices are stored [out, in] (`nn.Linear`), not [in, out] (GPT-2's `Conv1D`)."""
        super().__init__(params, {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay, "out_first": out_first})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                # a wider output needs a larger step for the same change of activations
                out, into = p.shape if group["out_first"] else p.shape[::-1]
                scale = max(1.0, out / into) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest (semi-)orthogonal matrix, by the quintic Newton–Schulz iteration of Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float().T if matrix.shape[0] > matrix.shape[1] else matrix.float()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class Batches:
    """Packed sequences of every kind, a pure function of the step: nothing to save for a resume.

    Each sequence is the end-of-text token followed by `context - 1` tokens of one kind's stream. Windows of a
    kind are visited in a fresh random order and with a fresh offset in every epoch.
    """

    def __init__(
        self, tokens: dict[str, np.ndarray], config: PretrainConfig, end: int, shares: dict[str, float] = MIXTURE
    ):
        self.tokens, self.config, self.end = tokens, config, end
        self.kinds = sorted(tokens)
        self.length = config.context - 1
        share = np.array([shares[kind] for kind in self.kinds])
        rows = np.random.default_rng(config.seed).random(config.steps * config.batch)
        self.kind_of_row = np.searchsorted(np.cumsum(share / share.sum()), rows).clip(max=len(share) - 1)
        self.rank_of_row = np.zeros(len(rows), dtype=np.int64)
        for index in range(len(self.kinds)):
            mine = self.kind_of_row == index
            self.rank_of_row[mine] = np.arange(mine.sum())
        self._orders: dict[tuple[int, int], tuple[np.ndarray, int]] = {}

    def _order(self, kind: int, epoch: int) -> tuple[np.ndarray, int]:
        if (kind, epoch) not in self._orders:
            rng = np.random.default_rng((self.config.seed, kind, epoch))
            offset = int(rng.integers(self.length))
            n = max(1, (len(self.tokens[self.kinds[kind]]) - offset) // self.length)
            self._orders = {k: v for k, v in self._orders.items() if k[0] != kind}
            self._orders[kind, epoch] = (rng.permutation(n), offset)
        return self._orders[kind, epoch]

    def __call__(self, step: int) -> torch.Tensor:
        """Token ids of one step, int64 `[batch, context]`."""
        out = np.full((self.config.batch, self.config.context), self.end, dtype=np.int64)
        first = step * self.config.batch
        for i, row in enumerate(range(first, first + self.config.batch)):
            kind, rank = int(self.kind_of_row[row]), int(self.rank_of_row[row])
            stream = self.tokens[self.kinds[kind]]
            per_epoch = max(1, (len(stream) - self.length) // self.length)
            order, offset = self._order(kind, rank // per_epoch)
            start = offset + int(order[rank % per_epoch]) * self.length
            window = stream[start : start + self.length]
            out[i, 1 : 1 + len(window)] = window
        return torch.from_numpy(out)


def make_model(config: PretrainConfig, vocabulary: int, end: int) -> PreTrainedModel:
    """A freshly initialised GPT-2 or Llama with fused attention and tied embeddings."""
    torch.manual_seed(config.seed)
    heads = config.d_model // config.d_head
    ends = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end, "attn_implementation": "sdpa"}
    if config.architecture == "llama":
        sizes = {"hidden_size": config.d_model, "num_hidden_layers": config.n_layer, "num_attention_heads": heads}
        inner = {"intermediate_size": 8 * config.d_model // 3, "max_position_embeddings": config.context}
        return LlamaForCausalLM(LlamaConfig(**ends, **sizes, **inner, tie_word_embeddings=True))
    sizes = {"n_positions": config.context, "n_embd": config.d_model, "n_layer": config.n_layer, "n_head": heads}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    activation = "gelu_pytorch_tanh"  # the fused form of GPT-2's gelu_new
    return GPT2LMHeadModel(GPT2Config(**ends, **sizes, **dropout, activation_function=activation))


def chunked_loss(model: PreTrainedModel, tokens: torch.Tensor, chunk: int = 1024) -> float:
    """Backpropagate the mean next-token cross-entropy without holding all the logits; return its value."""
    hidden = model.base_model(tokens[:, :-1]).last_hidden_state
    flat = hidden.detach().reshape(-1, hidden.shape[-1]).requires_grad_()
    targets, total = tokens[:, 1:].reshape(-1), 0.0
    for x, y in zip(flat.split(chunk), targets.split(chunk), strict=True):
        loss = F.cross_entropy(model.lm_head(x).float(), y, reduction="sum") / targets.numel()
        loss.backward()
        total += loss.item()
    hidden.backward(flat.grad.view_as(hidden).to(hidden.dtype))
    return total


def make_optimizers(model: PreTrainedModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    inside = (".h.", ".layers.")  # GPT-2's and Llama's names for their blocks
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and any(part in name for part in inside)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, config.lr_matrix, weight_decay=config.weight_decay, out_first=config.architecture == "llama"),
        torch.optim.AdamW(others, lr=config.lr_other, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True),
    ]


def save_checkpoint(path: Path, model, optimizers, step: int, config: PretrainConfig) -> None:
    """Write weights and optimiser state as safetensors."""
    tensors = {}
    for name, p in model.named_parameters():
        for state in ({"model": p}, *(optimizer.state.get(p, {}) for optimizer in optimizers)):
            tensors |= {f"{key}.{name}": value.detach().contiguous() for key, value in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "config": json.dumps(asdict(config))})


def load_checkpoint(path: Path, model, optimizers) -> int:
    """Restore weights and optimiser state; return the next step."""
    with reading(path):
        tensors = load_file(path)
    parameters = dict(model.named_parameters())
    states = {p: optimizer.state[p] for optimizer in optimizers for p in optimizer.param_groups[0]["params"]}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        if part == "model":
            parameters[name].data.copy_(value)
        else:
            states[parameters[name]][part] = value
    return _planned(path)[1]


def pretrain(
    tokens: dict[str, np.ndarray], tokenizer: Tokenizer, run: Path, config: PretrainConfig, resume: bool = False
) -> list[tuple[int, float]]:
    """Train, with checkpoints in the folder `run`; the finished model goes to `run/model`.

    A resumed run goes on from `last.safetensors`; if that run had already begun its decay and `config.tokens`
    is now larger, from `stable.safetensors`, the state before the decay.

    Returns:
        (step, loss in nats per token) of every step of this call.
    """
    run.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    model = make_model(config, tokenizer.get_vocab_size(), end)
    optimizers = make_optimizers(model, config)
    batches = Batches(tokens, config, end)
    last, stable = run / "last.safetensors", run / "stable.safetensors"
    if last.is_file() and not resume:
        raise ValueError(f"'{last}' holds an earlier run; go on from it with --resume, or choose another --work")
    start = _resume(last, stable, model, optimizers, config) if resume else 0
    losses, saved = [], time.monotonic()
    per_step = config.batch * config.context
    bar = tqdm(total=config.steps * per_step, initial=start * per_step, unit="tok", unit_scale=True, mininterval=5)
    log = (run / "log.jsonl").open("a" if resume else "w", encoding="utf-8")
    for step in range(start, config.steps):
        if step == config.decay_start:
            save_checkpoint(stable, model, optimizers, step, config)
        for optimizer, rate in zip(optimizers, (config.lr_matrix, config.lr_other), strict=True):
            optimizer.param_groups[0]["lr"] = rate * config.lr_scale(step)
        loss = chunked_loss(model, batches(step))
        if not np.isfinite(loss):
            raise FloatingPointError(f"loss became {loss} at step {step}; last good checkpoint: '{last}'")
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append((step, loss))
        log.write(json.dumps({"step": step, "loss": round(loss, 5)}) + "\n")
        bar.update(per_step)
        bar.set_postfix(loss=f"{np.mean([x for _, x in losses[-50:]]):.3f}", refresh=False)
        if time.monotonic() - saved > 60 * config.checkpoint_minutes or step == config.steps - 1:
            save_checkpoint(last, model, optimizers, step + 1, config)
            log.flush()
            saved = time.monotonic()
    bar.close()
    log.close()
    if config.architecture == "gpt2":
        model.config.activation_function = "gelu_new"  # the same function under GPT-2's own name
    model.save_pretrained(run / "model")
    return losses


def _resume(last: Path, stable: Path, model, optimizers, config: PretrainConfig) -> int:
    """Load the newest usable checkpoint; 0 when there is none yet."""
    if not last.is_file():
        return 0
    planned, step = _planned(last)
    for name, value in asdict(config).items():
        if name not in ("tokens", "checkpoint_minutes") and getattr(planned, name) != value:
            raise ValueError(f"cannot resume '{last}': '{name}' was {getattr(planned, name)}, is {value}")
    decayed = config.steps > planned.steps and step > planned.decay_start  # of a run that was planned shorter
    return load_checkpoint(stable if decayed and stable.is_file() else last, model, optimizers)


def _planned(path: Path) -> tuple[PretrainConfig, int]:
    """The settings that a checkpoint was written under, and its step."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return PretrainConfig(**json.loads(metadata["config"])), int(metadata["step"])


def trained_tokens(run: Path) -> float:
    """Tokens that a run has been trained on, from its last checkpoint."""
    planned, step = _planned(run / "last.safetensors")
    return float(step * planned.batch * planned.context)
