"""Real text for the SAEs of `smollm2`: rows of every kind and of chats, and the model's activations on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prism.build.corpus import MIXTURE, encode_documents, find_kinds, split_documents, tokenise
from prism.build.pretrain import Batches, PretrainConfig
from prism.data import TokenBatch
from prism.device import as_float16
from prism.files import replacing
from prism.models import activations_at, is_massive, residual_hook
from prism.models.massive import norm_limit

CHAT_SHARE = 0.1  # of the rows: turns in the model's own chat template
SHARES = {kind: (1 - CHAT_SHARE) * share for kind, share in MIXTURE.items()} | {"chat": CHAT_SHARE}
ROLES = dict.fromkeys(("User", "A", "Question"), "user") | dict.fromkeys(("Assistant", "B", "Answer"), "assistant")
SPEAKER = re.compile(rf"^({'|'.join(ROLES)}): ?", re.M)


def as_chat(document: str) -> list[dict[str, str]] | None:
    """The turns of a document that begins with a speaker's name, as messages of user and assistant; else None."""
    if not SPEAKER.match(document):
        return None
    speakers, turns = SPEAKER.split(document)[1::2], SPEAKER.split(document)[2::2]
    messages = [
        {"role": ROLES[who], "content": turn.strip()} for who, turn in zip(speakers, turns, strict=True) if turn.strip()
    ]
    return messages if len(messages) > 1 else None


def chat_tokens(documents: list[str], tokenizer) -> np.ndarray:
    """Token ids of those documents that are chats, in the model's template, each followed by the end token."""
    chats = [messages for messages in map(as_chat, documents) if messages]
    parts = []
    for text in tokenizer.apply_chat_template(chats, tokenize=False):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.bos_token_id]
        parts.append(np.array(ids, dtype=np.uint16))  # an error beyond 65,535, where a cast would wrap round
    return np.concatenate(parts)


def training_tokens(corpus: Path, tokenizer, folder: Path, work: Path) -> dict[str, np.ndarray]:
    """Training tokens by kind, chats among them: as `corpus.tokenise`, kept in `work`.

    Args:
        folder: of the model, for its `tokenizer.json`.
    """
    tokens = tokenise(corpus, tokenizer.backend_tokenizer, folder / "tokenizer.json", work)
    key = hashlib.sha256((work / "tokens" / "key.json").read_bytes()).hexdigest()[:12]
    path = work / "tokens" / f"chat-{key}.npy"
    if not path.is_file():
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, chat_tokens(_chatty(corpus, 0), tokenizer))
    return tokens | {"chat": np.load(path, mmap_mode="r")}


def held_out_tokens(corpus: Path, tokenizer) -> dict[str, np.ndarray]:
    """The same of the documents that nothing is trained on."""
    kinds = {kind: split_documents(path)[1] for kind, path in find_kinds(corpus).items()}
    tokens = {kind: encode_documents(tokenizer.backend_tokenizer, documents) for kind, documents in kinds.items()}
    return tokens | {"chat": chat_tokens(_chatty(corpus, 1), tokenizer)}


def _chatty(corpus: Path, half: int) -> list[str]:
    """Documents of the kinds that hold dialogues, questions and answers: training (0) or held out (1)."""
    kinds = find_kinds(corpus)
    return [
        document
        for kind in ("conversational", "math")
        if kind in kinds
        for document in split_documents(kinds[kind])[half]
    ]


class Rows:
    """Rows of real text, `context` tokens each: one kind's documents end to end, the end token first.

    Args:
        tokens: kind -> ids; end: the end token's id.
    """

    def __init__(self, tokens: dict[str, np.ndarray], rows: int, context: int, end: int, seed: int = 1):
        config = PretrainConfig(batch=rows, context=context, tokens=1e8, seed=seed)
        self.batches = Batches(tokens, config, end, SHARES)

    def __call__(self, number: int) -> torch.Tensor:
        """Chunk `number`: `[rows, context]`, the same whenever it is asked for."""
        return self.batches(number)

    def batch(self, number: int = 0) -> TokenBatch:
        """The same as a `TokenBatch`, BOS left out."""
        tokens = self(number)
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[:, 0] = False
        return TokenBatch(tokens, keep)


class Activations:
    """Chunks for `RollingBuffer`: activations of some hooks, BOS and massive tokens left out, in float16
    where they fit there.

    A token that is massive before one block need not be so before another: each hook leaves out its own.

    Args:
        model: in whatever number format bulk work runs; rows: what it reads.
        hook_names: hooks of blocks.
        size: activations in a chunk; what the rows hold beyond is dropped.
        at_once: rows that the model reads at once.
    """

    def __init__(self, model, rows: Rows, hook_names: Collection[str], size: int, at_once: int = 10):
        self.model, self.rows, self.size, self.at_once = model, rows, size, at_once
        self.hooks = list(hook_names)
        self.wanted = list(dict.fromkeys([*self.hooks, *map(residual_hook, self.hooks)]))
        first = rows.batch()[:64]
        self.limits = {hook: norm_limit(model, first, hook) for hook in dict.fromkeys(map(residual_hook, self.hooks))}

    def __call__(self, number: int) -> dict[str, Float[Tensor, "size d_in"]]:
        parts: dict[str, list[Tensor]] = {hook: [] for hook in self.hooks}
        for tokens in self.rows(number).split(self.at_once):
            caught = {
                hook: x[:, 1:].flatten(0, 1) for hook, x in activations_at(self.model, tokens, self.wanted).items()
            }
            massive = {hook: is_massive(caught[hook].norm(dim=-1), limit) for hook, limit in self.limits.items()}
            for hook in self.hooks:
                parts[hook].append(as_float16(caught[hook][~massive[residual_hook(hook)]]))
        whole = {hook: torch.cat(values)[: self.size] for hook, values in parts.items()}
        if (fewest := min(map(len, whole.values()))) < self.size:
            raise ValueError(f"chunk {number} keeps {fewest} tokens of {self.size}; read more rows")
        return whole
