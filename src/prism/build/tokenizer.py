"""The tokenizer of `mini`: byte-level BPE, as in GPT-2, trained on the mixture of all kinds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prism.build.corpus import END, MIXTURE, find_kinds, split_documents

VOCABULARY = 6_144  # 6144**5 < 2**64, so a 5-gram of the baseline fits one integer
SAMPLE_BYTES = 40_000_000
CONTEXT = 256


def sample_documents(corpus: Path, n_bytes: int, seed: int = 0) -> Iterator[str]:
    """Training documents of every kind, in the proportions of the mixture, about `n_bytes` in all."""
    rng = random.Random(seed)
    for kind, path in find_kinds(corpus).items():
        documents, _ = split_documents(path)
        rng.shuffle(documents)
        budget = n_bytes * MIXTURE[kind]
        for text in documents:
            if budget <= 0:
                break
            budget -= len(text.encode())
            yield text


def train_tokenizer(corpus: Path, out: Path, vocabulary: int = VOCABULARY, n_bytes: int = SAMPLE_BYTES) -> Path:
    """Train the tokenizer and save it in Hugging Face format to the folder `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        limit_alphabet=256,
    )
    tokenizer.train_from_iterator(sample_documents(corpus, n_bytes), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    out.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(out)
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows as well
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return out / "tokenizer.json"
