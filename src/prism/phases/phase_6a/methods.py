"""What steering aims at, how one pass measures it, and requests to a chat model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from prism.data import TokenBatch, token_text, whole_characters
from prism.evaluation import Predictions
from prism.features import FeatureMatrix, encode_activations
from prism.interventions import Change
from prism.models import kept_activations, massive_norm, ordinary, residual_hook


@dataclass(frozen=True)
class Target:
    """Something that a text has or has not, whatever an SAE may say of it.

    Attributes:
        tokens: pattern in the tokens with which it begins, as `data.token_text` writes them.
        text: pattern in a text that has it.
        instructions: what to tell a model that should write it.
    """

    tokens: str
    text: str
    instructions: tuple[str, ...]

    def among(self, tokenizer, d_vocab: int) -> Bool[Tensor, " d_vocab"]:
        """Which tokens of the vocabulary begin it."""
        n = min(len(tokenizer), d_vocab)
        found = [bool(re.search(self.tokens, token_text(tokenizer, i))) for i in range(n)]
        return torch.tensor(found + [False] * (d_vocab - n))

    def share(self, texts: Sequence[str]) -> float:
        """Share of the texts that have it."""
        return sum(bool(re.search(self.text, text)) for text in texts) / len(texts)


PICTURE = "[\U0001f000-\U0001faff\u2600-\u27bf]"
TARGETS = {  # most emoji begin with the byte F0; ☕ and ❤ begin with E2: `tokens` leaves them out, `text` counts them
    "emoji": Target(
        f"‹F09F|<0xF0>|‹F0›|{PICTURE}",
        PICTURE,
        (
            "Use emoji.",
            "Begin with an emoji.",
            "Use emojis.",
            "Use emoji like 😂, 🎉 and 🔥.",
            "Use emojis like 😂, 🎉 and 🔥.",
            "Write it as a tweet full of emojis.",
        ),
    ),
    "digits": Target(r"^[^‹<]*\d", r"\d", ("Use numbers.",)),
    "question marks": Target(r"\?", r"\?", ("Ask a question.",)),
    "quotation marks": Target('"', '"', ("Quote somebody.",)),
}


def in_pieces(tokenizer, d_vocab: int) -> Bool[Tensor, " d_vocab"]:
    """Which tokens of the vocabulary hold a part of a character, and not the whole of one."""
    return Target("‹|<0x", "", ()).among(tokenizer, d_vocab)


class Meter:
    """What a model expects at some places of some texts, as it is and with one hook's activations changed.

    Args:
        batch: the texts; a change is made at the kept positions.
        wanted: the tokens aimed at.
        counted: which predictions count, of position `p + 1` from position `p`; None: those between kept tokens.
    """

    def __init__(
        self,
        model,
        hook_name: str,
        batch: TokenBatch,
        wanted: Bool[Tensor, " d_vocab"],
        counted: Bool[Tensor, "batch pos-1"] | None = None,
    ):
        self.seen, self.hook_name, self.keep = Predictions(model, batch.tokens, [hook_name]), hook_name, batch.keep
        self.counted = batch.keep[:, :-1] & batch.keep[:, 1:] if counted is None else counted
        self.next, self.wanted = batch.tokens[:, 1:][self.counted], wanted.nonzero()[:, 0]
        self.clean = self._read(self.seen.clean)

    @torch.no_grad()
    def __call__(self, change: Change) -> pd.DataFrame:
        """One row a text: the `share` of probability on the wanted tokens, and the `cost`, in nats a token.

        The cost is how much worse than unchanged the model predicts what stands there.
        """
        read = self._read(self.seen.changed(self.hook_name, self.keep, change))
        return pd.DataFrame({"share": read["share"], "cost": read["nats"] - self.clean["nats"]})

    @torch.no_grad()
    def _read(self, states: Tensor) -> pd.DataFrame:
        """Share and nats of each text, averaged over its places; texts without a place are left out."""
        states, parts = states[:, :-1][self.counted], []
        for rows in self.seen.parts(len(states)):
            logits = self.seen.logits(states[rows]).cpu()
            total = logits.logsumexp(-1)
            share = (logits[:, self.wanted] - total[:, None]).exp().sum(1)
            parts.append(torch.stack([share, total - logits.gather(1, self.next[rows, None])[:, 0]], dim=1))
        read = pd.DataFrame(torch.cat(parts).numpy(), columns=["share", "nats"])
        return read.groupby(self.counted.nonzero()[:, 0].numpy()).mean()


def read(
    model, sae, batch: TokenBatch, table: pd.DataFrame
) -> tuple[Float[Tensor, "tokens d_in"], FeatureMatrix, Bool[np.ndarray, " tokens"]]:
    """The activations of kept tokens, their features, and which of them are ordinary, not massive."""
    hook_name = sae.cfg.metadata.hook_name
    told = massive_norm(sae) is None or hook_name == residual_hook(hook_name)  # by the activations themselves
    kept = None if told else ordinary(model, sae, batch).keep[batch.keep].numpy()
    x = kept_activations(model, hook_name, batch)
    matrix = encode_activations(sae, [x], table, kept)
    massive = matrix.table["massive"] if "massive" in matrix.table else np.zeros(len(table), bool)
    return x, matrix, ~np.asarray(massive)


def openings(batch: TokenBatch, n_texts: int, n_tokens: int) -> TokenBatch:
    """The first tokens of the first texts that are long enough, BOS in front.

    Raises:
        ValueError: no text is.
    """
    rows = batch.tokens[batch.keep[:, 1 : n_tokens + 1].sum(1) == n_tokens][:n_texts, : n_tokens + 1]
    if not len(rows):
        raise ValueError(f"no text has {n_tokens} tokens; ask for fewer")
    return all_but_bos(rows)


def last_of(tokens: Int[Tensor, "batch pos"], n: int) -> Bool[Tensor, "batch pos-1"]:
    """The predictions of each sequence's last `n` tokens, for a `Meter` to count."""
    return (torch.arange(tokens.shape[1] - 1) >= tokens.shape[1] - 1 - n).expand(len(tokens), -1)


