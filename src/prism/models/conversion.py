"""A language model in a GGUF file, as llama.cpp keeps it, turned into a folder in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFReader
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prism.device import as_float16

CONTROL = 3  # a GGUF file's type of token that never comes of text


def convert_gguf(gguf: Path, out: Path, bos: str) -> None:
    """Write configuration, tokenizer and weights, in float16 where they fit, to a new folder.

    Args:
        bos: the token that goes in front of every text, whatever the file says.

    Raises:
        ValueError: a tokenizer of an unknown kind.
        OSError: the disk is full or cannot be written.
    """
    out.mkdir()
    tokenizer = gguf_tokenizer(gguf, bos)
    tokenizer.save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    config = model.config
    del config.quantization_config  # what is written is not quantised
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {name: as_float16(value) for name, value in model.state_dict().items() if name not in tied}
    fit = all(value.dtype == torch.float16 for value in weights.values())
    config.dtype, config.bos_token_id = torch.float16 if fit else torch.float32, tokenizer.bos_token_id
    config.save_pretrained(out)
    try:
        save_file(weights, out / "model.safetensors", {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    (out / "model.safetensors").chmod(0o644)  # as the other files: safetensors keeps it to its owner


def gguf_tokenizer(gguf: Path, bos: str) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer that a GGUF file describes, with one digit a token.

    transformers' own reading of such a file knows one way to cut text into words, GPT-2's; the file names its own under
    `tokenizer.ggml.pre`, and `smollm` cuts digits one by one first.

    Args:
        bos: the token for the beginning of a text, whatever the file says.

    Raises:
        ValueError: a tokenizer of another kind.
    """
    fields = GGUFReader(gguf).fields

    def value(key: str):
        return fields[f"tokenizer.{key}"].contents() if f"tokenizer.{key}" in fields else None

    kind, cut = value("ggml.model"), value("ggml.pre")
    if (kind, cut) != ("gpt2", "smollm"):
        raise ValueError(f"its tokenizer is of the kind {kind}/{cut}; known is gpt2/smollm (byte-level BPE)")
    tokens, merges = value("ggml.tokens"), [tuple(line.split(" ")) for line in value("ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([digits, words]), decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, value("ggml.token_type"), strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=tokens[value("ggml.eos_token_id")],
        pad_token=tokens[value("ggml.padding_token_id")],
        unk_token=bos,
        chat_template=value("chat_template"),
        model_max_length=int(fields["llama.context_length"].contents()),
        clean_up_tokenization_spaces=False,
    )
