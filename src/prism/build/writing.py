"""The corpus that `smollm2` wrote: a sampling loop with a cache that never moves, and what is left out of its yield."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from prism.build.openings import OPENINGS, beginnings
from prism.build.sample import keep

TEMPERATURE, TOP_P, TOP_K = 0.8, 0.9, 200  # of the softmax; then what is left of its mass; and at most so many tokens
CHATS = 0.6  # share of the documents that answer a request
LOOP = 0.7  # a document with a smaller share of different 4-grams goes round in circles
ALIKE = 0.3  # share of 4-grams that two documents of a kind may have in common, of those in either
SHORTEST = 24  # tokens that the model has to have written


class Writer:
    """Samples many documents at once from a Llama-like model of transformers.

    Keys and values lie in one block of memory that is made once; the heads that share them read it in place. (The
    library's own loop copies its cache, or repeats it for each head, at every token.)

    Args:
        model: `LlamaForCausalLM`, for inference.
        rows: documents at once; context: tokens in a document, BOS included.
    """

    def __init__(self, model, rows: int, context: int):
        self.model, self.head, self.context, config = model.model, model.lm_head, context, model.config
        d_head = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, context, d_head)
        self.keys, self.values = (torch.zeros(shape, dtype=self.head.weight.dtype) for _ in range(2))

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[int]], stop: Sequence[int], generator: torch.Generator | None
    ) -> list[list[int]]:
        """Each prompt and what the model writes after it, up to one of the `stop` tokens (kept) or the context."""
        documents, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
        for position in range(self.context - 1):
            ids = torch.tensor([row[position] if position < len(row) else stop[0] for row in documents])
            chosen = sample(self._step(ids, position), generator).tolist()
            for i, row in enumerate(documents):
                if not done[i] and len(row) == position + 1:
                    row.append(chosen[i])
                    done[i] = chosen[i] in stop
            if all(done):
                break
        return documents

    def _step(self, ids: Int[Tensor, "rows"], position: int) -> Float[Tensor, "rows d_vocab"]:
        """Logits after one more token in every row."""
        rows, x = len(ids), self.model.embed_tokens(ids[:, None])
        turned = self.model.rotary_emb(x, torch.tensor([[position]]))
        for layer, keys, values in zip(self.model.layers, self.keys[:, :rows], self.values[:, :rows], strict=True):
            attn, h, d_head = layer.self_attn, layer.input_layernorm(x), keys.shape[-1]
            q, k, v = (part(h).view(rows, -1, 1, d_head) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
            q, k = apply_rotary_pos_emb(q, k, *turned)
            keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
            q = q.reshape(rows, keys.shape[1], -1, d_head)  # the queries of each pair of keys and values
            weight = (q @ keys[:, :, : position + 1].transpose(-1, -2) * d_head**-0.5).softmax(-1)
            x = x + attn.o_proj((weight @ values[:, :, : position + 1]).reshape(rows, 1, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.head(self.model.norm(x))[:, 0].float()


def sample(logits: Float[Tensor, "rows d_vocab"], generator: torch.Generator | None) -> Int[Tensor, "rows"]:
    """A token for each row, from the smallest set that holds `TOP_P` of the mass (Holtzman et al. 2020)."""
    best, ids = (logits / TEMPERATURE).topk(min(TOP_K, logits.shape[1]), dim=-1)
    p = (best - (logits / TEMPERATURE).logsumexp(-1, keepdim=True)).exp()
    p = p.masked_fill(p.cumsum(-1) - p >= TOP_P, 0.0)  # what lies before a token holds enough already
    return ids.gather(-1, p.multinomial(1, generator=generator))[:, 0]


def prompts(kind: str, tokenizer, n: int, rng: np.random.Generator) -> list[tuple[str, list[int]]]:
    """Opening and ids of `n` documents of a kind, BOS in front: first words, and requests in the chat template."""
    found = []
    for what, count in (("words", n - round(n * CHATS)), ("requests", round(n * CHATS))):
        choices = beginnings(kind, what)
        for text in rng.choice(choices, count, replace=count > len(choices)).tolist():
            asked = text if what == "words" else f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            found.append((text, [tokenizer.bos_token_id, *tokenizer(asked, add_special_tokens=False)["input_ids"]]))
    return found


def write_corpus(
    model, tokenizer, out: Path, work: Path, n_tokens: int = 520_000, rows: int = 297, seed: int = 0
) -> dict[str, int]:
    """Sample documents until `n_tokens` are left without loops and near-duplicates, and write them as Parquet.

    Of a kind of which more is dropped, more is sampled. What is sampled is kept in `work`, part by part: an interrupted
    run goes on from the last one. The file has one row a document: kind, opening, text, tokens (ids without BOS).

    Args:
        rows: documents at once.

    Returns:
        How many documents were sampled, were kept, and were dropped for which reason.
    """
    writer, stop, parts = Writer(model, rows + len(OPENINGS), 256), (tokenizer.bos_token_id, tokenizer.eos_token_id), []
    bar = tqdm(total=n_tokens, unit="tok", unit_scale=True, desc="tokens kept")
    each = dict.fromkeys(OPENINGS, rows // len(OPENINGS))
    while bar.n < n_tokens:
        path = work / f"part-{len(parts):03}.parquet"
        if not path.is_file():
            _write_part(writer, tokenizer, path, each, stop, (seed, len(parts)))
        parts.append(pd.read_parquet(path))
        everything = pd.concat(parts, ignore_index=True)
        kept, dropped = weed(everything, stop[0])
        lengths = kept["tokens"].map(len)
        bar.update(int(lengths.sum()) - bar.n)
        each = shares(everything["kind"].value_counts(), lengths.groupby(kept["kind"]).sum(), rows)
    bar.close()
    kept["text"] = [tokenizer.decode(ids) for ids in kept["tokens"]]
    keep(kept[["kind", "opening", "text", "tokens"]], out)
    return {"sampled": len(everything), "kept": len(kept)} | dropped


def shares(sampled: pd.Series, kept: pd.Series, rows: int) -> dict[str, int]:
    """Documents of each kind to sample next, about `rows` in all and one at least, so that kept tokens draw level.

    Args:
        sampled: documents so far, by kind; kept: tokens that were left of them.
    """
    have = kept.reindex(list(OPENINGS), fill_value=0) + 1.0
    missing = have.max() - have + have.mean()  # what would make them level, a part from now
    wanted = missing / (have / sampled.reindex(list(OPENINGS))).clip(lower=10)  # tokens that a document leaves
    return (wanted / wanted.sum() * rows).astype(int).clip(lower=1).to_dict()


def _write_part(
    writer: Writer, tokenizer, path: Path, each: dict[str, int], stop: tuple[int, int], seed: tuple[int, int]
) -> None:
    """Sample one part, so many documents of each kind: a pure function of these and the seed."""
    rng = np.random.default_rng(seed)
    asked = [(kind, *one) for kind, count in each.items() for one in prompts(kind, tokenizer, count, rng)]
    written = writer([ids for *_, ids in asked], stop, torch.Generator().manual_seed(int(rng.integers(2**60))))
    rows = [
        (kind, opening, len(ids) - 1, document[1:])
        for (kind, opening, ids), document in zip(asked, written, strict=True)
    ]
    keep(pd.DataFrame(rows, columns=["kind", "opening", "given", "tokens"]), path)


def weed(frame: pd.DataFrame, end: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The documents that are long enough, go round in no circle and are nobody's near copy; and how many fell for what.

    Args:
        end: the token that ends a document; it is taken off.
    """
    dropped, kept, seen = {"short": 0, "loop": 0, "near-duplicate": 0}, [], {}
    for row in frame.itertuples():
        ids = [int(i) for i in row.tokens if i != end]
        written = ids[row.given :]
        grams = [tuple(written[i : i + 4]) for i in range(len(written) - 3)]
        mine, others = set(grams), seen.setdefault(row.kind, [])
        if len(written) < SHORTEST:
            dropped["short"] += 1
        elif len(mine) < LOOP * len(grams):
            dropped["loop"] += 1
        elif any(len(mine & other) > ALIKE * len(mine | other) for other in others):
            dropped["near-duplicate"] += 1
        else:
            others.append(mine)
            kept.append((row.kind, row.opening, ids))
    return pd.DataFrame(kept, columns=["kind", "opening", "tokens"]), dropped