def all_but_bos(tokens: Int[Tensor, "batch pos"]) -> TokenBatch:
    """Sequences of equal length as a batch that keeps every position but the first."""
    return TokenBatch(tokens, torch.arange(tokens.shape[1]).expand(tokens.shape) > 0)


def requests(
    tokenizer, topics: Sequence[str], *additions: str, ask: str = "Write a few sentences about {}."
) -> list[Int[Tensor, "topics pos"]]:
    """A request about each topic, plain and with each addition, in the model's chat template if it has one.

    Topics whose requests would need padding are left out.

    Returns:
        The tokens of the plain requests, and of those with each addition.
    """
    said = [[_encoded(tokenizer, " ".join([ask.format(t), *more])) for t in topics] for more in ((), *zip(additions))]
    lengths = [tuple(map(len, one)) for one in zip(*said, strict=True)]
    common = Counter(lengths).most_common(1)[0][0]
    return [torch.tensor([one for one, found in zip(row, lengths, strict=True) if found == common]) for row in said]


def _encoded(tokenizer, request: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        said = [{"role": "user", "content": request}]
        text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *tokenizer(request + "\n", add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def likeliest(model, tokens: Int[Tensor, "batch pos"], n: int, cache: bool) -> Int[Tensor, "batch n"]:
    """The likeliest next tokens of each request, one after the other, under whatever hooks the model has.

    With a KV cache each pass after the first runs the newest token alone; without one, all tokens so far.
    """
    past: dict = {}
    for _ in range(n):
        step = tokens[:, -1:] if past else tokens
        logits, kept = model(step, return_type="logits_and_cache", use_cache=cache, **past)
        past = {"past_key_values": kept} if cache else {}
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True).cpu()], dim=1)
    return tokens[:, -n:]


def texts_of(tokenizer, tokens: Int[Tensor, "batch new"]) -> list[str]:
    """What was written, each up to the end of its turn or text."""
    ends, texts = set(tokenizer.all_special_ids), []
    for row in tokens.tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        texts.append("".join(piece for piece, _ in whole_characters([token_text(tokenizer, i) for i in row[:stop]])))
    return texts


def words(text: str) -> list[str]:
    """The words of a text, of two letters or more."""
    return re.findall(r"[^\W\d_]{2,}", text)


def sign_test(gap: Float[np.ndarray, " pairs"]) -> tuple[int, int, float]:
    """Pairs above 0, pairs below, and the exact two-sided p of that many among those that differ (ties say nothing).

    >>> sign_test(np.array([-0.5, -0.5, -0.5, -0.5, 0, 0]))
    (0, 4, 0.125)
    """
    ahead, behind = int((gap > 0).sum()), int((gap < 0).sum())
    return ahead, behind, float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def by_luck(tried: int, directions: int, ahead: int = 0) -> float:
    """Chance that the best of `tried` features has at most `ahead` random directions before it, if all are alike.

    All orders are then equally likely, and it has more before it only where the first `ahead + 1` are all random.

    >>> [round(p, 6) for p in (by_luck(1, 19), by_luck(5, 95), by_luck(1, 19, ahead=1))]
    [0.05, 0.05, 0.1]
    """
    return 1 - comb(directions, ahead + 1) / comb(directions + tried, ahead + 1)
