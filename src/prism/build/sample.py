"""The embedded corpus: about a million tokens sampled from `mini` itself, from openings written for this project."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from prism.build.corpus import MIXTURE
from prism.files import replacing
from prism.stopping import deaf, ending_children

TEMPERATURE = 0.9  # of the softmax; no top-k or top-p cut

# A few first words for each kind; the model writes the rest. None ends in a space: tokens carry it in front.
OPENINGS: dict[str, tuple[str, ...]] = {
    "python": (
        "import",
        "from",
        "def",
        "class",
        '"""',
        "#",
        "@",
        "if __name__",
        "for i in range(",
        "    def test_",
    ),
    "web": (
        "<!DOCTYPE html>\n",
        "<div class=",
        "GET /",
        "HTTP/1.1",
        "https://",
        "* [",
        ".menu {",
        "const",
        "<p>",
        "curl",
    ),
    "math": (
        "\\begin{lemma}\n",
        "Let $X$ be",
        "Question: A farmer has",
        "\\section{",
        "Proof.",
        "We have $",
        "The equation",
        "Question: There are",
        "Suppose that $f",
        "Example",
    ),
    "nonenglish": (
        "Il était",
        "C'est",
        "El",
        "La casa",
        "Der",
        "Es war",
        "Он",
        "В",
        "Il",
        "Era una",
        "O",
        "Não",
        "今",
        "他",
        "彼は",
        "それは",
        "في",
        "هذا",
        "영화",
        "이",
    ),
    "social": ("I", "@user", "This is", "Happy", "LOL", "So", "My", "When you", "Thank", "#"),
    "formal": (
        "Section",
        "The Council",
        "This paper",
        "Abstract",
        "Notwithstanding",
        "For the purposes of",
        "The Mayor shall",
        "Rationale\n",
        "We propose",
        "(a)",
    ),
    "conversational": (
        "User: Hi",
        "User: I need",
        "User: Can you",
        "A:",
        "Assistant:",
        "User: What",
        "Do you like",
        "Hello,",
        "User: I would like",
        "Well,",
    ),
    "stories": (
        "Once upon a time",
        "One day",
        "The old man",
        "She",
        "“",
        "Tom and",
        "It was a",
        "He",
        "There was",
        "In the",
    ),
    "encyclopedic": (
        "The",
        "Figure",
        "In 18",
        "Chapter Outline\n",
        "Introduction:",
        "During the",
        "A",
        "An economy",
        "Cells",
        "People",
    ),
}


def sample_corpus(model, tokenizer, out: Path, n_tokens: int) -> pd.DataFrame:
    """Sample documents of every kind, in the proportions of the training mixture, and write them as Parquet.

    Each kind is one job of a process with one thread, as many at a time as there are cores: the result does not
    depend on their number.

    Args:
        model: a GPT-2 language model; tokenizer: its Hugging Face tokenizer.

    Returns:
        One row a document: kind, opening, temperature, seed, text, tokens (ids without BOS).
    """
    bar = tqdm(total=n_tokens, unit="tok", unit_scale=True, desc="sample")
    workers = min(os.cpu_count() or 1, len(OPENINGS))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool, ending_children():
        begin = partial(pool.submit, sample_kind, model, tokenizer)
        with deaf():
            jobs = [begin(kind, n_tokens * MIXTURE[kind], 10_000 * k) for k, kind in enumerate(OPENINGS)]
        for job in jobs:
            job.add_done_callback(lambda job: job.exception() or bar.update(sum(len(row[-1]) for row in job.result())))
        rows = [row for job in jobs for row in job.result()]
    bar.close()
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
    openings, rows, i, total = OPENINGS[kind], [], 0, 0
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
    documents = []
    for row in ids[:, 1:].tolist():
        documents.append(row[: row.index(end)] if end in row else row)
    return documents
