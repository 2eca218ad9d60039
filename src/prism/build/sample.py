"""The embedded corpus: about a million tokens sampled from `mini` itself, from openings written for this project."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from prism.build.corpus import MIXTURE
from prism.build.openings import OPENINGS
from prism.files import replacing
from prism.stopping import deaf, ending_children

TEMPERATURE = 0.9  # of the softmax; no top-k or top-p cut


def sample_corpus(model, tokenizer, out: Path, n_tokens: int) -> pd.DataFrame:
    """Sample documents of every kind, in the proportions of the training mixture, and write them as Parquet.

    Each kind is one job of a process with one thread, as many at a time as there are cores: the result does not
    depend on their number.

    Args:
        model: a GPT-2 language model; tokenizer: its Hugging Face tokenizer.

    Returns:
        One row a document: kind, opening, temperature, seed, text, tokens (ids without BOS).
    """
    workers = min(os.cpu_count() or 1, len(OPENINGS))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool, ending_children():
        with deaf():
            jobs = [
                pool.submit(sample_kind, model, tokenizer, kind, n_tokens * MIXTURE[kind], 10_000 * k)
                for k, kind in enumerate(OPENINGS)
            ]
        for _ in tqdm(as_completed(jobs), total=len(jobs), unit="kind", desc="sample"):
            pass
    rows = [row for job in jobs for row in job.result()]
    frame = pd.DataFrame(rows, columns=["kind", "opening", "temperature", "seed", "text", "tokens"])
    keep(frame, out)
    return frame


def keep(frame: pd.DataFrame, path: Path) -> None:
    """Write a corpus, or a part of one, as Parquet."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", compression_level=19, index=False)


@torch.no_grad()
def sample_kind(model, tokenizer, kind: str, n_tokens: float, seed: int) -> list[tuple]:
    """Documents of one kind, opening after opening, until they hold `n_tokens` in all."""
    openings, rows, i, total = OPENINGS[kind]["mini"], [], 0, 0
    share = int(n_tokens / len(openings) / 150)  # documents a pass, at about 150 tokens each
    while total < n_tokens:
        opening = openings[i % len(openings)]
        for ids in _sample(model, tokenizer, opening, min(64, max(1, share)), seed + i):
            rows.append((kind, opening, TEMPERATURE, seed + i, tokenizer.decode(ids), ids))
            total += len(ids)
        i += 1
    return rows


def _sample(model, tokenizer, opening: str, n: int, seed: int) -> list[list[int]]:
    """Token ids of n documents that begin with one opening, up to the model's end token or its context."""
    torch.manual_seed(seed)
    end = tokenizer.bos_token_id
    prompt = [end, *tokenizer(opening, add_special_tokens=False)["input_ids"]]
    ids = model.generate(
        torch.tensor([prompt] * n),
        attention_mask=torch.ones(n, len(prompt), dtype=torch.long),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_length=model.config.n_positions,
        pad_token_id=end,
        eos_token_id=end,
    )
    return [row[: row.index(end)] if end in row else row for row in ids[:, 1:].tolist()]
